"""From a trajectory and what was decided about it to its token stream, which is all that health reads."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from burnish.core.grade import Grade
from burnish.core.message import ImagePart, Role
from burnish.core.streams import ActionSpan, TokenStream
from burnish.core.trajectory import Node, Trajectory
from burnish.rollout.branches import FORK_DROPPED, FORK_NEW, FORK_REWRITTEN
from burnish.rollout.samples import trained_nodes

SUCCESS_AT = 1.0 - 1e-6
"""A score counts as success from here on; partial credit is not success."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What was decided about a trajectory; see `TokenStream` for the fields.

    `Judgement(advantage=0.5, reward=1.0, reward_parts={"shop": 1.0}, success=1.0)`
    """

    advantage: float | None = None
    reward: float | None = None
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    success: float | None = None
    progress: float | None = None

    @staticmethod
    def of(grades: Sequence[Grade], *, reward: float | None, advantage: float | None) -> Judgement:
        """From the grades of a trajectory.

        success: whether the first grader, the environment's own, gave full marks.  progress: what the first grade says
        that has it in its evidence.
        """
        parts = {grade.grader: grade.score for grade in grades if grade.score is not None}
        first = grades[0].score if grades else None
        told = (grade.evidence.get("progress") for grade in grades)
        known = [float(value) for value in told if isinstance(value, (int, float))]
        return Judgement(
            advantage=advantage,
            reward=reward,
            reward_parts=parts,
            success=None if first is None else float(first >= SUCCESS_AT),
            progress=known[0] if known else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerStreams:
    """What the learner computed for a trajectory: array('f') over its trained tokens in the order of
    `training_samples`, None where it did not.  `LearnerStreams(logprobs=array("f", [-0.69]))`"""

    logprobs: array[float]
    entropy: array[float] | None = None
    score_norm: array[float] | None = None
    proximal: array[float] | None = None
    reference: array[float] | None = None


class ControlTokens:
    """Which ids open or close a tool call or end a turn.

    >>> ControlTokens([2, 5]).mark(array("i", [5, 1, 2, 900]))
    array('b', [1, 0, 1, 0])
    """

    def __init__(self, ids: Collection[int]) -> None:
        # The last entry stands for every id beyond the largest marker.
        self._table = np.zeros(max(ids, default=-1) + 2, dtype=np.int8)
        self._table[list(ids)] = 1

    def mark(self, token_ids: array[int]) -> array[int]:
        """array('b'): 1 where the token is one of them."""
        return array("b", self._table.take(np.frombuffer(token_ids, dtype=np.intc), mode="clip").tobytes())


def source_of(tags: Mapping[str, str]) -> str:
    """Where a task comes from: its tag "source", else the level of its environment, else "".

    >>> source_of({"source": "refunds"}), source_of({"level": "2"}), source_of({})
    ('refunds', 'level 2', '')
    """
    if tags.get("source"):
        return tags["source"]
    return f"level {tags['level']}" if tags.get("level") else ""


def token_stream(
    trajectory: Trajectory,
    judgement: Judgement,
    *,
    step: int,
    version: int,
    control: ControlTokens,
    learner: LearnerStreams | None = None,
) -> TokenStream:
    """The stream of one trajectory of step `step`, whose learner was at `version`.

    learner: None where it was not trained on (filtered, failed).
    """
    behaviour, ids, versions = _sampled(trajectory)
    staleness = array("i", (version - np.frombuffer(versions, dtype=np.intc)).tobytes())
    spans, retries = action_spans(trajectory)
    tags = trajectory.tags
    scores = None if learner is None else _in_node_order(trajectory, learner)
    return TokenStream(
        id=trajectory.id,
        group_id=trajectory.group_id,
        step=step,
        behaviour=behaviour,
        spans=spans,
        learner=scores.logprobs if scores else None,
        proximal=scores.proximal if scores else None,
        reference=scores.reference if scores else None,
        entropy=scores.entropy if scores else None,
        score_norm=scores.score_norm if scores else None,
        control=control.mark(ids),
        staleness=staleness,
        advantage=judgement.advantage,
        reward=judgement.reward,
        reward_parts=judgement.reward_parts,
        source=source_of(tags),
        skill=tags.get("skill", ""),
        turns=len(spans),
        tool_calls=trajectory.counters.get("tool_calls", 0),
        tool_errors=trajectory.counters.get("tool_errors", 0),
        retries=retries,
        success=judgement.success,
        progress=judgement.progress,
        outcome=trajectory.outcome.label,
    )


def _sampled(trajectory: Trajectory) -> tuple[array[float], array[int], array[int]]:
    """Log-probabilities, ids and versions of the sampled tokens, in the order of the nodes."""
    logprobs, ids, versions = array("f"), array("i"), array("i")
    for node in trajectory.nodes:
        if not node.is_action:
            continue
        if 0 not in node.action_mask:
            logprobs.extend(node.logprobs)
            ids.extend(node.token_ids)
            versions.extend(node.versions)
            continue
        for place, sampled in enumerate(node.action_mask):
            if sampled:
                logprobs.append(node.logprobs[place])
                ids.append(node.token_ids[place])
                versions.append(node.versions[place])
    return logprobs, ids, versions


class _Context(NamedTuple):
    """What stands before a place in the conversation; tool, failed: of the observation right before."""

    tool: str = ""
    failed: tuple[str, ...] = ()
    after_tool: bool = False
    after_image: bool = False
    after_compaction: bool = False


_START = _Context()


def action_spans(trajectory: Trajectory) -> tuple[tuple[ActionSpan, ...], int]:
    """The actions as spans of the sampled tokens, and how many of their calls repeat a tool that had just failed."""
    contexts: list[_Context] = []
    spans: list[ActionSpan] = []
    start = retries = 0
    for node in trajectory.nodes:
        before = contexts[node.parent] if node.parent >= 0 else _at_root(node, contexts)
        if not node.is_action:
            contexts.append(_observed(node, before))
            continue
        mask = node.action_mask
        end = start + (len(mask) if 0 not in mask else sum(mask))
        tool, failed, after_tool, after_image, after_compaction = before
        spans.append(
            ActionSpan(
                start=start,
                end=end,
                turn=len(spans),
                tool=tool,
                after_tool=after_tool,
                after_error=bool(failed),
                after_image=after_image,
                after_compaction=after_compaction,
            )
        )
        if failed:
            retries += sum(call.name in failed for message in node.messages for call in message.tool_calls)
        start = end
        contexts.append(before if not tool else _Context("", (), after_tool, after_image, after_compaction))
    return tuple(spans), retries


def _at_root(node: Node, contexts: Sequence[_Context]) -> _Context:
    """A root that is a fork says again what came before it, unless it begins another conversation."""
    if not contexts or node.fork in ("", FORK_NEW):
        return _START
    last = contexts[-1]
    compacted = last.after_compaction or node.fork in (FORK_REWRITTEN, FORK_DROPPED)
    return _Context("", (), last.after_tool, last.after_image, compacted)


def _observed(node: Node, before: _Context) -> _Context:
    tool, has_image = "", before.after_image
    failed: tuple[str, ...] = ()
    for message in node.messages:
        if message.role is Role.TOOL:
            tool = message.name
            if message.is_error:
                failed = (*failed, message.name)
        for part in message.parts:
            has_image = has_image or isinstance(part, ImagePart)
    if not tool and has_image == before.after_image and not before.tool:
        return before
    return _Context(tool, failed, before.after_tool or tool != "", has_image, before.after_compaction)


def _is_straight(trajectory: Trajectory) -> bool:
    """Whether every node continues the one before it, so that samples are in the order of the nodes."""
    place = -1
    for node in trajectory.nodes:
        if node.parent != place:
            return False
        place += 1
    return True


def _in_node_order(trajectory: Trajectory, learner: LearnerStreams) -> LearnerStreams:
    """The streams over the trained tokens, from the order of the samples to that of the nodes."""
    if _is_straight(trajectory):
        return learner
    order = trained_nodes(trajectory)
    sizes = {index: sum(trajectory.nodes[index].action_mask) for index in order}
    ends = dict(zip(order, accumulate(sizes[index] for index in order), strict=True))

    def ordered(values: array[float]) -> array[float]:
        joined = array("f")
        for index in sorted(order):
            joined.extend(values[ends[index] - sizes[index] : ends[index]])
        return joined

    return LearnerStreams(
        logprobs=ordered(learner.logprobs),
        entropy=learner.entropy and ordered(learner.entropy),
        score_norm=learner.score_norm and ordered(learner.score_norm),
        proximal=learner.proximal and ordered(learner.proximal),
        reference=learner.reference and ordered(learner.reference),
    )


def in_trained_order(trajectory: Trajectory, values_N: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values over the sampled tokens, from the order of the nodes to that of `training_samples`."""
    actions = [index for index, node in enumerate(trajectory.nodes) if node.is_action]
    order = trained_nodes(trajectory)
    if order == actions:
        return values_N
    ends = np.cumsum([sum(trajectory.nodes[index].action_mask) for index in actions])
    parts = dict(zip(actions, np.split(values_N, ends[:-1]), strict=True))
    return np.concatenate([parts[index] for index in order])
