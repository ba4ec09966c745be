"""Where a program's conversation belongs in its episode's graph: merged on an exact prefix, or a named fork."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from burnish.core.message import Message, Role, TextPart
from burnish.core.tool import ToolSpec
from burnish.rollout.episode import spoken

FORK_NEW = "new_conversation"
FORK_REWRITTEN = "history_rewritten"
FORK_DROPPED = "history_dropped"
FORK_THINKING = "thinking_dropped"
FORK_TOOLS = "tools_changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """A node at which a conversation stands: every token up to there is exact.

    messages: the conversation as the policy knows it.  keys: the same as the program knows it, see `message_key`.
    root: the node that its path begins with; opening: what was rendered there.  is_cut: the action there ended without
    a stop id.  ended_s: when it was done, from the start of the episode.
    """

    node: int
    root: int
    opening: tuple[Message, ...]
    messages: tuple[Message, ...]
    keys: tuple[bytes, ...]
    tools: tuple[ToolSpec, ...]
    is_action: bool
    is_cut: bool = False
    ended_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Where a conversation belongs.

    spot and fork "": it stands there already (all its messages are known), or continues there with the messages from
    `known` on.  fork: nothing continues it exactly; `fresh` are the indices of the messages that the graph does not
    hold yet.  No spot, no fork: it is the first.
    """

    spot: Spot | None = None
    known: int = 0
    fork: str = ""
    fresh: tuple[int, ...] = ()


def message_key(message: Message) -> bytes:
    """What makes two messages the same: who speaks, the text, the calls with the ids that the program knows.

    Whitespace around the policy's words is no difference, nor is the layout of a call's arguments: programs strip and
    write them anew, and what the policy is shown of its past are its own tokens in any case.

    >>> message_key(Message.assistant(" 4\\n")) == message_key(Message.assistant("4"))
    True
    """
    content: list[Any] = [message.role.value, message.text]
    if message.role is Role.ASSISTANT:
        calls = [[call.id, call.name, dict(call.arguments)] for call in message.tool_calls]
        content = [message.role.value, message.text.strip(), calls]
    elif message.role is Role.TOOL:
        content.append(message.tool_call_id)
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).digest()


def path_digests(keys: Sequence[bytes]) -> list[bytes]:
    """One digest for each prefix of a conversation, the empty one first."""
    return list(
        accumulate(keys, lambda digest, key: hashlib.blake2b(digest + key, digest_size=16).digest(), initial=b"")
    )


class Branches:
    """Every spot of one episode's graph, found by the conversation that leads to it."""

    def __init__(self) -> None:
        self._spots: dict[bytes, list[Spot]] = {}
        self._said: dict[bytes, Spot] = {}
        self._spoken: dict[bytes, Spot] = {}

    def add(self, spot: Spot, said: Message | None = None) -> None:
        """Remember a spot; said: the policy's message that ends there, as the program was given it."""
        self._spots.setdefault(path_digests(spot.keys)[-1], []).append(spot)
        if said is None:
            return
        self._said[spot.keys[-1]] = spot
        without = spoken(said.text)
        if without != said.text:
            parts = (TextPart(text=without),) if without else ()
            self._spoken[message_key(replace(said, parts=parts))] = spot

    def find(
        self,
        messages: Sequence[Message],
        keys: Sequence[bytes],
        *,
        same_tools: Callable[[Spot], bool],
    ) -> Match:
        """The longest path that is an exact prefix of the conversation and can be continued there.

        same_tools: whether a spot's prompt is the same tokens with the tools that are offered now.
        """
        if not self._spots:
            return Match(fresh=tuple(range(len(messages))))
        digests = path_digests(keys)
        tools_changed: Match | None = None
        for known in range(len(messages), 0, -1):
            for spot in reversed(self._spots.get(digests[known], ())):
                if not spot.is_action and known < len(messages):
                    continue
                if same_tools(spot):
                    return Match(spot=spot, known=known)
                fresh = tuple(range(known, len(messages)))
                tools_changed = tools_changed or Match(fork=FORK_TOOLS, fresh=fresh)
            if messages[known - 1].role is Role.ASSISTANT:
                break
        return tools_changed or self._fork(messages, keys)

    def _fork(self, messages: Sequence[Message], keys: Sequence[bytes]) -> Match:
        """Why nothing continues the conversation, and what of it is new."""
        sources: Mapping[int, Spot] = {
            index: self._said.get(key) or self._spoken[key]
            for index, key in enumerate(keys)
            if key in self._said or key in self._spoken
        }
        if not sources:
            return Match(fork=FORK_NEW, fresh=tuple(range(len(messages))))
        last = max(sources)
        past = sources[last].keys
        held = set(past)
        new = [i for i in range(last) if i not in sources and keys[i] not in held]
        if any(keys[index] not in self._said for index in sources):
            fork = FORK_THINKING
        elif _is_subsequence(keys[: last + 1], past):
            fork = FORK_DROPPED
        else:
            fork = FORK_REWRITTEN
        return Match(fork=fork, fresh=(*new, *range(last + 1, len(messages))))


def _is_subsequence(keys: Sequence[bytes], past: Sequence[bytes]) -> bool:
    remaining = iter(past)
    return all(key in remaining for key in keys)
