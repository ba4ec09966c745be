"""Penalties for leaving a feasible set, by distance d to its boundary: d > 0 outside, d < 0 inside, any unit.

    softplus   -k * tau * log(1 + exp(d / tau))      felt before the boundary is reached, slope k far outside
    hinge      -k * max(0, d)                        its limit for tau -> 0: silent inside
    hard       -k where d > 0, else 0                the baseline, all or nothing

"Engineering and algorithmic interventions for multimodal post-training at Microsoft scale" (2026), intervention IV:
softplus(distance to boundary), sign and temperature not given; a hard constraint was reported to teach refusal.  A
reward is not differentiated, so what shaping gives is not a smooth slope but *graded contrast* near the boundary:
members of a group that differ in d differ in reward, also where none of them, or all, are outside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from burnish.core.grade import Grade
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.graders.rules import RuleGrader


class Shape(StrEnum):
    """How a penalty grows."""

    SOFTPLUS = "softplus"
    HINGE = "hinge"
    HARD = "hard"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstraintPenalty:
    """`ConstraintPenalty(k=1.0, tau=0.5)`

    k >= 0: reward per unit of d; for `hard`, all of it.  tau > 0: width of the boundary, in units of d, for softplus.
    """

    k: float
    tau: float = 1.0
    shape: Shape = Shape.SOFTPLUS

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", Shape(self.shape))
        if not (0.0 <= self.k < math.inf and 0.0 < self.tau < math.inf):
            raise ValueError(f"k is at least 0 and tau above 0, both finite, got {self.k} and {self.tau}")

    def reward(self, distance: float) -> float:
        """What is added to the reward, at most 0.

        >>> round(ConstraintPenalty(k=1.0, tau=1.0).reward(0.0), 3), ConstraintPenalty(k=2.0, shape="hinge").reward(1.5)
        (-0.693, -3.0)
        """
        if not math.isfinite(distance):
            raise ValueError(
                f"a distance is finite, got {distance}; leave a trajectory out whose distance is not known"
            )
        match self.shape:
            case Shape.SOFTPLUS:
                x = distance / self.tau
                return -self.k * self.tau * (max(x, 0.0) + math.log1p(math.exp(-abs(x))))
            case Shape.HINGE:
                return -self.k * max(distance, 0.0)
            case Shape.HARD:
                return -self.k if distance > 0.0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstraintGrader(RuleGrader):
    """1 deep inside a feasible set, falling to 0 outside of it: 1 plus the penalty, at least 0.

    value: where the number to be bounded stands: "counters.NAME", "final_state.KEY...", "action_tokens" or "tool_s".
    limit: the boundary; d = value - limit.  The others are those of `ConstraintPenalty`, so that k = 0.25 uses the
    score up four units beyond the boundary (before it under `softplus`).  Give it a share of the reward and mark it as
    a preference, since held-out success is not about style.

    `ConstraintGrader(value="counters.tool_calls", limit=6.0, k=0.25)`; in a graph's file `use = "constraint"`.  Raises
    ValueError for numbers that are no penalty.
    """

    value: str
    limit: float
    k: float = 1.0
    tau: float = 1.0
    shape: str = "softplus"
    penalty: ConstraintPenalty = field(init=False)
    name = "constraint"

    def __post_init__(self) -> None:
        if not math.isfinite(self.limit):
            raise ValueError(f"limit is a finite number, got {self.limit}")
        penalty = ConstraintPenalty(k=self.k, tau=self.tau, shape=Shape(self.shape))
        object.__setattr__(self, "penalty", penalty)

    def judge(self, task: Task, trajectory: Trajectory) -> Grade:
        """By the number alone, whether or not the episode came to its end."""
        if not trajectory.outcome.may_carry_reward:
            return self.verdict(None, cause=f"excluded:{trajectory.outcome.label}")
        found = _number_at(trajectory, self.value)
        if found is None:
            return self.verdict(None, cause="no_such_number", evidence={"value": self.value})
        score = max(0.0, 1.0 + self.penalty.reward(found - self.limit))
        return self.verdict(score, evidence={self.value: found, "limit": self.limit})


def _number_at(trajectory: Trajectory, path: str) -> float | None:
    """The finite number at a dotted path, None where there is none."""
    found: Any = {
        "counters": trajectory.counters,
        "final_state": trajectory.final_state,
        "action_tokens": trajectory.action_tokens,
        "tool_s": trajectory.tool_s,
    }
    for key in path.split("."):
        found = found.get(key) if hasattr(found, "get") else None
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
        return None
    return float(found)
