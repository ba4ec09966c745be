"""Building the message graph of one episode: every token once, in the order it was shown or sampled."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Sequence

from burnish.core.errors import InvariantViolation
from burnish.core.message import Message
from burnish.core.sampling import Extension, Sample
from burnish.core.trajectory import NO_VERSION, Node

NAN = math.nan


class GraphBuilder:
    """Grows a trajectory's nodes and holds the exact ids of the path that is being extended.

    Prompt [1, 2], action [7], observation [3] gives nodes of 2, 1 and 1 tokens, each the parent of the next, and
    `prefix_ids() == array('i', [1, 2, 7, 3])`.  An extension that forks becomes a new root with the whole
    conversation rendered anew, none of it sampled; it is counted by reason in `forks`.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.messages: list[Message] = []
        self.forks: Counter[str] = Counter()
        self.sampled_tokens = 0
        self._prefix: array[int] = array("i")

    def prefix_ids(self) -> array[int]:
        """A copy of every token of the path so far: what the next action is sampled after."""
        return self._prefix[:]

    @property
    def path_tokens(self) -> int:
        """Number of tokens of the path so far."""
        return len(self._prefix)

    def add_prompt(
        self, messages: Sequence[Message], token_ids: array[int], *, started_s: float = 0.0, duration_s: float = 0.0
    ) -> None:
        """The first node: what the world shows before the first action."""
        if self.nodes:
            raise ValueError("a graph has one prompt; later messages are observations")
        self._observe(messages, token_ids, parent=-1, fork="", started_s=started_s, duration_s=duration_s)

    def add_action(self, message: Message, sample: Sample, *, started_s: float = 0.0, duration_s: float = 0.0) -> None:
        """What the policy sampled, as it was sampled.

        Raises InvariantViolation where the sample's streams are not aligned or a log-probability is not a finite
        number: training on such tokens would be silently wrong.
        """
        ids, logprobs, versions = sample.token_ids, sample.logprobs, sample.versions
        if not len(ids) == len(logprobs) == len(versions):
            raise InvariantViolation(
                "sample_alignment",
                f"the sampler gave {len(ids)} token ids, {len(logprobs)} log-probabilities, {len(versions)} versions",
            )
        if not all(map(math.isfinite, logprobs)):
            raise InvariantViolation("sample_logprobs", f"the sampler gave log-probabilities {list(logprobs)[:8]}")
        count = len(ids)
        node = Node(
            parent=len(self.nodes) - 1,
            messages=(message,),
            token_ids=array("i", ids),
            action_mask=array("b", [1]) * count,
            logprobs=array("f", logprobs),
            versions=array("i", versions),
            is_action=True,
            kept=sample.kept,
            started_s=started_s,
            duration_s=duration_s,
        )
        self._append(node)
        self.sampled_tokens += count

    def add_observation(
        self,
        messages: Sequence[Message],
        extension: Extension,
        *,
        started_s: float = 0.0,
        duration_s: float = 0.0,
    ) -> None:
        """What the world answered: appended to the exact prefix, or a named fork with the whole conversation."""
        if not self.nodes or not self.nodes[-1].is_action:
            raise ValueError("an observation follows an action")
        parent = len(self.nodes) - 1
        if extension.fork:
            self.forks[extension.fork] += 1
            self._prefix = array("i")
            parent = -1
        self._observe(
            messages,
            extension.token_ids,
            parent=parent,
            fork=extension.fork,
            started_s=started_s,
            duration_s=duration_s,
        )

    def _observe(
        self,
        messages: Sequence[Message],
        token_ids: array[int],
        *,
        parent: int,
        fork: str,
        started_s: float,
        duration_s: float,
    ) -> None:
        count = len(token_ids)
        node = Node(
            parent=parent,
            messages=tuple(messages),
            token_ids=array("i", token_ids),
            action_mask=array("b", [0]) * count,
            logprobs=array("f", [NAN]) * count,
            versions=array("i", [NO_VERSION]) * count,
            is_action=False,
            fork=fork,
            started_s=started_s,
            duration_s=duration_s,
        )
        self._append(node)

    def _append(self, node: Node) -> None:
        self.nodes.append(node)
        self.messages.extend(node.messages)
        self._prefix.extend(node.token_ids)
