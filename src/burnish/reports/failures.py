"""What a diagnosis says of stored trajectories, for their page: critical step, category, owner, and the log behind it.

Steps are message indices from 1, as everywhere in a diagnosis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from burnish.diagnosis.built_in import engine_of, policy_of_run
from burnish.diagnosis.constraint import Violation
from burnish.diagnosis.diagnose import Engine
from burnish.diagnosis.formats.run import record_of
from burnish.diagnosis.localise import Suspect
from burnish.diagnosis.record import Record
from burnish.diagnosis.taxonomy import Category, Fault
from burnish.diagnosis.timeline import Row, timeline, why_of_suspect
from burnish.store.reader import RunReader

PHASES = ("rl", "eval")
"""Demonstrations are nobody's failures."""

CHOICES = {"categories": [str(category) for category in Category], "owners": [str(owner) for owner in Fault]}
"""What a person may correct a diagnosis to."""


class Failures:
    """Diagnoses of a run's trajectories, with the policy of the run's world where there is one.

    `Failures(reader).of([shown])[shown["id"]]["critical"]["step"]`
    """

    def __init__(self, reader: RunReader) -> None:
        self._reader = reader

    @cached_property
    def _engine(self) -> Engine:
        return engine_of(policy_of_run(self._reader.layout.root))

    def of(self, shown: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Diagnoses as JSON by id, of those that failed among trajectories with "id", "phase" and "step".

        Each step is read once.  Raises StoreError where one cannot be read.
        """
        wanted: dict[tuple[str, int], set[str]] = {}
        for one in shown:
            if one["phase"] in PHASES:
                wanted.setdefault((one["phase"], one["step"]), set()).add(one["id"])
        found = {}
        for (phase, step), ids in wanted.items():
            for stored in self._reader.trajectories(phase, step):
                if stored.trajectory.id in ids and not (record := record_of(stored)).passed:
                    found[record.id] = self._diagnosis(record)
        return found

    def _diagnosis(self, record: Record) -> dict[str, Any]:
        diagnosis = self._engine.diagnose(record)
        critical = diagnosis.critical
        return {
            "critical": None if critical is None else _critical(critical),
            "rows": [_row(row) for row in timeline(record, diagnosis, critical)],
            "messages": len(record.items),
        }


def _critical(critical: Suspect) -> dict[str, Any]:
    return {
        "step": critical.index,
        "category": str(critical.category),
        "owner": str(critical.owner),
        "p": round(critical.p, 4),
        "why": why_of_suspect(critical),
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "step": row.index,
        "role": row.role,
        "text": row.text,
        "p": None if row.p is None else round(row.p, 4),
        "found": [_found(violation) for violation in row.violations],
    }


def _found(violation: Violation) -> dict[str, Any]:
    return {
        "constraint": violation.constraint,
        "why": violation.why,
        "category": str(violation.category),
        "owner": str(violation.owner),
        "severity": violation.severity,
    }
