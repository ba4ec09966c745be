"""What a step climbs: how much each trajectory weighs, and how hard the policy is held where its entropy is low."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from burnish.algorithms.entropy_floor import EntropyFloor
from burnish.algorithms.normalisers import VarianceNormaliser, VarianceSpec, vl_weights
from burnish.algorithms.skills import balance_skills
from burnish.core.errors import ConfigError
from burnish.core.trajectory import Trajectory
from burnish.loop.config import Recipe
from burnish.loop.state import LoopState
from burnish.rollout.streams import source_of


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


def entropy_weight(recipe: Recipe, state: LoopState) -> float:
    """What the entropy floor adds to the KL weight in the next step: 0 until its first steps are over, and above it."""
    rl = recipe.rl
    if rl.entropy_floor == 0.0 or state.entropy is None or len(state.first_entropies) < rl.entropy_floor_steps:
        return 0.0
    floor = EntropyFloor(weight=rl.entropy_floor, share=rl.entropy_floor_share, ramp=rl.entropy_floor_ramp)
    return floor.coefficient(state.entropy, math.fsum(state.first_entropies) / len(state.first_entropies))


def learn_entropy(recipe: Recipe, state: LoopState, entropy_nats: float) -> None:
    """Tell the entropy floor the mean entropy of a step's trained tokens; NaN where it trained on none."""
    if recipe.rl.entropy_floor == 0.0 or not math.isfinite(entropy_nats):
        return
    state.entropy = entropy_nats
    if len(state.first_entropies) < recipe.rl.entropy_floor_steps:
        state.first_entropies.append(entropy_nats)


def check_objective(recipe: Recipe) -> None:
    """Raises ConfigError where the objective cannot be carried out."""
    rl, health = recipe.rl, recipe.health
    if rl.normalise == "none":
        return
    if rl.aggregation == "sequence" or (rl.aggregation is None and rl.loss == "gspo"):
        raise ConfigError("rl.normalise needs rl.aggregation=token or constant: sequence already divides by length")
    if rl.normalise == "variance" and not (health.on and health.softmax_every > 0):
        raise ConfigError("rl.normalise=variance learns from score norms: health.on and health.softmax_every above 0")
