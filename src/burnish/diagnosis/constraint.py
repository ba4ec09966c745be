"""Constraints: when one applies (guard), what it found (verdict with evidence), how much that matters (severity)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from burnish.diagnosis.taxonomy import Category, Fault
from burnish.diagnosis.view import CallView, View, matches

MAX_QUOTE = 160


class Verdict(StrEnum):
    """A check that could not decide is `unknown`, never a violation."""

    PASS = "pass"
    FAIL = "fail"
    UNKNOWN = "unknown"


class Event(StrEnum):
    """What a constraint looks at."""

    CALL = "call"
    TEXT = "text"
    USER = "user"
    END = "end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """When a constraint applies.  `Guard(event=Event.CALL, tool="cancel_*")`

    tool: pattern of tool names for calls.  writes: only calls that write.
    """

    event: Event = Event.CALL
    tool: str = "*"
    writes: bool = False

    def admits(self, call: CallView) -> bool:
        """Whether a call is meant."""
        return (not self.writes or call.is_write) and (self.tool == "*" or matches(self.tool, call.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a check says.  `Found(verdict=Verdict.FAIL, position=4, quote="cancel_order", why="no confirmation")`

    position: of the message that is to blame, counted from 0; -1: the one that was looked at.  also: positions that the
    evidence rests on.  category: instead of the constraint's own.
    """

    verdict: Verdict
    position: int = -1
    quote: str = ""
    why: str = ""
    also: tuple[int, ...] = ()
    category: Category | None = None


PASS = Found(verdict=Verdict.PASS)
UNKNOWN = Found(verdict=Verdict.UNKNOWN)


def fail(
    why: str, *, position: int = -1, quote: str = "", also: tuple[int, ...] = (), category: Category | None = None
) -> Found:
    """A violation."""
    quote = quote[:MAX_QUOTE]
    return Found(verdict=Verdict.FAIL, why=why, position=position, quote=quote, also=also, category=category)


CallCheck = Callable[[View, CallView], Found]
TextCheck = Callable[[View, int], Found]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A statement that holds in good trajectories.

    id: unique in a set.  severity in [0, 1].  check: for calls `check(view, call)`, otherwise `check(view, position)`
    with a position from 0 (of the last message for `END`).  origin: "schema", "policy:NAME", "trajectory" or
    "generated"; generated ones count only after calibration.
    """

    id: str
    guard: Guard
    severity: float
    category: Category
    owner: Fault = Fault.AGENT
    origin: str = "trajectory"
    text: str = ""
    on_call: CallCheck | None = None
    on_text: TextCheck | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A constraint that failed.  `index`: the source's number of the message; `position` counts from 0."""

    constraint: str
    position: int
    index: int
    severity: float
    category: Category
    owner: Fault
    why: str
    quote: str = ""
    also: tuple[int, ...] = ()
    origin: str = "trajectory"


@dataclass(slots=True)
class Log:
    """Violations of one trajectory and how often each constraint said what.

    verdicts: constraint id -> [pass, fail, unknown] counts.
    """

    violations: list[Violation] = field(default_factory=list)
    verdicts: dict[str, list[int]] = field(default_factory=dict)

    def count(self, constraint: str, verdict: Verdict) -> None:
        """One more."""
        counts = self.verdicts.setdefault(constraint, [0, 0, 0])
        counts[(Verdict.PASS, Verdict.FAIL, Verdict.UNKNOWN).index(verdict)] += 1


def check_all(view: View, constraints: Iterable[Constraint]) -> Log:
    """Every constraint at every event that it applies to, in the order of the trajectory."""
    log = Log()
    by_event: dict[Event, list[Constraint]] = {}
    for constraint in constraints:
        by_event.setdefault(constraint.guard.event, []).append(constraint)
    calls = by_event.get(Event.CALL, [])
    for call in view.calls:
        for constraint in calls:
            if constraint.on_call is not None and constraint.guard.admits(call):
                _note(log, view, constraint, constraint.on_call(view, call), call.position)
    for position, item in enumerate(view.items):
        event = {"assistant": Event.TEXT, "user": Event.USER}.get(item.role)
        if event is None or not item.text:
            continue
        for constraint in by_event.get(event, ()):
            if constraint.on_text is not None:
                _note(log, view, constraint, constraint.on_text(view, position), position)
    for constraint in by_event.get(Event.END, ()):
        if constraint.on_text is not None and view.items:
            _note(log, view, constraint, constraint.on_text(view, len(view.items) - 1), len(view.items) - 1)
    log.violations.sort(key=lambda violation: violation.position)
    return log


def _note(log: Log, view: View, constraint: Constraint, found: Found, position: int) -> None:
    log.count(constraint.id, found.verdict)
    if found.verdict is not Verdict.FAIL:
        return
    at = found.position if 0 <= found.position < len(view.items) else position
    log.violations.append(
        Violation(
            constraint=constraint.id,
            position=at,
            index=view.items[at].index,
            severity=constraint.severity,
            category=found.category or constraint.category,
            owner=constraint.owner,
            why=found.why or constraint.text,
            quote=found.quote,
            also=tuple(view.items[p].index for p in found.also if 0 <= p < len(view.items)),
            origin=constraint.origin,
        )
    )
