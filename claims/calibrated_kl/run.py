"""How much of the effect a calibrated alarm on ordinary KL catches already: see claim.md.

python claims/calibrated_kl/run.py [--quick] [--seeds N] [--data DIR] [--workers N]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import (
    Pair,
    Reading,
    Replay,
    Simulation,
    benchmark_replays,
    healthy_of,
    pairs_of,
    run_claim,
    simulated,
    stored_replays,
)
from fault_runs.cache import RunSpec
from fault_runs.catalogue import FAULTS, chosen_dose, read_doses
from fault_runs.detectors import BurnishWatch, Cusum
from fault_runs.jobs import TUNING_FROM
from fault_runs.scoring import Score, calibrate, score

from burnish.stats.intervals import wilson

AS_EARLY_STEPS = 5
ENOUGH = 0.70
LEAST_CAUGHT = 10
LEFT_OUT = ("inverted",)
"""Where advantages are divided by the group's spread it trains exactly as `wrong_sign`: one damage, counted once."""


def reading(ours: Score, plain: Score) -> Reading:
    """The figures, and the verdict that the criterion gives."""
    both = [(a.alarm, b.alarm) for a, b in zip(ours.caught, plain.caught, strict=True) if a.alarm is not None]
    also = sum(b is not None and b <= a + AS_EARLY_STEPS for a, b in both)
    only = sum(a.alarm is None and b.alarm is not None for a, b in zip(ours.caught, plain.caught, strict=True))
    share = wilson(also, len(both)) if both else None
    verdict = "not testable here"
    if share is not None and len(both) >= LEAST_CAUGHT:
        verdict = "reproduced" if share.low >= ENOUGH else "not reproduced" if share.high < ENOUGH else "mixed"
    figures: dict[str, Any] = {
        "runs": len(ours.caught),
        "caught_by_watch": len(both),
        "caught_by_kl_as_early": also,
        "share": None if share is None else [share.mean, share.low, share.high],
        "caught_by_kl_alone": only,
        "median_lead_watch": ours.lead,
        "median_lead_kl": plain.lead,
        "thresholds": [ours.threshold, plain.threshold],
        "healthy_steps": ours.quiet.steps,
        "false_alarms": [ours.quiet.alarms, plain.quiet.alarms],
        "alarms": alarms(ours, plain),
    }
    rows = [(name, str(value)) for name, value in figures.items() if name != "alarms"]
    return Reading(figures=figures, verdict=verdict, rows=rows)


def alarms(ours: Score, plain: Score) -> dict[str, list[list[int | None]]]:
    """Steps of the first alarm of the watch, of KL, and of the damage, run by run."""
    found: dict[str, list[list[int | None]]] = {}
    for a, b in zip(ours.caught, plain.caught, strict=True):
        found.setdefault(a.kind, []).append([a.alarm, b.alarm, a.damage])
    return found


def both_scores(pairs: Sequence[Pair], healthy: Sequence[Replay], tuning: Sequence[Replay], workers: int) -> Reading:
    """Calibrate both on `tuning` and score them on `pairs`."""
    scores = []
    for detector in (BurnishWatch(), Cusum("CUSUM of KL", "kl_k3")):
        threshold = calibrate(detector, tuning, workers)
        scores.append(score(detector, threshold, pairs, healthy, workers))
    return reading(scores[0], scores[1])


def quick() -> Reading:
    fine, bad = Simulation(steps=90, onset=60), Simulation(steps=90, onset=60, growth=0.4, drop=0.3)
    twin = simulated(fine, 0, arm="twin")
    fault = simulated(bad, 0, arm="fault", kind="stale")
    ours, plain = (
        score(detector, detector.grid[len(detector.grid) // 6], pairs_of([twin, fault], "fault"), [twin], 1)
        for detector in (BurnishWatch(), Cusum("CUSUM of KL", "kl_k3"))
    )
    found = reading(ours, plain)
    return Reading(figures=found.figures, rows=found.rows)


def full(options: Any) -> Reading:
    """Counts every damaging run at its tuned dose, and every healthy one, that lies under --data: longer healthy runs
    than are asked for here calibrate better."""
    doses = read_doses()
    damaging = [kind for kind in FAULTS if doses.get(kind, {}).get("status") == "damaging" and kind not in LEFT_OUT]
    kinds = options.kinds.split(",") if options.kinds else damaging
    benchmark_replays(options, kinds)
    benchmark_replays(options, (), range(TUNING_FROM, TUNING_FROM + (options.tuning_seeds or options.seeds)))
    found, tuning = stored_replays(options), stored_replays(options, tuning=True)
    pairs = [pair for pair in pairs_of(found, "fault") if tuned(pair.changed.spec, kinds)]
    return both_scores(pairs, healthy_of(found), healthy_of(tuning), options.workers)


def tuned(spec: RunSpec, kinds: Sequence[str]) -> bool:
    """Whether a run is of these kinds, at the dose of the benchmark."""
    return spec.kind in kinds and spec.dose == chosen_dose(spec.kind, read_doses())


if __name__ == "__main__":
    sys.exit(run_claim("calibrated_kl", __doc__, quick, full))
