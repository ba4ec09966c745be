"""Rules without a threshold to calibrate: a raw number that is not finite, a log-ratio that no policy could have.

They look at everything that came in, before anything is filtered, averaged or left out for being too little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from burnish.core.finding import Finding
from burnish.health.offenders import MOST
from burnish.health.reduction import CLAMP_NATS, MOMENTS, RATIOS, RAW
from burnish.health.sums import HealthSums


def hard_findings(step: int, sums: HealthSums, extra: Mapping[str, float]) -> list[Finding]:
    """What breaks a hard rule in this step, each with the trajectories at fault."""
    found = []
    table = sums.table
    bad = np.flatnonzero(table.column("nonfinite") > 0)
    ids = tuple(table.texts["id"][i] for i in bad[:MOST])
    for name, count in zip(RAW, sums.nonfinite.tolist(), strict=True):
        if count:
            summary = (
                f"{count} numbers of {name} are NaN or infinite, in {len(bad)} trajectories; nothing later is sound"
            )
            found.append(_non_finite(step, name, summary, {"count": count, "trajectories": len(bad)}, ids))
    for name, value in extra.items():
        if not math.isfinite(value):
            summary = f"{name} is {value}; find the step's first number that is not finite"
            found.append(_non_finite(step, name, summary, {"value": str(value)}))
    found += _clamped(step, sums)
    return found


def _non_finite(step: int, name: str, summary: str, evidence: dict[str, object], ids: tuple[str, ...] = ()) -> Finding:
    return Finding(
        monitor=f"non_finite/{name}",
        step=step,
        onset_step=step,
        kind="non_finite",
        summary=summary,
        evidence=evidence,
        trajectory_ids=ids,
    )


def _clamped(step: int, sums: HealthSums) -> list[Finding]:
    """Log-ratios beyond 20 nats: a ratio above 5e8 means that the two sides do not speak of the same tokens."""
    found = []
    for position, ratio in enumerate(RATIOS):
        count = int(sums.moments[position, 0, :, MOMENTS.index("clamped")].sum())
        if not count:
            continue
        largest = float(sums.largest[position, 0].max())
        square = np.nan_to_num(sums.table.column("square"))
        # the table has squares of this ratio alone
        worst = np.argsort(-square, kind="stable")[: MOST if ratio == "behaviour" else 0]
        found.append(
            Finding(
                monitor=f"all/log_ratio_{ratio}_clamped_share",
                step=step,
                onset_step=step,
                kind="overflow",
                slice_name="all",
                severity="warning",
                summary=(
                    f"{count} tokens have a log-ratio learner/{ratio} beyond {CLAMP_NATS:.0f} nats, the "
                    f"largest {largest:.4g}; compare temperature, masks and alignment of both sides"
                ),
                evidence={"count": count, "largest_nats": largest},
                trajectory_ids=tuple(sums.table.texts["id"][i] for i in worst if square[i] >= CLAMP_NATS**2),
            )
        )
    return found
