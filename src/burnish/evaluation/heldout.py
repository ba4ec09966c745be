"""Held-out evaluation: run tasks, grade them, and say how sure the figure is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

import numpy as np

from burnish.core.errors import ConfigError, RunStopped
from burnish.core.grade import Aggregator, Grade
from burnish.core.hashing import content_hash, derive_seed
from burnish.core.sampling import SamplingParams
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.rollout.episode import EpisodePlan
from burnish.stats.intervals import clustered_bootstrap, wilson
from burnish.store.rows import EvaluationRow

SUCCESS_AT = 1.0 - 1e-6
"""A score counts as a success from here on; partial credit is not success."""


class Mode(StrEnum):
    """How actions are drawn."""

    SAMPLED = "sampled"
    GREEDY = "greedy"


class RolloutFn(Protocol):
    """Runs episodes and returns one trajectory for each plan, in order."""

    async def __call__(self, plans: Sequence[EpisodePlan], params: SamplingParams) -> Sequence[Trajectory]: ...


class GradeFn(Protocol):
    """Grades trajectories, `tasks[i]` being the task of `trajectories[i]`; one tuple of grades for each, in order."""

    async def __call__(
        self, tasks: Sequence[Task], trajectories: Sequence[Trajectory]
    ) -> Sequence[Sequence[Grade]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSpec:
    """What to measure.  `EvalSpec(label="after_rl", split="heldout", mode=Mode.GREEDY)`

    label: names the evaluation within a run; no slash.  samples: episodes of each task (1 is enough for greedy).
    seed: two evaluations of the same tasks and seed draw the same episode seeds, so that they pair.  temperature and
    top_p: of mode sampled; greedy ignores them.  max_excluded_share: beyond it the evaluation stops, since a figure
    over the episodes that happened to survive is not one.
    """

    label: str
    split: str = "heldout"
    mode: Mode = Mode.SAMPLED
    samples: int = 1
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    max_excluded_share: float = 0.2

    def __post_init__(self) -> None:
        for name, value in (("label", self.label), ("split", self.split)):
            if not value or "/" in value:
                raise ConfigError(f"the {name} of an evaluation is a non-empty text without a slash, got {value!r}")
        if self.samples < 1:
            raise ConfigError(f"an evaluation draws at least 1 sample of each task, got samples={self.samples}")

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters of the mode."""
        if self.mode is Mode.GREEDY:
            return SamplingParams(temperature=0.0)
        return SamplingParams(temperature=self.temperature, top_p=self.top_p)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A share with its 95% interval.  `Rate(n=100, successes=90, share=0.9, low=0.826, high=0.945, method="wilson")`

    n counts scored episodes.  share, low, high in [0, 1], NaN, 0 and 1 where n is 0.  method names the interval:
    "wilson" (one episode a task), "cluster_bootstrap" (several, resampled by task) or "wilson_by_task" (several, all
    alike, where resampling would give an interval of width zero: each task counts once).
    """

    n: int
    successes: int
    share: float
    low: float
    high: float
    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """The episodes of one task.  `TaskScore(task_id="t1", task_hash="9f..", scores=(1.0, None), seeds=(7, 8))`

    scores[i] is the reward of sample i, None where the episode was excluded; seeds[i] its episode seed.
    """

    task_id: str
    task_hash: str
    scores: tuple[float | None, ...]
    seeds: tuple[int, ...]
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def successes(self) -> tuple[float, ...]:
        """1.0 or 0.0 for each scored episode."""
        return tuple(float(score >= SUCCESS_AT) for score in self.scores if score is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """One evaluation as a value.

    `EvalResult(label="after_rl", split="heldout", mode=Mode.GREEDY, tasks=(TaskScore(...),), rate=Rate(...),
    mean_score=0.93, outcomes={"completed": 99, "error:environment": 1}, excluded=1)`

    rate: success (a score of 1) with its interval.  mean_score: of the scored episodes, partial credit included (NaN
    for none).  outcomes: episodes by outcome label.  excluded: episodes without a score; they are in no average.
    trajectories, rewards and grades are parallel, in plan order; empty in results that were read back from a store.
    """

    label: str
    split: str
    mode: Mode
    tasks: tuple[TaskScore, ...]
    rate: Rate
    mean_score: float
    outcomes: Mapping[str, int]
    excluded: int
    trajectories: tuple[Trajectory, ...] = field(default=(), repr=False)
    rewards: tuple[float | None, ...] = field(default=(), repr=False)
    grades: tuple[tuple[Grade, ...], ...] = field(default=(), repr=False)

    @property
    def taskset_hash(self) -> str:
        """Hash of the content of all tasks, whatever their order."""
        return content_hash(sorted(task.task_hash for task in self.tasks))


async def evaluate(
    tasks: Sequence[Task], spec: EvalSpec, *, rollout: RolloutFn, grade: GradeFn, aggregator: Aggregator
) -> EvalResult:
    """Run `spec.samples` episodes of every task, grade and summarise them.

    Raises ConfigError for no tasks or the same task twice, RunStopped (cause "excluded") where more than
    `spec.max_excluded_share` of the episodes carry no score.
    """
    plans = evaluation_plans(tasks, spec)
    trajectories = tuple(await rollout(plans, spec.params))
    if [t.id for t in trajectories] != [plan.id for plan in plans]:
        raise ValueError("rollout must return one trajectory for each plan, in the order of the plans")
    grades = tuple(tuple(g) for g in await grade([plan.task for plan in plans], trajectories))
    rewards = aggregator.rewards(grades)
    scores = [
        reward if trajectory.outcome.may_carry_reward else None
        for reward, trajectory in zip(rewards, trajectories, strict=True)
    ]
    result = summarise(spec.label, spec.split, spec.mode, trajectories, scores, grades)
    if result.excluded > spec.max_excluded_share * len(trajectories):
        raise RunStopped("excluded", _exclusion_message(spec, result))
    return result


def evaluation_plans(tasks: Sequence[Task], spec: EvalSpec) -> list[EpisodePlan]:
    """The episodes of an evaluation, task by task.

    Ids are "eval/LABEL/SPLIT/MODE/TASK/SAMPLE", so that stored rows say which evaluation they belong to.  Seeds do not
    depend on label, mode or policy.
    """
    if not tasks:
        raise ConfigError(f"evaluation {spec.label}: split {spec.split!r} has no tasks")
    repeated = [task_id for task_id, count in Counter(task.id for task in tasks).items() if count > 1]
    if repeated:
        raise ConfigError(
            f"evaluation {spec.label}: {len(repeated)} tasks are given more than once, such as {repeated[0]}; "
            "list each once"
        )
    prefix = f"eval/{spec.label}/{spec.split}/{spec.mode}"
    return [
        EpisodePlan(
            id=f"{prefix}/{index:05d}/{sample:02d}",
            group_id=f"{prefix}/{index:05d}",
            task=task,
            sample_index=sample,
            seed=derive_seed(spec.seed, task.id, sample, 0),
        )
        for index, task in enumerate(tasks)
        for sample in range(spec.samples)
    ]


def summarise(
    label: str,
    split: str,
    mode: Mode,
    trajectories: Sequence[Trajectory],
    scores: Sequence[float | None],
    grades: Sequence[Sequence[Grade]] = (),
) -> EvalResult:
    """The result of episodes that have been scored already; `scores[i]` belongs to `trajectories[i]`."""
    episodes: dict[str, list[tuple[Trajectory, float | None]]] = {}
    for trajectory, score in zip(trajectories, scores, strict=True):
        if score is not None and not math.isfinite(score):
            raise ValueError(f"the score of {trajectory.id} is {score}; a score is a finite number or None")
        episodes.setdefault(trajectory.task_id, []).append((trajectory, score))
    tasks = tuple(_task_score(members) for members in episodes.values())
    scored = [score for score in scores if score is not None]
    return EvalResult(
        label=label,
        split=split,
        mode=mode,
        tasks=tasks,
        rate=success_rate(tasks),
        mean_score=math.fsum(scored) / len(scored) if scored else math.nan,
        outcomes=dict(Counter(trajectory.outcome.label for trajectory in trajectories)),
        excluded=len(scores) - len(scored),
        trajectories=tuple(trajectories),
        rewards=tuple(scores),
        grades=tuple(tuple(g) for g in grades),
    )


def success_rate(tasks: Sequence[TaskScore], *, seed: int = 0) -> Rate:
    """Share of scored episodes with a score of 1, and its 95% interval; episodes of one task are not independent."""
    clusters = {task.task_id: task.successes for task in tasks if task.successes}
    n = sum(len(cluster) for cluster in clusters.values())
    successes = int(sum(sum(cluster) for cluster in clusters.values()))
    if n == 0:
        return Rate(n=0, successes=0, share=math.nan, low=0.0, high=1.0, method="wilson")
    share = successes / n
    if n == len(clusters):
        interval, method = wilson(successes, n), "wilson"
    elif successes in (0, n) or len(clusters) == 1:
        interval, method = wilson(share * len(clusters), len(clusters)), "wilson_by_task"
    else:
        interval, method = (
            clustered_bootstrap(clusters, np.random.Generator(np.random.PCG64(seed))),
            "cluster_bootstrap",
        )
    return Rate(n=n, successes=successes, share=share, low=interval.low, high=interval.high, method=method)


def by_tag(result: EvalResult, tag: str) -> dict[str, Rate]:
    """The success rate for each value of a tag, such as "level" or "template", in sorted order of the values."""
    values = sorted({task.tags.get(tag, "") for task in result.tasks})
    return {value: success_rate([t for t in result.tasks if t.tags.get(tag, "") == value]) for value in values}


def to_row(result: EvalResult, *, phase: str, step: int) -> EvaluationRow:
    """The stored form: success rate and interval, the score of every episode in `details`.

    phase, step: the step whose policy was evaluated.  `from_row` gives the result back, without trajectories.
    """
    details = {
        "mean_score": result.mean_score if math.isfinite(result.mean_score) else None,
        "excluded": result.excluded,
        "outcomes": dict(result.outcomes),
        "interval": result.rate.method,
        "tasks": [
            {
                "id": task.task_id,
                "hash": task.task_hash,
                "scores": list(task.scores),
                "seeds": list(task.seeds),
                "tags": dict(task.tags),
            }
            for task in result.tasks
        ],
    }
    rate = result.rate
    return EvaluationRow(
        label=result.label,
        split=result.split,
        mode=result.mode.value,
        phase=phase,
        step=step,
        n=rate.n,
        successes=rate.successes,
        mean=rate.share,
        low=rate.low,
        high=rate.high,
        details=details,
    )


def from_row(row: EvaluationRow) -> EvalResult:
    """Inverse of `to_row`, trajectories and grades left out.

    Raises ConfigError where the row does not hold the scores of its tasks.
    """
    try:
        tasks = tuple(
            TaskScore(
                task_id=task["id"],
                task_hash=task["hash"],
                scores=tuple(task["scores"]),
                seeds=tuple(task["seeds"]),
                tags=task["tags"],
            )
            for task in row.details["tasks"]
        )
        mean_score, outcomes = row.details["mean_score"], row.details["outcomes"]
    except KeyError as error:
        raise ConfigError(
            f"evaluation {row.label} ({row.split}, {row.mode}) was stored without the scores of its tasks "
            f"({error} is missing); run it again with `burnish eval`"
        ) from error
    rate = Rate(
        n=row.n,
        successes=round(row.successes),
        share=row.mean,
        low=row.low,
        high=row.high,
        method=row.details.get("interval", ""),
    )
    return EvalResult(
        label=row.label,
        split=row.split,
        mode=Mode(row.mode),
        tasks=tasks,
        rate=rate,
        mean_score=math.nan if mean_score is None else mean_score,
        outcomes=outcomes,
        excluded=row.details.get("excluded", 0),
    )


def pool(results: Sequence[EvalResult]) -> EvalResult:
    """Several evaluations of the same tasks, such as one for each training seed, as one with more samples a task.

    Raises ConfigError for none, or where split, mode or tasks differ.
    """
    if not results:
        raise ConfigError("there are no evaluations to pool")
    first = results[0]
    for other in results[1:]:
        if (other.split, other.mode, other.taskset_hash) != (first.split, first.mode, first.taskset_hash):
            raise ConfigError(
                f"evaluations {first.label} and {other.label} cannot be pooled: split, mode or tasks differ "
                f"({first.split}/{first.mode}/{first.taskset_hash}, {other.split}/{other.mode}/{other.taskset_hash})"
            )
    members = [{task.task_id: task for task in result.tasks} for result in results]
    tasks = tuple(
        replace(
            task,
            scores=tuple(score for tasks in members for score in tasks[task.task_id].scores),
            seeds=tuple(seed for tasks in members for seed in tasks[task.task_id].seeds),
        )
        for task in first.tasks
    )
    scored = [score for task in tasks for score in task.scores if score is not None]
    return EvalResult(
        label=first.label,
        split=first.split,
        mode=first.mode,
        tasks=tasks,
        rate=success_rate(tasks),
        mean_score=math.fsum(scored) / len(scored) if scored else math.nan,
        outcomes=dict(sum((Counter(result.outcomes) for result in results), Counter())),
        excluded=sum(result.excluded for result in results),
    )


def _task_score(members: Sequence[tuple[Trajectory, float | None]]) -> TaskScore:
    ordered = sorted(members, key=lambda member: member[0].sample_index)
    first = ordered[0][0]
    return TaskScore(
        task_id=first.task_id,
        task_hash=first.task_hash,
        scores=tuple(score for _, score in ordered),
        seeds=tuple(trajectory.seed for trajectory, _ in ordered),
        tags=dict(first.tags),
    )


def _exclusion_message(spec: EvalSpec, result: EvalResult) -> str:
    n = len(result.trajectories)
    causes = Counter(
        f"{trajectory.outcome.label} {trajectory.outcome.cause}".strip()
        if not trajectory.outcome.may_carry_reward
        else "no grade: "
        + next((g.cause for g in grades if g.score is None and not g.is_skipped), "left out by the aggregator")
        for trajectory, grades, reward in zip(result.trajectories, result.grades, result.rewards, strict=True)
        if reward is None
    )
    listed = ", ".join(f"{count} x {cause}" for cause, count in causes.most_common(5))
    return (
        f"evaluation {spec.label}: {result.excluded} of {n} episodes carry no score, more than the stated share of "
        f"{spec.max_excluded_share:.0%} ({listed}); mend the environment or the grader, or raise max_excluded_share"
    )
