"""`burnish eval`, `compare`, `doctor`: how good a policy is, which of two is better, is an environment sound."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from burnish.core.errors import BurnishError, ConfigError
from burnish.core.images import SHELF
from burnish.evaluation.ablation import image_ablation
from burnish.evaluation.compare import compare
from burnish.evaluation.doctor import Check, DoctorOptions, examine
from burnish.evaluation.heldout import EvalSpec, Mode, from_row
from burnish.loop.policy import fit_limits, merged_limits
from burnish.loop.recipes import apply_overrides
from burnish.loop.standalone import (
    Subject,
    endpoint_recipe,
    evaluate_subject,
    model_subject,
    open_taskset,
    pick_evaluation,
    read_result,
    run_subject,
    write_result,
)
from burnish.loop.worlds import World, load_world
from burnish.reports.tables import comparison_table, doctor_table
from burnish.store.reader import RunReader
from burnish.store.runs import find_run

ENDPOINT = "openai:"

console = Console()


def evaluate(arguments: argparse.Namespace) -> int:
    root = Path(arguments.root)
    options, overrides = _split_options(arguments.keys)
    subject, evals = _subject(arguments, root, overrides)
    world, split = open_taskset(arguments.taskset, options, subject.recipe)
    label = arguments.label or f"{subject.name}-{world.name}".replace("/", "_").replace(":", "_")
    spec = EvalSpec(
        label=label,
        split=split,
        mode=Mode(arguments.mode),
        samples=arguments.samples,
        seed=arguments.seed,
        temperature=subject.recipe.rl.temperature,
    )
    with console.status(f"evaluating {subject.name} on {world.name}:{split}"):
        result = evaluate_subject(subject, world, spec, arguments.tasks)
    path = evals / f"{label}-{split}-{arguments.mode}.json"
    write_result(result, path)
    table = Table("policy", "taskset", "mode", "n", "success", "95% interval", "excluded")
    rate = result.rate
    table.add_row(
        subject.name,
        f"{world.name}:{split}",
        arguments.mode,
        str(rate.n),
        f"{rate.share:.3f}",
        f"{rate.low:.3f}-{rate.high:.3f}",
        str(result.excluded),
    )
    console.print(table)
    console.print(f"stored  {path}", soft_wrap=True, highlight=False)
    return 0


def _subject(arguments: argparse.Namespace, root: Path, overrides: Sequence[str]) -> tuple[Any, Path]:
    """The policy that is evaluated, and the folder that results go to."""
    base_url, taskset = getattr(arguments, "base_url", ""), getattr(arguments, "taskset", "")
    if arguments.policy.startswith(ENDPOINT) and not taskset:
        raise ConfigError("an endpoint has no environment of its own; name one with --taskset, such as shop:heldout")
    subject, folder = policy_subject(arguments.policy, root, base_url, overrides)
    return subject, (folder or root) / "evals"


def policy_subject(
    name: str, root: Path, base_url: str = "", overrides: Sequence[str] = ()
) -> tuple[Subject, Path | None]:
    """The policy that a word names, and its folder where it is a run: a run, a model folder or id, or openai:MODEL."""
    if name.startswith(ENDPOINT):
        return _endpoint(name.removeprefix(ENDPOINT), base_url, overrides), None
    if (Path(name) / "config.json").is_file():
        return model_subject(name, overrides), None
    try:
        folder = find_run(root, name)
    except BurnishError:
        if "/" not in name or Path(name).exists():
            raise
        return model_subject(name, overrides), None
    return run_subject(folder, overrides), folder


def _endpoint(model: str, base_url: str, overrides: Sequence[str]) -> Subject:
    """A model behind an OpenAI-compatible endpoint; key and address come from the environment or the command line."""
    from burnish.integrations.openai_chat import OpenAIChatSampler

    base_url = base_url or os.environ.get("OPENAI_BASE_URL", "")
    if not base_url:
        raise ConfigError("give the endpoint with --base-url or in OPENAI_BASE_URL, such as http://127.0.0.1:8000/v1")
    sampler = OpenAIChatSampler(
        base_url, model, os.environ.get("OPENAI_API_KEY", ""), load_image=lambda part: SHELF.get(part.sha256)
    )
    return Subject(name=model, sampler=sampler, renderer=None, recipe=endpoint_recipe(overrides))


def _split_options(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Words without a dot are options of the environment, the others recipe keys."""
    options = [word for word in words if "." not in word.partition("=")[0]]
    return parse_options(options), [word for word in words if word not in options]


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    for word in words:
        if "=" not in word:
            raise ConfigError(f"{word!r} is not of the form option=value")
    data = apply_overrides({}, [f"environment.options.{word}" for word in words])
    options: dict[str, Any] = data.get("environment", {}).get("options", {})
    return options


def compare_results(arguments: argparse.Namespace) -> int:
    rows = [_evaluation(ref, arguments) for ref in (arguments.a, arguments.b)]
    comparison = compare(from_row(rows[0]), from_row(rows[1]), names=(arguments.a, arguments.b))
    console.print(comparison_table(comparison))
    return 0


def _evaluation(ref: str, arguments: argparse.Namespace) -> Any:
    if ref.endswith(".json"):
        return read_result(Path(ref))
    folder = find_run(arguments.root, ref)
    return pick_evaluation(
        RunReader(folder).evaluations(),
        label=arguments.label,
        split=arguments.split,
        mode=arguments.mode,
        run=folder.name,
    )


def doctor(arguments: argparse.Namespace) -> int:
    world = load_world(arguments.environment, parse_options(arguments.options), seed=arguments.seed)
    with console.status(f"examining {world.name} on up to {arguments.tasks} tasks"):
        report = asyncio.run(examine(world, options=DoctorOptions(n=arguments.tasks)))
    if arguments.policy:
        with console.status(f"playing with and without images: {arguments.policy}"):
            report = replace(report, checks=(*report.checks, _image_ablation(arguments, world)))
    console.print(doctor_table(report))
    return 0 if report.healthy else 1


def _image_ablation(arguments: argparse.Namespace, world: World) -> Check:
    """Whether the policy that was named looks at the environment's images."""
    subject, _ = _subject(arguments, Path(arguments.root), [])
    if subject.renderer is None:
        raise ConfigError(f"{arguments.policy}: an endpoint is not sent images; name a run or a model folder")
    held = "heldout" if "heldout" in world.taskset.splits else world.taskset.splits[0]
    limits = fit_limits(merged_limits(subject.recipe, world.limits), getattr(subject.sampler, "max_positions", None))
    found = image_ablation(
        replace(world, limits=limits),
        world.tasks(held, arguments.tasks),
        world.tasks("train" if "train" in world.taskset.splits else held),
        sampler=subject.sampler,
        renderer=subject.renderer,
        seed=arguments.seed,
    )
    return asyncio.run(found).check()
