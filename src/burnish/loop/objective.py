"""What a step climbs: how grades become rewards at this point of training, and how much each trajectory weighs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from burnish.algorithms.normalisers import VarianceNormaliser, VarianceSpec, vl_weights
from burnish.algorithms.skills import balance_skills
from burnish.core.errors import ConfigError
from burnish.core.grade import Aggregator
from burnish.core.trajectory import Trajectory
from burnish.graders.aggregate import WeightedSum
from burnish.graders.staged import StagedWeights
from burnish.loop.config import Recipe
from burnish.loop.state import LoopState
from burnish.rollout.streams import source_of


def staged_weights(recipe: Recipe) -> StagedWeights | None:
    """The recipe's stages, None where it weighs all graders alike; raises ConfigError where they make no sense."""
    staged = recipe.staged
    if not staged.weights:
        if staged.preference:
            raise ConfigError("staged.preference names graders that have no weight; give staged.weights")
        return None
    if staged.preference and staged.end is None:
        raise ConfigError("staged.end, the share of training at which preferences have their full weight, is needed")
    end = 1.0 if staged.end is None else staged.end
    return StagedWeights(weights=staged.weights, preference=staged.preference, start=staged.start, end=end)


def step_aggregator(recipe: Recipe, default: Aggregator, step: int) -> Aggregator:
    """What turns the grades of RL step `step` (from 1) into rewards."""
    staged = staged_weights(recipe)
    return default if staged is None else staged.aggregator((step - 1) / max(1, recipe.rl.steps))


def held_out_aggregator(recipe: Recipe, default: Aggregator) -> Aggregator:
    """What held-out success is measured by: the verifiable graders alone, their weights scaled to add up to 1."""
    staged = staged_weights(recipe)
    if staged is None:
        return default
    weights = {name: weight for name, weight in staged.weights.items() if name not in staged.preference}
    total = math.fsum(weights.values())
    if not total > 0.0:
        raise ConfigError(f"the weights of verifiable graders add up to {total}; held-out success needs more than 0")
    return WeightedSum({name: weight / total for name, weight in weights.items()})


def trajectory_weights(recipe: Recipe, state: LoopState, trained: Sequence[Trajectory]) -> dict[str, float]:
    """By id, what the advantages of the trained trajectories are multiplied with; mean 1, {} for all alike."""
    lengths = [max(1, trajectory.action_tokens) for trajectory in trained]
    if recipe.rl.normalise == "none" or not trained:
        return {}
    if recipe.rl.normalise == "vl":
        weights = vl_weights(lengths, recipe.rl.vl_exponent)
    else:
        weights = _normaliser(state).weights([source_of(trajectory.tags) for trajectory in trained], lengths)
    return {trajectory.id: weight for trajectory, weight in zip(trained, weights, strict=True)}


def weighed(
    recipe: Recipe, advantages: Mapping[str, float], weights: Mapping[str, float], trained: Sequence[Trajectory]
) -> dict[str, float]:
    """The advantages with skills on one scale, where the recipe asks for it, and the trajectories' weights."""
    values = [advantages[trajectory.id] for trajectory in trained]
    if recipe.rl.balance_skills:
        values = balance_skills(values, [trajectory.tags.get("skill", "") for trajectory in trained])
    return {
        trajectory.id: value * weights.get(trajectory.id, 1.0)
        for trajectory, value in zip(trained, values, strict=True)
    }


def learn_sizes(
    state: LoopState, trained: Sequence[Trajectory], weights: Mapping[str, float], sizes: Mapping[str, float]
) -> None:
    """Tell the variance normaliser how large each trajectory's part of the update was, its weight taken out again.

    sizes: by id, of the trajectories whose softmax statistics the step had; in the others nothing is learnt.
    """
    known = [trajectory for trajectory in trained if trajectory.id in sizes]
    if not known:
        return
    normaliser = _normaliser(state)
    normaliser.observe(
        [source_of(trajectory.tags) for trajectory in known],
        [max(1, trajectory.action_tokens) for trajectory in known],
        [sizes[trajectory.id] / weights.get(trajectory.id, 1.0) for trajectory in known],
    )
    state.normaliser = normaliser.state()


def _normaliser(state: LoopState) -> VarianceNormaliser:
    return VarianceNormaliser.restore(VarianceSpec(), state.normaliser or {})


def check_objective(recipe: Recipe) -> None:
    """Raises ConfigError where the objective cannot be carried out."""
    held_out_aggregator(recipe, WeightedSum())
    rl, health = recipe.rl, recipe.health
    if rl.normalise == "none":
        return
    if rl.aggregation == "sequence" or (rl.aggregation is None and rl.loss == "gspo"):
        raise ConfigError("rl.normalise needs rl.aggregation=token or constant: sequence already divides by length")
    if rl.normalise == "variance" and not (health.on and health.softmax_every > 0):
        raise ConfigError("rl.normalise=variance learns from score norms: health.on and health.softmax_every above 0")
