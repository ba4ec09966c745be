"""Building the message graph of one episode: every token once, in the order it was shown or sampled."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from burnish.core.errors import InvariantViolation
from burnish.core.images import ImageSpan, joined_spans
from burnish.core.message import Message
from burnish.core.outcome import Outcome
from burnish.core.sampling import Extension, Finish, Sample
from burnish.core.trajectory import NO_VERSION, Node, Trajectory

if TYPE_CHECKING:
    from burnish.rollout.episode import EpisodePlan

NAN = math.nan


class GraphBuilder:
    """Grows a trajectory's nodes and holds the exact ids of the path that is being extended.

    Prompt [1, 2], action [7], observation [3] gives nodes of 2, 1 and 1 tokens, each the parent of the next, and
    `prefix_ids() == array('i', [1, 2, 7, 3])`.  An extension that forks becomes a new root with the whole
    conversation rendered anew, none of it sampled; it is counted by reason in `forks`.

    Every step goes after the node added last, unless `parent` names another: then the graph branches there, and the
    nodes above are shared.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.messages: list[Message] = []
        self.forks: Counter[str] = Counter()
        self.sampled_tokens = 0
        self._prefix: array[int] = array("i")
        self._images: tuple[ImageSpan, ...] = ()

    def prefix_ids(self, node: int | None = None) -> array[int]:
        """A copy of every token of the path that ends in `node` (None: in the node added last): what the next action
        is sampled after."""
        if node is None or node == len(self.nodes) - 1:
            return self._prefix[:]
        ids = array("i")
        for part in self._path(node):
            ids.extend(part.token_ids)
        return ids

    def prefix_images(self) -> tuple[ImageSpan, ...]:
        """Which tokens of the path that ends in the node added last show which image."""
        return self._images

    def _path(self, node: int) -> list[Node]:
        path = []
        while node >= 0:
            path.append(self.nodes[node])
            node = self.nodes[node].parent
        return path[::-1]

    @property
    def path_tokens(self) -> int:
        """Number of tokens of the path so far."""
        return len(self._prefix)

    def fork_counts(self) -> dict[str, int]:
        """The forks as counters of a trajectory: `{"forks": 1, "fork:template_drops_thinking": 1}`."""
        return {"forks": sum(self.forks.values())} | {f"fork:{name}": n for name, n in sorted(self.forks.items())}

    def record(
        self,
        plan: EpisodePlan,
        outcome: Outcome,
        counters: Mapping[str, int],
        *,
        answer: str = "",
        final_state: Mapping[str, Any] | None = None,
        tool_s: float = 0.0,
        total_s: float,
    ) -> Trajectory:
        """The finished episode of `plan`, with the nodes as they stand."""
        return Trajectory(
            id=plan.id,
            task_id=plan.task.id,
            task_hash=plan.task.content_hash,
            group_id=plan.group_id,
            sample_index=plan.sample_index,
            seed=plan.seed,
            nodes=tuple(self.nodes),
            outcome=outcome,
            answer=answer,
            final_state=final_state or {},
            counters=counters,
            tags=dict(plan.task.tags),
            tool_s=tool_s,
            total_s=total_s,
        )

    def add_prompt(
        self,
        messages: Sequence[Message],
        token_ids: array[int],
        *,
        images: tuple[ImageSpan, ...] = (),
        started_s: float = 0.0,
        duration_s: float = 0.0,
    ) -> None:
        """The first node: what the world shows before the first action."""
        if self.nodes:
            raise ValueError("a graph has one prompt; later messages are observations")
        extension = Extension(token_ids=token_ids, images=images)
        self._observe(messages, extension, parent=-1, started_s=started_s, duration_s=duration_s)

    def add_root(
        self,
        messages: Sequence[Message],
        token_ids: array[int],
        *,
        fork: str,
        images: tuple[ImageSpan, ...] = (),
        started_s: float = 0.0,
        duration_s: float = 0.0,
    ) -> None:
        """A conversation that continues none of the paths so far, as a fork with a name.

        messages: those of them that the graph does not hold yet; token_ids: the whole conversation.
        """
        if not fork:
            raise ValueError("a second root needs the name of its fork")
        self.forks[fork] += 1
        extension = Extension(token_ids=token_ids, fork=fork, images=images)
        self._observe(messages, extension, parent=-1, started_s=started_s, duration_s=duration_s)

    def add_action(
        self,
        message: Message,
        sample: Sample,
        *,
        parent: int | None = None,
        started_s: float = 0.0,
        duration_s: float = 0.0,
    ) -> None:
        """What the policy sampled, as it was sampled.

        Raises InvariantViolation where the sample's streams are not aligned or a log-probability is not a finite
        number: training on such tokens would be silently wrong.
        """
        ids, logprobs, versions = sample.token_ids, sample.logprobs, sample.versions
        if not len(ids) == len(logprobs) == len(versions):
            raise InvariantViolation(
                "sample_alignment",
                f"the sampler gave {len(ids)} token ids with {len(logprobs)} log-probabilities and "
                f"{len(versions)} versions",
            )
        if not all(map(math.isfinite, logprobs)):
            raise InvariantViolation("sample_logprobs", f"the sampler gave log-probabilities {list(logprobs)[:8]}")
        count = len(ids)
        node = Node(
            parent=self._parent(parent),
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
        parent: int | None = None,
        started_s: float = 0.0,
        duration_s: float = 0.0,
    ) -> None:
        """What the world answered: appended to the exact prefix, or a named fork with the whole conversation."""
        parent = self._parent(parent)
        if parent < 0 or not self.nodes[parent].is_action:
            raise ValueError("an observation follows an action")
        if extension.fork:
            self.add_root(
                messages,
                extension.token_ids,
                fork=extension.fork,
                images=extension.images,
                started_s=started_s,
                duration_s=duration_s,
            )
        else:
            self._observe(messages, extension, parent=parent, started_s=started_s, duration_s=duration_s)

    def _observe(
        self,
        messages: Sequence[Message],
        extension: Extension,
        *,
        parent: int,
        started_s: float,
        duration_s: float,
    ) -> None:
        count = len(extension.token_ids)
        node = Node(
            parent=parent,
            messages=tuple(messages),
            token_ids=array("i", extension.token_ids),
            action_mask=array("b", [0]) * count,
            logprobs=array("f", [NAN]) * count,
            versions=array("i", [NO_VERSION]) * count,
            is_action=False,
            fork=extension.fork,
            images=extension.images,
            started_s=started_s,
            duration_s=duration_s,
        )
        self._append(node)

    def _parent(self, given: int | None) -> int:
        last = len(self.nodes) - 1
        if given is None:
            return last
        if not 0 <= given <= last:
            raise ValueError(f"the parent of a node is one of the {last + 1} nodes so far, got {given}")
        return given

    def _append(self, node: Node) -> None:
        if node.parent < 0:
            self._prefix, self._images = array("i"), ()
        elif node.parent < len(self.nodes) - 1:
            self._prefix = self.prefix_ids(node.parent)
            self._images = joined_spans([(len(part.token_ids), part.images) for part in self._path(node.parent)])
        self._images += tuple(span.moved(len(self._prefix)) for span in node.images)
        self.nodes.append(node)
        self.messages.extend(node.messages)
        self._prefix.extend(node.token_ids)


def check_sample(sample: Sample, *, room: int, stop_ids: tuple[int, ...], episode: str) -> None:
    """What a sampler promises; where it does not hold, the tokens cannot be trained on.

    room: the tokens that were asked for.  Raises InvariantViolation for more than those, and for an action that
    stopped without one of `stop_ids` at its end.
    """
    count = len(sample.token_ids)
    if count > room:
        raise InvariantViolation("sample_length", f"{count} tokens for {episode}, asked for at most {room}")
    if count and stop_ids and sample.finish is Finish.STOP and sample.token_ids[-1] not in stop_ids:
        raise InvariantViolation(
            "sample_stop_id",
            f"a finished action of {episode} ends with id {sample.token_ids[-1]}, which is none of the stop "
            f"ids {stop_ids}; the stop id is part of the action",
        )
