"""Groups: the trajectories of one task that share a baseline, with their grades and rewards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from burnish.core.cost import Charge, EpisodeCost
from burnish.core.errors import InvariantViolation
from burnish.core.grade import Aggregator, Grade
from burnish.core.hashing import derive_seed
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.rollout.episode import EpisodePlan

SIGNAL_TOLERANCE = 1e-9
"""Rewards closer than this are equal: sums of the same weighted grades may differ in the last bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupResult:
    """One finished group of G members in sample order.

    rewards_G holds None for members that are left out of the loss and of the baseline.  charges_G: what the cost of
    each episode took from its reward, already taken; 0 without a charge, and for members without a reward.  signal:
    whether two rewards differ, so that the group can teach anything.

    `GroupResult(group_id="rl/000012/0003", task_id="t", trajectories=(a, b, c), grades_G=(ga, gb, gc),
    rewards_G=(0.9, None, 0.0), charges_G=(0.1, 0.0, 0.0), signal=True)`
    """

    group_id: str
    task_id: str
    trajectories: tuple[Trajectory, ...]
    grades_G: tuple[tuple[Grade, ...], ...]
    rewards_G: tuple[float | None, ...]
    charges_G: tuple[float, ...]
    signal: bool

    @property
    def included(self) -> tuple[int, ...]:
        """Indices of the members that have a reward."""
        return tuple(index for index, reward in enumerate(self.rewards_G) if reward is not None)


def plan_groups(
    tasks: Sequence[Task], *, phase: str, step: int, group_size: int, run_seed: int, first_group: int = 0
) -> list[EpisodePlan]:
    """Plans of `group_size` episodes for each task, named "phase/step/group/sample" such as "rl/000012/0003/05".

    The seed of an episode is a function of run seed, task id, sample index and step alone, so that it does not matter
    which worker rolls it out; `first_group` is the index of the first task where a step is cut into shards.
    """
    plans = []
    for group, task in enumerate(tasks, start=first_group):
        group_id = f"{phase}/{step:06d}/{group:04d}"
        for index in range(group_size):
            plans.append(
                EpisodePlan(
                    id=f"{group_id}/{index:02d}",
                    group_id=group_id,
                    task=task,
                    sample_index=index,
                    seed=derive_seed(run_seed, task.id, index, step),
                )
            )
    return plans


def assemble_groups(
    trajectories: Sequence[Trajectory],
    grades: Sequence[Sequence[Grade]],
    aggregator: Aggregator,
    charge: Charge | None = None,
) -> list[GroupResult]:
    """Groups in order of first appearance; grades[i] belongs to trajectories[i].

    charge takes the costs of the episodes from what the aggregator gave; None leaves the rewards as they are.
    Whatever the aggregator says, a member whose outcome may not carry a reward gets None, before the charge looks at
    the group.  Raises ValueError where members of a group do not belong together, InvariantViolation where a reward is
    not a finite number.
    """
    members: dict[str, list[tuple[Trajectory, tuple[Grade, ...]]]] = {}
    for trajectory, given in zip(trajectories, grades, strict=True):
        members.setdefault(trajectory.group_id, []).append((trajectory, tuple(given)))
    return [_assemble(group_id, pairs, aggregator, charge) for group_id, pairs in members.items()]


def _assemble(
    group_id: str,
    pairs: list[tuple[Trajectory, tuple[Grade, ...]]],
    aggregator: Aggregator,
    charge: Charge | None,
) -> GroupResult:
    pairs.sort(key=lambda pair: pair[0].sample_index)
    trajectories = tuple(trajectory for trajectory, _ in pairs)
    grades_G = tuple(given for _, given in pairs)
    _check_members(group_id, trajectories)
    earned_G = _checked_all(group_id, trajectories, aggregator.rewards(grades_G), "aggregator")
    rewards_G = earned_G
    if charge is not None:
        costs_G = [EpisodeCost.of(trajectory) for trajectory in trajectories]
        rewards_G = _checked_all(group_id, trajectories, charge.charged(earned_G, costs_G), "charge")
    return GroupResult(
        group_id=group_id,
        task_id=trajectories[0].task_id,
        trajectories=trajectories,
        grades_G=grades_G,
        rewards_G=rewards_G,
        charges_G=tuple(_difference(earned, reward) for earned, reward in zip(earned_G, rewards_G, strict=True)),
        signal=carries_signal(rewards_G),
    )


def _checked_all(
    group_id: str, trajectories: Sequence[Trajectory], rewards: Sequence[float | None], source: str
) -> tuple[float | None, ...]:
    if len(rewards) != len(trajectories):
        raise ValueError(f"the {source} gave {len(rewards)} rewards for the {len(trajectories)} members of {group_id}")
    return tuple(_checked(trajectory, reward) for trajectory, reward in zip(trajectories, rewards, strict=True))


def _difference(earned: float | None, reward: float | None) -> float:
    return 0.0 if earned is None or reward is None else earned - reward


def _check_members(group_id: str, trajectories: Sequence[Trajectory]) -> None:
    tasks = sorted({trajectory.task_hash for trajectory in trajectories})
    if len(tasks) > 1:
        raise ValueError(f"group {group_id} mixes tasks {tasks}; members of a group share one task")
    indices = [trajectory.sample_index for trajectory in trajectories]
    if len(set(indices)) < len(indices):
        raise ValueError(f"group {group_id} has sample indices {indices}; each member needs its own")


def _checked(trajectory: Trajectory, reward: float | None) -> float | None:
    if reward is None or not trajectory.outcome.may_carry_reward:
        return None
    if not math.isfinite(reward):
        raise InvariantViolation("finite_rewards", f"the reward of {trajectory.id} is {reward}")
    return float(reward)


def carries_signal(rewards: Iterable[float | None]) -> bool:
    """Whether two of the rewards differ.

    >>> carries_signal([1.0, None, 0.0]), carries_signal([1.0, None, 1.0]), carries_signal([])
    (True, False, False)
    """
    known = [reward for reward in rewards if reward is not None]
    return bool(known) and max(known) - min(known) > SIGNAL_TOLERANCE
