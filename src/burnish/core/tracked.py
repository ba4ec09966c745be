"""The protocol between a run in progress and a tracker of experiments that follows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

NOTED = ("finding", "decision")
"""Kinds of events that a tracker hears of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedStep:
    """The finite scalars of one step under names that begin with its phase, and when it was committed (seconds, epoch).

    `TrackedStep(phase="rl", step=3, at_s=1.7e9, values={"rl/loss": 0.1})`
    """

    phase: str
    step: int
    at_s: float
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedNote:
    """A finding or a decision, as a row of a table.

    what: the monitor, or the act.  severity: of a finding; "dry run" for a decision that was not carried out.
    onset_step: -1 where there is none.

    `TrackedNote(kind="finding", step=68, what="grad_norm", severity="alarm", onset_step=61, detail="grad_norm rose")`
    """

    kind: str
    step: int
    what: str
    severity: str
    onset_step: int
    detail: str

    @staticmethod
    def of(kind: str, step: int, detail: str, data: Mapping[str, Any]) -> TrackedNote:
        """From an event of the store.

        >>> TrackedNote.of("decision", 70, "", {"act": "stop", "dry_run": True}).severity
        'dry run'
        """
        return TrackedNote(
            kind=kind,
            step=step,
            what=str(data.get("monitor") or data.get("act") or ""),
            severity=str(data.get("severity") or ("dry run" if data.get("dry_run") else "")),
            onset_step=int(data.get("onset_step", -1)),
            detail=detail or str(data.get("summary") or data.get("reason") or ""),
        )


class Tracker(Protocol):
    """Somebody who is told of every step.  A run must neither wait for it nor end by it: nothing here may block or
    raise, and what goes wrong is asked for."""

    def take(self, step: TrackedStep, notes: Sequence[TrackedNote]) -> None:
        """Hear of a step that is stored, and of what was found and decided in it."""
        ...

    def troubles(self) -> Sequence[str]:
        """What went wrong since this was asked last, for people."""
        ...

    def close(self) -> None:
        """The run has ended; waits a bounded time until what was taken has arrived."""
        ...
