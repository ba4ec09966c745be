"""A composite of metrics with different directions and scales, each put on one scale by a frozen reference set.

    value -> transform (identity; for error counts 1 / (1 + n) or max(0, 1 - n / n_max)) -> normalise -> weight -> sum

Normalisation is min-max or a z-score squashed by the normal distribution function, from the values of a reference set
of responses (of the warm start, for example); never from the batch, or a reward would depend on its neighbours.
A metric that cannot be computed (no weights, no parser) is *unavailable* for the whole composite, and says so.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from burnish.core.errors import ConfigError


class Transform(StrEnum):
    """How a raw value becomes one to normalise."""

    IDENTITY = "identity"
    RECIPROCAL = "reciprocal"
    LINEAR = "linear"


class Scale(StrEnum):
    """How values are put on the scale from 0 to 1."""

    NONE = "none"
    MIN_MAX = "min_max"
    Z_SCORE = "z_score"


Measure = Callable[[str, str], float | None]
"""A metric of (given, reference); None where it is unavailable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One ingredient.  `Metric(name="errors", weight=1.0, higher_is_better=False, transform=Transform.RECIPROCAL)`

    The reciprocal and the linear transform turn counts of errors into something of which more is better; the direction
    that is declared is the raw value's.  worst: n_max of the linear transform.
    """

    name: str
    weight: float = 1.0
    higher_is_better: bool = True
    transform: Transform = Transform.IDENTITY
    scale: Scale = Scale.MIN_MAX
    worst: float = 10.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ConfigError(f"metric {self.name}: a weight is above 0, got {self.weight!r}; leave the metric out")
        if self.transform is not Transform.IDENTITY and self.higher_is_better:
            raise ConfigError(f"metric {self.name}: the {self.transform} transform is for counts of errors")
        if self.worst <= 0:
            raise ConfigError(f"metric {self.name}: worst is above 0, got {self.worst!r}")

    def oriented(self, value: float) -> float:
        """The transformed value, of which more is better.

        >>> Metric(name="errors", higher_is_better=False, transform=Transform.RECIPROCAL).oriented(3.0)
        0.25
        """
        if self.transform is Transform.RECIPROCAL:
            return 1.0 / (1.0 + max(0.0, value))
        if self.transform is Transform.LINEAR:
            return max(0.0, 1.0 - value / self.worst)
        return value if self.higher_is_better else -value


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """What a reference set fixes for a metric.  `Norm(low=0.1, high=0.7, mean=0.4, deviation=0.1)`"""

    low: float
    high: float
    mean: float
    deviation: float

    @staticmethod
    def of(values: Sequence[float]) -> Norm:
        """From oriented values; raises ConfigError for fewer than two, or for values that are all equal."""
        if len(values) < 2 or max(values) - min(values) < 1e-12:
            raise ConfigError(f"a reference set needs at least two different values, got {list(values[:3])}")
        return Norm(
            low=min(values), high=max(values), mean=statistics.fmean(values), deviation=statistics.pstdev(values)
        )

    def scaled(self, value: float, scale: Scale) -> float:
        """The value in [0, 1].

        >>> Norm(low=0.0, high=2.0, mean=1.0, deviation=1.0).scaled(1.0, Scale.Z_SCORE)
        0.5
        """
        if scale is Scale.MIN_MAX:
            value = (value - self.low) / (self.high - self.low)
        elif scale is Scale.Z_SCORE:
            value = statistics.NormalDist().cdf((value - self.mean) / self.deviation)
        return min(1.0, max(0.0, value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """A composite's verdict.  `Composed(score=0.6, parts={"bleu": 0.4, "errors": 0.8}, unavailable=())`

    score: None where any ingredient is unavailable.  parts: in [0, 1], on the common scale.
    """

    score: float | None
    parts: Mapping[str, float]
    raw: Mapping[str, float]
    unavailable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompositeReward:
    """Weighted mean of normalised metrics.

    norms: by metric name, frozen; needed for every metric with a scale.  A single metric alone is what `only` gives,
    for the comparison of the whole against each part.
    """

    metrics: tuple[Metric, ...]
    norms: Mapping[str, Norm]

    def __post_init__(self) -> None:
        names = [metric.name for metric in self.metrics]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"a composite has metrics of different names, got {names}")
        for metric in self.metrics:
            if metric.scale is not Scale.NONE and metric.name not in self.norms:
                raise ConfigError(f"metric {metric.name} needs norms from a reference set; see `fitted`")

    @staticmethod
    def fitted(metrics: Sequence[Metric], rows: Sequence[Mapping[str, float | None]]) -> CompositeReward:
        """With norms from the raw values of a reference set.  A metric that is unavailable there gets none, and keeps
        being unavailable."""
        norms: dict[str, Norm] = {}
        for metric in metrics:
            values = [metric.oriented(value) for row in rows if (value := row.get(metric.name)) is not None]
            if values and metric.scale is not Scale.NONE:
                norms[metric.name] = Norm.of(values)
            elif metric.scale is not Scale.NONE:
                norms[metric.name] = Norm(low=0.0, high=1.0, mean=0.5, deviation=1.0)
        return CompositeReward(metrics=tuple(metrics), norms=norms)

    def only(self, name: str) -> CompositeReward:
        """The composite of one of its metrics."""
        chosen = tuple(metric for metric in self.metrics if metric.name == name)
        return CompositeReward(metrics=chosen, norms=self.norms)

    def score(self, raw: Mapping[str, float | None]) -> Composed:
        """The verdict on raw values by metric name; a value that is missing, None or not finite is unavailable."""
        parts: dict[str, float] = {}
        missing: list[str] = []
        for metric in self.metrics:
            value = raw.get(metric.name)
            if value is None or not math.isfinite(value):
                missing.append(metric.name)
                continue
            oriented = metric.oriented(value)
            norm = self.norms.get(metric.name)
            parts[metric.name] = min(1.0, max(0.0, oriented)) if norm is None else norm.scaled(oriented, metric.scale)
        total = sum(metric.weight for metric in self.metrics)
        score = None if missing else sum(m.weight * parts[m.name] for m in self.metrics) / total
        known = {name: value for name, value in raw.items() if value is not None}
        return Composed(score=score, parts=parts, raw=known, unavailable=tuple(missing))
