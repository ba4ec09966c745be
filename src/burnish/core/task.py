"""Tasks: one problem each, immutable and content-hashed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from burnish.core.hashing import content_hash
from burnish.core.message import Part, TextPart
from burnish.core.pickling import quickly_pickled


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one episode may spend.  `Limits(max_turns=6, max_turn_tokens=64)`

    turns: policy actions.  turn tokens: sampled tokens of one action.  episode tokens: sampled tokens of all actions.
    context tokens: everything in the longest path.  timeout_s: wall seconds of the whole episode (0: none; a wall
    limit makes exact resume impossible).  tool result chars: longer results are cut with a marker.
    """

    max_turns: int = 8
    max_turn_tokens: int = 128
    max_episode_tokens: int = 1024
    max_context_tokens: int = 4096
    timeout_s: float = 0.0
    max_tool_result_chars: int = 8192
    max_malformed_calls: int = 3


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One problem.  `Task(prompt="What is 2 + 2?", reference={"answer": "4"})`

    prompt: text, or parts with images.  system: an optional system text.  setup: what the environment needs to
    build the world.  reference: hidden from the policy, read by graders and experts.  tags: strings such as
    source, skill, level, template, for slices.  tools: names of the tools offered, None for all.  id: given, or the
    content hash.  All mappings must be JSON-able.
    """

    prompt: str | tuple[Part, ...]
    system: str = ""
    setup: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    limits: Limits | None = None
    tools: tuple[str, ...] | None = None
    id: str = ""
    content_hash: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        content = (self.prompt, self.system, self.setup, self.reference, self.tags, self.limits, self.tools)
        object.__setattr__(self, "content_hash", content_hash(content))
        if not self.id:
            object.__setattr__(self, "id", self.content_hash)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The prompt as parts, whichever way it was given."""
        return (TextPart(text=self.prompt),) if isinstance(self.prompt, str) else self.prompt

    @property
    def prompt_text(self) -> str:
        """The text of the prompt, images left out."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


class Taskset(Protocol):
    """An ordered, hashable collection of tasks with splits.

    `tasks(split)` is deterministic; the usual splits are "train", "heldout" and "unseen" (wholly unseen templates).
    `chance` is the success that a policy without skill reaches, in [0, 1].
    """

    name: str
    chance: float

    @property
    def splits(self) -> Sequence[str]: ...

    def tasks(self, split: str) -> Sequence[Task]: ...
