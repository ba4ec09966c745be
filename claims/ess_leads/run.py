"""ESS falls before learning stalls: see claim.md.

python claims/ess_leads/run.py [--quick] [--seeds N] [--data DIR] [--workers N]
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

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
    series,
    simulated,
    stored_replays,
)

KINDS = ("stale", "mismatch", "temperature", "learning_rate")
SIGNAL = "health/ess_sequence_raw"
LOW, MEDIAN_OF, BEFORE = 0.5, 5, 30
LEAST_DAMAGED = 8


def falls_at(replay: Replay, onset: int) -> int | None:
    """The first step after the onset at which ESS lies below half of what it was before."""
    steps, values = series(replay, SIGNAL)[SIGNAL]
    before = [value for step, value in zip(steps, values, strict=True) if step <= onset][-BEFORE:]
    if not before:
        return None
    floor = LOW * float(np.median(before))
    for place, step in enumerate(steps):
        if step > onset and np.median(values[max(0, place - MEDIAN_OF + 1) : place + 1]) < floor:
            return step
    return None


def reading(pairs: list[Pair], healthy: list[Replay], onset: int) -> Reading:
    """The figures, and the verdict that the criterion gives."""
    fell_at = [falls_at(pair.changed, onset) for pair in pairs]
    damaged = [
        (pair.damaged_at, fall) for pair, fall in zip(pairs, fell_at, strict=True) if pair.damaged_at is not None
    ]
    leads = [at - fall for at, fall in damaged if fall is not None and at is not None]
    false = [falls_at(replay, onset) is not None for replay in healthy]
    fell = len(leads) / len(damaged) if damaged else 0.0
    first = statistics.fmean(lead > 0 for lead in leads) if leads else 0.0
    leading = fell >= 0.8 and first >= 0.8 and statistics.median(leads) > 0
    silent = bool(false) and statistics.fmean(false) <= 0.1
    verdict = {2: "reproduced", 1: "mixed", 0: "not reproduced"}[leading + silent]
    figures: dict[str, Any] = {
        "damaged_runs": len(damaged),
        "ess_falls": fell,
        "falls_first": first,
        "median_lead_steps": statistics.median(leads) if leads else None,
        "leads": leads,
        "healthy_runs": len(false),
        "falls_in_health": statistics.fmean(false) if false else None,
        "by_kind": by_kind(pairs, fell_at),
    }
    return Reading(
        figures=figures,
        verdict=verdict if len(damaged) >= LEAST_DAMAGED else "not testable here",
        rows=[(name, str(value)) for name, value in figures.items() if name not in ("leads", "by_kind")],
    )


def by_kind(pairs: list[Pair], fell_at: list[int | None]) -> dict[str, dict[str, Any]]:
    """Of all runs of a kind, damaged or not: the gaps to the twins at the end, and where success and ESS fall."""
    found: dict[str, dict[str, Any]] = {}
    for pair, fall in zip(pairs, fell_at, strict=True):
        row = found.setdefault(pair.changed.spec.kind, {"gap": [], "damaged_at": [], "ess_falls_at": []})
        row["gap"].append(round(pair.gap, 4))
        row["damaged_at"].append(pair.damaged_at)
        row["ess_falls_at"].append(fall)
    return found


def quick() -> Reading:
    spec = Simulation(steps=90, onset=60)
    twin, bad = simulated(spec, 0, arm="twin"), Simulation(steps=90, onset=60, growth=1.5, drop=0.3)
    fault = simulated(bad, 0, arm="fault", kind="stale")
    found = reading(pairs_of([twin, fault], "fault"), [twin], 60)
    return Reading(figures=found.figures, rows=found.rows)


def full(options: Any) -> Reading:
    """Counts every run of the four kinds, and every healthy one, that lies under --data."""
    benchmark_replays(options, options.kinds.split(",") if options.kinds else KINDS)
    found = stored_replays(options)
    pairs = [pair for pair in pairs_of(found, "fault") if pair.changed.spec.kind in KINDS]
    return reading(pairs, healthy_of(found), options.onset)


if __name__ == "__main__":
    sys.exit(run_claim("ess_leads", __doc__, quick, full))
