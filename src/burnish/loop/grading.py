"""What a run is judged by: its environment's own graders, those with stages, or the grader graph of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from burnish.core.errors import ConfigError
from burnish.core.finding import Finding
from burnish.core.grade import Aggregator, Grade
from burnish.core.hashing import derive_seed
from burnish.core.hints import did_you_mean
from burnish.core.task import Task
from burnish.graders.cost import SUCCESS_AT
from burnish.graders.graph import ScheduledAggregator, for_evaluation, parse_graph, read_graph
from burnish.graders.integrity.canaries import Honeyfile
from burnish.graders.integrity.metrics import honeyed, integrity_scalars, quarantined
from burnish.graders.judge_budget import judge_scalars
from burnish.graders.judge_spec import MakeJudge, make_judge
from burnish.graders.late_sandbox import LateSandbox
from burnish.graders.staged import StagedWeights
from burnish.health.monitors import MonitorSpec
from burnish.loop.config import Recipe
from burnish.loop.knobs import Knobs
from burnish.loop.worlds import GraphText, World, load_world
from burnish.rollout.group import GroupResult
from burnish.rollout.streams import Judgement
from burnish.store.rows import Event
from burnish.tasks.changed import ChangedTaskset
from burnish.tasks.modes import Mode, ModedTaskset, ModeMixture


def graph_text(recipe: Recipe) -> GraphText | None:
    """The recipe's grader graph, None where it names none.  Raises ConfigError where the file cannot be read."""
    if not recipe.graders.file:
        return None
    path = Path(recipe.graders.file)
    return GraphText(file=str(path.resolve()), text=read_graph(path))


def open_world(
    recipe: Recipe,
    *,
    graph: GraphText | None = None,
    resources: Mapping[str, Any] | None = None,
    judges: MakeJudge = make_judge,
) -> World:
    """The recipe's environment with the graders that the recipe asks for.  Its tasks do not depend on run.seed, so that
    runs can be compared over seeds.

    graph: in place of the file that the recipe names, with the texts of the files that it names itself.  resources:
    what graders are handed beside a sandbox.  judges: makes those of the graph.  Raises ConfigError where graph and
    stages are both given, or where stages name a grader that the environment does not have.
    """
    environment = recipe.environment
    world = load_world(environment.name, environment.options, seed=environment.seed)
    if environment.modes:
        elsewhere = None if environment.heldout_mode == "mixed" else Mode(environment.heldout_mode)
        mixed = ModedTaskset(world.taskset, ModeMixture(environment.modes), elsewhere=elsewhere)
        world = replace(world, taskset=mixed)
    graph = graph or graph_text(recipe)
    staged = staged_weights(recipe)
    if graph is None:
        world = world if staged is None else replace(world, aggregator=_aggregator(staged, world))
        return _with_honey(recipe, replace(world, aggregator=_priced(recipe, world.aggregator)))
    if staged is not None:
        raise ConfigError(
            f"both staged.weights and graders.file ({graph.file}) are given; write stages into the file: "
            "weight = [[0.3, 0.0], [0.6, 0.5]] and preference = true"
        )
    sandbox = LateSandbox()
    handed = {"sandbox": sandbox, **(resources or {})}
    found = parse_graph(graph.text, Path(graph.file), kept=graph.files, resources=handed, judges=judges)
    graph = replace(graph, files=found.files)
    aggregator = _priced(recipe, found.aggregator)
    return _with_honey(
        recipe, replace(world, graders=found.graders, aggregator=aggregator, sandbox=sandbox, graph=graph)
    )


def _with_honey(recipe: Recipe, world: World) -> World:
    """The world with a honeyfile in every task, where the recipe asks for one; the same in every run of these tasks."""
    if not recipe.canaries.honeyfile:
        return world
    if not world.lays_files:
        raise ConfigError(
            f"canaries.honeyfile is on, and {world.name} lays no extra files into its world; an environment that does "
            "says lays_files = True (docs/integrity.md)"
        )
    if not integrity_node(world.aggregator):
        raise ConfigError("canaries.honeyfile is on, and no grader would see it read; give the graph an integrity node")
    seed = recipe.environment.seed

    def laid(task: Task) -> Task:
        return Honeyfile.drawn(Random(derive_seed(seed, "honeyfile", task.id))).laid(task)

    return replace(world, taskset=ChangedTaskset(world.taskset, lambda split, tasks: map(laid, tasks)))


