"""Which step failed and whose fault it was, where both are known: faults injected live into scripted experts.

    python benchmarks/diagnosis_injected.py [--quick] [--seeds N] [--tune N] [--world NAME] [--write-model FILE]

Worlds: the shop, telephone calls to it with a scripted customer, repositories to repair.  Faults: a required step left
out, an argument corrupted, a value invented, a result misread, a tool that stops to answer, a customer who contradicts
himself (on the telephone alone: nobody else talks).  The expert plays on; runs that then fail are kept.  The
critical step is the first message of the party at fault that differs from the same expert's run without the fault;
unit: message index.  Every run that fails is scored, also where the fault cannot be seen.

The rules are those of a policy file for each world (`src/burnish/diagnosis/policies`) and the general ones.  Weights
and lifts are fitted on the runs of seeds 100, 101, ...; reported are seeds 0, 1, ...  The rules were written by
somebody who knew the injectors, and repairs draw on the same forty bugs in both: this measures whether the machine
finds what its rules can express, not how it fares on strangers' failures (for that see `diagnosis.py`).

Bar, without gold: exact, category and owner at least 80% each, over all reported runs.  Takes about four minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diagnosis_runs.faults import Kind
from diagnosis_runs.labelled import POLICY, Answer, answer, baselines, figures, run_of, train
from diagnosis_runs.repairs import repair_runs
from diagnosis_runs.worlds import Injected, dialogue_runs, shop_runs
from rich import box
from rich.console import Console
from rich.table import Table

from burnish.diagnosis.diagnose import Engine, model_json
from burnish.diagnosis.policy import load_policy
from burnish.diagnosis.taxonomy import Fault

BAR = 0.80
TUNING_FROM = 100
WORLDS: Mapping[str, Callable[[int], Iterator[Injected]]] = {
    "shop": shop_runs,
    "shop_dialogue": dialogue_runs,
    "repair": repair_runs,
}
console = Console(width=80)


def main() -> int:
    """Play, fit, score, print, and say by the exit status whether the bar holds."""
    options = _options()
    started = time.process_time()
    worlds = [options.world] if options.world else list(WORLDS)
    tuning = collect(worlds, range(TUNING_FROM, TUNING_FROM + options.tune), quick=options.quick)
    reported = collect(worlds, range(options.seeds), quick=options.quick)
    models = {gold: train(tuning["passed"], tuning["failed"], gold) for gold in (False, True)}
    result: dict[str, Any] = {"quick": options.quick, "seeds": options.seeds, "tuning_seeds": options.tune}
    answers = {gold: [answer(run, models[gold], gold) for run in reported["failed"]] for gold in (False, True)}
    result |= {name: figures(answers[gold]) for gold, name in ((False, "blind"), (True, "with_gold"))}
    result["baselines"] = {name: figures(rows) for name, rows in _baselines(tuning, reported).items()}
    result["no_policy"] = figures(_without_policy(tuning, reported))
    result["groups"] = groups(reported, answers[False])
    result["passing_accused"] = {
        "runs": sum(answer(run, models[False], False).accused for run in reported["passed"]),
        "of": len(reported["passed"]),
    }
    result["seconds"] = round(time.process_time() - started, 1)
    _print(result, len(reported["failed"]))
    if options.write_model:
        both = replace(models[True], blind=models[False].blind, accuse_blind_at=models[False].accuse_blind_at)
        Path(options.write_model).write_text(model_json(both) + "\n", encoding="utf-8")
    holds = all(result["blind"][name]["share"] >= BAR for name in ("within_0", "category", "owner"))
    result["holds"] = None if options.quick or options.world else holds
    print(json.dumps(result))
    return 0 if options.quick or options.world or holds else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed each, few repairs")
    parser.add_argument("--seeds", type=int, default=12, help="reported seeds, 0 on (default: 12)")
    parser.add_argument("--tune", type=int, default=8, help="seeds that weights are fitted on, 100 on (default: 8)")
    parser.add_argument("--data", default="", help="not used: everything is made here")
    parser.add_argument("--world", default="", choices=("", *WORLDS), help="only this one; then nothing is decided")
    parser.add_argument("--write-model", default="", metavar="FILE", help="the fitted weights, for `--weights`")
    options = parser.parse_args()
    if options.quick:
        options.seeds = options.tune = 1
    return options


def collect(worlds: Sequence[str], seeds: range, *, quick: bool = False) -> dict[str, list[Any]]:
    """Runs that were looked at: "passed" without a fault, "failed" with one, and what was "injected" in the latter."""
    found: dict[str, list[Any]] = {"passed": [], "failed": [], "injected": []}
    for name in worlds:
        engine = Engine(policy=load_policy(POLICY.with_name(f"{name}.toml")))
        for seed in seeds:
            made = repair_runs(seed, 5) if quick and name == "repair" else WORLDS[name](seed)
            for one in made:
                run = run_of(engine, one.record)
                found["passed" if one.kind is None else "failed"].append(run)
                if one.kind is not None:
                    found["injected"].append(one)
    return found


def _baselines(tuning: Mapping[str, list[Any]], reported: Mapping[str, list[Any]]) -> dict[str, list[Answer]]:
    """Trivial answers; the majority category is that of the tuning runs."""
    majority = Counter(run.root.category for run in tuning["failed"]).most_common(1)[0][0]
    rows = baselines(reported["failed"])
    return {name: [replace(one, category=majority, owner=Fault.AGENT) for one in found] for name, found in rows.items()}


def _without_policy(tuning: Mapping[str, list[Any]], reported: Mapping[str, list[Any]]) -> list[Answer]:
    """The general rules alone, fitted and scored on the same runs."""
    engine = Engine()
    passed, failed, held = (
        [run_of(engine, run.record) for run in rows]
        for rows in (tuning["passed"], tuning["failed"], reported["failed"])
    )
    model = train(passed, failed, False)
    return [answer(run, model, False) for run in held]


def groups(reported: Mapping[str, list[Any]], answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """Figures without gold by world and by kind of fault."""
    names = [f"{one.world}" for one in reported["injected"]], [str(one.kind) for one in reported["injected"]]
    found: dict[str, dict[str, Any]] = {}
    for column in names:
        for name in dict.fromkeys(column):
            rows = [row for row, own in zip(answers, column, strict=True) if own == name]
            found[name] = figures(rows)
    return {name: found[name] for name in (*WORLDS, *map(str, Kind)) if name in found}


def _print(result: Mapping[str, Any], n: int) -> None:
    table = Table(title=f"{n} failed runs, seeds from 0", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("", "n", "exact", "±1", "±3", "category", "owner"):
        table.add_column(name, justify="left" if not name else "right")
    rows = {
        "without gold": result["blind"],
        "with gold": result["with_gold"],
        "no policy": result["no_policy"],
        **result["baselines"],
    }
    for name, row in [*rows.items(), *result["groups"].items()]:
        if name in (next(iter(result["groups"])), "drop a step"):
            table.add_section()
        wide = name in ("without gold", "with gold", "no policy")
        cells = [_cell(row[key], (wide and "within" not in key) or key == "within_0") for key in _SHOWN]
        table.add_row(name, str(row["n"]), *cells)
    table.caption = (
        '95% Wilson; groups and "no policy" are without gold; trivial rows: majority category, always the agent'
    )
    console.print(table)
    accused = result["passing_accused"]
    console.print(f"runs without a fault that are accused, outcomes hidden: {accused['runs']} of {accused['of']}")


_SHOWN = ("within_0", "within_1", "within_3", "category", "owner")


def _cell(row: Mapping[str, Any], interval: bool) -> str:
    return f"{row['share']:.2f}" + (f" [{row['low']:.2f},{row['high']:.2f}]" if interval else "")


if __name__ == "__main__":
    sys.exit(main())
