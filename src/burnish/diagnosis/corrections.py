"""What people say a diagnosis should have been: rows that are added and never changed; the last one counts.

In a run they are overrides of kind "label" with the name `LABEL`; for files of others, lines of a JSONL file:

    {"trajectory_id": "7", "step": 12, "category": "misinterpretation", "owner": "agent", "by": "ann", "reason": "..."}

step: the source's number of the message.  category and owner may be left out where they stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from burnish.core.errors import ConfigError
from burnish.diagnosis.localise import Suspect
from burnish.diagnosis.plain import RecordError, mapping, name_of, parse_json, whole
from burnish.diagnosis.record import Record
from burnish.diagnosis.taxonomy import Category, Fault, category_of, fault_of
from burnish.diagnosis.view import speaker
from burnish.store.overrides import OverrideKind
from burnish.store.reader import RunReader

LABEL = "diagnosis"
"""Name of the label; its value is "STEP/CATEGORY/OWNER", such as "12/misinterpretation/agent"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """`Correction(trajectory_id="7", index=12, category=Category.MISREADING, by="ann", reason="the old price")`"""

    trajectory_id: str
    index: int
    category: Category | None = None
    owner: Fault | None = None
    by: str = ""
    reason: str = ""

    @property
    def label(self) -> str:
        """The value of the label."""
        return f"{self.index}/{self.category or ''}/{self.owner or ''}"


def of_label(trajectory_id: str, value: str, by: str = "", reason: str = "") -> Correction:
    """The correction that a label's value says.  Raises ConfigError.

    >>> of_label("7", "12/misinterpretation/agent").index
    12
    """
    step, _, rest = value.partition("/")
    category, _, owner = rest.partition("/")
    index = whole(step)
    known = category_of(category) if category else None
    if index is None or (category and known is None):
        raise ConfigError(
            f"a corrected diagnosis is STEP/CATEGORY/OWNER, such as 12/misinterpretation/agent; got {value!r}"
        )
    return Correction(
        trajectory_id=trajectory_id, index=index, category=known, owner=fault_of(owner), by=by, reason=reason
    )


def read_corrections(path: Path) -> Iterator[Correction]:
    """Corrections of a file in order.  Raises ConfigError naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as corrections: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = mapping(parse_json(line), "a correction")
            yield _of_row(row)
        except (RecordError, ConfigError) as error:
            raise ConfigError(f"{path}:{number}: {error}") from error


def _of_row(row: Mapping[str, Any]) -> Correction:
    trajectory_id, by = name_of(row.get("trajectory_id")), name_of(row.get("by"))
    if not trajectory_id or not by or not name_of(row.get("reason")):
        raise ConfigError("a correction names trajectory_id, step, by and reason")
    parts = (name_of(row.get(key)) for key in ("step", "category", "owner"))
    return of_label(trajectory_id, "/".join(parts), by, name_of(row.get("reason")))


def of_run(reader: RunReader) -> Iterator[Correction]:
    """What people said in a run, in order.  A label that is none stays in the run, where nothing is ever taken out."""
    for row in reader.overrides():
        if row.kind is OverrideKind.LABEL and row.name == LABEL:
            with suppress(ConfigError):
                yield of_label(row.trajectory_id, row.label, row.person, row.reason)


def last_words(rows: Iterable[Correction]) -> dict[str, Correction]:
    """Trajectory id -> its last correction."""
    return {row.trajectory_id: row for row in rows}


def names_message(record: Record, correction: Correction) -> bool:
    """Whether the step is a message of the record."""
    return any(item.index == correction.index for item in record.items)


def corrected(record: Record, suspect: Suspect | None, correction: Correction) -> Suspect | None:
    """What the person says; as it was where the step names no message of the record."""
    at = next((n for n, item in enumerate(record.items) if item.index == correction.index), None)
    if at is None:
        return suspect
    category = correction.category or (suspect.category if suspect else Category.INCONCLUSIVE)
    owner = correction.owner or (suspect.owner if suspect else Fault.UNKNOWN)
    if suspect is not None and (suspect.position, suspect.category, suspect.owner) == (at, category, owner):
        return suspect
    why = (f"{correction.by}: {correction.reason}",)
    start = suspect or Suspect(position=at, index=correction.index, p=1.0, category=category, owner=owner)
    moved = replace(start, position=at, index=correction.index, agent=speaker(record.items[at]))
    return replace(moved, p=1.0, category=category, owner=owner, why=why)


def append(path: Path, correction: Correction) -> None:
    """Add a line to a file of corrections; what stands in it stays."""
    row = {
        "trajectory_id": correction.trajectory_id,
        "step": correction.index,
        "category": str(correction.category or ""),
        "owner": str(correction.owner or ""),
        "by": correction.by,
        "reason": correction.reason,
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
