"""One function for each command.  They parse, call the loop or evaluation, print, and return an exit code."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich import box
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from burnish.cli import EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USAGE
from burnish.core.errors import BurnishError, ConfigError, RunStopped
from burnish.loop.config import Recipe
from burnish.loop.fork_server import start_early
from burnish.loop.recipes import all_keys, load_recipe, suggestion
from burnish.store.runs import find_run, list_runs, prune

console = Console()
errors = Console(stderr=True)

Command = Callable[[argparse.Namespace], int]


def run(arguments: argparse.Namespace) -> int:
    """Dispatch to a command; expected errors become one message and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=errors)])
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # What transformers and peft will change in themselves is no news for whoever trains a model.
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        return _COMMANDS[arguments.command](arguments)
    except BurnishError as error:
        if arguments.traceback:
            raise
        errors.print(f"[bold red]burnish {arguments.command}:[/] ", end="")
        errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
        if isinstance(error, ConfigError):
            return EXIT_USAGE
        if isinstance(error, RunStopped):
            return EXIT_INTERRUPTED if error.cause == "interrupted" else EXIT_STOPPED
        return 1
    except KeyboardInterrupt:
        errors.print("stopped; what was acknowledged is stored, go on with `burnish resume`")
        return EXIT_INTERRUPTED


# -- training --------------------------------------------------------------------------------------------------------


def _demo(arguments: argparse.Namespace) -> int:
    recipe = load_recipe("demo", arguments.keys)
    folder = _train_new(recipe, "demo")
    console.print()
    _print_outcome(folder)
    return 0


def _train(arguments: argparse.Namespace) -> int:
    recipe = load_recipe(arguments.recipe, arguments.keys)
    name = Path(arguments.recipe.partition(":")[0]).stem
    _print_outcome(_train_new(recipe, name))
    return 0


def _train_new(recipe: Recipe, name: str) -> Path:
    # Imports for the workers, beside those for the conductor that come next.
    start_early(recipe)
    from burnish.cli.following import run_trackers
    from burnish.cli.server import policy_server
    from burnish.loop.conductor import start_run
    from burnish.loop.setup import resolve_workers

    recipe = resolve_workers(recipe)
    folder = _new_folder(recipe, name)
    trackers = run_trackers(recipe, folder)
    _announce(recipe, folder)
    with _watching() as (watch, stop):
        server = policy_server(recipe, folder)
        _reporting(folder, lambda: start_run(recipe, folder, watch=watch, stop=stop, server=server, trackers=trackers))
    return folder


def _resume(arguments: argparse.Namespace) -> int:
    from burnish.cli.following import run_trackers
    from burnish.cli.server import policy_server
    from burnish.loop.conductor import resume_run
    from burnish.loop.manifest import stored_recipe

    folder = find_run(arguments.root, arguments.run)
    recipe = stored_recipe(folder)
    trackers = run_trackers(recipe, folder)
    console.print(f"resuming [bold]{folder}[/]")
    with _watching() as (watch, stop):
        server = policy_server(recipe, folder)
        _reporting(folder, lambda: resume_run(folder, watch=watch, stop=stop, server=server, trackers=trackers))
    _print_outcome(folder)
    return 0


def _fork(arguments: argparse.Namespace) -> int:
    from burnish.cli.following import run_trackers
    from burnish.cli.server import policy_server
    from burnish.loop.conductor import Outside
    from burnish.loop.fork import fork_run, forked_recipe
    from burnish.loop.setup import resolve_workers

    parent = find_run(arguments.root, arguments.run)
    recipe = resolve_workers(forked_recipe(parent, arguments.keys))
    folder = _new_folder(recipe, f"{parent.name}-fork")
    trackers = run_trackers(recipe, folder)
    _announce(recipe, folder)
    with _watching() as (watch, stop):
        outside = Outside(watch=watch, stop=stop, server=policy_server(recipe, folder), trackers=trackers)
        _reporting(
            folder,
            lambda: fork_run(
                parent,
                recipe,
                folder,
                checkpoint=arguments.step,
                keep_baselines=arguments.keep_baselines,
                outside=outside,
            ),
        )
    _print_outcome(folder)
    return 0


