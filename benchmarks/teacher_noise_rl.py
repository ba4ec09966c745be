"""RL behind noisy teachers of grounding: the gate against a plain sum, on `scenes`, bonus 1.

    python benchmarks/teacher_noise_rl.py [--quick] [--seeds N] [--data DIR] [--workers N]

From the warm start of claims/grounding_collapse, for each seed and (FPR, FNR) of (0, 0), (.3, .3) and (.5, .6), RL with
`gated` (the answer, and the teacher's verdict on top behind a right one) and `additive` (answer plus verdict).  The
teacher calls evidence good from an F1 of .5 on, and errs at random.  Printed: held-out accuracy, true grounding and
citing; and the share of advantage variance that comes from teacher error in groups whose answers are all wrong.  Bar:
teacher error moves no all-wrong group of the gate, and in every cell the mean accuracy of the gate is at least that of
the sum less .02.  Two to three minutes for each of seven runs of a seed on one core; runs that are there are read.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scene_runs.made import QUICK, QUICK_RL, RL, burnish, warm

from burnish.core.grade import Grade
from burnish.store.reader import RunReader
from burnish.store.rows import StoredTrajectory

HERE = Path(__file__).resolve().parent
CELLS = {"clean": (0.0, 0.0), "noisy": (0.3, 0.3), "useless": (0.5, 0.6)}
WAYS = ("gated", "additive")
BONUS = 1.0
WITHIN = 0.02
Figures = dict[str, float]


def run(way: str, cell: str, seed: int, data: Path, words: Sequence[str] = ()) -> Figures:
    """RL with one teacher, and what came of it."""
    folder = data / "runs" / f"noise-{way}-{cell}-{seed}"
    keys = [f"graders.file={HERE}/scene_runs/{way}-{cell}.toml", *(words or RL)]
    burnish(["fork", str(folder.with_name(f"warm-{seed}")), *keys], folder)
    reader = RunReader(folder)
    rows = reader.trajectories("eval", reader.steps("eval")[-1].step)
    trained = [row for info in reader.steps("rl") for row in reader.trajectories("rl", info.step)]
    return {
        "accuracy": statistics.fmean(score(row, "answer") for row in rows),
        "grounding": statistics.fmean(score(row, "spatial") for row in rows),
        "citing": statistics.fmean("(" in row.trajectory.messages[-1].text for row in rows),
        "wrong_noise": wrong_noise(trained) if way == "additive" else gate_noise(trained),
    }


def grade_of(row: StoredTrajectory, name: str) -> Grade:
    return next(grade for grade in row.grades if grade.grader == name)


def score(row: StoredTrajectory, name: str) -> float:
    return grade_of(row, name).score or 0.0


def all_wrong(rows: Sequence[StoredTrajectory]) -> list[list[StoredTrajectory]]:
    """The groups without a right answer."""
    groups: dict[str, list[StoredTrajectory]] = defaultdict(list)
    for row in rows:
        groups[row.trajectory.group_id].append(row)
    return [group for group in groups.values() if not any(score(row, "answer") for row in group)]


def wrong_noise(rows: Sequence[StoredTrajectory]) -> float:
    """Share of the variance of advantages in all-wrong groups that is teacher error; 0 without such groups.

    A member's advantage is its reward less the group's mean: with n the part of it that is there because the teacher
    erred, and c what a perfect teacher would give, sum n^2 / (sum n^2 + sum c^2).
    """
    noise = clean = 0.0
    for group in all_wrong(rows):
        says = [BONUS * score(row, "teacher") for row in group]
        true = [BONUS * float(bool(grade_of(row, "teacher").evidence.get("good"))) for row in group]
        mean_says, mean_true = statistics.fmean(says), statistics.fmean(true)
        noise += sum(((s - mean_says) - (t - mean_true)) ** 2 for s, t in zip(says, true, strict=True))
        clean += sum((t - mean_true) ** 2 for t in true)
    return noise / (noise + clean) if noise + clean else 0.0


def gate_noise(rows: Sequence[StoredTrajectory]) -> float:
    """The same behind the gate, from the advantages as they were stored: anything but 0 would be teacher error."""
    return sum((row.advantage or 0.0) ** 2 for group in all_wrong(rows) for row in group)


def table_of(found: dict[tuple[str, str], list[Figures]]) -> tuple[dict[str, Figures], bool]:
    """Means over seeds by run, printed; and whether the bar holds."""
    means = {
        f"{way}-{cell}": {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}
        for (way, cell), rows in found.items()
    }
    print(f"{'teacher':<10}{'way':<10}{'accuracy':>10}{'grounding':>11}{'citing':>8}{'noise in all-wrong':>20}")
    cells = [cell for cell in CELLS if ("gated", cell) in found]
    for cell in cells:
        for way in WAYS:
            row = means[f"{way}-{cell}"]
            print(
                f"{cell:<10}{way:<10}{row['accuracy']:>10.3f}{row['grounding']:>11.3f}{row['citing']:>8.3f}"
                f"{row['wrong_noise']:>20.3f}"
            )
    quiet = all(row["wrong_noise"] == 0.0 for way, rows in found.items() if way[0] == "gated" for row in rows)
    kept = all(means[f"gated-{c}"]["accuracy"] >= means[f"additive-{c}"]["accuracy"] - WITHIN for c in cells)
    return means, quiet and kept


def main() -> int:
    """Train what is missing, print, and say whether the bar holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path("runs/grounding_collapse"))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) if options.quick else options.data.resolve()
        seeds = 1 if options.quick else options.seeds
        cells = ["noisy"] if options.quick else list(CELLS)
        jobs = [(way, cell, seed) for seed in range(seeds) for cell in cells for way in WAYS]
        with ThreadPoolExecutor(options.workers) as pool:
            list(pool.map(lambda seed: warm(seed, data, QUICK if options.quick else ()), range(seeds)))
            done = list(pool.map(lambda job: run(*job, data, QUICK_RL if options.quick else RL), jobs))
    found: dict[tuple[str, str], list[Figures]] = defaultdict(list)
    for (way, cell, _), figures in zip(jobs, done, strict=True):
        found[way, cell].append(figures)
    means, good = table_of(found)
    by_seed = {f"{way}-{cell}": rows for (way, cell), rows in found.items()}
    print(json.dumps({"cells": CELLS, "means": means, "by_seed": by_seed, "holds": None if options.quick else good}))
    return 0 if options.quick or good else 1


if __name__ == "__main__":
    sys.exit(main())
