"""Burnish against TRL: the same policy, tasks and update, in the shop with its tools.

    python benchmarks/against_trl.py [--quick] [--seeds N] [--data DIR]

Needs the peers of the extra `bench`: pip install -c constraints.txt -e '.[bench]'

TRL's newest GRPOTrainer with its `environment_factory` and Burnish train the same warm-started model file on the same
tasks in the same order: 32 prompts x 8, at most 80 tokens after the prompt, 4 turns, learning rate 3e-4, clip .2/.28,
no KL, advantages over the group's standard deviation, token-level mean, one optimizer step on each batch.  Zero-signal
groups are trained on too, as TRL does; filtering is reported apart.  TRL runs at its best of: 1 to cores - 1 threads,
1, 2 or 4 gloo processes, float32 or bf16, continuous batching on or off, micro-batches of 64 or all, found on seed 100;
without gradient checkpointing.  On all cores it is compared as it is installed, which the bar is about, and with a
patch of ours that makes it faster (`peers/trl_side.py` says what it is given), as on one process.  Every run is a
process of its own, the two sides take turns, and time counts from the first finished step on: start and warm-up are
left out, and everything else that a step costs is in.

Bar: one process with one thread each, 2.5x per step; all cores (4 or more, null below), 4x per step and 4x to a mean
reward of .9 (over the last 5 batches); rewards reached agree.  Aims: 8x per step on all cores, 5x on one process.

Runs are kept under --data (default: runs/against_trl) and reused while Burnish's source is the same.  5 seeds take
about an hour on 4 cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peers.sides import Burnish, Search, large_model, make_work, run_burnish, run_trl, versions, warm_model
from peers.spec import Config, Run
from rich.console import Console
from rich.table import Table

import burnish
from burnish.core.hashing import content_hash
from burnish.loop.setup import available_cores
from burnish.stats.intervals import mean_interval

console = Console(width=80, highlight=False)
STEPS = 48
LARGE_STEPS = 3
SEARCH_SEED = 100
GOAL = 0.9
SAME_REWARD = 0.03
WIDEST = 0.1
"""Rewards agree where the 95% interval of the paired difference holds 0 and reaches no further than `WIDEST` from it
(a wider one says nothing), or lies within `SAME_REWARD` of 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two arms, and the bars on how much faster the first is: per step, and to the goal (0: reported)."""

    title: str
    burnish: str
    trl: str
    step_bar: float = 0.0
    goal_bar: float = 0.0
    step_aim: float = 0.0
    min_cores: int = 1


COMPARISONS = (
    Comparison(title="1 process, 1 thread", burnish="burnish 1", trl="trl 1x1", step_bar=2.5, step_aim=5.0),
    Comparison(title="1 process, TRL's best", burnish="burnish 1", trl="trl 1 process"),
    Comparison(
        title="all cores",
        burnish="burnish all",
        trl="trl installed",
        step_bar=4.0,
        goal_bar=4.0,
        step_aim=8.0,
        min_cores=4,
    ),
    Comparison(title="all cores, patched TRL", burnish="burnish all", trl="trl all"),
    Comparison(title="all cores, filtering", burnish="burnish filtering", trl="trl all"),
)
LARGE = Comparison(title="25M, all cores", burnish="burnish large", trl="trl large")


class Bench:
    """The arms, and their runs in `folder`, each made at most once for one state of Burnish's source."""

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self._quick = quick
        self.versions = versions()
        self.cores = available_cores()
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.model = warm_model(folder, quick=quick)
        self._runs = folder / f"runs-{source_hash()}"
        self.steps = 4 if quick else STEPS
        self.trials: dict[str, dict[str, float | None]] = {}
        self.trl = self._trl_arms()
        self.burnish = {"burnish 1": Burnish(workers=1), "burnish all": Burnish(workers=0)}
        if not quick:
            self.burnish["burnish filtering"] = Burnish(workers=0, filtering=True)
            self.burnish["burnish large"] = Burnish(workers=0)

    def _trl_arms(self) -> dict[str, Config]:
        if self._quick:
            several = Config(processes=2 if self.cores > 1 else 1, remember_schemas=False)
            return {"trl 1x1": Config(), "trl installed": several}
        search = self._search("search", self.model, steps=6)
        search.run()
        large = self._search("search-large", self.large_model(), steps=3, groups=8)
        large.run_shapes()
        self.trials = {"tiny model": search.table(), "25M model": large.table()}
        return {
            "trl 1x1": search.best(processes=1, threads=1),
            "trl 1 process": search.best(processes=1),
            "trl all": search.best(),
            "trl installed": replace(search.best(), remember_schemas=False),
            "trl large": large.best(),
        }

    def _search(self, name: str, model: Path, **changes: int) -> Search:
        """The trials belong to a machine and to versions, not to Burnish's source."""
        where = content_hash([machine(), self.cores, self.versions, name])[:8]
        work = make_work(model, SEARCH_SEED, **changes)
        return Search(self._folder / f"{name}-{where}.json", work, self.cores)

    def large_model(self) -> Path:
        return large_model(self._folder, self.model)

    def check(self) -> dict[str, Any]:
        """Scripted episodes through both sides: the same tokens, masks and rewards."""

        work = make_work(self.model, SEARCH_SEED, steps=1, max_tokens=400)
        return run_trl(work, Config(), self._folder / "check", "--check")

    def run(self, arm: str, seed: int) -> Run:
        """One run of an arm; arms with the same settings share it."""
        large = arm.endswith("large")
        settings = self.burnish[arm] if arm in self.burnish else self.trl[arm]
        key = content_hash([type(settings).__name__, asdict(settings), large])[:8]
        done = self._runs / f"seed-{seed}" / f"{arm.partition(' ')[0]}-{key}.json"
        if not done.exists():
            changes = {"steps": LARGE_STEPS, "groups": 8} if large else {"steps": self.steps}
            work = make_work(self.large_model() if large else self.model, seed, **changes)
            folder = done.with_suffix("")
            run_side = run_burnish if arm in self.burnish else run_trl
            found = run_side(work, settings, folder)
            done.write_text(json.dumps(found), encoding="utf-8")
            shown = statistics.median(Run(**found).step_s)
            console.print(f"  seed {seed}  {arm:18} {shown:6.2f} s/step  (load before: {found['load']:.1f})")
        return Run(**json.loads(done.read_text(encoding="utf-8")))

    def label(self, arm: str) -> str:
        return (self.burnish[arm] if arm in self.burnish else self.trl[arm]).label


