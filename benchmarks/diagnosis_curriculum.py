"""What a diagnosis is worth as an input to the choice of tasks: `curriculum.draw` in the shop.

    python benchmarks/diagnosis_curriculum.py [--quick] [--seeds N] [--data DIR]

From the same warm start for each seed (the demo's), RL in two worlds with each choice of tasks:

    whole    the shop, level 1
    outage   the same, with the tools of seven in ten training tasks down; held-out tasks are all served

    even       shuffled epochs
    failures   kinds of tasks that fail more are drawn more, whoever is at fault: what a diagnosis has to beat
    diagnosis  kinds whose failures are the agent's own, the more the nearer it came, and less where others spoil them

A kind is a template and, as people who run a service would know, the desk that serves it (`up` or `down`); nothing says
which desk is down.  Judged is sampled success on 600 held-out tasks at the end; printed beside it are the mean of the
evaluations on the way, the share of groups with a signal, and the share of draws from the region that is down.

Groups are few (8 a step), since that is where it matters which tasks they are of.

Bar, set before the first reported run: in `outage`, diagnosis beats even and beats failures (paired over seeds, lower
end of the 95% interval above 0); in `whole`, its mean is at most .02 below even.  A run takes about half a
minute of one core, a warm start one: twenty minutes for five seeds.  Finished runs are kept under --data (default:
runs/diagnosis_curriculum) and reused.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console
from rich.table import Table

from burnish.loop.conductor import start_run
from burnish.loop.config import Recipe
from burnish.loop.fork import fork_run, forked_recipe
from burnish.loop.recipes import load_recipe
from burnish.stats.intervals import Estimate, mean_interval
from burnish.store.reader import RunReader

HERE = Path(__file__).resolve().parent
WORLDS = {"whole": 0.0, "outage": 0.7}
CHOICES = ("even", "failures", "diagnosis")
COMMON = ("run.workers=1", "run.in_process=true")
RL = (
    "rl.steps=40",
    "rl.groups=8",
    "evaluation.every=5",
    "evaluation.quick_mode=sampled",
    "evaluation.tasks=600",
    "health.on=false",
    "control.mode=off",
)
QUICK = ("warm_start.steps=30", "warm_start.traces=600", "evaluation.tasks=20")
QUICK_RL = ("rl.steps=2", "rl.groups=4", "evaluation.every=1", "evaluation.quick_tasks=10", "evaluation.tasks=20")
MARGIN = 0.02
FIGURES = ("success", "on_the_way", "signal", "down")
Figures = dict[str, float]
console = Console(width=80)


class Bench:
    """The runs of one seed in `data`, each made at most once."""

    def __init__(self, data: Path, seed: int, *, quick: bool) -> None:
        self._folder, self._seed, self._quick = data / f"seed-{seed}", seed, quick

    def run(self, world: str, choice: str) -> Figures:
        """RL with one choice of tasks, from the warm start."""
        parent = self._warm()
        file = f"{HERE / 'diagnosis_runs' / 'flaky_shop.py'}:FlakyShop"
        words = [
            f"environment.name={file}",
            f"environment.options={{level=1, heldout=600, down={WORLDS[world]}}}",
            "environment.isolation=none",
            f"curriculum.draw={choice}",
            "curriculum.tag=desk",
            "curriculum.policy=shop",
            *RL,
            *(QUICK_RL if self._quick else ()),
        ]
        recipe = forked_recipe(parent, words)
        return self._once(
            self._folder / f"{world}-{choice}",
            lambda path: fork_run(parent, recipe, path, checkpoint="rl-000000"),
        )

    def _warm(self) -> Path:
        words = [f"run.seed={self._seed}", "rl.steps=0", *COMMON, *(QUICK if self._quick else ())]
        recipe: Recipe = load_recipe("demo", words)
        self._once(self._folder / "warm", lambda path: start_run(recipe, path))
        return self._folder / "warm"

    def _once(self, path: Path, make: Callable[[Path], None]) -> Figures:
        done = path / "result.json"
        if not done.exists():
            if path.exists():
                path.rename(path.with_name(f"{path.name}.unfinished-{time.time_ns()}"))
            since_s = time.process_time()
            make(path)
            figures = figures_of(path) | {"cpu_s": time.process_time() - since_s}
            done.write_text(json.dumps(figures), encoding="utf-8")
            console.print(f"seed {self._seed} {path.name}: {figures['cpu_s']:.0f} s", highlight=False)
        found: Figures = json.loads(done.read_text(encoding="utf-8"))
        return found


def figures_of(path: Path) -> Figures:
    """What one run came to; of a warm start its success alone."""
    reader = RunReader(path)
    rows = [row for row in reader.evaluations() if row.split == "heldout" and row.mode == "sampled"]
    draws = [row.trajectory.tags for info in reader.steps("rl") for row in reader.trajectories("rl", info.step)]
    groups = sum(value for _, value in reader.scalars("groups/dispatched", "rl"))
    signal = sum(value for _, value in reader.scalars("groups/signal", "rl"))
    return {
        "success": rows[-1].mean,
        "on_the_way": statistics.fmean(row.mean for row in rows[1:] or rows),
        "signal": signal / max(groups, 1.0),
        "down": sum(tags.get("region") == "down" for tags in draws) / max(len(draws), 1),
    }


def against(found: Mapping[str, Sequence[Figures]], one: str, other: str, key: str) -> Estimate:
    """The paired difference over seeds."""
    return mean_interval([a[key] - b[key] for a, b in zip(found[one], found[other], strict=True)])


def table(results: Mapping[str, Mapping[str, Sequence[Figures]]]) -> Table:
    """Means over seeds, and the difference of success from `even` with its 95% interval."""
    made = Table(title="held-out success by choice of tasks", box=None, pad_edge=False, title_justify="left")
    for name in ("world", "choice", "success", "- even [95%]", "on the way", "signal", "down"):
        made.add_column(name, justify="left" if name in ("world", "choice") else "right", no_wrap=True)
    for world, found in results.items():
        for choice, rows in found.items():
            success, way, signal, down = (statistics.fmean(row[key] for row in rows) for key in FIGURES)
            gap = "" if choice == "even" or len(rows) < 2 else shown(against(found, choice, "even", "success"))
            made.add_row(world, choice, f"{success:.3f}", gap, f"{way:.3f}", f"{signal:.2f}", f"{down:.2f}")
    return made


def shown(estimate: Estimate) -> str:
    """>>> shown(Estimate(mean=0.031, low=-0.012, high=0.074))
    '+.031 [-.012, +.074]'
    """
    mean, low, high = (f"{value:+.3f}".replace("0.", ".") for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]"


def bars(results: Mapping[str, Mapping[str, Sequence[Figures]]]) -> dict[str, bool]:
    """The criterion, part by part."""
    outage, whole = results["outage"], results["whole"]
    return {
        "outage: diagnosis beats even": against(outage, "diagnosis", "even", "success").low > 0.0,
        "outage: diagnosis beats failures": against(outage, "diagnosis", "failures", "success").low > 0.0,
        "whole: diagnosis loses at most .02": against(whole, "diagnosis", "even", "success").mean >= -MARGIN,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the same code in about a minute; decides nothing")
    parser.add_argument("--seeds", type=int, default=None, help="default 5, quick 1")
    parser.add_argument("--first-seed", type=int, default=0, help="tune on seeds from 100 up")
    parser.add_argument("--data", type=Path, default=Path("runs/diagnosis_curriculum"))
    asked = parser.parse_args()
    data = asked.data / ("quick" if asked.quick else "full")
    results: dict[str, dict[str, list[Figures]]] = {world: {choice: [] for choice in CHOICES} for world in WORLDS}
    for seed in range(asked.first_seed, asked.first_seed + (asked.seeds or (1 if asked.quick else 5))):
        bench = Bench(data, seed, quick=asked.quick)
        for world, found in results.items():
            for choice, rows in found.items():
                rows.append(bench.run(world, choice))
    console.print(table(results))
    n_seeds = len(results["whole"]["even"])
    decided = {} if asked.quick or n_seeds < 5 else bars(results)
    for name, bar in decided.items():
        console.print(f"  {'yes' if bar else 'NO':4}{name}", highlight=False)
    holds = all(decided.values()) if decided else None
    print(json.dumps({"runs": results, "seeds": n_seeds, "bars": decided, "holds": holds}))
    return 0 if holds is not False else 1


if __name__ == "__main__":
    sys.exit(main())
