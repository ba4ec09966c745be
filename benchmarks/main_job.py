"""The main job: a tiny model from zero, warm start, RL in the shop, with controls beside it.

    python benchmarks/main_job.py [--quick] [--seeds N] [--data DIR] [--arms main,lora,...]

Bar on 2 cores, shop level 1, medians over seeds: after RL at least .90 greedy and .85 sampled, from at most .45 sampled
after SFT, SFT + RL at most 120 s; shuffled rewards at most SFT + .05; LoRA on the SFT model gains at least .30; level 2
gains at least .25 over its SFT within 10 minutes.  Level 3 is reported.

Every run uses two worker processes with one thread each.  Finished runs are kept under --data (default:
runs/main_job) and reused by the next call with the same recipe, so that an interrupted benchmark goes on.  Five seeds
take about an hour on 2 cores; long arms run on fewer seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from burnish.core.hashing import content_hash
from burnish.loop.conductor import start_run
from burnish.loop.config import Recipe
from burnish.loop.fork import fork_run, forked_recipe
from burnish.loop.recipes import load_recipe
from burnish.loop.standalone import export_run
from burnish.store.reader import RunReader

MOST_SEEDS = {"sft_longer": 3, "sft_correct": 3, "level2": 2, "level3": 1}
"""Long arms run on fewer seeds; the table says on how many."""
ARMS = ("main", "sft_longer", "sft_correct", "shuffled", "lora", "level2", "level3")
QUICK = ("warm_start.steps=30", "warm_start.traces=600", "rl.steps=2", "evaluation.tasks=40")
console = Console(width=80)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Held-out success of one run and its seconds.  Keys such as "after_sft/greedy"."""

    success: dict[str, float]
    sft_s: float
    rl_s: float


class NotRun(Exception):
    """A result that is not there yet, where nothing may be run."""


class Bench:
    """Runs the arms of one seed in `folder`, each at most once."""

    def __init__(self, folder: Path, seed: int, *, quick: bool, finished: bool) -> None:
        self._finished = finished
        self._folder = folder / f"seed-{seed}"
        self._common = [f"run.seed={seed}", "run.workers=2", *(QUICK if quick else ())]

    def main(self) -> Result:
        return self._run("main", self._recipe("demo"))

    def sft_longer(self) -> Result:
        """SFT continued for as long as RL took."""
        main = self.main()
        recipe = self._recipe("demo")
        steps = recipe.warm_start.steps
        more = max(1, round(steps * main.rl_s / max(main.sft_s, 1e-9)))
        return self._run("sft_longer", self._recipe("demo", f"warm_start.steps={steps + more}", "rl.steps=0"))

    def sft_correct(self) -> Result:
        """SFT on the correct traces alone, for as long as SFT and RL took together."""
        main = self.main()
        steps = self._recipe("demo").warm_start.steps
        total = max(1, round(steps * (main.sft_s + main.rl_s) / max(main.sft_s, 1e-9)))
        words = ("warm_start.keep=correct", f"warm_start.steps={total}", "rl.steps=0")
        return self._run("sft_correct", self._recipe("demo", *words))

    def shuffled(self) -> Result:
        """RL from the same SFT weights with rewards dealt at random."""
        self.main()
        parent = self._path("main", self._recipe("demo"))
        recipe = forked_recipe(parent, ["rl.shuffle_rewards=true", "rl.filter_zero_signal=true"])
        return self._run("shuffled", recipe, lambda path: fork_run(parent, recipe, path, checkpoint="rl-000000"))

    def lora(self) -> Result:
        """RL with adapters on the exported SFT model."""
        self.main()
        parent = self._path("main", self._recipe("demo"))
        exported = self._folder / "sft-model"
        if not exported.exists():
            export_run(parent, exported, "rl-000000")
        words = (f"model.path={exported}", "model.lora.rank=16", "model.show_tools=none", "warm_start.steps=0")
        recipe = self._recipe("demo", *words, "rl.lr=2e-3", "evaluation.before=true")
        return self._run("lora", recipe)

    def level2(self) -> Result:
        return self._run("level2", self._recipe("shop2"))

    def level3(self) -> Result:
        return self._run("level3", self._recipe("shop3"))

    def _recipe(self, name: str, *words: str) -> Recipe:
        return load_recipe(name, [*self._common, *words])

    def _path(self, arm: str, recipe: Recipe) -> Path:
        return self._folder / f"{arm}-{content_hash(recipe.model_dump(mode='json'))[:8]}"

    def _run(self, arm: str, recipe: Recipe, start: Callable[[Path], None] | None = None) -> Result:
        path = self._path(arm, recipe)
        done = path / "result.json"
        if not done.exists():
            if self._finished:
                raise NotRun(arm)
            if path.exists():
                path.rename(path.with_name(f"{path.name}.unfinished-{time.time_ns()}"))
            begin = time.monotonic()
            console.print(f"{path.parent.name} {arm} ...", end=" ", highlight=False)
            (start or (lambda target: start_run(recipe, target)))(path)
            console.print(f"{time.monotonic() - begin:.0f} s", highlight=False)
            done.write_text(json.dumps(read(path)), encoding="utf-8")
        return Result(**json.loads(done.read_text(encoding="utf-8")))


def read(path: Path) -> dict[str, Any]:
    """Success by evaluation and the seconds of the two phases, trace generation included in SFT."""
    reader = RunReader(path)
    success = {f"{row.label}/{row.mode}": row.mean for row in reader.evaluations() if row.split == "heldout"}
    return {
        "success": success,
        "sft_s": sum(value for _, value in reader.scalars("time/phase_s", "sft")),
        "rl_s": sum(value for _, value in reader.scalars("time/step_s", "rl")),
    }


