"""The two functions that `evaluate` asks for, over a sampler and graders in this process."""

from __future__ import annotations

from collections.abc import Sequence

from burnish.core.grade import Grade, Grader
from burnish.core.sampling import Renderer, Sampler, SamplingParams
from burnish.core.task import Limits, Task
from burnish.core.trajectory import Trajectory
from burnish.evaluation.heldout import GradeFn, RolloutFn
from burnish.graders.boundary import grade_trajectories
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.messages_only import MessageRenderer
from burnish.rollout.runner import MakeEnvironment, run_episodes


def rollout_with(
    sampler: Sampler,
    *,
    make_environment: MakeEnvironment,
    renderer: Renderer | None = None,
    limits: Limits | None = None,
    max_live: int | None = None,
) -> RolloutFn:
    """Roll out with the synchronous runner.  Without a renderer the sampler must answer with messages (endpoints)."""

    async def rollout(plans: Sequence[EpisodePlan], params: SamplingParams) -> Sequence[Trajectory]:
        return await run_episodes(
            plans,
            make_environment=make_environment,
            renderer=renderer or MessageRenderer(),
            sampler=sampler,
            params=params,
            limits=limits,
            max_live=max_live,
        )

    return rollout


def grade_with(graders: Sequence[Grader], *, timeout_s: float = 30.0) -> GradeFn:
    """Grade within the error boundary: a grader that fails gives a grade without a score."""

    async def grade(tasks: Sequence[Task], trajectories: Sequence[Trajectory]) -> Sequence[Sequence[Grade]]:
        return await grade_trajectories(tasks, trajectories, graders, timeout_s=timeout_s)

    return grade
