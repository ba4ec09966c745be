"""Forking: a new run that starts from the state of another, with some keys changed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from burnish.core.errors import ConfigError
from burnish.core.served import PolicyServer
from burnish.loop.conductor import Outside, Stop, conduct, never, recorded
from burnish.loop.config import FORKABLE_SECTIONS, Recipe
from burnish.loop.knobs import Knobs
from burnish.loop.manifest import make_manifest, stored_recipe, tasks_hash
from burnish.loop.policy import reopen_policy
from burnish.loop.preflight import check_recipe, check_server
from burnish.loop.progress import Watcher, silent
from burnish.loop.recipes import apply_overrides, validate
from burnish.loop.saving import REFERENCE, checkpoint_name
from burnish.loop.setup import open_world, resolve_workers
from burnish.loop.state import Ledger, LoopState
from burnish.store.layout import RunLayout
from burnish.store.reader import RunReader
from burnish.store.writer import RunWriter
from burnish.training.checkpoint import Checkpoint, load_checkpoint, load_latest, save_checkpoint


def forked_recipe(parent: Path, overrides: Sequence[str]) -> Recipe:
    """The parent's recipe with `overrides`; raises ConfigError for a key that a fork cannot change."""
    data = stored_recipe(parent).model_dump(mode="json", exclude_none=True)
    data["run"] |= {"name": "", "root": str(parent.parent)}
    changed = apply_overrides(data, overrides)
    for item in overrides:
        if item.partition(".")[0] not in FORKABLE_SECTIONS:
            raise ConfigError(
                f"fork cannot change {item.partition('=')[0]}: it is part of the weights that the fork starts from; "
                f"sections that may change: {', '.join(FORKABLE_SECTIONS)}"
            )
    return validate(changed, source=f"fork of {parent.name}")


def fork_run(
    parent: Path,
    recipe: Recipe,
    folder: Path,
    *,
    checkpoint: str = "",
    watch: Watcher = silent,
    stop: Stop = never,
    server: PolicyServer | None = None,
) -> None:
    """Start a run in `folder` from a checkpoint of `parent` (the newest where none is named), and train it on.

    The fork has its own store, which begins after the parent's step; its manifest names parent and checkpoint.  RL goes
    on at the parent's step number, so rl.steps counts from the parent's first.  Other training tasks or another seed
    start a new order of tasks.  Raises ConfigError where nothing would be left to do.
    """
    recipe = resolve_workers(recipe)
    layout = RunLayout(parent)
    loaded = (
        load_checkpoint(layout.checkpoints, checkpoint, repair=False)
        if checkpoint
        else load_latest(layout.checkpoints, repair=False)
    )
    state = _state(LoopState.from_json(dict(loaded.state)), recipe, stored_recipe(parent))
    if state.rl_step >= recipe.rl.steps:
        raise ConfigError(
            f"checkpoint {loaded.ref.name} is at RL step {state.rl_step} and rl.steps is {recipe.rl.steps}; "
            f"give a larger one, such as rl.steps={state.rl_step + 40}"
        )
    if recipe.keeps_reference and state.rl_step > 0 and not (layout.checkpoints / REFERENCE).is_dir():
        raise ConfigError(
            f"rl.kl_weight and control.keep_reference need the policy at the start of RL, and run {parent.name} no "
            f"longer has its {REFERENCE}"
        )
    torch.set_num_threads(recipe.run.threads)
    world = open_world(recipe)
    check_recipe(recipe, world)
    check_server(recipe, server)
    if tasks_hash(world, "train") != RunReader(parent).manifest()["environment"]["splits"].get("train"):
        state.task_cursor = None
    origin = {"run": parent.name, "checkpoint": loaded.ref.name, "sha256": loaded.ref.sha256, "rl_step": state.rl_step}
    with RunWriter.create(folder, make_manifest(recipe, world, origin)) as writer, recorded(writer):
        shutil.copytree(layout.model, writer.layout.model, dirs_exist_ok=True)
        _carry_over(layout, writer, loaded, state)
        policy = reopen_policy(recipe, writer.layout.model, base_weights=True)
        writer.event("forked", f"from {parent.name} at {loaded.ref.name}")
        conduct(recipe, writer, world, policy, state, loaded, Outside(watch=watch, stop=stop, server=server))


def _carry_over(parent: RunLayout, writer: RunWriter, loaded: Checkpoint, state: LoopState) -> None:
    """Give the fork checkpoints of its own before anything else: it can be resumed, and forked again, from the start.

    The reference of the KL term goes along, also where this fork does not use it.
    """
    reference = parent.checkpoints / REFERENCE
    if state.rl_step > 0 and reference.is_dir():
        shutil.copytree(reference, writer.layout.checkpoints / REFERENCE)
    name = checkpoint_name(state)
    ref = save_checkpoint(
        writer.layout.checkpoints,
        name,
        model_state=loaded.model_state,
        optimizer_state=loaded.optimizer_state if state.rl_step > 0 else {},
        rng=loaded.rng,
        state=state.to_json(),
    )
    writer.record_checkpoint(name, phase="rl", step=state.rl_step, sha256=ref.sha256)


def _state(state: LoopState, recipe: Recipe, before: Recipe) -> LoopState:
    """The parent's cursor with everything that the new store counts anew set to zero."""
    if state.phase in ("start", "sft") and state.sft_step < recipe.warm_start.steps:
        raise ConfigError("the checkpoint lies within the warm start; fork from a later one, or resume the run")
    state.phase = "rl"
    state.evaluations = 0
    state.ledger = Ledger()
    state.next_group, state.under_way = 0, []
    state.recent = []
    state.groups_seen = state.groups_with_signal = 0
    # Baselines, knobs and remembered groups are those of the parent's recipe.
    state.health = state.control = state.reservoir = state.normaliser = state.evaluated = None
    state.knobs, state.marks = Knobs(), []
    if recipe.run.seed != before.run.seed:
        state.task_cursor = None
    return state
