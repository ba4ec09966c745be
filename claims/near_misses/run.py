"""Near-misses against hard negatives against nothing: see claim.md.

python claims/near_misses/run.py [--quick] [--seeds N] [--data DIR] [--workers N]
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import Reading, Replay, Simulation, arms_of, effective_share, planner_of, run_claim, simulated

from burnish.stats.intervals import Estimate, mean_interval

ARMS = {"nothing": "", "near_misses": "near_misses", "hard_negatives": "all_negative"}
HARD_TASKS = ("environment.options.level=3", "environment.options.heldout=150", "health.softmax_every=1")
LEAST_FAILED = 0.10
AT_END = 3


def figures_of(replay: Replay, onset: int) -> dict[str, float]:
    """ESS of the update, success at the end, share of groups that failed as a whole."""
    shares, failed = [], []
    for item in replay.steps:
        if item.step <= onset:
            continue
        rows = item.sums().trajectories
        shares.append(effective_share([row.update_size or 0.0 for row in rows]))
        groups: dict[str, list[float]] = defaultdict(list)
        for row in rows:
            groups[row.group_id].append(row.success or 0.0)
        failed.append(statistics.fmean(max(values) == 0 for values in groups.values()))
    last = replay.evaluations[-AT_END:]
    return {
        "ess": statistics.median(shares),
        "success": statistics.fmean(item.success for item in last),
        "failed_groups": statistics.fmean(failed),
    }


def reading(arms: dict[str, list[dict[str, float]]]) -> Reading:
    """The figures, and the verdict that the criterion gives; seeds in the same order in each arm."""

    def against(one: str, other: str, key: str) -> Estimate:
        return mean_interval([a[key] - b[key] for a, b in zip(arms[one], arms[other], strict=True)])

    found = {
        "ess_near_misses": against("near_misses", "nothing", "ess"),
        "ess_hard_negatives": against("hard_negatives", "nothing", "ess"),
        "success_near_misses": against("near_misses", "nothing", "success"),
        "success_hard_negatives": against("hard_negatives", "nothing", "success"),
        "success_near_over_hard": against("near_misses", "hard_negatives", "success"),
    }
    restored = found["ess_near_misses"].low > 0 and found["ess_hard_negatives"].low > 0
    helps, hurts = found["success_near_misses"].low > 0, found["success_hard_negatives"].high < 0
    failed = statistics.fmean(row["failed_groups"] for row in arms["nothing"])
    if failed < LEAST_FAILED:
        verdict = "not testable here"
    elif restored and helps and hurts:
        verdict = "reproduced"
    elif restored and (helps or hurts or found["success_near_over_hard"].low > 0):
        verdict = "mixed"
    else:
        verdict = "not reproduced"
    figures: dict[str, Any] = {key: [e.mean, e.low, e.high] for key, e in found.items()}
    figures |= {"failed_groups": failed, "arms": arms}
    rows = [(key, f"{e.mean:+.3f} [{e.low:+.3f}, {e.high:+.3f}]") for key, e in found.items()]
    return Reading(figures=figures, verdict=verdict, rows=[*rows, ("failed groups", f"{failed:.0%}")])


def quick() -> Reading:
    nothing = Simulation(steps=30, onset=2, trajectories=32, tokens=32, success=0.3, train_failed=False)
    injected = replace(nothing, train_failed=True)
    better, worse = replace(injected, drop=-0.1), replace(injected, drop=0.1)
    arms = {
        name: [figures_of(simulated(spec, seed, arm="claim"), 0) for seed in (0, 1)]
        for name, spec in (("nothing", nothing), ("near_misses", better), ("hard_negatives", worse))
    }
    found = reading(arms)
    return Reading(figures=found.figures, rows=found.rows)


def full(options: Any) -> Reading:
    planner = planner_of(options)
    arms = {}
    for name, kind in ARMS.items():
        jobs = [planner.changed("claim", kind, seed, 1.0, HARD_TASKS) for seed in range(options.seeds)]
        arms[name] = [figures_of(replay, options.onset) for replay in arms_of(options, jobs)]
    return reading(arms)


if __name__ == "__main__":
    sys.exit(run_claim("near_misses", __doc__, quick, full))
