"""What could have been the critical step: hypotheses (message, category, owner) with the features that speak for them.

Every message has at least one hypothesis from its role alone, so that probabilities cover all of them; violations and
departures from the reference add theirs.  Features have names, not meanings: `localise` weighs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from burnish.diagnosis.constraint import Log, Violation
from burnish.diagnosis.difference import Difference
from burnish.diagnosis.taxonomy import Category, Fault
from burnish.diagnosis.view import View


@dataclass(slots=True)
class Hypothesis:
    """`Hypothesis(position=20, category=Category.UNDERSPECIFIED, owner=Fault.USER)`; position counts from 0."""

    position: int
    category: Category
    owner: Fault
    features: dict[str, float] = field(default_factory=dict)
    why: list[str] = field(default_factory=list)

    def add(self, name: str, value: float = 1.0, why: str = "") -> None:
        """A feature; the larger value counts where it is there already."""
        self.features[name] = max(value, self.features.get(name, value))
        if why and why not in self.why:
            self.why.append(why)


class Board:
    """Hypotheses of one trajectory, one for each (position, category)."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.found: dict[tuple[int, Category], Hypothesis] = {}
        self.writes = {call.position for call in view.writes}

    def at(self, position: int, category: Category, owner: Fault | None = None) -> Hypothesis:
        """The hypothesis that blames this message for this."""
        key = position, category
        if key not in self.found:
            item = self.view.items[position]
            by_role = {"user": Fault.USER, "tool": Fault.ENVIRONMENT}.get(item.role, Fault.AGENT)
            if owner in (None, Fault.AGENT) or item.role == "user":
                owner = Fault.INFRASTRUCTURE if category is Category.SYSTEM and item.role != "tool" else by_role
            if owner is Fault.INFRASTRUCTURE and not self.view.record.outcome.startswith("error"):
                # that a record just stops does not show that anything broke: it was the agent's turn
                owner = Fault.AGENT
            hypothesis = Hypothesis(position=position, category=category, owner=owner or by_role)
            hypothesis.features = dict(self._structure(position, category))
            self.found[key] = hypothesis
        return self.found[key]

    def _structure(self, position: int, category: Category) -> Mapping[str, float]:
        item = self.view.items[position]
        kind = item.role
        if item.role == "user" and not self.view.has_user:
            # whoever only sets the task takes no part in how it goes
            kind = "task"
        elif item.role == "assistant":
            kind = "write" if position in self.writes else "call" if item.calls else "talk"
        last = max(1, len(self.view.items) - 1)
        return {f"role:{kind}": 1.0, f"category:{category}": 1.0, "late": position / last}


def hypotheses(
    view: View, log: Log, found: Difference, lifts: Mapping[str, float] | None = None
) -> tuple[Hypothesis, ...]:
    """All hypotheses about a trajectory.

    lifts: log ratio of the rates at which each constraint fires in failed and in passing runs; without calibration 0.
    """
    from burnish.diagnosis.blame import blame

    board = Board(view)
    for position, item in enumerate(view.items):
        if item.role == "system":
            continue
        default = {"user": Category.UNDERSPECIFIED, "tool": Category.SYSTEM}.get(item.role)
        if default is None:
            default = Category.MISALIGNMENT if item.calls else Category.MISREADING
        board.at(position, default)
    lifts = lifts or {}
    strongest = max((v.severity + 0.2 * lifts.get(v.constraint, 0.0) for v in log.violations), default=0.0)
    first = next(
        (v for v in log.violations if v.severity + 0.2 * lifts.get(v.constraint, 0.0) >= strongest - 0.15), None
    )
    for violation in log.violations:
        _accuse(board, violation, lifts.get(violation.constraint, 0.0), violation is first)
    blame(board, found)
    return tuple(board.found.values())


def _accuse(board: Board, violation: Violation, lift: float, is_first: bool) -> None:
    hypothesis = board.at(violation.position, violation.category, violation.owner)
    hypothesis.add("severity", violation.severity, f"{violation.constraint}: {violation.why}")
    hypothesis.add("lift", max(-2.0, min(3.0, lift)))
    hypothesis.add("strong", max(0.0, violation.severity - 0.5))
    family = violation.constraint.partition("_")[0] if violation.origin == "trajectory" else "policy"
    if family in ("claim", "policy"):
        hypothesis.add(f"from:{family}")
    if is_first:
        hypothesis.add("first_strong", violation.severity)
