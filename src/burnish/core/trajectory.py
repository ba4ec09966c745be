"""The frozen record of a finished episode: a message graph with exact tokens."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from burnish.core.images import ImageSpan
from burnish.core.kept import KeptSets
from burnish.core.message import Message
from burnish.core.outcome import Outcome
from burnish.core.pickling import quickly_pickled

NO_VERSION = -1


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One step of the graph; it holds only the tokens that it adds.

    parent: index of the node before it, -1 for a root.  messages: one assistant message for an action; one or more
    others for an observation.  token_ids: array('i') of T ids; action_mask: array('b'), 1 where the policy sampled the
    token; logprobs: array('f'), NaN where it did not; versions: array('i'), -1 where it did not.  kept: what top-k and
    top-p left of the vocabulary at each token, None where nothing was cut.  fork: why this node starts a new root (""
    for none).  images: which of its tokens show which image.  started_s is relative to the start of the episode.

    Example: an observation of 3 tokens has action_mask [0, 0, 0], logprobs [nan, nan, nan], versions [-1, -1, -1].
    """

    parent: int
    messages: tuple[Message, ...]
    token_ids: array[int]
    action_mask: array[int]
    logprobs: array[float]
    versions: array[int]
    is_action: bool
    kept: KeptSets | None = None
    fork: str = ""
    images: tuple[ImageSpan, ...] = ()
    started_s: float = 0.0
    duration_s: float = 0.0

    def __post_init__(self) -> None:
        lengths = [len(self.token_ids), len(self.action_mask), len(self.logprobs), len(self.versions)]
        if self.kept is not None:
            lengths.append(len(self.kept.counts))
        if lengths.count(lengths[0]) != len(lengths):
            raise ValueError(f"token streams of a node must be equally long, got lengths {sorted(set(lengths))}")


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """A finished episode.

    id: unique in the run, such as "rl/000012/0003/05" (phase/step/group/sample).  answer: text of the final turn.
    final_state: what the environment reported at the end, JSON-able.  counters: integers such as tool_calls,
    tool_errors, malformed_calls, forks, cut_results.  tool_s, total_s: wall seconds.  tags: the task's.
    """

    id: str
    task_id: str
    task_hash: str
    group_id: str
    sample_index: int
    seed: int
    nodes: tuple[Node, ...]
    outcome: Outcome
    answer: str = ""
    final_state: Mapping[str, Any] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    tool_s: float = 0.0
    total_s: float = 0.0

    @property
    def messages(self) -> tuple[Message, ...]:
        """Every message in the order it happened, each once (a fork repeats none)."""
        return tuple(message for node in self.nodes for message in node.messages)

    @property
    def action_tokens(self) -> int:
        """Number of sampled tokens."""
        return sum([node.action_mask.tobytes().count(1) for node in self.nodes])

    @property
    def is_token_exact(self) -> bool:
        """False where an action came without token ids (message-only endpoints); such a record is never trained on."""
        return all(len(node.token_ids) > 0 for node in self.nodes if node.is_action)

    def leaves(self) -> Iterator[int]:
        """Indices of the nodes that no other node extends."""
        parents = {node.parent for node in self.nodes}
        return (index for index in range(len(self.nodes)) if index not in parents)

    def path(self, leaf: int) -> tuple[int, ...]:
        """Node indices from the root to `leaf`; their tokens joined are the exact ids of that branch."""
        indices: list[int] = []
        while leaf >= 0:
            indices.append(leaf)
            leaf = self.nodes[leaf].parent
        return tuple(reversed(indices))