def median(values: Sequence[float]) -> str:
    """Median with the smallest and largest value."""
    if not values:
        return "-"
    text = f"{statistics.median(values):.2f} {min(values):.2f}-{max(values):.2f}"
    return text.replace("0.", ".").replace("1.00", "1.0")


def table(results: dict[str, list[Result]]) -> Table:
    """The printed table: one row for each arm."""
    found = Table(title="held-out success: median min-max over seeds", box=None, pad_edge=False)
    for name in ("arm", "n", "SFT samp.", "SFT greedy", "end samp.", "end greedy", "seconds"):
        found.add_column(name, no_wrap=True)
    for arm, runs in results.items():
        if not runs:
            continue
        row = [median([run.success[key] for run in runs if key in run.success]) for key in _keys(arm)]
        found.add_row(arm, str(len(runs)), *row, _seconds([r.sft_s + r.rl_s for r in runs]))
    return found


def _keys(arm: str) -> tuple[str, str, str, str]:
    start = "before" if arm == "lora" else "after_sft"
    end = "after_sft" if arm.startswith("sft_") else "after_rl"
    return f"{start}/sampled", f"{start}/greedy", f"{end}/sampled", f"{end}/greedy"


def _seconds(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.0f} {min(values):.0f}-{max(values):.0f}"


def figures(results: dict[str, list[Result]]) -> dict[str, Any]:
    """Every number behind the bars, and the bars."""

    def middle(arm: str, key: str) -> float | None:
        values = [run.success[key] for run in results.get(arm, []) if key in run.success]
        return statistics.median(values) if values else None

    def gain(arm: str, before: str, after: str) -> float | None:
        pairs = [(r.success.get(before), r.success.get(after)) for r in results.get(arm, [])]
        values = [b - a for a, b in pairs if a is not None and b is not None]
        return statistics.median(values) if values else None

    main, level2 = results.get("main", []), results.get("level2", [])
    bars = {
        "greedy_at_least_.90": _holds(middle("main", "after_rl/greedy"), lambda x: x >= 0.90),
        "sampled_at_least_.85": _holds(middle("main", "after_rl/sampled"), lambda x: x >= 0.85),
        "sft_sampled_at_most_.45": _holds(middle("main", "after_sft/sampled"), lambda x: x <= 0.45),
        "seconds_at_most_120": _holds(_middle([r.sft_s + r.rl_s for r in main]), lambda x: x <= 120),
        "shuffled_at_most_sft_plus_.05": _holds(_shuffled_gain(results), lambda x: x <= 0.05),
        "lora_gain_at_least_.30": _holds(gain("lora", "before/sampled", "after_rl/sampled"), lambda x: x >= 0.30),
        "level2_gain_at_least_.25": _holds(
            gain("level2", "after_sft/sampled", "after_rl/sampled"), lambda x: x >= 0.25
        ),
        "level2_within_600_s": _holds(_middle([r.sft_s + r.rl_s for r in level2]), lambda x: x <= 600),
    }
    raw = {arm: [asdict(run) for run in runs] for arm, runs in results.items()}
    return {"runs": raw, "bars": bars}


def _shuffled_gain(results: dict[str, list[Result]]) -> float | None:
    pairs = zip(results.get("main", []), results.get("shuffled", []), strict=False)
    return _middle([s.success["after_rl/sampled"] - m.success["after_sft/sampled"] for m, s in pairs])


def _middle(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _holds(value: float | None, test: Callable[[float], bool]) -> bool | None:
    return None if value is None else test(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the same code in about a minute; decides nothing")
    parser.add_argument("--seeds", type=int, default=None, help="seeds 0, 1, ... (default: 5; 1 with --quick)")
    parser.add_argument("--first-seed", type=int, default=0, help="tune on seeds from 100 up")
    parser.add_argument("--data", default="runs/main_job", help="folder that keeps finished runs")
    parser.add_argument("--finished", action="store_true", help="print what is finished; run nothing")
    parser.add_argument("--arms", default="", help=f"comma-separated, of {','.join(ARMS)}")
    arguments = parser.parse_args()
    seeds = arguments.seeds or (1 if arguments.quick else 5)
    arms = arguments.arms.split(",") if arguments.arms else list(("main", "shuffled") if arguments.quick else ARMS)
    folder = Path(arguments.data) / ("quick" if arguments.quick else "full")
    results: dict[str, list[Result]] = {arm: [] for arm in arms}
    for seed in range(arguments.first_seed, arguments.first_seed + seeds):
        bench = Bench(folder, seed, quick=arguments.quick, finished=arguments.finished)
        for arm in arms:
            if len(results[arm]) < MOST_SEEDS.get(arm, seeds):
                with suppress(NotRun):
                    results[arm].append(getattr(bench, arm)())
    console.print(table(results))
    found = figures(results)
    decided = [bar for bar in found["bars"].values() if bar is not None]
    complete = set(arms) == set(ARMS) and all(len(results[a]) >= MOST_SEEDS.get(a, 5) for a in arms)
    found["holds"] = None if arguments.quick or not complete else all(decided)
    if arguments.quick:
        found["bars"] = dict.fromkeys(found["bars"])
    for name, bar in found["bars"].items():
        console.print(f"  {'yes' if bar else 'not run' if bar is None else 'NO':8}{name}", highlight=False)
    print(json.dumps(found))
    return 0 if found["holds"] is not False else 1


if __name__ == "__main__":
    sys.exit(main())
