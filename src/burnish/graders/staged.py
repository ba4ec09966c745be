"""Staged objectives: verifiable graders alone first, then preference scores come in linearly.

    weight(s) = final * clamp((s - start) / (end - start), 0, 1)    for preference graders, s the share of training done
    weight(s) = final                                               for all others

"Engineering and algorithmic interventions for multimodal post-training at Microsoft scale" (2026), intervention I: the
first 30% verifiable, 10% reported as too short and 50% as too cautious.  The end of the ramp is not given there, hence
it has no default here.  In the first stage a preference grader has weight 0, so one that fails leaves nobody out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from burnish.core.errors import ConfigError
from burnish.graders.graph import AggregatorKind, ScheduledAggregator
from burnish.graders.node import WeightSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedWeights:
    """`StagedWeights(weights={"tests": 1.0, "taste": 0.5}, preference=("taste",), end=0.6)`

    weights: final weight by grader.  preference: those that wait.  start, end of the ramp: shares of training.
    Raises ConfigError unless 0 <= start < end <= 1, for a preference grader without a weight, and where no other grader
    has a weight above 0.  The short form of a weighted sum whose weights are schedules.
    """

    weights: Mapping[str, float]
    preference: tuple[str, ...]
    end: float
    start: float = 0.3

    def __post_init__(self) -> None:
        if not 0.0 <= self.start < self.end <= 1.0:
            raise ConfigError(f"stages need 0 <= start < end <= 1, got start {self.start} and end {self.end}")
        for name in self.preference:
            if name not in self.weights:
                raise ConfigError(f"preference grader {name!r} has no weight; there are {', '.join(self.weights)}")
        if not any(weight > 0.0 for name, weight in self.weights.items() if name not in self.preference):
            raise ConfigError("the first stage needs a verifiable grader with a weight; all graders are preferences")

    @property
    def scheduled(self) -> ScheduledAggregator:
        """The aggregator; its `at` gives that of a step."""
        return ScheduledAggregator(
            kind=AggregatorKind.WEIGHTED_SUM,
            weights={name: self._schedule(name, weight) for name, weight in self.weights.items()},
            preference=self.preference,
        )

    def _schedule(self, name: str, weight: float) -> WeightSchedule:
        if name not in self.preference:
            return WeightSchedule.constant(weight)
        return WeightSchedule(((self.start, 0.0), (self.end, weight)))

    def at(self, share: float) -> dict[str, float]:
        """Weight by grader after a share of training; a share outside of [0, 1] counts as the nearer end.

        >>> staged = StagedWeights(weights={"tests": 1.0, "taste": 0.5}, preference=("taste",), start=0.25, end=0.75)
        >>> staged.at(0.1), staged.at(0.5), staged.at(0.9)
        ({'tests': 1.0, 'taste': 0.0}, {'tests': 1.0, 'taste': 0.25}, {'tests': 1.0, 'taste': 0.5})
        """
        return {name: schedule.at(share) for name, schedule in self.scheduled.weights.items()}
