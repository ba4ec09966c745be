"""Checks before a run is created: what would stop it minutes later is said at once, and leaves no folder behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from burnish.algorithms.registry import make_loss
from burnish.core.errors import ConfigError
from burnish.core.served import PolicyServer
from burnish.diagnosis.built_in import engine_of
from burnish.loop.canaries import Canaries
from burnish.loop.config import Recipe
from burnish.loop.curriculum import Curriculum
from burnish.loop.objective import check_objective
from burnish.loop.policy import merged_limits, tiny_spec
from burnish.loop.program import load_program
from burnish.loop.setup import loss_settings, token_charge
from burnish.loop.state import LoopState
from burnish.loop.worlds import World
from burnish.policies.load import load_config, pick_device, pick_dtype
from burnish.store.rows import Event

PROBLEMS_TOLD = 5
"""How many unusable lines of a file are shown; all are counted, and the store holds the first hundred."""


def bad_rows(problems: Sequence[str]) -> list[Event]:
    """The event for lines of a user's file that were left out, none where there were none."""
    if not problems:
        return []
    detail = f"{len(problems)} lines were left out, first {problems[0]}"
    return [Event(kind="bad_rows", detail=detail, data={"problems": list(problems[:100])})]


def check_recipe(recipe: Recipe, world: World) -> None:
    """Raises ConfigError, or TaskError for a split without tasks, where the recipe cannot be carried out."""
    for split in ("train", "heldout"):
        world.tasks(split, 1)
    for setting in loss_settings(recipe).values():
        make_loss(setting.name, setting.options)
    _check_token_cost(recipe, world)
    check_objective(recipe)
    engine = engine_of(recipe.curriculum.policy)
    if recipe.curriculum.draw != "even":
        Curriculum(recipe, world.tasks("train"), LoopState(), engine)
    Canaries(recipe, world)
    load_program(recipe.environment.program)
    pick_dtype(recipe.model.dtype, pick_device(recipe.model.device))
    if recipe.model.path:
        load_config(recipe.model.path)
    else:
        tiny_spec(recipe)
    if recipe.warm_start.steps > 0:
        _check_warm_start(recipe, world)


def check_server(recipe: Recipe, server: PolicyServer | None) -> None:
    """Raises ConfigError where the recipe names a server and none is given, or the reverse."""
    if bool(recipe.sampler.url) != (server is not None):
        raise ConfigError(
            f"sampler.url is {recipe.sampler.url!r} and the run was given {'a' if server else 'no'} server; "
            "from Python pass server=VllmPolicy(...) with it"
        )


def _check_token_cost(recipe: Recipe, world: World) -> None:
    charge = token_charge(recipe)
    if charge is None:
        return
    charge.check_limit(merged_limits(recipe, world.limits).max_episode_tokens)
    if recipe.rl.scale == "std":
        raise ConfigError(
            "rl.token_cost needs rl.scale=none: divided by its standard deviation, a group of nothing but successes "
            "pushes for length alone, at full strength whatever the price"
        )


def _check_warm_start(recipe: Recipe, world: World) -> None:
    settings = recipe.warm_start
    if settings.data:
        if not Path(settings.data).is_file():
            raise ConfigError(f"warm_start.data: there is no file {settings.data}")
        if settings.keep == "correct":
            raise ConfigError("warm_start.keep=correct needs graded traces, and nothing grades the chats of a file")
        return
    if world.expert is None:
        raise ConfigError(
            f"warm_start.steps is {settings.steps} but environment {world.name} has no expert; "
            "write a solve method, give warm_start.data=CHATS.jsonl, or set warm_start.steps=0"
        )
    unknown = sorted(set(settings.mistakes) - set(world.mistakes))
    if unknown:
        known = ", ".join(world.mistakes) or "none"
        raise ConfigError(f"the expert of {world.name} makes no mistake {unknown[0]!r}; it knows: {known}")
    shares = settings.mistakes.values()
    if sum(shares) > 1.0 + 1e-9 or any(share < 0 for share in shares):
        raise ConfigError(
            f"warm_start.mistakes are shares of all traces and add up to at most 1, got {settings.mistakes}"
        )
