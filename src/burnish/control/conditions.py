"""What is wrong with a run at the moment: the alarms that are still open, one condition for each kind and slice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from burnish.core.finding import Finding

_MOST_IDS = 64
"""A condition names offending trajectories; more than a few batches of them help nobody."""


@dataclass(slots=True, kw_only=True)
class Condition:
    """One thing that is wrong.  `Condition(kind="tail_growth", slice_name="post_tool", first_step=60, onset_step=48)`

    ticks count calls of the ladder, because the steps of a run go back when it is rolled back.  last_tick: of the
    newest finding.  served_tick: when a rung last engaged for it, -1 never.  onset_step: the earliest estimate, -1
    where there is none.
    """

    kind: str
    slice_name: str
    first_step: int
    onset_step: int = -1
    last_tick: int = 0
    served_tick: int = -1
    monitors: list[str] = field(default_factory=list)
    trajectory_ids: list[str] = field(default_factory=list)
    group_ids: list[str] = field(default_factory=list)


class Conditions:
    """Open alarms, merged by (kind, slice).  Warnings are left to people: they open nothing."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], Condition] = {}

    def note(self, findings: Iterable[Finding], tick: int) -> None:
        """Take the findings of one call, in a fixed order whatever order they come in."""
        for finding in sorted(findings, key=_order):
            if finding.severity != "alarm":
                continue
            key = (finding.kind, finding.slice_name)
            condition = self._open.setdefault(
                key, Condition(kind=finding.kind, slice_name=finding.slice_name, first_step=finding.step)
            )
            condition.last_tick = tick
            if finding.onset_step >= 0:
                known = condition.onset_step
                condition.onset_step = finding.onset_step if known < 0 else min(known, finding.onset_step)
            _extend(condition.monitors, [finding.monitor])
            _extend(condition.trajectory_ids, finding.trajectory_ids)
            groups = finding.evidence.get("group_ids", ())
            _extend(condition.group_ids, [str(group) for group in groups] if isinstance(groups, Sequence) else ())

    def forget_before(self, tick: int) -> None:
        """Drop conditions whose newest finding is older than `tick`."""
        self._open = {key: condition for key, condition in self._open.items() if condition.last_tick >= tick}

    def since(self, tick: int) -> tuple[Condition, ...]:
        """Those with a finding at `tick` or later, oldest first."""
        found = [condition for condition in self._open.values() if condition.last_tick >= tick]
        return tuple(sorted(found, key=lambda condition: (condition.first_step, condition.kind, condition.slice_name)))

    def clear(self) -> None:
        """After a rollback: what was wrong is undone, and must show itself again."""
        self._open = {}

    def state(self) -> list[dict[str, Any]]:
        """Everything needed to go on exactly, JSON-able."""
        return [asdict(condition) for condition in self._open.values()]

    def load(self, state: Iterable[Mapping[str, Any]]) -> None:
        """Go on from `state`."""
        conditions = [Condition(**entry) for entry in state]
        self._open = {(condition.kind, condition.slice_name): condition for condition in conditions}


def _order(finding: Finding) -> tuple[str, str, str, int, tuple[str, ...]]:
    return (finding.kind, finding.slice_name, finding.monitor, finding.step, tuple(finding.trajectory_ids))


def _extend(names: list[str], more: Iterable[str]) -> None:
    for name in more:
        if name not in names and len(names) < _MOST_IDS:
            names.append(name)
