"""Answers of a policy to tasks that stand alone: no world, no grading."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from burnish.core.hashing import derive_seed
from burnish.core.outcome import Ending
from burnish.core.sampling import SamplingParams
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.environments.question import Question
from burnish.evaluation.local import rollout_with
from burnish.graders.grounding.graders import response_of
from burnish.loop.policy import fit_limits, merged_limits
from burnish.loop.standalone import Subject
from burnish.rollout.episode import EpisodePlan


def responses(
    subject: Subject, tasks: Sequence[Task], *, samples: int = 1, temperature: float = 1.0, seed: int = 0
) -> list[list[str | None]]:
    """For each task the texts of `samples` single turns, thinking included; None for one that was not completed."""
    world = Question()
    limits = fit_limits(merged_limits(subject.recipe, world.limits), getattr(subject.sampler, "max_positions", None))
    plans = [
        EpisodePlan(
            id=f"trace/{index:06d}/{sample:02d}",
            group_id=f"trace/{index:06d}",
            task=task,
            sample_index=sample,
            seed=derive_seed(seed, task.id, sample, 0),
        )
        for index, task in enumerate(tasks)
        for sample in range(samples)
    ]
    rollout = rollout_with(
        subject.sampler, make_environment=lambda task: Question(), renderer=subject.renderer, limits=limits
    )

    async def play() -> Sequence[Trajectory]:
        return await rollout(plans, SamplingParams(temperature=temperature))

    played = asyncio.run(play())
    texts = [response_of(one) if one.outcome.ending is Ending.COMPLETED else None for one in played]
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]
