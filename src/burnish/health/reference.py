"""The frozen early window that later steps are compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from burnish.health.slices import PRINCIPAL
from burnish.health.sums import HealthSums
from burnish.stats.histogram import MAGNITUDES, magnitudes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """What a run looked like in its first steps.

    steps: how many it was made of.  counts: int64 [3, 7, 100], |log-ratio| of each ratio and principal slice over the
    whole window.  totals: sum and number of the values of each scalar, for its mean.

    `Reference().extended(sums, signals(sums))` is the window of one step.
    """

    steps: int = 0
    counts: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((3, len(PRINCIPAL), MAGNITUDES), dtype=np.int64)
    )
    totals: Mapping[str, tuple[float, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, steps: Sequence[tuple[HealthSums, Mapping[str, float]]]) -> Reference:
        """The window made of these steps, each with its scalars."""
        made = cls()
        for sums, scalars in steps:
            made = made.extended(sums, scalars)
        return made

    def extended(self, sums: HealthSums, scalars: Mapping[str, float]) -> Reference:
        """The window with one more step."""
        totals = dict(self.totals)
        for name, value in scalars.items():
            if math.isfinite(value):
                total, n = totals.get(name, (0.0, 0))
                totals[name] = (total + value, n + 1)
        by_slice = sums.histograms[:, : len(PRINCIPAL)].sum(axis=2)
        return Reference(steps=self.steps + 1, counts=self.counts + magnitudes(by_slice), totals=totals)

    def mean(self, name: str) -> float:
        """Mean of a scalar over the steps that had it, NaN where none did."""
        total, n = self.totals.get(name, (0.0, 0))
        return total / n if n else math.nan

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        totals = {name: list(pair) for name, pair in self.totals.items()}
        return {"steps": self.steps, "counts": self.counts.tolist(), "totals": totals}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Reference:
        """Back from `to_dict`."""
        totals = {name: (float(total), int(n)) for name, (total, n) in data["totals"].items()}
        return cls(steps=int(data["steps"]), counts=np.array(data["counts"], dtype=np.int64), totals=totals)
