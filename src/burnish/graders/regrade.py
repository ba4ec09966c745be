"""Stored trajectories graded again, without a policy: what would other graders have said?

Segments are read step by step and graded in batches, so that memory holds one step at a time however long the run is.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from burnish.core.cost import Charge, EpisodeCost
from burnish.core.errors import StoreError
from burnish.core.grade import Aggregator, Grade, Grader
from burnish.core.hashing import bytes_hash
from burnish.core.task import Task
from burnish.graders.boundary import grade_trajectories
from burnish.graders.graph import aggregator_at, for_evaluation
from burnish.store.layout import RunLayout
from burnish.store.rows import Fate, StepInfo, StoredTrajectory
from burnish.store.segments import from_table, read_segment

BATCH = 256
FLIP_AT = 0.5
"""A grade flips where it crosses this score."""

EXAMPLES = 20
_EQUAL = 1e-9


@dataclass(slots=True, kw_only=True)
class Change:
    """What changed in one column of scores, over trajectories that may carry a reward.

    n: trajectories.  n_old, n_new: those with a score; sum_old, sum_new: of these.  skipped: new grades behind a closed
    gate, which are no failures.  up, down: scores that crossed .5.  changed: all that differ.  causes: why there is no
    new score.  cost_s, cost_tokens: of the new grades.  examples: (trajectory id, old, new) of the first that differ.
    """

    n: int = 0
    n_old: int = 0
    n_new: int = 0
    sum_old: float = 0.0
    sum_new: float = 0.0
    skipped: int = 0
    up: int = 0
    down: int = 0
    changed: int = 0
    cost_s: float = 0.0
    cost_tokens: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, float | None, float | None]] = field(default_factory=list)

    @property
    def mean_old(self) -> float | None:
        """Mean of the stored scores, None without any."""
        return self.sum_old / self.n_old if self.n_old else None

    @property
    def mean_new(self) -> float | None:
        """Mean of the new scores, None without any."""
        return self.sum_new / self.n_new if self.n_new else None

    def add(self, trajectory_id: str, old: float | None, new: float | None) -> None:
        """Count one pair."""
        self.n += 1
        if old is not None:
            self.n_old += 1
            self.sum_old += old
        if new is not None:
            self.n_new += 1
            self.sum_new += new
        if old is not None and new is not None:
            self.up += old < FLIP_AT <= new
            self.down += new < FLIP_AT <= old
        if (old is None) != (new is None) or (old is not None and new is not None and abs(old - new) > _EQUAL):
            self.changed += 1
            if len(self.examples) < EXAMPLES:
                self.examples.append((trajectory_id, old, new))

    def to_json(self) -> dict[str, Any]:
        """Every figure."""
        plain = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return plain | {"causes": dict(self.causes), "mean_old": self.mean_old, "mean_new": self.mean_new}


@dataclass(slots=True, kw_only=True)
class Regraded:
    """What regrading a run found.

    graders: by name, old ones first; one that is only old or only new has no pairs that could flip.  reward: after
    aggregation and costs.  excluded: trajectories whose outcome may not carry a reward.  unknown_tasks: trajectories
    whose task the environment does not have any more.  signal_old, signal_new: groups whose rewards differ, of
    `groups`.
    """

    trajectories: int = 0
    excluded: int = 0
    unknown_tasks: int = 0
    groups: int = 0
    signal_old: int = 0
    signal_new: int = 0
    graders: dict[str, Change] = field(default_factory=dict)
    reward: Change = field(default_factory=Change)

    def to_json(self) -> dict[str, Any]:
        """Every figure."""
        plain = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        graders = {name: change.to_json() for name, change in self.graders.items()}
        return plain | {"graders": graders, "reward": self.reward.to_json()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """What is kept of a trajectory until its step is complete."""

    id: str
    group_id: str
    may_carry_reward: bool
    is_used: bool
    old: float | None
    grades: tuple[Grade, ...]
    cost: EpisodeCost


@dataclass(frozen=True, slots=True, kw_only=True)
class Regrade:
    """How to grade again.

    tasks: by content hash.  share: of training that is done after an RL step.  charge: takes the costs of episodes from
    the rewards of RL, as training did.  sink: given {"id", "reward", "grades"} of each trajectory, after its step.
    """

    graders: Sequence[Grader]
    aggregator: Aggregator
    tasks: Mapping[str, Task]
    share: Callable[[int], float]
    charge: Charge | None = None
    timeout_s: float = 30.0
    sink: Callable[[Mapping[str, Any]], None] | None = None

    async def run(self, layout: RunLayout, steps: Sequence[StepInfo]) -> Regraded:
        """Grade the steps of a run again.  Raises StoreError where a segment is missing or not as it was written."""
        found = Regraded()
        for info in steps:
            if info.segment:
                await self._step(found, layout, info)
        return found

    async def _step(self, found: Regraded, layout: RunLayout, info: StepInfo) -> None:
        batches = stored_batches(layout, info)
        members: list[_Member] = []
        # The next batch is decoded while workers judge this one.
        batch = await asyncio.to_thread(next, batches, None)
        while batch is not None:
            following = asyncio.create_task(asyncio.to_thread(next, batches, None))
            members += await self._graded(found, batch)
            batch = await following
        self._rewarded(found, info, members)

    async def _graded(self, found: Regraded, rows: Sequence[StoredTrajectory]) -> list[_Member]:
        known = [row for row in rows if row.trajectory.task_hash in self.tasks]
        found.trajectories += len(rows)
        found.unknown_tasks += len(rows) - len(known)
        tasks = [self.tasks[row.trajectory.task_hash] for row in known]
        trajectories = [row.trajectory for row in known]
        graded = await grade_trajectories(tasks, trajectories, self.graders, timeout_s=self.timeout_s)
        members = []
        for row, grades in zip(known, graded, strict=True):
            may_carry = row.trajectory.outcome.may_carry_reward
            if may_carry:
                _compare(found, row, grades)
            found.excluded += not may_carry
            members.append(
                _Member(
                    id=row.trajectory.id,
                    group_id=row.trajectory.group_id,
                    may_carry_reward=may_carry,
                    is_used=row.fate is not Fate.DROPPED,
                    old=row.reward,
                    grades=grades,
                    cost=EpisodeCost.of(row.trajectory),
                )
            )
        return members

    def _rewarded(self, found: Regraded, info: StepInfo, members: Sequence[_Member]) -> None:
        """Aggregate the groups of a step; outside of RL, where nobody competes, each member stands alone."""
        is_rl = info.phase == "rl"
        end = aggregator_at(self.aggregator, self.share(info.step)) if is_rl else for_evaluation(self.aggregator)
        groups: dict[str, list[_Member]] = {}
        for member in members:
            groups.setdefault(member.group_id if is_rl else member.id, []).append(member)
        for group in groups.values():
            earned = end.rewards([member.grades for member in group])
            rewards = [r if m.may_carry_reward else None for r, m in zip(earned, group, strict=True)]
            if self.charge is not None and is_rl:
                rewards = list(self.charge.charged(rewards, [member.cost for member in group]))
            for member, reward in zip(group, rewards, strict=True):
                # The expert's traces are stored without a reward.
                if member.is_used and member.may_carry_reward and info.phase != "sft":
                    found.reward.add(member.id, member.old, reward)
                if self.sink is not None:
                    grades = [dataclasses.asdict(grade) for grade in member.grades]
                    self.sink({"id": member.id, "reward": reward, "grades": grades})
            if is_rl:
                found.groups += 1
                found.signal_old += _differ([member.old for member in group])
                found.signal_new += _differ(rewards)


def stored_batches(layout: RunLayout, info: StepInfo, rows: int = BATCH) -> Iterator[list[StoredTrajectory]]:
    """The trajectories of a step, so many at a time.  Raises StoreError where its segment is not as it was written."""
    path = layout.segment(info.segment)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"segment {info.segment} cannot be read: {error}") from error
    if bytes_hash(data) != info.segment_sha256:
        raise StoreError(f"segment {info.segment} is not as it was written (its hash differs); restore it from a copy")
    table = read_segment(data)
    del data
    for start in range(0, table.num_rows, rows):
        yield from_table(table.slice(start, rows))


def _compare(found: Regraded, row: StoredTrajectory, grades: Sequence[Grade]) -> None:
    old = {grade.grader: grade.score for grade in row.grades}
    new = {grade.grader: grade for grade in grades}
    for name in old | new:
        change = found.graders.setdefault(name, Change())
        grade = new.get(name)
        change.add(row.trajectory.id, old.get(name), None if grade is None else grade.score)
        if grade is not None:
            change.cost_s += grade.cost_s
            change.cost_tokens += grade.cost_tokens
            change.skipped += grade.is_skipped
            if grade.score is None:
                change.causes[grade.cause] += 1


def _differ(rewards: Sequence[float | None]) -> bool:
    known = [reward for reward in rewards if reward is not None]
    return bool(known) and max(known) - min(known) > _EQUAL
