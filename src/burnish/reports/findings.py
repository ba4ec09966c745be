"""Findings and decisions of a run, read back from its events."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from burnish.core.finding import Act, Decision, Finding
from burnish.store.rows import StoredEvent


def read_findings(events: Sequence[StoredEvent]) -> tuple[Finding, ...]:
    """Findings in the order in which they were stored.

    Events of this kind without a monitor (other notes of a run) are left out; a field that cannot be what it should be
    has its default, so that one broken record hides no other.
    """
    return tuple(
        Finding(
            monitor=event.data["monitor"],
            step=_step(event.data.get("step"), event.step),
            summary=str(event.data.get("summary") or event.detail),
            evidence=_mapping(event.data.get("evidence")),
            trajectory_ids=_texts(event.data.get("trajectory_ids")),
            onset_step=_step(event.data.get("onset_step"), -1),
            kind=str(event.data.get("kind") or ""),
            slice_name=str(event.data.get("slice_name") or ""),
            severity="warning" if event.data.get("severity") == "warning" else "alarm",
            false_alarms_per_1000=_rate(event.data.get("false_alarms_per_1000")),
        )
        for event in events
        if event.kind == "finding" and isinstance(event.data.get("monitor"), str)
    )


def read_decisions(events: Sequence[StoredEvent]) -> tuple[Decision, ...]:
    """Decisions in the order in which they were stored; acts that this version does not know are left out."""
    return tuple(
        Decision(
            act=Act(event.data["act"]),
            step=_step(event.data.get("step"), event.step),
            reason=str(event.data.get("reason") or event.detail),
            values=_mapping(event.data.get("values")),
            findings=_texts(event.data.get("findings")),
            release=event.data.get("release") is True,
            dry_run=event.data.get("dry_run") is not False,
        )
        for event in events
        if event.kind == "decision" and event.data.get("act") in tuple(Act)
    )


def _step(value: Any, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _rate(value: Any) -> float | None:
    is_rate = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_rate else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(one) for one in value) if isinstance(value, (list, tuple)) else ()
