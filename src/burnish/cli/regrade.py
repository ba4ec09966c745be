"""`burnish regrade`: what other graders would have said about a stored run."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from burnish.core.errors import ConfigError, StoreError
from burnish.core.sandbox import Sandbox
from burnish.core.task import Task
from burnish.graders.cost import TokenCost
from burnish.graders.judge_spec import MakeJudge, make_judge, replayed
from burnish.graders.regrade import FLIP_AT, Change, Regrade, Regraded
from burnish.loop.config import GradersSection, Recipe, StagedSection
from burnish.loop.grading import open_world, share_done
from burnish.loop.worlds import GraphText, World
from burnish.store.reader import RunReader
from burnish.store.rows import StepInfo
from burnish.store.runs import find_run

WIDTH = 80
_NAME_CHARS = 20


def regrade(arguments: argparse.Namespace, console: Console) -> int:
    """Grade a stored run again and print what changes."""
    folder = find_run(arguments.root, arguments.run)
    reader = RunReader(folder)
    recipe = _recipe(reader, folder)
    environment = recipe.environment
    judges = replayed if arguments.offline else make_judge
    world = _world(arguments.graders, arguments.beside, recipe, reader, judges)
    steps = [info for info in reader.steps(arguments.phase or None) if info.segment]
    if not steps:
        raise StoreError(
            f"{folder} has no stored trajectories" + f" in phase {arguments.phase}" * bool(arguments.phase)
        )
    started_s = time.perf_counter()
    with ExitStack() as stack:
        setting = Regrade(
            graders=world.graders,
            aggregator=world.aggregator,
            tasks=tasks_by_hash(world),
            share=partial(share_done, recipe),
            charge=_charge(recipe),
            timeout_s=environment.grader_timeout_s,
            sink=_sink(arguments.out, stack),
        )
        found = asyncio.run(_run(setting, reader, steps, world.sandbox))
    took_s = time.perf_counter() - started_s
    if found.unknown_tasks == found.trajectories:
        raise ConfigError(f"{environment.name} has none of the run's tasks any more; restore its source or data file")
    if arguments.json:
        print(json.dumps(found.to_json() | {"run": folder.name, "seconds": took_s}))
    else:
        _print(found, folder.name, took_s, console)
    return 0


async def _run(setting: Regrade, reader: RunReader, steps: Sequence[StepInfo], sandbox: Sandbox | None) -> Regraded:
    try:
        return await setting.run(reader.layout, steps)
    finally:
        if sandbox is not None:
            await sandbox.close()


def tasks_by_hash(world: World) -> dict[str, Task]:
    """Every task of every split; a task whose content has changed since is another one."""
    return {task.content_hash: task for split in world.taskset.splits for task in world.taskset.tasks(split)}


def _recipe(reader: RunReader, folder: Path) -> Recipe:
    # Not by way of the loop's manifest module, which needs torch: grading does not.
    try:
        return Recipe.model_validate(reader.manifest()["recipe"])
    except (KeyError, ValueError) as error:
        raise StoreError(f"the recipe stored in {folder} cannot be used by this version of Burnish: {error}") from error


def _world(path: str, beside: str, recipe: Recipe, reader: RunReader, judges: MakeJudge) -> World:
    """The run's world with the graders of the file, or with those that it was run with: its graph, and the files that
    this names, as they were then.  beside: folder in which caches of judges are looked for, "" for the graph's."""
    resources = {"artefact": reader.artefact}
    if path:
        unstaged = recipe.model_copy(update={"graders": GradersSection(file=path), "staged": StagedSection()})
        return open_world(unstaged, resources=resources, judges=judges)
    stored = reader.manifest().get("environment", {}).get("graph")
    graph = GraphText.from_json(stored) if stored else None
    if graph is not None and beside:
        graph = replace(graph, file=str(Path(beside) / Path(graph.file).name))
    return open_world(recipe, graph=graph, resources=resources, judges=judges)


def _charge(recipe: Recipe) -> TokenCost | None:
    rl = recipe.rl
    if rl.token_cost == 0:
        return None
    return TokenCost(per_1k_tokens=rl.token_cost, free_tokens=rl.token_cost_free, mode=rl.token_cost_mode)


def _sink(path: str, stack: ExitStack) -> Callable[[Mapping[str, Any]], None] | None:
    if not path:
        return None
    if Path(path).exists():
        raise ConfigError(f"{path} exists; name a new file")
    file = stack.enter_context(Path(path).open("w", encoding="utf-8"))  # noqa: SIM115 - the stack closes it
    return lambda row: print(json.dumps(row), file=file)


def _print(found: Regraded, run: str, took_s: float, console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, width=WIDTH, padding=(0, 1, 0, 0))
    table.add_column("grader", no_wrap=True, max_width=_NAME_CHARS, overflow="ellipsis")
    for title in ("mean old", "new", "up", "down", "changed", "None old", "new", "skipped"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, change in (*found.graders.items(), ("reward", found.reward)):
        if name == "reward":
            table.add_section()
        table.add_row(name, *_cells(change))
    console.print(table)
    console.print(
        f"{run}: {found.trajectories} trajectories in {took_s:.1f} s; {found.excluded} excluded, "
        f"{found.unknown_tasks} of tasks that are gone; groups with signal {found.signal_old} -> {found.signal_new} of "
        f"{found.groups}.  up, down: scores that crossed {FLIP_AT:g}.",
        width=WIDTH,
        highlight=False,
        markup=False,
    )
    for name, change in found.graders.items():
        causes = [f"{count} x {cause}" for cause, count in change.causes.most_common(3)]
        if causes:
            console.print(f"no score from {name}: {'; '.join(causes)}", width=WIDTH, highlight=False, markup=False)


def _cells(change: Change) -> list[str]:
    missing_new = change.n - change.n_new - change.skipped
    counts = (change.up, change.down, change.changed, change.n - change.n_old, missing_new, change.skipped)
    return [_mean(change.mean_old), _mean(change.mean_new), *(str(count) for count in counts)]


def _mean(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
