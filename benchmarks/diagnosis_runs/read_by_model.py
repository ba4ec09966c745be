"""A model's answers to the questions about the labelled runs: kept ones as numbers alone, or those of an endpoint.

`model_answers.json` holds, with and without a reference, for each vote and each trajectory, the messages that were
asked about and the values, 0 to 4 or null, of the statements in their order: messages, categories, owners.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from burnish.core.judge import Judge, JudgeReply, JudgeRequest, Verdict
from burnish.diagnosis.judge import CATEGORIES, LEVELS, OWNERS, judged
from diagnosis_runs.labelled import Answer, Case, answer_of

KEPT = Path(__file__).resolve().parent / "model_answers.json"
NAMES = [*map(str, CATEGORIES), *(f"fault_{fault}" for fault in OWNERS)]


@dataclass(frozen=True, slots=True)
class KeptJudge:
    """Says again what a model said of one trajectory, and nothing of what it was not asked; a seed is a vote."""

    votes: Sequence[Mapping[str, Any]]
    name: str = "kept"
    version: str = "kept"

    async def judge(self, request: JudgeRequest) -> JudgeReply:
        """The kept values."""
        row = self.votes[request.seed % len(self.votes)]
        names = [*(f"message_{index}" for index in row["messages"]), *NAMES]
        values = dict(zip(names, row["values"], strict=True))
        asked = [criterion.id for criterion in request.criteria if criterion.id not in request.controls]
        verdicts = tuple(Verdict(criterion=name, value=_share(values.get(name))) for name in asked)
        return JudgeReply(verdicts=verdicts, version=self.version)


def _share(value: int | None) -> float | None:
    return None if value is None else value / LEVELS


@cache
def _kept() -> dict[str, list[dict[str, Mapping[str, Any]]]]:
    data: dict[str, list[dict[str, Mapping[str, Any]]]] = json.loads(KEPT.read_text(encoding="utf-8"))
    return data


def kept_votes(name: str, trajectory: str) -> list[Mapping[str, Any]]:
    """The answers about one trajectory, one for each vote.  name: "with_reference" or "without_reference"."""
    return [vote[trajectory] for vote in _kept()[name]]


def kept_count() -> int:
    """How often each question was answered."""
    return len(_kept()["with_reference"])


def heard(cases: Sequence[Case], name: str, votes: Sequence[int]) -> list[Answer]:
    """Answers after the kept words of a model; votes: which of them are heard."""
    rows = {run.record.id: kept_votes(name, run.record.id) for run, _ in cases}
    judges = [KeptJudge([rows[run.record.id][vote] for vote in votes]) for run, _ in cases]
    return asyncio.run(_asked(cases, judges, len(votes)))


def asked(judge: Judge, tables: Mapping[str, Sequence[Case]], votes: int) -> dict[str, list[Answer]]:
    """Answers after the words of a model that is asked now, by the names of the tables."""

    async def all_of_them() -> dict[str, list[Answer]]:
        # in one event loop, since an endpoint keeps its connections in it
        return {name: await _asked(cases, [judge] * len(cases), votes) for name, cases in tables.items()}

    return asyncio.run(all_of_them())


async def _asked(cases: Sequence[Case], judges: Sequence[Judge], votes: int) -> list[Answer]:
    pairs = zip(cases, judges, strict=True)
    found = await asyncio.gather(*(judged(judge, run.record, seen, votes=votes) for (run, seen), judge in pairs))
    silent = [one.unjudged for one in found if not one.judged]
    if silent:
        print(f"{len(silent)} of {len(found)} questions without an answer, such as: {silent[0]}", file=sys.stderr)
    return [answer_of(run, after) for (run, _), after in zip(cases, found, strict=True)]
