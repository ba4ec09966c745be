"""The reservoir: groups in which some members nearly made it, kept for when too few samples count.

A *near-miss* is a failed trajectory whose graded progress is at least `near` (share of checks passed, of facts found),
in a group whose rewards differ and in which another member succeeded.  A *hard negative*, a failure without progress,
raises the ESS just as well and hurts learning ("Engineering and algorithmic interventions for multimodal post-training
at Microsoft scale", 2026, intervention II), so it has no way in: a group is kept whole around its near-misses, with the
successes that they are to be compared with, never as failures alone.  What counts as near is not stated there; this
definition is ours, and `near` is the axis to ablate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One graded trajectory of a finished group, as the reservoir sees it.

    `Candidate(trajectory_id="rl/000003/0001/02", group_id="rl/000003/0001", step=3, reward=0.0, progress=0.75)`

    progress: how far it got in [0, 1], graded evidence, None where nobody says.  success: it solved the task.
    """

    trajectory_id: str
    group_id: str
    step: int
    reward: float
    success: bool = False
    progress: float | None = None
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NearMissGroup:
    """A kept group.  near_miss_ids, success_ids: its members of the two sorts, each at least one; others are left out.

    score: largest progress among the near-misses.  uses: how often it was drawn.
    """

    group_id: str
    step: int
    source: str
    near_miss_ids: tuple[str, ...]
    success_ids: tuple[str, ...]
    score: float
    uses: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservoirSpec:
    """`ReservoirSpec(capacity=64, near=0.5, max_age_steps=50)`

    capacity: groups kept.  near: smallest progress of a near-miss, in (0, 1].  max_age_steps: older groups are not
    drawn, for the policy that drew them is too far away by then.  max_uses: how often one group may come back.
    """

    capacity: int = 64
    near: float = 0.5
    max_age_steps: int = 50
    max_uses: int = 2

    def __post_init__(self) -> None:
        for name in ("capacity", "max_age_steps", "max_uses"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, got {getattr(self, name)}")
        if not 0.0 < self.near <= 1.0:
            raise ValueError(f"near lies in (0, 1], got {self.near}: at 0 every failure would be a near-miss")


class Reservoir:
    """Bounded store of near-misses; an index by id, the trajectories themselves stay where they are stored.

    >>> reservoir = Reservoir(ReservoirSpec())
    >>> good = Candidate(trajectory_id="a", group_id="g", step=3, reward=1.0, success=True, progress=1.0)
    >>> near = Candidate(trajectory_id="b", group_id="g", step=3, reward=0.0, progress=0.75)
    >>> reservoir.offer([good, near]), reservoir.available(step=10), reservoir.draw(1, step=10)[0].near_miss_ids
    ('', 1, ('b',))
    """

    def __init__(self, spec: ReservoirSpec) -> None:
        self.spec = spec
        self._groups: dict[str, NearMissGroup] = {}

    def offer(self, members: Sequence[Candidate]) -> str:
        """Take a finished group; "" where it was kept, else why it was not.

        members: all of one group that carry a reward.  Raises ValueError for none, or for members of several groups.
        """
        group_ids = {member.group_id for member in members}
        if len(group_ids) != 1:
            raise ValueError(f"a group is offered whole and alone, got members of {sorted(group_ids)}")
        if max(member.reward for member in members) == min(member.reward for member in members):
            return "all rewards are equal: there is nothing to compare"
        near = [member for member in members if self._is_near(member)]
        successes = [member.trajectory_id for member in members if member.success]
        if not near:
            return f"no failure with progress of at least {self.spec.near}: hard negatives are not kept"
        if not successes:
            return "no success to compare the near-misses with"
        first = members[0]
        self._groups[first.group_id] = NearMissGroup(
            group_id=first.group_id,
            step=first.step,
            source=first.source,
            near_miss_ids=tuple(member.trajectory_id for member in near),
            success_ids=tuple(successes),
            score=max(member.progress or 0.0 for member in near),
        )
        if len(self._groups) > self.spec.capacity:
            oldest = min(self._groups.values(), key=lambda group: (group.step, group.score, group.group_id))
            del self._groups[oldest.group_id]
            return "older than all that are kept" if oldest.group_id == first.group_id else ""
        return ""

    def draw(self, count: int, step: int) -> tuple[NearMissGroup, ...]:
        """Up to `count` groups for the batch of a step: least used first, then the newest, then those that got
        furthest; sources take turns.  Each draw counts as a use."""
        drawn: list[NearMissGroup] = []
        taken: dict[str, int] = {}
        rest = self._usable(step)
        while rest and len(drawn) < count:
            best = min(
                rest,
                key=lambda group: (
                    taken.get(group.source, 0),
                    group.uses,
                    -group.step,
                    -group.score,
                    group.group_id,
                ),
            )
            rest.remove(best)
            taken[best.source] = taken.get(best.source, 0) + 1
            drawn.append(best)
            self._groups[best.group_id] = replace(best, uses=best.uses + 1)
        return tuple(drawn)

    def available(self, step: int) -> int:
        """How many groups could be drawn for the batch of a step."""
        return len(self._usable(step))

    def forget(self, group_ids: Collection[str]) -> None:
        """Drop groups that were quarantined; ids that are not kept are passed over."""
        for group_id in group_ids:
            self._groups.pop(group_id, None)

    def forget_after(self, step: int) -> None:
        """Drop groups drawn later than `step`: after a rollback they belong to a policy that is no more."""
        self._groups = {name: group for name, group in self._groups.items() if group.step <= step}

    def state(self) -> list[dict[str, Any]]:
        """Everything needed to go on exactly, JSON-able."""
        rows = [asdict(group) for group in self._groups.values()]
        return [
            {**row, "near_miss_ids": list(row["near_miss_ids"]), "success_ids": list(row["success_ids"])}
            for row in rows
        ]

    @classmethod
    def restore(cls, spec: ReservoirSpec, state: Sequence[Mapping[str, Any]]) -> Reservoir:
        """The reservoir that `state` was taken from; where the capacity has shrunk, the oldest groups go."""
        reservoir = cls(spec)
        groups = [
            NearMissGroup(
                **{**row, "near_miss_ids": tuple(row["near_miss_ids"]), "success_ids": tuple(row["success_ids"])}
            )
            for row in state
        ]
        newest = set(sorted(groups, key=lambda group: (group.step, group.score, group.group_id))[-spec.capacity :])
        reservoir._groups = {group.group_id: group for group in groups if group in newest}
        return reservoir

    def _is_near(self, member: Candidate) -> bool:
        return not member.success and member.progress is not None and member.progress >= self.spec.near

    def _usable(self, step: int) -> list[NearMissGroup]:
        """Groups young enough for a step and not used up."""
        return [
            group
            for group in self._groups.values()
            if 0 <= step - group.step <= self.spec.max_age_steps and group.uses < self.spec.max_uses
        ]
