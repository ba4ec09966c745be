"""Using a policy outside of its run: evaluating it anywhere, writing it out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from burnish.core.errors import ConfigError
from burnish.core.sampling import Renderer, Sampler
from burnish.evaluation.heldout import EvalResult, EvalSpec, evaluate, to_row
from burnish.evaluation.local import grade_with, rollout_with
from burnish.graders.graph import for_evaluation
from burnish.graders.judge_policy import judging_policy
from burnish.loop.config import Recipe
from burnish.loop.grading import open_world
from burnish.loop.manifest import stored_recipe
from burnish.loop.note import read_note, write_note
from burnish.loop.policy import Policy, fit_limits, merged_limits, reopen_policy, shows_tools
from burnish.loop.recipes import apply_overrides, suggestion, validate
from burnish.loop.worlds import World
from burnish.policies.chat import ChatRenderer
from burnish.policies.load import load_policy, no_progress_bar
from burnish.policies.processor import image_marks
from burnish.policies.sampler import EmbeddedSampler
from burnish.store.layout import RunLayout
from burnish.store.rows import EvaluationRow
from burnish.training.checkpoint import load_checkpoint, load_latest
from burnish.training.export import export_folder
from burnish.training.model_state import load_model_state

EVALUATED = ("environment.", "graders.", "staged.", "limits.", "model.", "rl.temperature", "sampler.mode")
SPLITS = ("train", "heldout", "unseen")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is evaluated: a sampler, the renderer that goes with it (None: it takes messages), and its name."""

    name: str
    sampler: Sampler
    renderer: Renderer | None
    recipe: Recipe


def stored_policy(folder: Path, checkpoint: str = "") -> tuple[Recipe, Policy, str]:
    """Recipe, policy with weights, and checkpoint name of a run; the newest checkpoint where none is named."""
    recipe, layout = stored_recipe(folder), RunLayout(folder)
    loaded = (
        load_checkpoint(layout.checkpoints, checkpoint, repair=False)
        if checkpoint
        else load_latest(layout.checkpoints, repair=False)
    )
    policy = reopen_policy(recipe, layout.model, base_weights=True)
    load_model_state(policy.model, loaded.model_state)
    return recipe, policy, loaded.ref.name


def run_subject(folder: Path, overrides: Sequence[str] = ()) -> Subject:
    """The newest policy of a run; overrides: `section.key=value` words on top of its recipe."""
    recipe, policy, checkpoint = stored_policy(folder)
    for word in overrides:
        if word.startswith("model."):
            raise ConfigError(f"{word}: the model of a run is what it is; export it to change how it is used")
    recipe = _for_evaluation(recipe.model_dump(mode="json", exclude_none=True), overrides, folder.name)
    torch.set_num_threads(recipe.run.threads)
    sampler = EmbeddedSampler(policy.model, pad_id=policy.pad_id, device=policy.device)
    renderer = policy.renderer.forced(recipe.sampler.mode)
    return Subject(name=f"{folder.name}@{checkpoint}", sampler=sampler, renderer=renderer, recipe=recipe)


def model_subject(path: str, overrides: Sequence[str] = ()) -> Subject:
    """A model folder or id; a folder that Burnish exported brings the environment and limits that it was trained with.

    overrides: `section.key=value` words, applied on top.
    """
    note = read_note(Path(path))
    data = {section: note[section] for section in ("environment", "limits") if section in note}
    recipe = _for_evaluation(data | {"model": {"path": path}}, overrides, path)
    loaded = load_policy(path, device=recipe.model.device, dtype=recipe.model.dtype)
    images = image_marks(loaded.model, loaded.tokenizer)
    renderer = ChatRenderer(loaded.tokenizer, show_tools=shows_tools(recipe), images=images)
    renderer = renderer.forced(recipe.sampler.mode)
    pad_id = loaded.tokenizer.pad_token_id
    sampler = EmbeddedSampler(loaded.model, pad_id=0 if pad_id is None else pad_id, device=loaded.device)
    return Subject(name=Path(path).name, sampler=sampler, renderer=renderer, recipe=recipe)