def machine() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def source_hash() -> str:
    """Of every Python file of Burnish: runs of another state of it are not compared."""

    root = Path(burnish.__file__).parent
    texts = {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in sorted(root.rglob("*.py"))}
    return content_hash(texts)[:8]


# -- figures -----------------------------------------------------------------------------------------------------------

Runs = dict[str, list[Run]]
"""Runs by arm, in the order of seeds."""


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median with the quartiles (smallest and largest below 4 values)."""
    if not values:
        return "-"
    low, high = min(values), max(values)
    if len(values) >= 4:
        low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values):.{digits}f} [{low:.{digits}f}-{high:.{digits}f}]"


def pooled(runs: Sequence[Run], what: Callable[[Run], Sequence[float]]) -> list[float]:
    """All values of all runs."""
    return [value for run in runs for value in what(run)]


def compare(comparison: Comparison, runs: Runs) -> dict[str, list[float]]:
    """Ratios of each seed: how many times faster Burnish is."""
    pairs = list(zip(runs[comparison.burnish], runs[comparison.trl], strict=False))
    median = statistics.median
    goals = [goal_ratio(ours, theirs) for ours, theirs in pairs]
    return {
        "step": [median(theirs.step_s) / median(ours.step_s) for ours, theirs in pairs],
        "tokens": [median(ours.tokens_per_s) / median(theirs.tokens_per_s) for ours, theirs in pairs],
        "rollout": [median(o.rollout_tokens_per_s) / median(t.rollout_tokens_per_s) for o, t in pairs],
        "goal": [ratio for ratio in goals if ratio is not None],
    }


def goal_ratio(ours: Run, theirs: Run) -> float | None:
    """Time to the goal, TRL's over Burnish's: 0 where only TRL reached it, a lower bound where only Burnish did."""
    our_s, their_s = ours.seconds_to(GOAL), theirs.seconds_to(GOAL)
    if our_s is None:
        return None if their_s is None else 0.0
    return (their_s or theirs.ended_s[-1] - theirs.ended_s[0]) / our_s


def reward_difference(comparison: Comparison, runs: Runs) -> dict[str, Any] | None:
    """Paired difference of the reward reached (mean of the last 10 batches), Burnish minus TRL; None below 2 seeds."""

    pairs = list(zip(runs[comparison.burnish], runs[comparison.trl], strict=False))
    if len(pairs) < 2:
        return None
    found = mean_interval([ours.final_reward() - theirs.final_reward() for ours, theirs in pairs])
    furthest = max(abs(found.low), abs(found.high))
    agree = furthest <= SAME_REWARD or (found.low <= 0.0 <= found.high and furthest <= WIDEST)
    return {"mean": found.mean, "low": found.low, "high": found.high, "agree": agree}


def bars(runs: Runs, ratios: dict[str, dict[str, list[float]]], cores: int) -> dict[str, bool | None]:
    """Every bar; None where this machine or these runs cannot decide it."""
    found: dict[str, bool | None] = {}
    for one in COMPARISONS:
        decided = cores >= one.min_cores and bool(runs[one.burnish]) and bool(runs[one.trl])
        for key, bar in (("step", one.step_bar), ("goal", one.goal_bar)):
            if bar:
                values = ratios[one.title][key] if decided else []
                missed = decided and not values
                name = f"{one.title}: {bar:g}x {'per step' if key == 'step' else f'to {GOAL:g}'}"
                found[name] = False if missed else statistics.median(values) >= bar if values else None
        if one.step_bar:
            difference = reward_difference(one, runs) if decided else None
            found[f"{one.title}: rewards agree"] = difference["agree"] if difference else None
    return found


# -- what is printed ---------------------------------------------------------------------------------------------------


def table_of_sides(runs: Runs) -> Table:
    """One row for each arm: what it costs and reaches."""
    shown = Table(title="median, quartiles over the steps of all seeds", box=None, pad_edge=False)
    for name in ("arm", "s/step", "tokens/s", "rollout tok/s", f"s to {GOAL:g}", "reward"):
        shown.add_column(name, no_wrap=True)
    for arm, found in runs.items():
        if found:
            goals = [seconds for run in found if (seconds := run.seconds_to(GOAL)) is not None]
            shown.add_row(
                arm,
                spread(pooled(found, lambda run: run.step_s)),
                f"{statistics.median(pooled(found, lambda run: run.tokens_per_s)):.0f}",
                f"{statistics.median(pooled(found, lambda run: run.rollout_tokens_per_s)):.0f}",
                f"{statistics.median(goals):.0f} ({len(goals)}/{len(found)})" if goals else "-",
                f"{statistics.mean(run.final_reward() for run in found):.3f}",
            )
    return shown


def table_of_ratios(ratios: dict[str, dict[str, list[float]]]) -> Table:
    """One row for each comparison: how many times faster Burnish is."""
    shown = Table(title="Burnish is faster by: median, quartiles over seeds", box=None, pad_edge=False)
    for name in ("comparison", "per step", "rollout tok/s", f"to {GOAL:g}"):
        shown.add_column(name, no_wrap=True)
    for title, found in ratios.items():
        shown.add_row(title, *(spread(found[key]) for key in ("step", "rollout", "goal")))
    return shown


def collect(bench: Bench, seeds: Sequence[int]) -> Runs:
    """Every arm of every seed, the sides in turn, the order reversed for every second seed."""
    wanted = [arm for one in (*COMPARISONS, LARGE) for arm in (one.burnish, one.trl)]
    arms = [arm for arm in dict.fromkeys(wanted) if arm in bench.burnish or arm in bench.trl]
    runs: Runs = {arm: [] for arm in dict.fromkeys(wanted)}
    for seed in seeds:
        for arm in arms if seed % 2 == 0 else reversed(arms):
            runs[arm].append(bench.run(arm, seed))
    return runs


def report(bench: Bench, runs: Runs, checked: dict[str, Any]) -> dict[str, Any]:
    """Print the tables; every figure."""
    ratios = {one.title: compare(one, runs) for one in (*COMPARISONS, LARGE)}
    rewards = {one.title: reward_difference(one, runs) for one in COMPARISONS}
    for name, trials in bench.trials.items():
        console.print(f"TRL's configurations, {name} (s/step on seed {SEARCH_SEED}):")
        for label, seconds in trials.items():
            console.print(f"  {'failed' if seconds is None else f'{seconds:.2f}':8}{label}")
    console.print(table_of_sides(runs))
    for arm, found in runs.items():
        if found:
            console.print(f"  {arm:18} {bench.label(arm)}")
    console.print(table_of_ratios({title: found for title, found in ratios.items() if found["step"]}))
    for title, difference in rewards.items():
        if difference:
            interval = f"{difference['mean']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"
            console.print(f"  reward, Burnish - TRL, {title}: {interval}", markup=False)
    return {
        "cores": bench.cores,
        "machine": machine(),
        "versions": bench.versions,
        "check": checked,
        "trials": bench.trials,
        "configurations": {arm: bench.label(arm) for arm, found in runs.items() if found},
        "ratios": ratios,
        "reward_difference": rewards,
        "runs": {arm: [asdict(run) for run in found] for arm, found in runs.items()},
        "bars": bars(runs, ratios, bench.cores),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the same code in about a minute; decides nothing")
    parser.add_argument("--seeds", type=int, default=None, help="seeds 0, 1, ... (default: 5; 1 with --quick)")
    parser.add_argument("--data", default="runs/against_trl", help="folder that keeps models, trials and runs")
    arguments = parser.parse_args()
    missing = [name for name in ("trl", "accelerate", "datasets") if importlib.util.find_spec(name) is None]
    if missing:
        console.print(f"not installed: {', '.join(missing)}; pip install -c constraints.txt -e '.\\[bench]'")
        print(json.dumps({"missing": missing, "holds": None}))
        return 0 if arguments.quick else 2
    bench = Bench(Path(arguments.data).resolve() / ("quick" if arguments.quick else "full"), quick=arguments.quick)
    checked = bench.check()
    same = not checked["different"]
    console.print(
        f"{checked['episodes']} scripted episodes, {checked['right']:.0f} right, through both sides: "
        + ("every token, mask and reward the same" if same else f"{len(checked['different'])} DIFFER")
    )
    seeds = arguments.seeds or (1 if arguments.quick else 5)
    found = report(bench, collect(bench, range(seeds)), checked)
    if arguments.quick:
        found["bars"] = dict.fromkeys(found["bars"])
    for name, bar in found["bars"].items():
        console.print(f"  {'yes' if bar else 'not decided' if bar is None else 'NO':12}{name}")
    known = [bar for bar in found["bars"].values() if bar is not None]
    found["holds"] = None if arguments.quick or seeds < 5 or not known else same and all(known)
    print(json.dumps(found))
    return 1 if found["holds"] is False or not same else 0


if __name__ == "__main__":
    sys.exit(main())
