"""The judge of `burnish diagnose`: an endpoint, its kept replies, several questions at a time."""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console

from burnish.cli.open_judge import open_judge
from burnish.core.errors import ConfigError
from burnish.core.judge import Judge, JudgeCause
from burnish.diagnosis.diagnose import Diagnosis
from burnish.diagnosis.judge import judged
from burnish.diagnosis.record import Record
from burnish.graders.judge_budget import JudgeLedger

AT_ONCE = 8
GIVES_UP = 16
"""So many trajectories without a single answer, and no more is asked: nobody should wait for a server that is gone."""
MOST_VOTES = 100
MOST_WAITING = 256
"""Rows that are held back until enough are there to be asked about."""
TIMEOUT_S, ATTEMPTS = 300.0, 2
"""Of a request: a question is long, and so is its reply."""
VARIED = 0.7
"""Temperature where the judge is asked several times: at 0 all answers are one."""
_NOBODY_THERE = tuple(
    f"judge {cause}" for cause in (JudgeCause.UNAVAILABLE, JudgeCause.TIMEOUT, JudgeCause.RATE_LIMITED)
)


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
    _runner: asyncio.Runner = field(default_factory=asyncio.Runner)
    """One event loop for all questions, since an endpoint keeps its connections in it."""

    def close(self) -> None:
        """End the event loop; nothing can be asked afterwards."""
        self._runner.close()

    def looked(self, rows: Iterable[tuple[Any, Diagnosis | None]]) -> Iterator[tuple[Any, Diagnosis | None]]:
        """Each record with its diagnosis after the judge's word; without an accused one nothing is asked."""
        with Console(stderr=True).status("judge: nothing asked yet") as status:
            batch: list[tuple[Any, Diagnosis | None]] = []
            to_ask = 0
            for row in rows:
                batch.append(row)
                to_ask += _is_asked(*row)
                if to_ask >= AT_ONCE or len(batch) >= MOST_WAITING:
                    yield from self._runner.run(self._all(batch))
                    batch, to_ask = [], 0
                    status.update(f"judge: {self.answered + self.unanswered.total()} trajectories")
            yield from self._runner.run(self._all(batch))

    async def _all(self, batch: Iterable[tuple[Any, Diagnosis | None]]) -> list[tuple[Any, Diagnosis | None]]:
        return list(await asyncio.gather(*(self._one(record, diagnosis) for record, diagnosis in batch)))

    async def _one(self, record: Any, diagnosis: Diagnosis | None) -> tuple[Any, Diagnosis | None]:
        if diagnosis is None or not _is_asked(record, diagnosis):
            return record, diagnosis
        if not self.answered and self._silent >= GIVES_UP:
            diagnosis = replace(diagnosis, unjudged=f"not asked any more, after {GIVES_UP} without an answer")
        else:
            diagnosis = await judged(self.judge, record, diagnosis, votes=self.votes)
        if diagnosis.judged:
            self.answered += 1
        else:
            self.unanswered[diagnosis.unjudged] += 1
        return record, diagnosis

    @property
    def _silent(self) -> int:
        """Trajectories without a word because nobody was there; a reply that is not kept or not usable is no such."""
        return sum(n for why, n in self.unanswered.items() if why.startswith(_NOBODY_THERE))

    def summary(self) -> list[str]:
        """What became of the questions, and the most frequent reasons of those without an answer."""
        spent = self.ledger.spent
        lines = [
            f"{self.judge.name}: {self.answered} trajectories judged, {self.unanswered.total()} not; "
            f"{spent.requests} requests, {spent.tokens} tokens"
        ]
        return lines + [f"  {count} times {why}" for why, count in self.unanswered.most_common(3)]

    def to_json(self) -> dict[str, Any]:
        """The same as values."""
        return {
            "judge": self.judge.name,
            "judged": self.answered,
            "unjudged": dict(self.unanswered.most_common(20)),
            "spent": self.ledger.to_json(),
        }


def _is_asked(record: Any, diagnosis: Diagnosis | None) -> bool:
    return isinstance(record, Record) and diagnosis is not None and diagnosis.accused


def open_panel(arguments: argparse.Namespace) -> Panel | None:
    """The judge that was asked for, None without one.  Raises ConfigError."""
    if not arguments.judge:
        for name, value in (
            ("--base-url", arguments.base_url),
            ("--max-requests", arguments.max_requests is not None),
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
    temperature = 0.0 if arguments.votes == 1 else VARIED
    judge = open_judge(
        arguments.judge, arguments, ledger, timeout_s=TIMEOUT_S, max_attempts=ATTEMPTS, temperature=temperature
    )
    return Panel(judge, votes=arguments.votes, ledger=ledger)
