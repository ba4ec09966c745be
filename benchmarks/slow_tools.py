"""Slow tools: episodes run beside the learner against a synchronous loop that already overlaps its tool calls.

    python benchmarks/slow_tools.py [--quick] [--seeds N] [--data DIR] [--sweep] [--workers N]

The shop at level 2, every tool call 50 to 500 ms.  Bar: at staleness bound 4 at least 2x the episodes/s of the
synchronous runs on the same tasks, and held-out success no worse (the 95% interval of the paired difference over tasks
and seeds reaches 0).  Both are also given as a share of the rate without any latency.

--sweep adds bounds 0, 1, 2, 4, 8, 16 with and without importance correction (level 1, so that it takes minutes).

All runs of a seed start from the same warm-started policy.  Finished runs are kept under --data (default:
runs/slow_tools) and used again; a seed takes about 8 minutes on 4 cores, the sweep about 8 minutes more a seed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from burnish.core.hashing import content_hash
from burnish.evaluation.compare import compare_stored
from burnish.evaluation.heldout import Mode
from burnish.loop.conductor import start_run
from burnish.loop.config import Recipe
from burnish.loop.fork import fork_run, forked_recipe
from burnish.loop.recipes import load_recipe
from burnish.stats.intervals import mean_interval
from burnish.store.reader import RunReader

LATENCY = "environment.options.latency_s=[0.05, 0.5]"
BOUNDS = (0, 1, 2, 4, 8, 16)
ARMS = {
    "sync": (LATENCY,),
    "async": (LATENCY, "rollout.mode=async", "rollout.max_staleness=4"),
    "sync, no latency": (),
    "async, no latency": ("rollout.mode=async", "rollout.max_staleness=4"),
}
QUICK = ("warm_start.steps=40", "warm_start.traces=600", "evaluation.tasks=40")
RATE_BAR = 2.0
WARM_STEPS = 3
"""First RL steps that no rate counts: a pipeline fills."""
console = Console(width=80)


class Bench:
    """The runs of one seed, each at most once."""

    def __init__(self, folder: Path, seed: int, *, workers: int, quick: bool) -> None:
        self._folder = folder / f"seed-{seed}"
        self._words = (f"run.seed={seed}", f"run.workers={workers}", "evaluation.before=false", "evaluation.every=0")
        self._words += QUICK if quick else ()
        self._steps = 5 if quick else None

    def warm(self, recipe: str) -> Path:
        """The warm-started policy that all runs begin with: the checkpoint before the first RL step."""
        return self._run(f"warm-{recipe}", load_recipe(recipe, [*self._words, "rl.steps=1"]), None)

    def forked(self, recipe: str, arm: str, words: Sequence[str]) -> Path:
        """RL from there with other settings."""
        parent = self.warm(recipe)
        steps = self._steps or load_recipe(recipe, []).rl.steps
        return self._run(arm, forked_recipe(parent, [f"rl.steps={steps}", *words]), parent)

    def _run(self, arm: str, recipe: Recipe, parent: Path | None) -> Path:
        path = self._folder / f"{arm.replace(', ', '-').replace(' ', '-')}-{content_hash(recipe.model_dump())[:8]}"
        done = path / "done"
        if not done.exists():
            if path.exists():
                path.rename(path.with_name(f"{path.name}.unfinished-{time.time_ns()}"))
            console.print(f"{self._folder.name} {arm} ...", end=" ", highlight=False)
            begin = time.monotonic()
            if parent is None:
                start_run(recipe, path)
            else:
                fork_run(parent, recipe, path, checkpoint="rl-000000")
            console.print(f"{time.monotonic() - begin:.0f} s", highlight=False)
            done.touch()
        return path


def rates(run: Path) -> dict[str, float]:
    """Of one run: episodes/s and seconds a step after the first steps, staleness, held-out success at the end."""
    reader = RunReader(run)
    first = reader.steps("rl")[0].step
    taken = [info.step for info in reader.steps("rl") if info.step >= first + WARM_STEPS]
    rows = [reader.step_scalars("rl", step) for step in taken]
    seconds = sum(row["time/step_s"] for row in rows)
    used = sum(row["episodes/trained"] + row["episodes/filtered"] + row["episodes/failed"] for row in rows)
    ends = {row.mode: row.mean for row in reader.evaluations() if row.label == "after_rl" and row.split == "heldout"}
    return {
        "episodes_per_s": used / seconds,
        "step_s": statistics.median(row["time/step_s"] for row in rows),
        "staleness_mean": statistics.fmean(row.get("staleness/mean", 0.0) for row in rows),
        "staleness_max": max(row.get("staleness/max", 0.0) for row in rows),
        "ess_sequence": statistics.median(row.get("ratio_behaviour_ess_raw_sequence", 1.0) for row in rows),
        **{f"success_{mode}": value for mode, value in ends.items()},
    }


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, with the smallest and largest value where there are several."""
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} {min(values):.{digits}f}-{max(values):.{digits}f}"


