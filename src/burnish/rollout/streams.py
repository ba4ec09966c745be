"""From a trajectory and what was decided about it to its token stream, which is all that health reads."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burnish.core.grade import Grade
from burnish.core.message import ImagePart, Role
from burnish.core.outcome import Outcome
from burnish.core.pickling import twin
from burnish.core.streams import (
    AFTER_COMPACTION,
    AFTER_ERROR,
    AFTER_IMAGE,
    AFTER_TOOL,
    ActionSpan,
    TokenColumns,
    TokenStream,
)
from burnish.core.trajectory import Node, Trajectory
from burnish.rollout.branches import FORK_DROPPED, FORK_NEW, FORK_REWRITTEN
from burnish.rollout.samples import trained_nodes

SUCCESS_AT = 1.0 - 1e-6
"""A score counts as success from here on; partial credit is not success."""

Singles = NDArray[np.float32]
Ints = NDArray[np.int64]

_JUDGED = ("advantage", "reward", "success", "progress", "reward_parts")
_SCALARS = attrgetter(*_JUDGED)
_OF_TRAJECTORY = attrgetter("id", "group_id", "tags", "counters", "outcome")
_TOOL = Role.TOOL

_Context = tuple[str, tuple[str, ...], int]
"""What stands before a place in the conversation: the tool and the failed tools of the observation right before, and
the bits of `ActionSpan` (the one for an error left out)."""

_NOTHING: tuple[str, ...] = ()
_AT_START: _Context = ("", _NOTHING, 0)


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
    """What the learner computed for some trajectories: float32 over all their trained tokens, one trajectory after
    another, each in the order of `training_samples`; None where it did not.

    `LearnerStreams(logprobs=np.array([-0.69], dtype=np.float32))`
    """

    logprobs: Singles
    entropy: Singles | None = None
    score_norm: Singles | None = None
    proximal: Singles | None = None
    reference: Singles | None = None


_OF_LEARNER = ("learner", "entropy", "score_norm", "proximal", "reference")
_LEARNER_STREAMS = attrgetter("logprobs", *_OF_LEARNER[1:])


class ControlTokens:
    """Which ids open or close a tool call or end a turn.

    >>> ControlTokens([2, 5]).mark(np.array([5, 1, 2, 900])).tolist()
    [1, 0, 1, 0]
    """

    def __init__(self, ids: Collection[int]) -> None:
        # The last entry stands for every id beyond the largest marker.
        self._table = np.zeros(max(ids, default=-1) + 2, dtype=np.int8)
        self._table[list(ids)] = 1

    def mark(self, token_ids: NDArray[np.integer]) -> NDArray[np.int8]:
        """1 where the token is one of them."""
        return self._table.take(token_ids, mode="clip")


def source_of(tags: Mapping[str, str]) -> str:
    """Where a task comes from: its tag "source", else the level of its environment, else "".

    >>> source_of({"source": "refunds"}), source_of({"level": "2"}), source_of({})
    ('refunds', 'level 2', '')
    """
    if tags.get("source"):
        return tags["source"]
    return f"level {tags['level']}" if tags.get("level") else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledColumns:
    """Columns of trajectories before a learner has scored their tokens; `scored` adds its streams.

    untrained: so many at the front are not trained on.  bent: rows whose samples may be in another order than their
    nodes.  first: where the tokens of each trajectory begin, and where those of the last one end.
    """

    columns: TokenColumns
    trajectories: Sequence[Trajectory]
    untrained: int
    bent: Sequence[int]
    first: Ints

    def scored(self, learner: LearnerStreams) -> TokenColumns:
        """With the learner's streams of those that are trained on; raises ValueError where they do not fit."""
        scored, rows = _in_node_order(self, learner), len(self.trajectories)
        has = dict.fromkeys(scored, bytes(self.untrained) + b"\1" * (rows - self.untrained))
        # nothing that the columns were checked for has changed
        return twin(self.columns, streams={**self.columns.streams, **scored}, has={**self.columns.has, **has})


