"""What a run is judged by: its environment's own graders, those with stages, or the grader graph of a file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from burnish.core.errors import ConfigError
from burnish.core.grade import Aggregator, Grade
from burnish.graders.cost import SUCCESS_AT
from burnish.graders.graph import for_evaluation, parse_graph, read_graph
from burnish.graders.late_sandbox import LateSandbox
from burnish.graders.staged import StagedWeights
from burnish.loop.config import Recipe
from burnish.loop.worlds import GraphText, World, load_world
from burnish.rollout.streams import Judgement


def graph_text(recipe: Recipe) -> GraphText | None:
    """The recipe's grader graph, None where it names none.  Raises ConfigError where the file cannot be read."""
    if not recipe.graders.file:
        return None
    path = Path(recipe.graders.file)
    return GraphText(file=str(path.resolve()), text=read_graph(path))


def open_world(recipe: Recipe, *, graph: GraphText | None = None, resources: Mapping[str, Any] | None = None) -> World:
    """The recipe's environment with the graders that the recipe asks for.  Its tasks do not depend on run.seed, so that
    runs can be compared over seeds.

    graph: in place of the file that the recipe names.  resources: what graders are handed beside a sandbox.  Raises
    ConfigError where graph and stages are both given, or where stages name a grader that the environment does not have.
    """
    environment = recipe.environment
    world = load_world(environment.name, environment.options, seed=environment.seed)
    graph = graph or graph_text(recipe)
    staged = staged_weights(recipe)
    if graph is None:
        return world if staged is None else replace(world, aggregator=_aggregator(staged, world))
    if staged is not None:
        raise ConfigError(
            f"both staged.weights and graders.file ({graph.file}) are given; write stages into the file: "
            "weight = [[0.3, 0.0], [0.6, 0.5]] and preference = true"
        )
    sandbox = LateSandbox()
    found = parse_graph(graph.text, Path(graph.file), resources={"sandbox": sandbox, **(resources or {})})
    return replace(world, graders=found.graders, aggregator=found.aggregator, sandbox=sandbox, graph=graph)


def staged_weights(recipe: Recipe) -> StagedWeights | None:
    """The recipe's stages, None where it has none; raises ConfigError where they make no sense."""
    staged = recipe.staged
    if not staged.weights:
        if staged.preference:
            raise ConfigError("staged.preference names graders that have no weight; give staged.weights")
        return None
    if staged.preference and staged.end is None:
        raise ConfigError("staged.end, the share of training at which preferences have their full weight, is needed")
    end = 1.0 if staged.end is None else staged.end
    return StagedWeights(weights=staged.weights, preference=staged.preference, start=staged.start, end=end)


def share_done(recipe: Recipe, step: int) -> float:
    """The share of training that RL step `step` (from 1) completes, in [0, 1].

    >>> share_done(Recipe.model_validate({"rl": {"steps": 40}}), 10)
    0.25
    """
    return min(1.0, step / max(1, recipe.rl.steps))


def is_success(aggregator: Aggregator, grades: Sequence[Grade]) -> bool | None:
    """Whether a held-out evaluation would call it a success, whichever grader comes first; None where nobody knows."""
    score = for_evaluation(aggregator).rewards([grades])[0]
    return None if score is None else score >= SUCCESS_AT


def judged(
    aggregator: Aggregator, grades: Sequence[Grade], *, reward: float | None, advantage: float | None
) -> Judgement:
    """What health is told of a trajectory, with success as evaluations see it."""
    success = is_success(aggregator, grades)
    told = Judgement.of(grades, reward=reward, advantage=advantage)
    return replace(told, success=None if success is None else float(success))


def _aggregator(staged: StagedWeights, world: World) -> Aggregator:
    names = [grader.name for grader in world.graders]
    for name in staged.weights:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(names)}"
            raise ConfigError(f"staged.weights names {name!r}, which environment {world.name} does not have; {hint}")
    return staged.scheduled
