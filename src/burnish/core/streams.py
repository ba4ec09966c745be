"""What health looks at: one trajectory's sampled tokens under every policy that matters, and what is known about it."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field


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
