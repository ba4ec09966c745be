"""Preference rewards after 10, 30 or 50% of the training: see claim.md.

python claims/staging/run.py [--quick] [--seeds N] [--data DIR] [--workers N]
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import Reading, Replay, arms_of, planner_of, run_claim
from fault_runs.arms import PREFERENCE_WEIGHT, RAMP
from fault_runs.cache import StepData

from burnish.graders.staged import StagedWeights
from burnish.stats.intervals import mean_interval

SHARES = (0.1, 0.3, 0.5)
AT_END, LATE_STEPS = 3, 20
WIDE, LEARNT = 0.05, 0.02


def schedule(share: float) -> StagedWeights:
    """The weights of the arm whose first stage is `share` of the training."""
    return StagedWeights(
        weights={"shop": 1.0, "preference": PREFERENCE_WEIGHT},
        preference=("preference",),
        start=share,
        end=min(1.0, share + RAMP),
    )


def preference(steps: Sequence[StepData], weights: Sequence[float]) -> float:
    """Mean preference score: what the reward holds beyond the verifier's part, over the weight in its step."""
    found = []
    for item, weight in zip(steps, weights, strict=True):
        rows = item.sums().trajectories if weight > 0 else ()
        known = [(row.reward, row.success) for row in rows if row.reward is not None and row.success is not None]
        found += [(reward - success) / weight for reward, success in known]
    return statistics.fmean(found) if found else 0.0


def figures_of(replay: Replay, share: float) -> dict[str, float]:
    """Success at the end, preference over the last steps, and its rise over the first in which it counts in full."""
    staged, total = schedule(share), replay.spec.steps
    weights = [staged.at(item.step / total)["preference"] for item in replay.steps]
    full = [place for place, weight in enumerate(weights) if weight >= PREFERENCE_WEIGHT - 1e-9][:LATE_STEPS]
    late = preference(replay.steps[-LATE_STEPS:], weights[-LATE_STEPS:])
    early = preference([replay.steps[place] for place in full], [weights[place] for place in full])
    last = replay.evaluations[-AT_END:]
    return {"success": statistics.fmean(item.success for item in last), "preference": late, "rise": late - early}


def reading(arms: dict[float, list[dict[str, float]]]) -> Reading:
    """The figures, and the verdict that the criterion gives; seeds in the same order in each arm."""
    short = mean_interval([a["success"] - b["success"] for a, b in zip(arms[0.3], arms[0.1], strict=True)])
    cautious = mean_interval([a["preference"] - b["preference"] for a, b in zip(arms[0.3], arms[0.5], strict=True)])
    clear = [estimate.low > 0 for estimate in (short, cautious)]
    against = any(estimate.high < 0 for estimate in (short, cautious))
    narrow = all(e.low >= -WIDE and e.high <= WIDE for e in (short, cautious))
    rises = any(statistics.fmean(row["rise"] for row in rows) >= LEARNT for rows in arms.values())
    if all(clear):
        verdict = "reproduced"
    elif any(clear):
        verdict = "mixed"
    elif against or (narrow and rises):
        verdict = "not reproduced"
    else:
        verdict = "not testable here"
    figures: dict[str, Any] = {
        "success_30_over_10": [short.mean, short.low, short.high],
        "preference_30_over_50": [cautious.mean, cautious.low, cautious.high],
        "arms": {f"{share:.0%}": rows for share, rows in arms.items()},
    }
    rows = [
        (f"{share:.0%}: success, preference", f"{_mean(found, 'success'):.3f}, {_mean(found, 'preference'):.3f}")
        for share, found in arms.items()
    ]
    return Reading(figures=figures, verdict=verdict, rows=rows)


def _mean(rows: list[dict[str, float]], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)


def quick() -> Reading:
    """Three made-up learning curves through the same schedule: success saturates, preference needs time on the ramp."""
    arms: dict[float, list[dict[str, float]]] = {}
    for share in SHARES:
        staged = schedule(share)
        weights = [staged.at(step / 100)["preference"] for step in range(1, 101)]
        learnt = sum(weights) / (100 * PREFERENCE_WEIGHT)
        arms[share] = [
            {"success": 0.7 + 0.2 * min(share, 0.3) + 0.01 * seed, "preference": learnt, "rise": learnt / 3}
            for seed in (0, 1, 2)
        ]
    found = reading(arms)
    return Reading(figures=found.figures, rows=found.rows)


def full(options: Any) -> Reading:
    planner = planner_of(options)
    arms = {}
    for share in SHARES:
        jobs = [planner.whole("claim", "staged", seed, share) for seed in range(options.seeds)]
        arms[share] = [figures_of(replay, share) for replay in arms_of(options, jobs)]
    return reading(arms)


if __name__ == "__main__":
    sys.exit(run_claim("staging", __doc__, quick, full))