def sampled_columns(
    trajectories: Sequence[Trajectory],
    judgements: Sequence[Judgement],
    *,
    step: int,
    version: int,
    control: ControlTokens,
    untrained: int = 0,
) -> SampledColumns:
    """The streams of trajectories of step `step`, whose learner was at `version`, with a judgement for each."""
    actions = _Actions.of(trajectories)
    sampled, spans_K = _sampled(actions.nodes)
    span_ends = _summed(spans_K)
    before = _summed(actions.counts)
    first = span_ends[before]
    ids, versions = (np.frombuffer(sampled[name], dtype=np.intc) for name in ("token_ids", "versions"))
    streams: dict[str, bytes] = {
        "behaviour": sampled["logprobs"],
        "control": control.mark(ids).tobytes(),
        "staleness": (version - versions).tobytes(),
    }
    ids_B, groups_B, tags_B, counters_B, outcomes_B = _transposed(map(_OF_TRAJECTORY, trajectories), 5)
    columns = TokenColumns(
        id=ids_B,
        group_id=groups_B,
        source=tuple([source_of(tags) for tags in tags_B]),
        skill=tuple([tags.get("skill", "") for tags in tags_B]),
        outcome=_labels(outcomes_B),
        step=(step,) * len(trajectories),
        turns=tuple(actions.counts),
        tool_calls=tuple([counters.get("tool_calls", 0) for counters in counters_B]),
        tool_errors=tuple([counters.get("tool_errors", 0) for counters in counters_B]),
        retries=tuple(actions.retries),
        **dict(zip(_JUDGED, _transposed(map(_SCALARS, judgements), len(_JUDGED)), strict=True)),
        lengths=(first[1:] - first[:-1]).astype(np.intc).tobytes(),
        actions=array("i", actions.counts).tobytes(),
        span_lengths=spans_K.astype(np.intc).tobytes(),
        span_turns=(np.arange(len(spans_K)) - np.repeat(before[:-1], actions.counts)).astype(np.intc).tobytes(),
        span_bits=bytes(actions.bits),
        span_tools=tuple(actions.tools),
        streams=streams,
        has=dict.fromkeys(streams, b"\1" * len(trajectories)),
    )
    return SampledColumns(
        columns=columns, trajectories=trajectories, untrained=untrained, bent=actions.bent, first=first
    )


def token_columns(
    trajectories: Sequence[Trajectory],
    judgements: Sequence[Judgement],
    *,
    step: int,
    version: int,
    control: ControlTokens,
    learner: LearnerStreams | None = None,
    untrained: int = 0,
) -> TokenColumns:
    """`sampled_columns` in one go with the learner's streams; None where none was trained on (filtered, failed)."""
    made = sampled_columns(trajectories, judgements, step=step, version=version, control=control, untrained=untrained)
    return made.columns if learner is None else made.scored(learner)


def _labels(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    # nearly all are one and the same object
    known = {id(outcome): outcome.label for outcome in {id(outcome): outcome for outcome in outcomes}.values()}
    return tuple([known[id(outcome)] for outcome in outcomes])


def _transposed(rows: Iterable[tuple[Any, ...]], width: int) -> list[tuple[Any, ...]]:
    """Columns of rows of `width` values."""
    return list(zip(*rows, strict=True)) or [()] * width


def _summed(counts: Sequence[int] | Ints) -> Ints:
    """0, and the sum of the first 1, 2, ... counts."""
    found = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=found[1:], dtype=np.int64)
    return found


def token_stream(
    trajectory: Trajectory,
    judgement: Judgement,
    *,
    step: int,
    version: int,
    control: ControlTokens,
    learner: LearnerStreams | None = None,
) -> TokenStream:
    """As `token_columns`, of one trajectory."""
    made = token_columns([trajectory], [judgement], step=step, version=version, control=control, learner=learner)
    return made.split()[0]


def _sampled(nodes: Sequence[Node]) -> tuple[dict[str, bytes], Ints]:
    """Log-probabilities, ids and versions of the sampled tokens of some actions, joined; tokens of each action."""
    masks = [node.action_mask for node in nodes]
    mask = b"".join(masks)
    joined = {
        "logprobs": b"".join([node.logprobs for node in nodes]),
        "token_ids": b"".join([node.token_ids for node in nodes]),
        "versions": b"".join([node.versions for node in nodes]),
    }
    lengths = np.fromiter(map(len, masks), np.int64, len(nodes))
    if b"\0" not in mask:
        return joined, lengths
    chosen = np.frombuffer(mask, dtype=np.int8) != 0
    before, ends = _summed(chosen), np.cumsum(lengths)
    values = {name: np.frombuffer(raw, dtype=np.int32)[chosen].tobytes() for name, raw in joined.items()}
    return values, before[ends] - before[ends - lengths]


