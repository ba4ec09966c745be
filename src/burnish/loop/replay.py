"""Replaying one stored step: the same batch through the same weights must give the same loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from burnish.core.errors import CheckpointError, StoreError
from burnish.core.finding import Act, Decision
from burnish.core.images import SHELF
from burnish.loop import reinforce
from burnish.loop.config import Recipe
from burnish.loop.executor import Executor, LocalExecutor
from burnish.loop.grading import open_world
from burnish.loop.knobs import Knobs
from burnish.loop.manifest import stored_recipe
from burnish.loop.policy import Policy, reopen_policy
from burnish.loop.setup import make_own_shard, rl_loss
from burnish.loop.shard import GradientOrder
from burnish.loop.state import LoopState
from burnish.loop.step_order import ShardKnobs, StepOrder
from burnish.loop.step_work import FLOOR_WEIGHT
from burnish.rollout.streams import Judgement
from burnish.store.layout import RunLayout
from burnish.store.reader import RunReader
from burnish.store.rows import Fate, StoredTrajectory
from burnish.training.checkpoint import CheckpointRef, list_checkpoints, load_checkpoint
from burnish.training.model_state import load_model_state
from burnish.training.optimizer import Optimizer

TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a replay found.  `Replay(step=12, checkpoint="rl-000010", replayed_steps=2, stored_loss=-.013,
    recomputed_loss=-.013, same=True, bit_equal=True)`

    same: equal within a relative 1e-6; bit_equal: to the last bit, as on the machine type that wrote the run.
    """

    step: int
    checkpoint: str
    replayed_steps: int
    stored_loss: float
    recomputed_loss: float
    same: bool
    bit_equal: bool


def replay_step(folder: Path, step: int, say: Callable[[str], None]) -> Replay:
    """Recompute RL step `step` of a run: load the nearest checkpoint before it, apply the stored steps in between, and
    compute the loss on the stored trajectories and advantages.  Nothing is sampled and nothing is written.

    Raises StoreError where the step is not stored or where control had turned a knob that changes what a step computes,
    CheckpointError where no checkpoint before it is left.
    """
    recipe, reader = stored_recipe(folder), RunReader(folder)
    known = [info.step for info in reader.steps("rl")]
    if step not in known:
        raise StoreError(
            f"run {folder.name} has no RL step {step}; it has {min(known, default=0)}-{max(known, default=0)}"
        )
    layout = RunLayout(folder)
    ref = _nearest(layout, step)
    start = int(ref.name.rpartition("-")[2])
    torch.set_num_threads(recipe.run.threads)
    loaded = load_checkpoint(layout.checkpoints, ref.name, repair=False)
    _refuse_turned_knobs(reader, LoopState.from_json(dict(loaded.state)).knobs, start, step)
    world = open_world(recipe)
    policy = reopen_policy(recipe, layout.model, base_weights=True)
    executor = LocalExecutor([make_own_shard(recipe, policy, world) for _ in range(recipe.run.workers)])
    _load_reference(recipe, policy, executor, layout)
    load_model_state(policy.model, loaded.model_state)
    optimizer = Optimizer(policy.model, reinforce.optimizer_spec(recipe.rl))
    if start > 0:
        optimizer.restore(loaded.optimizer_state)
    recomputed = math.nan
    with SHELF.kept_in(layout.artefacts):
        for number in range(start + 1, step + 1):
            say(f"replaying step {number} from checkpoint {ref.name}")
            knobs = _floor_knobs(recipe, reader.step_scalars("rl", number))
            recomputed = _one_step(recipe, executor, optimizer, reader.trajectories("rl", number), knobs)
    stored = reader.step_scalars("rl", step)["loss"]
    return Replay(
        step=step,
        checkpoint=ref.name,
        replayed_steps=step - start,
        stored_loss=stored,
        recomputed_loss=recomputed,
        same=math.isclose(stored, recomputed, rel_tol=TOLERANCE, abs_tol=1e-9),
        bit_equal=stored == recomputed,
    )


