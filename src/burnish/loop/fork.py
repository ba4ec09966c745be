"""Forking: a new run that starts from the state of another, with some keys changed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from burnish.core.errors import ConfigError
from burnish.loop.conductor import NOBODY, Outside, conduct, recorded
from burnish.loop.config import FORKABLE_SECTIONS, Recipe
from burnish.loop.following import check_trackers
from burnish.loop.grading import open_world
from burnish.loop.knobs import Knobs
from burnish.loop.manifest import make_manifest, stored_recipe, tasks_hash
from burnish.loop.oversight import Oversight
from burnish.loop.policy import reopen_policy
from burnish.loop.preflight import check_recipe, check_server
from burnish.loop.recipes import apply_overrides, validate
from burnish.loop.saving import REFERENCE, checkpoint_name
from burnish.loop.setup import resolve_workers
from burnish.loop.state import Ledger, LoopState, Mark
from burnish.loop.worlds import World
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
    keep_baselines: bool = False,
    outside: Outside = NOBODY,
) -> None:
    """Start a run in `folder` from a checkpoint of `parent` (the newest where none is named), and train it on.

    The fork has its own store, which begins after the parent's step; its manifest names parent and checkpoint.  RL goes
    on at the parent's step number, so rl.steps counts from the parent's first.  Other training tasks or another seed
    start a new order of tasks.

    keep_baselines: health, control and its knobs go on from where the parent's were, as if this were one run, and the
    checkpoint counts as verified; the near-misses stay with the parent, whose store holds them.  Otherwise they begin
    anew, with a warm-up of their own.

    Raises ConfigError where nothing would be left to do, and where baselines that are kept do not fit the recipe.
    """
    recipe = resolve_workers(recipe)
    layout = RunLayout(parent)
    loaded = (
        load_checkpoint(layout.checkpoints, checkpoint, repair=False)
        if checkpoint
        else load_latest(layout.checkpoints, repair=False)
    )
    state = _state(LoopState.from_json(dict(loaded.state)), recipe, stored_recipe(parent), keep_baselines)
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
    check_server(recipe, outside.server)
    check_trackers(recipe, outside.trackers)
    if keep_baselines:
        _check_baselines(recipe, world, state)
    if tasks_hash(world, "train") != RunReader(parent).manifest()["environment"]["splits"].get("train"):
        state.task_cursor = None
    origin = {"run": parent.name, "checkpoint": loaded.ref.name, "sha256": loaded.ref.sha256, "rl_step": state.rl_step}
    with RunWriter.create(folder, make_manifest(recipe, world, origin)) as writer, recorded(writer):
        shutil.copytree(layout.model, writer.layout.model, dirs_exist_ok=True)
        _carry_over(layout, writer, loaded, state)
        policy = reopen_policy(recipe, writer.layout.model, base_weights=True)
        writer.event("forked", f"from {parent.name} at {loaded.ref.name}")
        conduct(recipe, writer, world, policy, state, loaded, outside)


def _check_baselines(recipe: Recipe, world: World, state: LoopState) -> None:
    try:
        Oversight(recipe, world, state)
    except ValueError as error:
        raise ConfigError(f"the parent's baselines do not fit the fork, so they cannot be kept: {error}") from error


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


def _state(state: LoopState, recipe: Recipe, before: Recipe, keep_baselines: bool) -> LoopState:
    """The parent's cursor with everything that the new store counts anew set to zero."""
    if state.phase in ("start", "sft") and state.sft_step < recipe.warm_start.steps:
        raise ConfigError("the checkpoint lies within the warm start; fork from a later one, or resume the run")
    state.phase = "rl"
    state.evaluations = 0
    state.ledger = Ledger()
    state.next_group, state.under_way = 0, []
    state.recent = []
    state.groups_seen = state.groups_with_signal = 0
    # The trajectories that it remembers lie in the parent's store.
    state.reservoir = None
    if keep_baselines:
        state.marks = [Mark(name=checkpoint_name(state), step=state.rl_step, verified=True)]
    else:
        state.health = state.control = state.normaliser = state.teachable = state.evaluated = None
        state.knobs, state.marks, state.canaries = Knobs(), [], {}
        state.first_entropies, state.entropy = [], None
    if recipe.run.seed != before.run.seed:
        state.task_cursor = None
    return state
