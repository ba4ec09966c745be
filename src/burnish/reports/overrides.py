"""What overrides say about graders and flags: how often people found them wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.stats.intervals import wilson
from burnish.store.overrides import Override, OverrideKind

PASSED_AT = 0.5
"""Scores on different sides of this disagree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewed:
    """A grader or flag among the trajectories that people looked at.

    n: reviewed.  wrong: where the person says otherwise.  positives: where a grader had passed the trajectory, or a
    flag had been raised; false_positives: those that people found wrong.

    `Reviewed(kind="flag", name="tests", n=12, wrong=1, positives=12, false_positives=1)`
    """

    kind: str
    name: str
    n: int
    wrong: int
    positives: int
    false_positives: int

    def to_json(self) -> dict[str, Any]:
        """With the share of false positives among reviewed positives, and its interval; None without any."""
        rate: list[float] | None = None
        if self.positives:
            found = wilson(self.false_positives, self.positives)
            rate = [self.false_positives / self.positives, found.low, found.high]
        return {
            "kind": self.kind,
            "name": self.name,
            "n": self.n,
            "wrong": self.wrong,
            "positives": self.positives,
            "false_positives": self.false_positives,
            "false_positive_rate": rate,
        }


def reviewed(overrides: Sequence[Override]) -> list[Reviewed]:
    """By grader and flag; the last word on a trajectory counts, and labels without a score do not.

    A flag is raised where it is reviewed at all; a score of 1 says that it was wrong.
    """
    found: dict[tuple[str, str], list[Override]] = {}
    for row in last_words(overrides):
        if row.score is not None:
            found.setdefault((str(row.kind), row.name), []).append(row)
    return [_of(kind, name, rows) for (kind, name), rows in sorted(found.items())]


def last_words(overrides: Iterable[Override]) -> list[Override]:
    """The last row of each trajectory, kind and name; `before` is what the grader itself had said."""
    latest: dict[tuple[str, str, str], Override] = {}
    for row in overrides:
        latest[row.trajectory_id, str(row.kind), row.name] = row
    return list(latest.values())


def override_view(overrides: Sequence[Override]) -> dict[str, Any]:
    """For the report: every row and the rates."""
    return {
        "rows": [
            {
                "trajectory_id": row.trajectory_id,
                "kind": str(row.kind),
                "name": row.name,
                "score": row.score,
                "label": row.label,
                "before": row.before,
                "by": row.person,
                "reason": row.reason,
                "at_s": row.at_s,
            }
            for row in overrides
        ],
        "reviewed": [item.to_json() for item in reviewed(overrides)],
    }


def labelled(overrides: Sequence[Override], answers: Mapping[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """Labelled examples for calibration: one for each trajectory whose grades were overridden.

    answers: trajectory id -> (task id, answer).
    """
    labels: dict[str, dict[str, float]] = {}
    for row in last_words(overrides):
        if row.kind is OverrideKind.GRADE and row.score is not None and row.trajectory_id in answers:
            labels.setdefault(row.trajectory_id, {})[row.name] = row.score
    return [
        {"id": key, "task_id": answers[key][0], "answer": answers[key][1], "labels": values}
        for key, values in labels.items()
    ]


def _of(kind: str, name: str, rows: Sequence[Override]) -> Reviewed:
    if kind == OverrideKind.FLAG:
        wrong = sum((row.score or 0.0) >= PASSED_AT for row in rows)
        return Reviewed(kind=kind, name=name, n=len(rows), wrong=wrong, positives=len(rows), false_positives=wrong)
    known = [row for row in rows if row.before is not None and row.score is not None]
    passed = [row for row in known if (row.before or 0.0) >= PASSED_AT]
    differs = [row for row in known if ((row.before or 0.0) >= PASSED_AT) != ((row.score or 0.0) >= PASSED_AT)]
    false = [row for row in passed if row in differs]
    return Reviewed(
        kind=kind, name=name, n=len(rows), wrong=len(differs), positives=len(passed), false_positives=len(false)
    )