@dataclass(slots=True, kw_only=True)
class _Actions:
    """The actions of some trajectories, and what each was conditioned on.

    tools, bits: of each action.  counts, retries: of each trajectory.  bent: those whose nodes do not continue
    each other, so that samples may be in another order.
    """

    nodes: list[Node]
    tools: list[str]
    bits: list[int]
    counts: list[int]
    retries: list[int]
    bent: list[int]

    @staticmethod
    def of(trajectories: Sequence[Trajectory]) -> _Actions:
        found = _Actions(nodes=[], tools=[], bits=[], counts=[], retries=[], bent=[])
        for row, trajectory in enumerate(trajectories):
            begun = len(found.nodes)
            retries = found._follow(trajectory.nodes)
            if retries is None:
                del found.nodes[begun:], found.tools[begun:], found.bits[begun:]
                found.bent.append(row)
                retries = found._branch(trajectory.nodes)
            found.counts.append(len(found.nodes) - begun)
            found.retries.append(retries)
        return found

    def _follow(self, chain: Sequence[Node]) -> int | None:
        """Take in nodes that continue each other; gives retries, None where they turn out not to."""
        # every node of a step comes by here: as `_branch`, without the contexts that a chain does not need
        nodes, tools, all_bits = self.nodes, self.tools, self.bits
        tool, failed, bits, retries, last = "", _NOTHING, 0, 0, -1
        for node in chain:
            if node.parent != last:
                return None
            last += 1
            if node.is_action:
                nodes.append(node)
                tools.append(tool)
                all_bits.append(bits | AFTER_ERROR if failed else bits)
                if failed:
                    retries += _repeats(node, failed)
                    failed = _NOTHING
                tool = ""
            else:
                tool, failed, bits = _observed(node, bits)
        return retries

    def _branch(self, nodes: Sequence[Node]) -> int:
        """Take in the nodes of any trajectory; gives retries."""
        contexts: list[_Context] = []
        before, retries = _AT_START, 0
        for place, node in enumerate(nodes):
            if node.parent != place - 1:
                before = contexts[node.parent] if node.parent >= 0 else _at_root(node, contexts)
            if node.is_action:
                tool, failed, bits = before
                self.nodes.append(node)
                self.tools.append(tool)
                self.bits.append(bits | AFTER_ERROR if failed else bits)
                retries += _repeats(node, failed)
                before = "", _NOTHING, bits
            else:
                before = _observed(node, before[2])
            contexts.append(before)
        return retries


def _repeats(node: Node, failed: tuple[str, ...]) -> int:
    """Calls of a tool that had just failed."""
    return sum(call.name in failed for message in node.messages for call in message.tool_calls)


def action_spans(trajectory: Trajectory) -> tuple[tuple[ActionSpan, ...], int]:
    """The actions as spans of the sampled tokens, and how many of their calls repeat a tool that had just failed."""
    actions = _Actions.of([trajectory])
    spans, start = [], 0
    for turn, (node, tool, bits) in enumerate(zip(actions.nodes, actions.tools, actions.bits, strict=True)):
        end = start + sum(node.action_mask)
        spans.append(ActionSpan.of(start=start, end=end, turn=turn, tool=tool, bits=bits))
        start = end
    return tuple(spans), actions.retries[0]


def _at_root(node: Node, contexts: Sequence[_Context]) -> _Context:
    """A root that is a fork says again what came before it, unless it begins another conversation."""
    if not contexts or node.fork in ("", FORK_NEW):
        return _AT_START
    compacted = AFTER_COMPACTION if node.fork in (FORK_REWRITTEN, FORK_DROPPED) else 0
    return "", (), contexts[-1][2] | compacted


def _observed(node: Node, bits: int) -> _Context:
    """bits: those before it."""
    tool, failed = "", _NOTHING
    for message in node.messages:
        if message.role is _TOOL:
            tool = message.name
            if message.is_error:
                failed = (*failed, tool)
        for part in message.parts:
            if type(part) is ImagePart:
                bits |= AFTER_IMAGE
    return tool, failed, bits | AFTER_TOOL if tool else bits


def _in_node_order(sampled: SampledColumns, learner: LearnerStreams) -> dict[str, bytes]:
    """The streams that there are, from the order of the samples to that of the nodes, with zeros for the trajectories
    that are not trained on."""
    begin = int(sampled.first[sampled.untrained])
    first = sampled.first - begin
    place = np.arange(first[-1])
    bent = [row for row in sampled.bent if row >= sampled.untrained]
    for row in bent:
        trajectory = sampled.trajectories[row]
        order = trained_nodes(trajectory)
        if not order:
            continue
        sizes = [sum(trajectory.nodes[index].action_mask) for index in order]
        parts = np.split(place[first[row] : first[row + 1]].copy(), np.cumsum(sizes)[:-1])
        sorted_parts = [part for _, part in sorted(zip(order, parts, strict=True), key=itemgetter(0))]
        place[first[row] : first[row + 1]] = np.concatenate(sorted_parts)
    found = {}
    for name, values in zip(_OF_LEARNER, _LEARNER_STREAMS(learner), strict=True):
        if values is not None:
            if len(values) != len(place):
                raise ValueError(f"{name} has {len(values)} scores for {len(place)} sampled tokens; give all of them")
            found[name] = bytes(begin * values.itemsize) + (values[place] if bent else values).tobytes()
    return found


def in_trained_order(trajectory: Trajectory, values_N: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values over the sampled tokens, from the order of the nodes to that of `training_samples`."""
    actions = [index for index, node in enumerate(trajectory.nodes) if node.is_action]
    order = trained_nodes(trajectory)
    if order == actions:
        return values_N
    ends = np.cumsum([sum(trajectory.nodes[index].action_mask) for index in actions])
    parts = dict(zip(actions, np.split(values_N, ends[:-1]), strict=True))
    return np.concatenate([parts[index] for index in order])