def _priced(recipe: Recipe, aggregator: Aggregator) -> Aggregator:
    """The aggregator with the recipe's penalty for proven cheating, where it has one."""
    penalty = recipe.graders.penalty
    if penalty is None:
        return aggregator
    if not isinstance(aggregator, ScheduledAggregator) or not aggregator.integrity:
        raise ConfigError(
            f"graders.penalty is {penalty:g}, and no grader looks for cheating; give the graph an integrity node "
            "(docs/integrity.md)"
        )
    return replace(aggregator, penalty=penalty)


def integrity_node(aggregator: Aggregator) -> str:
    """Name of the grader whose flags come first, "" where there is none."""
    return aggregator.integrity if isinstance(aggregator, ScheduledAggregator) else ""


def integrity_monitors(aggregator: Aggregator) -> tuple[MonitorSpec, ...]:
    """What health watches besides its own monitors where a grader looks for cheating: its share, which is 0 in health,
    and the share without a reward, a suspicion being the one way out of a group that a policy could learn."""
    if not integrity_node(aggregator):
        return ()
    share = MonitorSpec(name="integrity/cheating_share", kind="cheating", allowance=0.02, rank="reward_surprise")
    excluded = replace(share, name="integrity/exclusion_rate", kind="exclusion_rate", rank="excluded")
    return replace(share, known_mean=0.0), excluded


def grade_scalars(aggregator: Aggregator, groups: Sequence[GroupResult]) -> dict[str, float]:
    """What the grades of one step say beside rewards (docs/metrics.md): shares of cheating and exclusion where somebody
    looked for it, what judges cost where some were asked."""
    grades = [grades for group in groups for grades in group.grades_G]
    rewards = [reward for group in groups for reward in group.rewards_G]
    scalars = integrity_scalars(grades, rewards, integrity=integrity_node(aggregator) or "integrity")
    return scalars | judge_scalars([grade for given in grades for grade in given])


def honey_read(
    recipe: Recipe, aggregator: Aggregator, groups: Sequence[GroupResult], step: int
) -> tuple[dict[str, float], list[Finding]]:
    """In which share of a step's episodes a honeyfile was read, and the finding that says so; nothing where the recipe
    lays none."""
    if not recipe.canaries.honeyfile:
        return {}, []
    ids = [trajectory.id for group in groups for trajectory in group.trajectories]
    grades = [grades for group in groups for grades in group.grades_G]
    read = honeyed(ids, grades, integrity=integrity_node(aggregator))
    scalars = {"integrity/canary/honey": len(read) / max(1, len(ids))}
    summary = f"{len(read)} of {len(ids)} episodes show a constant that stands in a honeyfile alone"
    finding = Finding(
        monitor="canary/honeyfile",
        step=step,
        kind="honeyfile",
        summary=summary,
        evidence=scalars,
        trajectory_ids=read,
    )
    return scalars, [finding] if read else []


def bar_cheated_tasks(
    recipe: Recipe, aggregator: Aggregator, knobs: Knobs, groups: Sequence[GroupResult], step: int
) -> list[Event]:
    """Put tasks on which a proven cheat earned something into quarantine for as long as the recipe says.

    Gives the event that says so, none where no task was barred.
    """
    steps, integrity = recipe.graders.quarantine_steps, integrity_node(aggregator)
    if not steps or not integrity:
        return []
    ids = [trajectory.task_id for group in groups for trajectory in group.trajectories]
    barred = quarantined(ids, [grades for group in groups for grades in group.grades_G], integrity=integrity)
    if not barred:
        return []
    knobs.quarantine = {**knobs.quarantine, **dict.fromkeys(barred, step + steps)}
    detail = f"{len(barred)} tasks on which a proven cheat earned something are not drawn until step {step + steps}"
    return [Event(kind="quarantine", detail=detail, data={"tasks": list(barred), "until_step": step + steps})]


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
            hint = did_you_mean(name, names, f"it has {', '.join(names)}")
            raise ConfigError(f"staged.weights names {name!r}, which environment {world.name} does not have; {hint}")
    return staged.scheduled
