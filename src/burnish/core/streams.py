"""What health looks at: sampled tokens under every policy that matters, and what is known of their trajectories.

`TokenStream` is one trajectory, for files and for people; `TokenColumns` is many of them, column by column, at a
fraction of the cost.  Each can be made from the other.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from operator import attrgetter
from typing import Any

from burnish.core.pickling import quickly_pickled

STREAMS = {
    **dict.fromkeys(("behaviour", "learner", "proximal", "reference", "entropy", "score_norm"), "f"),
    "control": "b",
    "staleness": "i",
}
"""Type code of each stream over the tokens."""

_SIZES = {name: array(code).itemsize for name, code in STREAMS.items()}

AFTER_TOOL, AFTER_ERROR, AFTER_IMAGE, AFTER_COMPACTION = 1, 2, 4, 8
"""Bits of an action, for the fields of `ActionSpan`."""

SCALARS = (
    *("id", "group_id", "source", "skill", "outcome"),
    *("step", "turns", "tool_calls", "tool_errors", "retries"),
    *("advantage", "reward", "success", "progress", "reward_parts"),
)
"""What both forms hold once for each trajectory."""

_TUPLES = (*SCALARS, "span_tools")
_BUFFERS = ("lengths", "actions", "span_lengths", "span_turns", "span_bits")


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionSpan:
    """One action of the policy: the tokens [start, end) of its stream, and what it was conditioned on.

    turn: position among the actions of the trajectory, from 0.  tool: name of the tool whose result stands right
    before, "" for none (the last one of several).  after_tool: a tool result stands anywhere before.  after_error: one
    right before it was an error.  after_image, after_compaction: an image, or a summary of earlier turns, anywhere
    before.

    `ActionSpan(start=0, end=12, turn=0)`
    """

    start: int
    end: int
    turn: int
    tool: str = ""
    after_tool: bool = False
    after_error: bool = False
    after_image: bool = False
    after_compaction: bool = False

    @classmethod
    def of(cls, *, start: int, end: int, turn: int, tool: str, bits: int) -> ActionSpan:
        """From `AFTER_TOOL` and other bits added."""
        return cls(
            start=start,
            end=end,
            turn=turn,
            tool=tool,
            after_tool=bool(bits & AFTER_TOOL),
            after_error=bool(bits & AFTER_ERROR),
            after_image=bool(bits & AFTER_IMAGE),
            after_compaction=bool(bits & AFTER_COMPACTION),
        )

    @property
    def bits(self) -> int:
        """`AFTER_TOOL` and other bits added."""
        return (
            self.after_tool * AFTER_TOOL
            | self.after_error * AFTER_ERROR
            | self.after_image * AFTER_IMAGE
            | self.after_compaction * AFTER_COMPACTION
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStream:
    """The N sampled tokens of one trajectory, in order, shown tokens left out.

    behaviour: array('f'), natural logarithms of the probabilities that the tokens were drawn with.  learner: of the
    policy in training right before the update that trains the trajectory (of the later updates of a step: with the
    earlier ones applied), None where it was not trained on; likewise proximal and reference, None where there are none.
    entropy: array('f') in nats, and score_norm: array('f'), 1 - 2 p + sum_v p_v^2 in [0, 2], of the learner's
    distribution; None where they were not computed.  control: array('b'), 1 for tokens that open or close a tool call
    or end a turn.  staleness: array('i'), learner version minus the version that drew it.
    spans: the actions, which cover the stream.  advantage, reward: None where the trajectory has none.  reward_parts:
    by grader.  source: where the task comes from; skill: the ability that it needs; both "" where unknown.
    turns: actions.  retries: calls repeated after an error.  success: in [0, 1], None where nobody judged.
    progress: how far it got in [0, 1], graded evidence that is never part of the reward.  outcome: `Outcome.label`.

    Example: three tokens drawn with probability .5 and trained unchanged have behaviour and learner [-.693] * 3.
    """

    id: str
    group_id: str
    step: int
    behaviour: array[float]
    spans: tuple[ActionSpan, ...]
    learner: array[float] | None = None
    proximal: array[float] | None = None
    reference: array[float] | None = None
    entropy: array[float] | None = None
    score_norm: array[float] | None = None
    control: array[int] | None = None
    staleness: array[int] | None = None
    advantage: float | None = None
    reward: float | None = None
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    skill: str = ""
    turns: int = 0
    tool_calls: int = 0
    tool_errors: int = 0
    retries: int = 0
    success: float | None = None
    progress: float | None = None
    outcome: str = ""

    def __post_init__(self) -> None:
        streams = (
            self.behaviour,
            self.learner,
            self.proximal,
            self.reference,
            self.entropy,
            self.score_norm,
            self.control,
            self.staleness,
        )
        lengths = {len(stream) for stream in streams if stream is not None}
        if len(lengths) != 1:
            raise ValueError(f"the streams of {self.id} must be equally long, got lengths {sorted(lengths)}")
        at = 0
        for span in self.spans:
            if span.start != at or span.end < span.start:
                raise ValueError(f"the spans of {self.id} must follow each other without a gap; token {at} has none")
            at = span.end
        if at != len(self.behaviour):
            raise ValueError(f"the spans of {self.id} cover {at} of {len(self.behaviour)} tokens")

    @property
    def length(self) -> int:
        """N, the number of sampled tokens."""
        return len(self.behaviour)


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class TokenColumns:
    """B trajectories of K actions and N sampled tokens, one after another; fields as in `TokenStream` and `ActionSpan`.

    Numbers stand in the machine's own form, as bytes, which cross a pipe as they are.  lengths, actions: B of
    array('i'), tokens and actions of each trajectory.  span_lengths, span_turns: K of array('i'), tokens of each
    action, and its position.  span_bits: K bytes, `AFTER_TOOL` and others added.  span_tools: [K].  streams: by name,
    those that any trajectory has, N numbers (`STREAMS`), zeros where a trajectory has none.  has: by name of the
    stream, B bytes, 1 where a trajectory has it.

    Example: `TokenColumns.of([])` has B = K = N = 0.
    """

    id: tuple[str, ...]
    group_id: tuple[str, ...]
    source: tuple[str, ...]
    skill: tuple[str, ...]
    outcome: tuple[str, ...]
    step: tuple[int, ...]
    turns: tuple[int, ...]
    tool_calls: tuple[int, ...]
    tool_errors: tuple[int, ...]
    retries: tuple[int, ...]
    advantage: tuple[float | None, ...]
    reward: tuple[float | None, ...]
    success: tuple[float | None, ...]
    progress: tuple[float | None, ...]
    reward_parts: tuple[Mapping[str, float], ...]
    lengths: bytes
    actions: bytes
    span_lengths: bytes
    span_turns: bytes
    span_bits: bytes
    span_tools: tuple[str, ...]
    streams: Mapping[str, bytes]
    has: Mapping[str, bytes]

    def __post_init__(self) -> None:
        tokens, spans = self.tokens, len(self.span_bits)
        if sum(_ints(self.span_lengths)) != tokens or sum(_ints(self.actions)) != spans:
            raise ValueError(
                f"{spans} actions of {sum(_ints(self.span_lengths))} tokens do not make up {len(self.id)} "
                f"trajectories of {sum(_ints(self.actions))} actions and {tokens} tokens"
            )
        for name, values in self.streams.items():
            if len(values) != _SIZES[name] * tokens:
                raise ValueError(
                    f"the stream {name!r} must hold {_SIZES[name]} bytes a token, such as array({STREAMS[name]!r}), "
                    f"got {len(values)} bytes for {tokens} tokens"
                )

    @property
    def tokens(self) -> int:
        """N, the number of sampled tokens."""
        return sum(_ints(self.lengths))

    @classmethod
    def of(cls, streams: Sequence[TokenStream]) -> TokenColumns:
        """The trajectories in the order given.  Raises ValueError for a stream of another type than its own."""
        spans = [span for stream in streams for span in stream.spans]
        lengths = [len(stream.behaviour) for stream in streams]
        arrays = {name: [getattr(stream, name) for stream in streams] for name in STREAMS}
        known = {name: found for name, found in arrays.items() if any(one is not None for one in found)}
        scalars = list(zip(*map(attrgetter(*SCALARS), streams), strict=True)) or [()] * len(SCALARS)
        return cls(
            **dict(zip(SCALARS, scalars, strict=True)),
            lengths=array("i", lengths).tobytes(),
            actions=array("i", [len(stream.spans) for stream in streams]).tobytes(),
            span_lengths=array("i", [span.end - span.start for span in spans]).tobytes(),
            span_turns=array("i", [span.turn for span in spans]).tobytes(),
            span_bits=bytes([span.bits for span in spans]),
            span_tools=tuple([span.tool for span in spans]),
            streams={
                name: b"".join(
                    [bytes(_SIZES[name] * n) if one is None else one for one, n in zip(found, lengths, strict=True)]
                )
                for name, found in known.items()
            },
            has={name: bytes([one is not None for one in found]) for name, found in known.items()},
        )

    @classmethod
    def joined(cls, parts: Sequence[TokenColumns]) -> TokenColumns:
        """All trajectories of all parts, in the order given."""
        if len(parts) < 2:
            return parts[0] if parts else cls.of([])
        joined: dict[str, Any] = {
            name: tuple(chain.from_iterable([getattr(part, name) for part in parts])) for name in _TUPLES
        }
        joined |= {name: b"".join([getattr(part, name) for part in parts]) for name in _BUFFERS}
        known = [name for name in STREAMS if any(name in part.streams for part in parts)]
        return cls(
            **joined,
            streams={
                name: b"".join([part.streams.get(name) or bytes(_SIZES[name] * part.tokens) for part in parts])
                for name in known
            },
            has={name: b"".join([part.has.get(name) or bytes(len(part.id)) for part in parts]) for name in known},
        )

    def split(self) -> tuple[TokenStream, ...]:
        """One stream for each trajectory; `TokenColumns.of(columns.split())` gives the columns again."""
        spans, found, lengths = iter(self._spans()), [], _ints(self.lengths)
        rows = zip(accumulate(lengths), lengths, _ints(self.actions), strict=True)
        for row, (end, length, actions) in enumerate(rows):
            streams: dict[str, Any] = {}
            for name, values in self.streams.items():
                if self.has[name][row]:
                    size = _SIZES[name]
                    streams[name] = array(STREAMS[name], values[size * (end - length) : size * end])
            scalars = {name: getattr(self, name)[row] for name in SCALARS}
            found.append(TokenStream(**scalars, **streams, spans=tuple([next(spans) for _ in range(actions)])))
        return tuple(found)

    def _spans(self) -> list[ActionSpan]:
        """The K actions, each with its place in its own trajectory."""
        found: list[ActionSpan] = []
        lengths, turns = _ints(self.span_lengths), _ints(self.span_turns)
        place = 0
        for actions in _ints(self.actions):
            start = 0
            for at in range(place, place + actions):
                end, bits = start + lengths[at], self.span_bits[at]
                turn, tool = turns[at], self.span_tools[at]
                found.append(ActionSpan.of(start=start, end=end, turn=turn, tool=tool, bits=bits))
                start = end
            place += actions
        return found


def _ints(values: bytes) -> array[int]:
    return array("i", values)