def _announce(recipe: Recipe, folder: Path) -> None:
    console.print(
        f"run [bold]{folder}[/]\n"
        f"environment {recipe.environment.name}, {recipe.run.workers} worker{'s' * (recipe.run.workers != 1)}, "
        f"seed {recipe.run.seed}; watch it: burnish view {folder.name}",
        highlight=False,
        soft_wrap=True,
    )


def _new_folder(recipe: Recipe, name: str) -> Path:
    root = Path(recipe.run.root)
    if recipe.run.name:
        return root / recipe.run.name
    number = 1
    while (root / f"{name}-{number:03d}").exists():
        number += 1
    return root / f"{name}-{number:03d}"


@contextmanager
def _watching() -> Iterator[tuple[Any, Callable[[], bool]]]:
    """A live display, and a stop flag that the first Ctrl-C sets; the second one interrupts at once."""
    from burnish.cli.display import Display

    asked: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(time.monotonic())
        errors.print("\nstopping after this step (Ctrl-C again: at once)")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Display(console) as display:
            yield display, lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reporting(folder: Path, train: Callable[[], None]) -> None:
    """Write the report also where the run ended early; that is when it is needed most."""
    from burnish.reports.page import write_report
    from burnish.store.layout import RunLayout

    try:
        train()
    except BurnishError:
        if RunLayout(folder).control.exists():
            _report_what_happened(folder)
        raise
    write_report(folder)


def _report_what_happened(folder: Path) -> None:
    """The report of a run that ended early; where it cannot be written, the run's own error is still what counts."""
    from burnish.reports.page import write_report

    try:
        errors.print(f"report: {write_report(folder)}", soft_wrap=True, highlight=False)
    except BurnishError as error:
        errors.print(f"no report: {error}", markup=False, soft_wrap=True, highlight=False)


def _print_outcome(folder: Path) -> None:
    from burnish.reports.tables import outcome_table
    from burnish.store.layout import RunLayout

    console.print(outcome_table(folder))
    console.print(f"report  {RunLayout(folder).report}", soft_wrap=True, highlight=False)
    console.print(f"browse  burnish view {folder.name}", soft_wrap=True, highlight=False)


def _eval(arguments: argparse.Namespace) -> int:
    from burnish.cli.evaluating import evaluate

    return evaluate(arguments)


def _compare(arguments: argparse.Namespace) -> int:
    from burnish.cli.evaluating import compare_results

    return compare_results(arguments)


def _doctor(arguments: argparse.Namespace) -> int:
    from burnish.cli.evaluating import doctor

    return doctor(arguments)


# -- runs ------------------------------------------------------------------------------------------------------------


def _view(arguments: argparse.Namespace) -> int:
    from burnish.reports.live import serve

    folder = find_run(arguments.root, arguments.run)
    metrics: Callable[[Path], tuple[bytes, str]] | None = None
    if arguments.prometheus:
        from burnish.integrations.prometheus import exposition

        exposition(folder)  # A missing library is said now, not to the first scraper.
        metrics = exposition
    override: Callable[[Path, Mapping[str, Any]], None] | None = None
    if arguments.overrides:
        from burnish.cli.overrides import store_posted

        override = store_posted
    server = serve(folder, port=arguments.port, metrics=metrics, override=override)
    console.print(f"{folder.name} is shown at [bold]{server.url}[/]  (Ctrl-C ends)", highlight=False)
    if override is not None:
        console.print(f"overrides: POST {server.url}api/override with X-Burnish-Token: {server.token}", highlight=False)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.close()
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from burnish.reports.page import write_report

    folder = find_run(arguments.root, arguments.run)
    path = write_report(folder, Path(arguments.out) if arguments.out else None)
    console.print(str(path), soft_wrap=True, highlight=False)
    return 0


def _runs(arguments: argparse.Namespace) -> int:
    from burnish.reports.tables import runs_table

    if arguments.action == "list":
        console.print(runs_table(list_runs(arguments.root)))
        return 0
    if arguments.max_gb is None:
        raise ConfigError("give the disk budget: burnish runs prune --max-gb 10")
    removals = prune(
        arguments.root, max_bytes=int(arguments.max_gb * 1e9), keep_last=arguments.keep_last, dry_run=not arguments.yes
    )
    for removal in removals:
        console.print(f"{'removed' if arguments.yes else 'would remove'}  {removal}", highlight=False, soft_wrap=True)
    if not removals:
        console.print("nothing to remove")
    elif not arguments.yes:
        console.print("nothing was removed; add --yes to do it")
    return 0


