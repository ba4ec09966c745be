"""The knobs that control may turn: what a run does otherwise than its recipe says, and since when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from burnish.core.finding import Act, Decision


@dataclass(slots=True, kw_only=True)
class Knobs:
    """Each as the recipe has it until a decision is carried out; JSON-able.

    learning_rate: multiplies the recipe's.  verified_reward: whether the verifiable graders alone are trained on.
    kl_weight: None for the recipe's.  tail_caps: by slice, largest second moment of the log-ratio learner/behaviour,
    nats squared.  post_tool_share: largest share of trained tokens that stand after a tool result, None for any.
    near_misses: groups from the reservoir added to each step.  source_shares: probabilities by source, {} for the order
    of the tasks.  quarantine: by task id, the last step in which it is not drawn.

    `Knobs(learning_rate=0.7, tail_caps={"post_tool": 0.04})`
    """

    learning_rate: float = 1.0
    verified_reward: bool = False
    kl_weight: float | None = None
    tail_caps: dict[str, float] = field(default_factory=dict)
    post_tool_share: float | None = None
    near_misses: int = 0
    source_shares: dict[str, float] = field(default_factory=dict)
    quarantine: dict[str, int] = field(default_factory=dict)

    def turn(self, decision: Decision) -> None:
        """Carry out one decision; those about the run as a whole (rollback, stop) turn nothing here."""
        values, release = decision.values, decision.release
        match decision.act:
            case Act.MASK_TAIL:
                name = str(values.get("slice") or "all")
                self.tail_caps = {} if release else {**self.tail_caps, name: float(values["moment_cap"])}
            case Act.LEARNING_RATE:
                self.learning_rate = 1.0 if release else float(values["factor"])
            case Act.VERIFIED_REWARD:
                self.verified_reward = not release
            case Act.KL_WEIGHT:
                self.kl_weight = None if release else float(values["weight"])
            case Act.POST_TOOL_CAP:
                self.post_tool_share = None if release else float(values["share"])
            case Act.NEAR_MISSES:
                self.near_misses = 0 if release else int(values["count"])
            case Act.CURRICULUM:
                self.source_shares = {} if release else dict(values["probabilities"])
            case Act.ROLLBACK | Act.STOP:
                pass

    def quarantined(self, step: int) -> frozenset[str]:
        """Tasks that step `step` does not draw."""
        return frozenset(task for task, last in self.quarantine.items() if step <= last)

    @property
    def turned(self) -> tuple[Act, ...]:
        """What is off the recipe; the quarantine, which no decision turns alone, left out.

        >>> Knobs(learning_rate=0.5, near_misses=2).turned
        (<Act.LEARNING_RATE: 'learning_rate'>, <Act.NEAR_MISSES: 'near_misses'>)
        """
        state = {
            Act.MASK_TAIL: bool(self.tail_caps),
            Act.LEARNING_RATE: self.learning_rate != 1.0,
            Act.VERIFIED_REWARD: self.verified_reward,
            Act.KL_WEIGHT: self.kl_weight is not None,
            Act.POST_TOOL_CAP: self.post_tool_share is not None,
            Act.NEAR_MISSES: self.near_misses > 0,
            Act.CURRICULUM: bool(self.source_shares),
        }
        return tuple(act for act, is_turned in state.items() if is_turned)

    def scalars(self) -> dict[str, float]:
        """What is off the recipe, as scalars of a step (docs/metrics.md)."""
        return {
            "control/learning_rate_factor": self.learning_rate,
            "control/knobs_turned": float(len(self.turned)),
        }

    def to_json(self) -> dict[str, Any]:
        """The form a checkpoint stores."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Knobs:
        """Inverse of `to_json`."""
        return Knobs(**data)


def post_tool_factor(post_tool_tokens: float, other_tokens: float, share: float | None) -> float:
    """What to multiply the weight of post-tool tokens with, so that their share of the weight is at most `share`.

        f P / (f P + T) = share   =>   f = share T / ((1 - share) P)

    >>> post_tool_factor(60.0, 40.0, 0.5), post_tool_factor(10.0, 90.0, 0.5), post_tool_factor(5.0, 5.0, None)
    (0.6666666666666666, 1.0, 1.0)
    """
    if share is None or share >= 1.0 or post_tool_tokens <= share * (post_tool_tokens + other_tokens):
        return 1.0
    return share * other_tokens / ((1.0 - share) * post_tool_tokens)
