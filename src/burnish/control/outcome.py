"""Outcome contrast: whether the batch still separates good from bad, and whether held-out success has fallen.

An effective sample size can be raised by feeding the learner what hurts it (hard negatives), so no rung trusts it
alone: near-misses come only where contrast is low too, and only a proven fall of held-out success opens a rollback.

    contrast = within-group reward variance / its median over the baseline
    damage   = level - held-out success > margin + 1.64 * sqrt(p * (1 - p) / n), two evaluations in a row,
    level    = the largest median of three successive evaluations so far (of all, while there are fewer)

with p the pooled success.  A median of three, because the maximum of single noisy evaluations only ever grows.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from burnish.control.hysteresis import Hysteresis

_Z_ONE_SIDED_95 = 1.6449
_CONFIRM_EVALUATIONS = 2
_LEVEL_EVALUATIONS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeContrast:
    """The outcomes of one step.  `OutcomeContrast(reward_variance=0.21, heldout_success=0.4, heldout_episodes=64)`

    reward_variance: mean over groups of the variance of the members' rewards, None where no group has two rewards.
    heldout_success: in [0, 1], None in steps without a held-out evaluation; heldout_episodes: how many it is from.
    """

    reward_variance: float | None = None
    heldout_success: float | None = None
    heldout_episodes: int = 0

    @classmethod
    def of(
        cls, rewards_G: Sequence[Sequence[float]], heldout_success: float | None = None, heldout_episodes: int = 0
    ) -> OutcomeContrast:
        """From the rewards of each group (members that carry one).

        >>> OutcomeContrast.of([[0.0, 1.0], [1.0, 1.0]]).reward_variance
        0.125
        """
        variances = [float(np.var(rewards)) for rewards in rewards_G if len(rewards) > 1]
        mean = math.fsum(variances) / len(variances) if variances else None
        return cls(reward_variance=mean, heldout_success=heldout_success, heldout_episodes=heldout_episodes)


class OutcomeWatch:
    """Contrast and held-out success over a run; see the top of this file.

    Contrast is low once it is under `low`, and has recovered after `hold_steps` steps in a row of at least `recovered`.

    >>> watch = OutcomeWatch(baseline_steps=1, low=0.5, recovered=0.75, hold_steps=1, margin=0.05)
    >>> watch.update(OutcomeContrast(reward_variance=0.2, heldout_success=0.6, heldout_episodes=10_000))
    >>> for success in (0.3, 0.3):
    ...     watch.update(OutcomeContrast(reward_variance=0.05, heldout_success=success, heldout_episodes=10_000))
    >>> watch.contrast_is_low, watch.damaged, watch.damaged_evaluations
    (True, True, 2)
    """

    def __init__(self, *, baseline_steps: int, low: float, recovered: float, hold_steps: int, margin: float) -> None:
        self._baseline_steps = baseline_steps
        self._margin = margin
        self._low = Hysteresis(enter=low, leave=recovered, hold_steps=hold_steps)
        self._first: list[float] = []
        self._reference: float | None = None
        self._recent: list[float] = []
        self.contrast: float | None = None
        self.level: float | None = None
        self.damaged_evaluations = 0

    def update(self, outcome: OutcomeContrast) -> None:
        """Take the outcomes of one step."""
        self._take_variance(outcome.reward_variance)
        if outcome.heldout_success is not None and math.isfinite(outcome.heldout_success):
            self._take_success(outcome.heldout_success, outcome.heldout_episodes)

    @property
    def contrast_is_low(self) -> bool:
        """Whether groups no longer separate good from bad as they used to; False before there is a baseline."""
        return self._low.on

    @property
    def damaged(self) -> bool:
        """Whether two held-out evaluations in a row lay clearly below the level."""
        return self.damaged_evaluations >= _CONFIRM_EVALUATIONS

    def restart(self) -> None:
        """After a rollback: damage must be shown anew; level and baseline stay, for they are what to come back to."""
        self.damaged_evaluations = 0
        self._recent = []

    def state(self) -> dict[str, Any]:
        """Everything needed to go on exactly, JSON-able."""
        return {
            "first": list(self._first),
            "reference": self._reference,
            "recent": list(self._recent),
            "contrast": self.contrast,
            "level": self.level,
            "damaged_evaluations": self.damaged_evaluations,
            "low": self._low.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._first = [float(value) for value in state["first"]]
        self._reference = state["reference"]
        self._recent = [float(value) for value in state["recent"]]
        self.contrast = state["contrast"]
        self.level = state["level"]
        self.damaged_evaluations = int(state["damaged_evaluations"])
        self._low.load(state["low"])

    def _take_variance(self, variance: float | None) -> None:
        """A step without any group of two rewards says nothing; one whose groups are all equal has contrast 0."""
        self.contrast = None
        if variance is None or not math.isfinite(variance):
            return
        if self._reference is None:
            self._first.append(variance)
            if len(self._first) >= self._baseline_steps:
                self._reference = statistics.median(self._first)
                self._first = []
            return
        if self._reference > 0.0:
            self.contrast = variance / self._reference
            self._low.update(self.contrast)

    def _take_success(self, success: float, episodes: int) -> None:
        if self.level is not None:
            pooled = (success + self.level) / 2.0
            noise = _Z_ONE_SIDED_95 * math.sqrt(max(pooled * (1.0 - pooled), 0.0) / max(episodes, 1))
            if self.level - success > self._margin + noise:
                self.damaged_evaluations += 1
                return
        self.damaged_evaluations = 0
        self._recent = [*self._recent, success][-_LEVEL_EVALUATIONS:]
        middle = statistics.median(self._recent)
        full = len(self._recent) == _LEVEL_EVALUATIONS
        self.level = middle if self.level is None or not full else max(self.level, middle)
