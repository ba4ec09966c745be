"""The judge of `burnish diagnose`: an endpoint, its kept replies, several questions at a time."""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from rich.console import Console

from burnish.cli.open_judge import open_judge
from burnish.core.errors import ConfigError
from burnish.core.judge import Judge
from burnish.diagnosis.diagnose import Diagnosis
from burnish.diagnosis.judge import judged
from burnish.diagnosis.record import Record
from burnish.graders.judge_budget import JudgeLedger

AT_ONCE = 8
GIVES_UP = 16
"""So many trajectories without a single answer, and no more is asked: nobody should wait for a server that is gone."""
MOST_VOTES = 100


@dataclass(slots=True)
class Panel:
    """Looks at diagnoses as they come, `AT_ONCE` at a time, and hands them on in their order.  `Panel(judge, votes=3)`

    answered, unanswered: of the accused trajectories, the latter with the causes.
    """

    judge: Judge
    votes: int = 1
    ledger: JudgeLedger = field(default_factory=JudgeLedger)
    answered: int = 0
    unanswered: Counter[str] = field(default_factory=Counter)

    def looked(self, rows: Iterable[tuple[Any, Diagnosis | None]]) -> Iterator[tuple[Any, Diagnosis | None]]:
        """Each record with its diagnosis after the judge's word; without an accused one nothing is asked."""
        # one event loop for all questions, since an endpoint keeps its connections in it
        with asyncio.Runner() as runner, Console(stderr=True).status("judge: nothing asked yet") as status:
            rest = iter(rows)
            while batch := list(islice(rest, AT_ONCE)):
                yield from runner.run(self._all(batch))
                status.update(f"judge: {self.answered + self.unanswered.total()} trajectories")

    async def _all(self, batch: Iterable[tuple[Any, Diagnosis | None]]) -> list[tuple[Any, Diagnosis | None]]:
        return list(await asyncio.gather(*(self._one(record, diagnosis) for record, diagnosis in batch)))

    async def _one(self, record: Any, diagnosis: Diagnosis | None) -> tuple[Any, Diagnosis | None]:
        if not isinstance(record, Record) or diagnosis is None or not diagnosis.accused:
            return record, diagnosis
        if not self.answered and self.unanswered.total() >= GIVES_UP:
            self.unanswered[f"not asked any more, after {GIVES_UP} without an answer"] += 1
            return record, diagnosis
        diagnosis = await judged(self.judge, record, diagnosis, votes=self.votes)
        if diagnosis.judged:
            self.answered += 1
        else:
            self.unanswered[diagnosis.unjudged] += 1
        return record, diagnosis

    def summary(self) -> list[str]:
        """What became of the questions, and the most frequent reasons of those without an answer."""
        spent = self.ledger.spent
        lines = [
            f"{self.judge.name}: {self.answered} trajectories judged, {self.unanswered.total()} not; "
            f"{spent.requests} requests, {spent.tokens} tokens"
        ]
        return lines + [f"  {count} times {why}" for why, count in self.unanswered.most_common(3)]


def open_panel(arguments: argparse.Namespace) -> Panel | None:
    """The judge that was asked for, None without one.  Raises ConfigError."""
    if not arguments.judge:
        for name, value in (
            ("--votes", arguments.votes != 1),
            ("--cache", arguments.cache),
            ("--offline", arguments.offline),
        ):
            if value:
                raise ConfigError(f"{name} is for a judge, and none is named; add --judge openai:MODEL")
        return None
    if not 1 <= arguments.votes <= MOST_VOTES:
        raise ConfigError(f"--votes is 1 to {MOST_VOTES}, got {arguments.votes}")
    ledger = JudgeLedger(max_requests=arguments.max_requests)
    return Panel(open_judge(arguments.judge, arguments, ledger), votes=arguments.votes, ledger=ledger)
