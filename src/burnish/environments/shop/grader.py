"""The shop's grader: reads are graded on the answer and must change nothing, writes on the exact rows that changed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.core.grade import Grade
from burnish.core.hashing import canonical_json
from burnish.core.outcome import Ending
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.environments.shop.progress import established_facts, needed_facts, read_progress, write_progress

MAX_ANSWER_CHARS = 200
MAX_EVIDENCE_CHANGES = 8
_NUMBER = re.compile(r"\$?(-?[0-9]{1,12})(?:\.0{1,2})?")
_GROUPED = re.compile(r"\$?(-?[0-9]{1,3}(?:,[0-9]{3}){1,3})(?:\.0{1,2})?")


def normalised_answer(text: str) -> str:
    """The form in which answers are compared: case, spaces, an end mark, `$`, thousands commas and `.00` do not count.

    Whole answers are compared, so that listing several values never passes.

    >>> normalised_answer(" $1,410.00. "), normalised_answer("Shipped  23.")
    ('1410', 'shipped 23')
    """
    if len(text) > MAX_ANSWER_CHARS:
        return text
    text = " ".join(text.split()).casefold().rstrip(".!")
    match = _NUMBER.fullmatch(text) or _GROUPED.fullmatch(text)
    return str(int(match[1].replace(",", ""))) if match else text


def _counted(changes: Iterable[Any]) -> Counter[str]:
    return Counter(canonical_json(change) for change in changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What had to be found out and what was."""

    needed: frozenset[str]
    established: frozenset[str]

    @staticmethod
    def of(task: Task, trajectory: Trajectory) -> _Facts | None:
        needed = needed_facts(task)
        return None if needed is None else _Facts(needed=needed, established=established_facts(trajectory.messages))


class ShopGrader:
    """Score 1.0 or 0.0.  Reads `reference["answer"]` or `reference["changes"]` and `final_state["changes"]`.

    An episode that did not complete scores 0; one that broke for a reason that is not the model's, or that reported no
    final state, gets no score.  The evidence of a score holds "progress" in [0, 1], how far the episode got (see
    `progress`), for tasks that the shop made; it is no part of the score.
    """

    name = "shop"
    version = "1"

    async def grade(self, task: Task, trajectory: Trajectory) -> Grade:
        return self.judge(task, trajectory)

    def judge(self, task: Task, trajectory: Trajectory) -> Grade:
        """The same without waiting: a pure function of its arguments."""
        outcome = trajectory.outcome
        if not outcome.may_carry_reward:
            return self._grade(None, {}, cause=f"excluded:{outcome.label}")
        completed = outcome.ending is Ending.COMPLETED
        changes = trajectory.final_state.get("changes")
        if not isinstance(changes, Sequence) or isinstance(changes, str):
            if completed:
                return self._grade(None, {}, cause="final_state_missing")
            changes = ()
        facts = _Facts.of(task, trajectory)
        if "changes" in task.reference:
            grade = self._judge_write(task.reference["changes"], changes, facts)
        else:
            grade = self._judge_read(str(task.reference["answer"]), trajectory.answer, changes, facts)
        if completed:
            return grade
        evidence = {"problem": "the episode did not complete", "outcome": outcome.label}
        return self._grade(0.0, evidence | {key: grade.evidence[key] for key in ("progress",) if key in grade.evidence})

    def _judge_read(self, expected: str, answer: str, changes: Sequence[Any], facts: _Facts | None) -> Grade:
        right = normalised_answer(answer) == normalised_answer(expected)
        evidence: dict[str, Any] = {"expected": expected, "found": answer[:MAX_ANSWER_CHARS]}
        if facts is not None:
            evidence["progress"] = read_progress(facts.needed, facts.established, right=right, n_extra=len(changes))
        if changes:
            evidence["problem"] = "a question must change nothing"
            evidence["changes"] = list(changes[:MAX_EVIDENCE_CHANGES])
        elif not right:
            evidence["problem"] = "wrong answer"
        return self._grade(1.0 if right and not changes else 0.0, evidence)

    def _judge_write(self, expected: Sequence[Any], changes: Sequence[Any], facts: _Facts | None) -> Grade:
        wanted, found = _counted(expected), _counted(changes)
        rows = {"n_missing": (wanted - found).total(), "n_extra": (found - wanted).total()}
        evidence: dict[str, Any] = {
            "expected": list(expected),
            "found": list(changes[:MAX_EVIDENCE_CHANGES]),
            **rows,
        }
        if facts is not None:
            evidence["progress"] = write_progress(facts.needed, facts.established, n_rows=len(expected), **rows)
        if wanted != found:
            evidence["problem"] = "the rows that changed are not the rows that should have changed"
        return self._grade(1.0 if wanted == found else 0.0, evidence)

    def _grade(self, score: float | None, evidence: Mapping[str, Any], cause: str = "") -> Grade:
        return Grade(grader=self.name, version=self.version, score=score, cause=cause, evidence=evidence)
