"""One run in this process: `python -m fault_runs.one SPEC.json TARGET.steps`."""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from burnish.core.errors import InvariantViolation, RunStopped
from burnish.loop.conductor import start_run
from burnish.loop.config import Recipe
from burnish.loop.fork import fork_run, forked_recipe
from burnish.loop.recipes import load_recipe
from burnish.store.reader import RunReader
from fault_runs.cache import Evaluation, Replay, RunSpec, StepData, write_replay
from fault_runs.capture import Recorder
from fault_runs.hooks import Injector, carrying_over, installed, make_injector

ALONE = ("run.workers=1", "run.in_process=true", "rollout.mode=sync")
KEPT = ("warm", "twin", "act")
"""Arms whose run directory stays: others are forked from it, or it holds the decisions."""


def run_one(spec: RunSpec, target: Path) -> None:
    """Run, and write the replay to `target`; an unfinished earlier attempt is thrown away."""
    folder = target.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    injector, recorder = make_injector(spec.kind, spec.dose, spec.seed), Recorder()
    started_s, ended = time.monotonic(), "finished"
    with ExitStack() as stack:
        if spec.arm != "warm":
            stack.enter_context(recorder.installed())
            stack.enter_context(installed(injector))
        if spec.arm == "act":
            stack.enter_context(carrying_over())
        try:
            _train(spec, injector, folder)
        except RunStopped as error:
            ended = f"{error.cause}: {error}"
        except InvariantViolation as error:
            ended = f"invariant {error.name}: {error}"
    # A run that an invariant stops in its first step has nothing to show for it.
    stopped_at_once = ended != "finished" and recorder.names is None
    steps = [] if spec.arm == "warm" or stopped_at_once else recorder.steps()
    names = recorder.names.to_dict() if recorder.names is not None else {}
    reader = RunReader(folder)
    replay = Replay(
        spec=spec,
        names=names,
        steps=_with_stored(reader, steps),
        evaluations=_evaluations(reader),
        ended=ended,
        seconds=time.monotonic() - started_s,
    )
    write_replay(replay, target)
    if spec.arm not in KEPT:
        shutil.rmtree(folder)


def _train(spec: RunSpec, injector: Injector, folder: Path) -> None:
    fixed = (*ALONE, f"run.seed={spec.seed}")
    if not spec.parent:
        start_run(load_recipe(spec.recipe, [*spec.words, *fixed, "rl.steps=1"]), folder)
        return
    parent = Path(spec.parent)
    words = [*spec.words, *fixed, f"rl.steps={spec.steps}"]
    recipe: Recipe = forked_recipe(parent, words)
    fork_run(parent, forked_recipe(parent, [*words, *injector.words(recipe)]), folder, checkpoint=spec.checkpoint)


def _with_stored(reader: RunReader, steps: list[StepData]) -> list[StepData]:
    """Steps that the run has taken, with their stored scalars; one that stopped the run has its sums alone."""
    taken = {info.step for info in reader.steps("rl")}
    return [
        StepData(
            step=item.step,
            packed=item.packed,
            plain=item.plain,
            stored=reader.step_scalars("rl", item.step) if item.step in taken else {},
        )
        for item in steps
    ]


def _evaluations(reader: RunReader) -> list[Evaluation]:
    mine = [row for row in reader.evaluations() if row.phase == "rl" and row.split == "heldout"]
    return [
        Evaluation(step=row.step, success=row.mean, n=row.n, label="end" if row.label == "after_rl" else "quick")
        for row in mine
    ]


def main() -> int:
    os.nice(5)
    spec = RunSpec.from_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    run_one(spec, Path(sys.argv[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
