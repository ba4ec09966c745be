"""Making the shards of a run, in this process or in workers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from burnish.algorithms.loss import Loss
from burnish.algorithms.registry import make_loss
from burnish.core.images import SHELF
from burnish.core.served import PolicyServer
from burnish.graders.cost import TokenCost
from burnish.loop.config import Recipe
from burnish.loop.executor import Executor, LocalExecutor
from burnish.loop.grading import open_world
from burnish.loop.policy import Policy, merged_limits, reopen_policy
from burnish.loop.program import load_program
from burnish.loop.served import ServedSampler
from burnish.loop.shard import LossSetting, Shard
from burnish.loop.shard_episodes import EpisodeSetting
from burnish.loop.workers import ProcessExecutor
from burnish.loop.worlds import GraphText, World
from burnish.store.layout import RunLayout

MAX_AUTO_WORKERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """What a worker process needs to build its shard: the recipe as JSON, the run's model folder, and its grader graph.

    graph: as the run read it: a file that is edited while the run goes on must not reach a worker that is replaced.
    """

    recipe: str
    folder: str
    graph: GraphText | None = None


def resolve_workers(recipe: Recipe) -> Recipe:
    """The recipe with the automatic number of workers replaced by a number, so that it is stored with the run."""
    if recipe.run.workers > 0:
        return recipe
    workers = 1
    if recipe.sampler.url:
        return recipe.model_copy(update={"run": recipe.run.model_copy(update={"workers": 1})})
    on_cpu = recipe.model.device == "cpu" or not torch.cuda.is_available() or not recipe.model.path
    if recipe.model.device in ("auto", "cpu") and on_cpu:
        workers = min(MAX_AUTO_WORKERS, max(2, available_cores()))
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"workers": workers})})


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_executor(
    recipe: Recipe, policy: Policy, world: World, folder: Path, server: PolicyServer | None = None
) -> Executor:
    """Worker processes where there are several shards on a CPU, else this process; with a server always this process,
    since only the one that updates its weights knows which version drew a token."""
    if server is not None:
        return LocalExecutor([make_own_shard(recipe, policy, world, ServedSampler(server, policy.model))])
    if recipe.run.in_process or recipe.run.workers == 1 or policy.device.type != "cpu":
        return LocalExecutor([make_own_shard(recipe, policy, world) for _ in range(recipe.run.workers)])
    setup = WorkerSetup(recipe=recipe.model_dump_json(), folder=str(folder), graph=world.graph)
    logs = RunLayout(folder.parent).logs
    logs.mkdir(exist_ok=True)
    return ProcessExecutor(
        policy.model, make_worker_shard, setup, recipe.run.workers, stall_s=recipe.stop.stall_s, logs=logs
    )


def make_worker_shard(setup: WorkerSetup) -> Shard:
    """Build a shard inside a worker process; the caller attaches the shared weights."""
    recipe = Recipe.model_validate_json(setup.recipe)
    torch.set_num_threads(recipe.run.threads)
    SHELF.keep_in(RunLayout(Path(setup.folder).parent).artefacts)
    world = open_world(recipe, graph=setup.graph)
    return make_own_shard(recipe, reopen_policy(recipe, Path(setup.folder)), world)


def make_own_shard(recipe: Recipe, policy: Policy, world: World, served: ServedSampler | None = None) -> Shard:
    """A shard on this process's policy, sampled by a server where there is one."""
    return Shard(
        policy=policy,
        world=world,
        episodes=EpisodeSetting(
            limits=merged_limits(recipe, world.limits),
            grader_timeout_s=recipe.environment.grader_timeout_s,
            hosts=hosts_of(recipe, world),
            program=load_program(recipe.environment.program),
        ),
        losses=loss_settings(recipe),
        max_micro_batch_tokens=recipe.checks.max_micro_batch_tokens,
        served=served,
    )


def hosts_of(recipe: Recipe, world: World) -> int:
    """Host processes of each shard; 0: episodes live in the shard's own process."""
    isolation = recipe.environment.isolation
    if isolation == "auto":
        isolation = "process" if world.own else "none"
    return recipe.environment.hosts if isolation == "process" else 0


def rl_loss(recipe: Recipe) -> Loss:
    """The loss of the RL phase."""
    setting = loss_settings(recipe)["rl"]
    return make_loss(setting.name, setting.options)


def token_charge(recipe: Recipe) -> TokenCost | None:
    """What sampled tokens cost, None where they cost nothing."""
    rl = recipe.rl
    if rl.token_cost == 0:
        return None
    return TokenCost(per_1k_tokens=rl.token_cost, free_tokens=rl.token_cost_free, mode=rl.token_cost_mode)


def loss_settings(recipe: Recipe) -> Mapping[str, LossSetting]:
    """The loss of each phase.  "canary" only scores, at the temperature that the canary is sampled with."""
    rl = recipe.rl
    correction = rl.correction
    if correction == "auto":
        # gspo's clip, of a ten-thousandth, is narrower than what staleness moves by itself
        is_narrow = rl.loss == "gspo" and recipe.rollout.mode != "sync"
        correction = "token_truncate" if is_narrow else "none"
    given = {
        "aggregation": rl.aggregation,
        "clip_low": rl.clip_low,
        "clip_high": rl.clip_high,
        "moment_cap": rl.moment_cap,
        "correction": correction,
        "correction_cap": rl.correction_cap,
        "correction_floor": rl.correction_floor,
        "kl_weight": rl.kl_weight,
    }
    options = {key: value for key, value in given.items() if value is not None}
    return {
        "sft": LossSetting(name="sft", options={}),
        "canary": LossSetting(name="sft", options={}),
        "rl": LossSetting(name=rl.loss, options=options, temperature=rl.temperature),
    }