def endpoint_recipe(overrides: Sequence[str]) -> Recipe:
    """The settings of an evaluation of somebody else's endpoint."""
    return _for_evaluation({}, overrides, "command line")


def _for_evaluation(data: Mapping[str, Any], overrides: Sequence[str], source: str) -> Recipe:
    """A recipe of which an evaluation uses parts; raises ConfigError for an override that it would not use."""
    changed = apply_overrides(data, overrides)
    for word in overrides:
        if not word.startswith(EVALUATED):
            raise ConfigError(
                f"{word.partition('=')[0]} has no effect on an evaluation; what has: {', '.join(EVALUATED)}*"
            )
    return validate(changed, source=source)


def parse_taskset(text: str) -> tuple[str, str]:
    """Environment and split of ENV[:SPLIT]; the split is "heldout" where none is named.

    >>> parse_taskset("shop:unseen"), parse_taskset("reasoning-gym:chain_sum")
    (('shop', 'unseen'), ('reasoning-gym:chain_sum', 'heldout'))
    """
    head, separator, tail = text.rpartition(":")
    return (head, tail) if separator and tail in SPLITS else (text, "heldout")


def evaluate_subject(subject: Subject, world: World, spec: EvalSpec, tasks: int) -> EvalResult:
    """Evaluate on the first `tasks` tasks of the split; raises ConfigError for a split that the world does not have."""
    splits = list(world.taskset.splits)
    if spec.split not in splits:
        raise ConfigError(f"{world.name} has no split {spec.split!r}{suggestion(spec.split, splits)}; it has {splits}")
    limits = fit_limits(merged_limits(subject.recipe, world.limits), getattr(subject.sampler, "max_positions", None))
    rollout = rollout_with(subject.sampler, make_environment=world.make, renderer=subject.renderer, limits=limits)
    with judging_policy(subject.sampler, subject.renderer):
        return asyncio.run(
            evaluate(
                world.tasks(spec.split, tasks),
                spec,
                rollout=rollout,
                grade=grade_with(world.graders, timeout_s=subject.recipe.environment.grader_timeout_s),
                aggregator=for_evaluation(world.aggregator),
            )
        )


def write_result(result: EvalResult, path: Path) -> None:
    """Write an evaluation as JSON, for `read_result` and for comparisons."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = asdict(to_row(result, phase="eval", step=0))
    path.write_text(json.dumps(row, indent=1), encoding="utf-8")


def read_result(path: Path) -> EvaluationRow:
    """Inverse of `write_result`.  Raises ConfigError where the file is none."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return EvaluationRow(**data)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no evaluation written by `burnish eval`: {error}") from error


def pick_evaluation(rows: Sequence[EvaluationRow], *, label: str, split: str, mode: str, run: str) -> EvaluationRow:
    """The newest evaluation of a run with that label, split and mode; ConfigError says which there are."""
    found = [row for row in rows if (row.label, row.split, row.mode) == (label, split, mode)]
    if not found:
        known = sorted({f"{row.label}/{row.split}/{row.mode}" for row in rows})
        raise ConfigError(f"run {run} has no evaluation {label}/{split}/{mode}; it has: {', '.join(known) or 'none'}")
    return found[-1]


def export_run(folder: Path, out: Path, checkpoint: str = "") -> str:
    """Write a run's policy as a merged Hugging Face folder; returns the checkpoint's name."""
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} exists and is not empty; give a new folder")
    recipe, policy, name = stored_policy(folder, checkpoint)
    with no_progress_bar():
        export_folder(policy.model, policy.tokenizer, out, stop_ids=policy.renderer.stop_ids)
    used = recipe.model_dump(mode="json", exclude_none=True, include={"environment", "limits"})
    write_note(out, read_note(RunLayout(folder).model) | used)
    return name


def open_taskset(text: str, options: dict[str, Any], recipe: Recipe) -> tuple[World, str]:
    """World and split that `--taskset` names; the recipe's own where it is empty."""
    name, split = parse_taskset(text) if text else (recipe.environment.name, "heldout")
    if name != recipe.environment.name or options:
        environment = recipe.environment.model_copy(update={"name": name, "options": options})
        recipe = recipe.model_copy(update={"environment": environment})
    return open_world(recipe), split