def main() -> int:
    """Run, print, and say by the exit status whether the bar holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--data", type=Path, default=Path("runs/slow_tools"))
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--workers", type=int, default=max(2, (os.cpu_count() or 2) - 1))
    options = parser.parse_args()
    seeds = range(1 if options.quick else options.seeds)
    folder = options.data / "quick" if options.quick else options.data
    recipe = "demo" if options.quick else "shop2"
    benches = [Bench(folder, seed, workers=options.workers, quick=options.quick) for seed in seeds]
    # the arms of a seed one after the other: what else the machine does falls on all of them
    made = [{arm: bench.forked(recipe, arm, words) for arm, words in ARMS.items()} for bench in benches]
    runs = {arm: [of_seed[arm] for of_seed in made] for arm in ARMS}
    figures: dict[str, Any] = {"arms": {arm: [rates(run) for run in found] for arm, found in runs.items()}}
    ratios = [
        b["episodes_per_s"] / a["episodes_per_s"]
        for a, b in zip(figures["arms"]["sync"], figures["arms"]["async"], strict=True)
    ]
    paired = [compare(a, b) for a, b in zip(runs["sync"], runs["async"], strict=True)]
    figures |= {"ratio": ratios, "paired": paired, "workers": options.workers}
    console.print(_table(figures))
    console.print(f"episodes/s, async over sync: {spread(ratios)}x (bar {RATE_BAR:g}x)")
    for seed, pair in zip(seeds, paired, strict=True):
        console.print(
            f"held-out success, async minus sync, seed {seed}: {pair['difference']:+.3f} "
            f"[{pair['low']:+.3f}, {pair['high']:+.3f}]"
        )
    mean, low, high = _pooled(paired)
    console.print(f"over seeds: {mean:+.3f} [{low:+.3f}, {high:+.3f}]")
    if len(paired) > 1:
        console.print("the same, with what runs vary by: [{:+.3f}, {:+.3f}]".format(*over_runs(paired)))
    figures["pooled"] = [mean, low, high]
    if options.sweep:
        figures["sweep"] = sweep(benches)
    same = high >= 0.0
    figures["holds"] = None if options.quick else bool(statistics.median(ratios) >= RATE_BAR and same)
    print(json.dumps(figures))
    return 0 if options.quick or figures["holds"] else 1


def compare(a: Path, b: Path) -> dict[str, float]:
    """Sampled held-out success at the end of two runs, paired by task."""
    pairs = compare_stored(RunReader(a).evaluations(), RunReader(b).evaluations(), names=("sync", "async"))
    (found,) = (pair for pair in pairs if (pair.split, pair.mode) == ("heldout", Mode.SAMPLED))
    return {"difference": found.difference, "low": found.low, "high": found.high, "a": found.a_rate, "b": found.b_rate}


def _pooled(paired: Sequence[dict[str, float]]) -> tuple[float, float, float]:
    """Mean over seeds; the interval adds the variances of the seeds' own intervals, which are those of their tasks."""
    n = len(paired)
    half = sum(((p["high"] - p["low"]) / 2) ** 2 for p in paired) ** 0.5 / n
    mean = statistics.fmean(p["difference"] for p in paired)
    return mean, mean - half, mean + half


def over_runs(paired: Sequence[dict[str, float]]) -> tuple[float, float]:
    """Student's interval over seeds, where runs are what varies: an asynchronous run is not repeated to the bit, and
    two of one seed can end further apart than 300 tasks explain."""
    found = mean_interval([pair["difference"] for pair in paired])
    return found.low, found.high


def sweep(benches: Sequence[Bench]) -> list[dict[str, Any]]:
    """Bounds with and without correction at level 1."""
    rows = []
    table = Table(title="staleness bounds (level 1, tools 50-500 ms)", box=None, pad_edge=False)
    for name in ("bound", "weights", "stale", "ESS", "episodes/s", "sampled", "greedy"):
        table.add_column(name, no_wrap=True)
    for bound in BOUNDS:
        for correction in ("none", "token_truncate"):
            words = (LATENCY, "rollout.mode=async", f"rollout.max_staleness={bound}", f"rl.correction={correction}")
            runs = [rates(bench.forked("demo", f"bound-{bound}-{correction}", words)) for bench in benches]
            rows.append({"bound": bound, "correction": correction, "runs": runs})
            middle = [
                f"{statistics.median(run[key] for run in runs):.2f}" for key in ("staleness_mean", "ess_sequence")
            ]
            rate = spread([run["episodes_per_s"] for run in runs], 0)
            ends = [spread([run[f"success_{mode}"] for run in runs]) for mode in ("sampled", "greedy")]
            table.add_row(str(bound), correction.replace("token_", ""), *middle, rate, *ends)
    console.print(table)
    return rows


def _table(figures: dict[str, Any]) -> Table:
    table = Table(title="median min-max over seeds", box=None, pad_edge=False)
    for name in ("arm", "episodes/s", "share of sync, no latency", "step s", "success"):
        table.add_column(name, no_wrap=name == "arm")
    free = [row["episodes_per_s"] for row in figures["arms"]["sync, no latency"]]
    for arm, rows in figures["arms"].items():
        speeds = [row["episodes_per_s"] for row in rows]
        shares = [a / b for a, b in zip(speeds, free, strict=True)]
        success = [row["success_sampled"] for row in rows]
        table.add_row(arm, spread(speeds, 0), spread(shares), spread([row["step_s"] for row in rows]), spread(success))
    return table


if __name__ == "__main__":
    sys.exit(main())