def _nearest(layout: RunLayout, step: int) -> CheckpointRef:
    found = [
        (int(ref.name.rpartition("-")[2]), ref)
        for ref in list_checkpoints(layout.checkpoints)
        if ref.name.startswith("rl-") and int(ref.name.rpartition("-")[2]) < step
    ]
    if not found:
        raise CheckpointError(f"no RL checkpoint before step {step} is left in {layout.checkpoints}")
    return max(found, key=lambda item: item[0])[1]


def _refuse_turned_knobs(reader: RunReader, knobs: Knobs, start: int, step: int) -> None:
    """Raises StoreError where a knob was off the recipe in one of the steps (start, step]: the weights that shards gave
    single tokens, and the groups that near-misses added, are not stored with the step."""
    decisions = [_decision(event.data) for event in reader.events("decision") if not event.data["dry_run"]]
    acting: dict[Act, int] = {}
    for number in range(start + 1, step + 1):
        for act in knobs.turned:
            if act is not Act.CURRICULUM:  # It chooses tasks, and those are stored.
                acting.setdefault(act, number)
        for decision in decisions:
            if decision.step == number:
                knobs.turn(decision)
    if not acting:
        return
    listed = []
    for act, number in acting.items():
        decided = [one.step for one in decisions if one.act is act and not one.release and one.step < number]
        listed.append(f"{act.value} (decided in step {decided[-1]})" if decided else f"{act.value} (turned earlier)")
    first = min(acting.values())
    raise StoreError(
        f"step {step} cannot be replayed: control had turned {', '.join(listed)}, in force from step {first} on, and "
        "what its knobs made of the batch is not stored. Replay a step before that one, or run with "
        "control.mode=dry_run"
    )


def _decision(data: Mapping[str, Any]) -> Decision:
    return Decision(**{**data, "act": Act(data["act"]), "findings": tuple(data["findings"])})


def _floor_knobs(recipe: Recipe, scalars: Mapping[str, float]) -> ShardKnobs:
    """What the entropy floor added to the KL weight in a stored step."""
    if recipe.rl.entropy_floor == 0.0:
        return ShardKnobs()
    return ShardKnobs(kl_weight=recipe.rl.kl_weight + scalars[FLOOR_WEIGHT])


def _load_reference(recipe: Recipe, policy: Policy, executor: Executor, layout: RunLayout) -> None:
    if recipe.keeps_reference:
        start = load_checkpoint(layout.checkpoints, "rl-000000", repair=False)
        load_model_state(policy.model, start.model_state)
        executor.freeze_reference()


def _one_step(
    recipe: Recipe, executor: Executor, optimizer: Optimizer, rows: Sequence[StoredTrajectory], knobs: ShardKnobs
) -> float:
    """The loss of a stored step, summed over its updates as the run did; the optimizer steps are taken."""
    groups: dict[str, list[StoredTrajectory]] = {}
    for row in rows:
        groups.setdefault(row.trajectory.group_id, []).append(row)
    members = list(groups.values())
    size, updates = executor.size, recipe.rl.updates
    executor.hold([[row.trajectory for group in members[shard::size] for row in group] for shard in range(size)])
    parts: list[list[list[str]]] = [[[] for _ in range(updates)] for _ in range(size)]
    judgements: list[dict[str, Judgement]] = [{} for _ in range(size)]
    for index, group in enumerate(members):
        for row in group:
            if row.fate is Fate.TRAINED and row.advantage is not None:
                parts[index % size][index % updates].append(row.trajectory.id)
                judgements[index % size][row.trajectory.id] = Judgement(advantage=row.advantage)
    total, loss, version = 0.0, rl_loss(recipe), rows[0].policy_version
    executor.begin_step(
        [
            StepOrder(step=rows[0].step, version=version, updates=updates, judgements=given, knobs=knobs)
            for given in judgements
        ]
    )
    for update in range(updates):
        normaliser, surveys = executor.prepare([part[update] for part in parts])
        if normaliser > 0:
            order = GradientOrder(
                phase="rl", normaliser=normaliser, version=version + update, trust_limit=loss.trust_limit(surveys)
            )
            total += executor.gradients(order).losses.sums["loss"]
            optimizer.step()
    return total
