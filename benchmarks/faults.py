"""Fault injection: real training runs with something wrong, and who notices before held-out success falls.

    python benchmarks/faults.py [--quick] [--seeds N] [--data DIR] [--workers N] [--kinds a,b] [--steps N] [--onset N]
                                [--fault-seeds N] [--act-seeds N] [--control-steps KIND=N,...]
                                [--tuning-control-steps KIND=N,...] [--tune] [--score-only]

Every seed has a healthy twin.  Faults and healthy controls leave it at the onset, from its checkpoint, so that they
differ in nothing else; held-out success is measured on the same tasks in the world as it was.  Detectors are run again
on what is kept of the runs (a few kilobytes a step), which takes about a minute.

Bar, on the reported seeds 0, 1, ...: at least 90% of the faults detected, at most .5 false alarms in 1,000 healthy
steps, a median lead (in steps before success is 10 points below the twin) at least that of the best other detector,
with at least 30 fault runs of 6 kinds and 6,000 healthy steps; and with the ladder on, repairable faults end at most 5
points below the healthy twin.  Thresholds of all detectors are calibrated on the tuning seeds (100 and up) to the same
false alarms.

Runs are kept under --data (default: runs/faults) and never made twice: an interrupted call goes on.  --tune first finds
the doses on the tuning seeds and writes fault_runs/doses.toml.  A whole set of 10 seeds takes about 4 hours on 4 cores;
a fault run of 50 steps with 5 evaluations takes 45 seconds of one core, 1,000 healthy steps of long controls about ten
minutes.  The call behind the figures in docs/health.md stands there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fault_runs.acting import LEAST, Acting, compare_acting
from fault_runs.cache import Replay
from fault_runs.catalogue import CONTROLS, KINDS, read_doses
from fault_runs.detectors import Terms, all_detectors
from fault_runs.jobs import TUNING_FROM, Planner, Setting, replays, run_jobs, wanted_jobs
from fault_runs.published import published_alarms
from fault_runs.scoring import FALSE_ALARMS_PER_1000, Pair, Score, calibrate, healthy_of, pairs_of, quiet, score
from fault_runs.tables import (
    acting_table,
    apart_table,
    detector_table,
    fault_table,
    healthy_table,
    published_table,
)
from fault_runs.tune import tune
from rich.console import Console

DETECTED_BAR = 0.90
LEAST_FAULTS, LEAST_KINDS, LEAST_HEALTHY = 30, 6, 6000
QUICK_KINDS = ("learning_rate", "template", "mix_shift", "not_finite")
QUICK_WORDS = (
    "warm_start.steps=220",
    "warm_start.batch_size=32",
    "warm_start.mistakes={ guess = 0.0, skip_calculator = 0.0, wrong_column = 0.0 }",
    "warm_start.traces=1000",
    "rl.groups=6",
    "rl.group_size=4",
    "rl.updates=2",
)
console = Console(width=80)


def main() -> int:
    """Generate what is missing, score, print, and say by the exit status whether the bar holds."""
    options = _options()
    setting = _setting(options)
    planner = Planner(setting=setting)
    short = Planner(setting=replace(setting, control_steps={}))
    kinds = QUICK_KINDS if options.quick else tuple(options.kinds.split(",") if options.kinds else KINDS)
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise SystemExit(f"no kinds {unknown}; there are {', '.join(KINDS)}")
    tuning = range(TUNING_FROM, TUNING_FROM + (1 if options.quick else options.tuning_seeds))
    if options.tune:
        tune(planner, kinds, tuning, options.workers, _say)
    jobs = _jobs(planner, options, kinds, tuning)
    failed = [] if options.score_only else run_jobs(jobs, options.workers, _say)
    # Where a long control is missing, a short one of an earlier call still says what it says.
    jobs += [job for job in _jobs(short, options, kinds, tuning) if job.target not in planner.made]
    terms = Terms(baseline_steps=10, cooldown_steps=2) if options.quick else Terms()
    figures = report(replays(jobs), terms, options.workers)
    found = compare_acting([r for r in replays(jobs) if r.spec.seed < TUNING_FROM], jobs)
    console.print(acting_table(found))
    figures["acting"] = [asdict(item) for item in found]
    figures["failed_runs"] = [job.spec.name for job in failed]
    figures["holds"] = None if options.quick else holds(figures, found)
    print(json.dumps(_finite(figures)))
    return 0 if (options.quick and not failed) or figures["holds"] else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=10, help="reported seeds, for twins and controls")
    parser.add_argument("--fault-seeds", type=int, default=5)
    parser.add_argument("--act-seeds", type=int, default=5)
    parser.add_argument("--tuning-seeds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path("runs/faults"))
    parser.add_argument("--workers", type=int, default=max(2, (os.cpu_count() or 2)))
    parser.add_argument("--kinds", default="")
    parser.add_argument("--onset", type=int, default=100)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--control-steps", default="", help='last step of long controls: "mix_shift=210"')
    parser.add_argument("--tuning-control-steps", default="", help="the same of the tuning half (default: as reported)")
    parser.add_argument("--recipe", default="long")
    parser.add_argument("--rl-words", default="", help='overrides after the warm start: "rl.groups=6 rl.lr=5e-5"')
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--score-only", action="store_true")
    return parser.parse_args()


def _setting(options: argparse.Namespace) -> Setting:
    if options.quick:
        data = options.data / "quick"
        return Setting(data=data, recipe="demo", onset=12, steps=20, every=4, tasks=20, words=QUICK_WORDS)
    words = tuple(options.rl_words.split())
    return Setting(
        data=options.data,
        recipe=options.recipe,
        onset=options.onset,
        steps=options.steps,
        rl_words=words,
        control_steps=_steps_by_kind(options.control_steps),
        tuning_control_steps=_steps_by_kind(options.tuning_control_steps or options.control_steps),
    )


def _steps_by_kind(text: str) -> dict[str, int]:
    """`"mix_shift=210,lower_rate=160"` as a table."""
    pairs = (pair.partition("=") for pair in text.split(",") if pair)
    return {kind: int(steps) for kind, _, steps in pairs}


def _jobs(planner: Planner, options: argparse.Namespace, kinds: Sequence[str], tuning: range) -> list[Any]:
    """The reported half, and of the tuning half what calibrates: twins and controls."""
    seeds = range(1 if options.quick else options.seeds)
    faulty = seeds[: options.fault_seeds]
    acting = seeds[: options.act_seeds]
    healthy = [kind for kind in kinds if kind in CONTROLS]
    jobs = wanted_jobs(planner, tuning, healthy, ())
    jobs += wanted_jobs(planner, faulty, kinds, acting)
    return jobs + wanted_jobs(planner, [seed for seed in seeds if seed not in faulty], healthy, ())


def report(found: Sequence[Replay], terms: Terms, workers: int) -> dict[str, Any]:
    """Calibrate on the tuning half, score the reported half, print the tables; every figure."""
    doses = read_doses()
    tuning = [replay for replay in found if replay.spec.seed >= TUNING_FROM]
    reported = [replay for replay in found if replay.spec.seed < TUNING_FROM]
    pairs, hard = pairs_of(reported, "fault"), [replay for replay in reported if replay.spec.arm == "hard"]
    harmful = [pair for pair in pairs if doses.get(pair.changed.spec.kind, {}).get("status") != "harmless"]
    calm, healthy = healthy_of(tuning), healthy_of(reported)
    scores = []
    for detector in all_detectors(terms):
        threshold = calibrate(detector, calm, workers)
        scores.append(score(detector, threshold, harmful, healthy, workers))
    best = best_of(scores[1:])
    harmless = [pair for pair in pairs if pair not in harmful]
    console.print(detector_table(scores))
    console.print(fault_table(harmful, scores[0], best))
    console.print(healthy_table(healthy, scores[0], terms))
    console.print(apart_table(harmless, hard, doses))
    published = _published(harmful, healthy)
    console.print(published_table(published))
    return {
        "detectors": [_plain(item) for item in scores],
        "best_baseline": best.name if best else None,
        "calibrated_on_healthy_steps": quiet(calm, [[] for _ in calm], terms).steps,
        "fault_runs": len(harmful),
        "kinds": len({pair.changed.spec.kind for pair in harmful}),
        "gaps": {pair.changed.spec.name: round(pair.gap, 4) for pair in pairs},
        "published_rules": published,
        "hard": {replay.spec.name: replay.ended for replay in hard},
    }


def best_of(scores: Sequence[Score]) -> Score | None:
    """The other detector with the largest median lead; detections decide between equals."""
    known = [item for item in scores if item.lead is not None]
    return max(known, key=lambda item: (item.lead or 0.0, item.detected.mean if item.detected else 0.0), default=None)


def holds(figures: dict[str, Any], acting: Sequence[Acting]) -> bool | None:
    """Whether the bar holds; None where there are too few runs to say so."""
    ours, best = figures["detectors"][0], figures["best_baseline"]
    enough = figures["fault_runs"] >= LEAST_FAULTS and figures["kinds"] >= LEAST_KINDS
    total = next((item for item in acting if item.kind == "all"), None)
    if not enough or ours["healthy_steps"] < LEAST_HEALTHY or best is None or total is None:
        return None
    theirs = next(item for item in figures["detectors"] if item["name"] == best)
    watching = ours["detected"] >= DETECTED_BAR and ours["false_per_1000"] <= FALSE_ALARMS_PER_1000
    return bool(watching and ours["lead"] >= theirs["lead"] and total.acting.mean >= LEAST)


def _published(faults: Sequence[Pair], healthy: Sequence[Replay]) -> dict[str, tuple[int, int]]:
    wrong = sum(any(a.step > p.changed.spec.onset for a in published_alarms(p.changed)) for p in faults)
    fine = sum(bool(published_alarms(replay)) for replay in healthy)
    return {"with a fault": (wrong, len(faults)), "healthy": (fine, len(healthy))}


def _plain(item: Score) -> dict[str, Any]:
    rate = item.detected
    return {
        "name": item.name,
        "threshold": item.threshold,
        "detected": rate.mean if rate else None,
        "detected_interval": [rate.low, rate.high] if rate else None,
        "false_per_1000": item.quiet.per_1000,
        "false_interval": item.quiet.interval,
        "false_alarms": item.quiet.alarms,
        "healthy_steps": item.quiet.steps,
        "lead": item.lead,
        "attributed": item.attributed,
        "false_alarms_at": [asdict(one) for one in item.false_alarms],
        "runs": [asdict(one) for one in item.caught],
    }


def _finite(value: Any) -> Any:
    """JSON knows no infinity: an interval without an end has None there."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _say(text: str) -> None:
    console.print(text, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