def _replay(arguments: argparse.Namespace) -> int:
    from burnish.loop.replay import replay_step

    folder = find_run(arguments.root, arguments.run)
    with console.status(f"replaying {folder.name}") as status:
        found = replay_step(folder, arguments.step, lambda text: status.update(text))
    console.print(
        f"step {found.step} of {folder.name}, {found.replayed_steps} steps from checkpoint {found.checkpoint}\n"
        f"  stored loss      {found.stored_loss!r}\n  recomputed loss  {found.recomputed_loss!r}",
        highlight=False,
    )
    verdict = (
        "the same to the last bit" if found.bit_equal else "the same within rounding" if found.same else "DIFFERENT"
    )
    console.print(f"  {verdict}", style="green" if found.same else "bold red")
    return 0 if found.same else 1


def _regrade(arguments: argparse.Namespace) -> int:
    from burnish.cli.regrade import regrade

    return regrade(arguments, console)


def _override(arguments: argparse.Namespace) -> int:
    from burnish.cli.overrides import override

    return override(arguments, console)


def _list_overrides(arguments: argparse.Namespace) -> int:
    from burnish.cli.overrides import list_overrides

    return list_overrides(arguments, console)


def _judge(arguments: argparse.Namespace) -> int:
    from burnish.cli.judge import judge

    return judge(arguments, console)


def _curate(arguments: argparse.Namespace) -> int:
    from burnish.cli.curate import curate

    return curate(arguments, console)


def _why(arguments: argparse.Namespace) -> int:
    from burnish.cli.health import why

    return why(arguments, console)


def _health(arguments: argparse.Namespace) -> int:
    from burnish.cli.health import health

    return health(arguments, console)


def _diagnose(arguments: argparse.Namespace) -> int:
    from burnish.cli.diagnose import diagnose

    return diagnose(arguments, console)


def _export(arguments: argparse.Namespace) -> int:
    if arguments.to:
        from burnish.cli.health import export_to

        return export_to(arguments, console)
    from burnish.loop.standalone import export_run

    folder = find_run(arguments.root, arguments.run)
    name = export_run(folder, Path(arguments.out), arguments.step)
    console.print(f"wrote {folder.name}@{name} to {arguments.out}", soft_wrap=True, highlight=False)
    return 0


def _init(arguments: argparse.Namespace) -> int:
    from burnish.cli.project import write_project

    for path in write_project(Path(arguments.folder)):
        console.print(f"wrote {path}", soft_wrap=True, highlight=False)
    console.print(f"\nnext:  cd {arguments.folder} && burnish doctor warehouse.py && burnish train recipe.toml")
    return 0


def _keys(arguments: argparse.Namespace) -> int:
    sections = list(Recipe.model_fields)
    if arguments.section and arguments.section not in sections:
        raise ConfigError(f"no section {arguments.section!r}{suggestion(arguments.section, sections)}: {sections}")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("key", no_wrap=True)
    table.add_column("what it does, and its default", overflow="fold")
    for key in all_keys():
        if not arguments.section or key.startswith(f"{arguments.section}."):
            info = _field(key)
            default = info.get_default(call_default_factory=True)
            text = Text(f"{info.description}  " if info.description else "")
            table.add_row(key, text.append(f"[{default!r}]", style="dim"))
    console.print(table)
    return 0


def _field(key: str) -> Any:
    model: Any = Recipe
    *sections, leaf = key.split(".")
    for section in sections:
        model = model.model_fields[section].annotation
    return model.model_fields[leaf]


_COMMANDS: dict[str, Command] = {
    "demo": _demo,
    "train": _train,
    "resume": _resume,
    "fork": _fork,
    "eval": _eval,
    "compare": _compare,
    "view": _view,
    "report": _report,
    "why": _why,
    "health": _health,
    "diagnose": _diagnose,
    "runs": _runs,
    "regrade": _regrade,
    "override": _override,
    "overrides": _list_overrides,
    "judge": _judge,
    "curate": _curate,
    "replay": _replay,
    "export": _export,
    "doctor": _doctor,
    "init": _init,
    "keys": _keys,
}
