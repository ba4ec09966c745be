"""What an episode left behind: rows of a database, files of a folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.core.errors import BurnishError
from burnish.core.grade import Grade
from burnish.core.hashing import bytes_hash, canonical_json
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.graders.rules import RuleGrader

EXPECTATIONS = ("text", "contains", "json", "sha256", "absent")


class _StateRule(RuleGrader):
    """Base: judges `final_state[key]` by `reference[key]`, both mappings."""

    __slots__ = ()
    key = ""

    def judge(self, task: Task, trajectory: Trajectory) -> Grade:
        early = self.unjudged(trajectory)
        if early is not None:
            return early
        expected, found = task.reference.get(self.key), trajectory.final_state.get(self.key)
        if not isinstance(expected, Mapping) or not expected:
            return self.verdict(None, cause="task_cannot_be_judged", evidence={"reference": sorted(task.reference)})
        if not isinstance(found, Mapping):
            return self.verdict(None, cause="no_state_reported", evidence={"keys": sorted(trajectory.final_state)})
        try:
            wrong = self.wrong(expected, found)
        except (TypeError, ValueError, AttributeError, RecursionError, BurnishError) as error:
            return self.verdict(None, cause="state_unreadable", evidence={"error": str(error)[:200]})
        return self.verdict(float(not wrong), evidence={"wrong": wrong[:20]} if wrong else {})

    def wrong(self, expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
        """What is not as expected."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class TablesGrader(_StateRule):
    """1 where the tables of `final_state["tables"]` hold the rows of `reference["tables"]`, in any order.

    `{"orders": [{"id": 1, "status": "sent"}]}`.  ignore: columns that do not count, such as times.  Tables that the
    reference does not name must not exist where `only` is set; else they do not count.
    """

    ignore: Sequence[str] = ()
    only: bool = False
    name = "tables"
    key = "tables"

    def wrong(self, expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
        wrong = [f"{name}: not expected" for name in sorted(found) if self.only and name not in expected]
        for name, rows in expected.items():
            right, there = self._rows(rows), self._rows(found.get(name, []))
            missing, more = (right - there).total(), (there - right).total()
            if missing or more:
                wrong.append(f"{name}: {missing} rows missing, {more} too many")
        return wrong

    def _rows(self, rows: Sequence[Mapping[str, Any]]) -> Counter[str]:
        ignored = frozenset(self.ignore)
        return Counter(canonical_json({key: row[key] for key in row if key not in ignored}) for row in rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesGrader(_StateRule):
    """1 where every file of `reference["files"]` is as it says.

    The reference maps a path to one of {"text": whole content}, {"contains": [texts]}, {"json": value}, {"sha256": of
    the bytes}, {"absent": true}.  `final_state["files"]` maps a path to its text, or to {"sha256": ...} of an artefact
    in the run's store, which `artefact` reads.
    """

    artefact: Callable[[str], bytes] | None = None
    name = "files"
    key = "files"

    def wrong(self, expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
        return [path for path, rule in expected.items() if not self._fits(rule, found.get(path))]

    def _fits(self, rule: Mapping[str, Any], there: Any) -> bool:
        kinds = [kind for kind in EXPECTATIONS if kind in rule]
        if len(kinds) != 1 or len(rule) != 1:
            raise ValueError(f"a file is expected by one of {', '.join(EXPECTATIONS)}; got {sorted(rule)}")
        kind, wanted = kinds[0], rule[kinds[0]]
        if kind == "absent" or there is None:
            return (there is None) == (kind == "absent" and bool(wanted))
        if kind == "sha256":
            return _sha256(there) == str(wanted)
        text = self._text(there)
        if kind == "text":
            return text == str(wanted)
        if kind == "contains":
            return all(part in text for part in wanted)
        try:
            return canonical_json(json.loads(text)) == canonical_json(wanted)
        except (ValueError, RecursionError):
            return False

    def _text(self, there: Any) -> str:
        if isinstance(there, str):
            return there
        if self.artefact is None:
            raise ValueError("a file lies in the artefacts of the run, and this grader was not handed them")
        return self.artefact(there["sha256"]).decode("utf-8", "replace")


def _sha256(there: Any) -> str:
    return bytes_hash(there.encode("utf-8", "replace")) if isinstance(there, str) else str(there["sha256"])
