"""The scorers of the reasoning-gym package, run where they can be killed."""

from __future__ import annotations

import ast
import asyncio
import functools
import importlib
import inspect
import json
import re
from dataclasses import dataclass, field
from typing import Any

from burnish.core.grade import Grade
from burnish.core.hashing import canonical_json
from burnish.core.outcome import Ending
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.graders.isolation import START_TIMEOUT_S, Worker
from burnish.graders.rules import MAX_ANSWER_CHARS, RuleGrader

_CALLABLE = re.compile("[^\\W\\d]|a?(sin|cos|tan)h?|sec|csc|cot|exp|log|ln|sqrt|abs|Abs|pi|oo|AND|OR|NOT")
_WORD = re.compile(r"[^\W\d]\w*")
_EVALUATES = re.compile(r"\b(eval|exec|sympify|parse_expr|parse_latex)\(")
_ATTRIBUTE = re.compile(r"\.\s*[^\W\d]")


def may_be_scored(answer: str) -> bool:
    """Whether an answer is safe to hand to scorers that evaluate it, which several of the package do.

    Without a bracket nothing can be called; with one, only names of mathematics and single letters may occur.

    >>> may_be_scored("x**2 + sin(x)"), may_be_scored("the (open) door"), may_be_scored("open('f').read()")
    (True, False, False)
    """
    if "(" not in answer:
        return "__" not in answer
    if "__" in answer or "lambda" in answer or _ATTRIBUTE.search(answer):
        return False
    return all(_CALLABLE.fullmatch(word) for word in _WORD.findall(answer))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReasoningGymGrader(RuleGrader):
    """The dataset's own score of the answer, in [0, 1].

    timeout_s bounds the scoring of one answer.  Where the scorer gives no value, WorkerFailure is raised for the
    boundary to arbitrate.
    """

    timeout_s: float = 3.0
    keeps_deadline = True
    name = "reasoning_gym"
    _worker: Worker = field(init=False, repr=False, default_factory=lambda: Worker("burnish.graders.reasoning:warm_up"))

    async def grade(self, task: Task, trajectory: Trajectory) -> Grade:
        """Scored in another process, without stalling this one."""
        if trajectory.outcome.ending is not Ending.COMPLETED or len(trajectory.answer) > MAX_ANSWER_CHARS:
            return self.judge(task, trajectory)
        return await asyncio.to_thread(self.judge, task, trajectory)

    def score(self, task: Task, text: str) -> float | None:
        dataset, entry = task.setup.get("dataset"), task.setup.get("entry")
        if not isinstance(dataset, str) or not isinstance(entry, str):
            return None
        options = canonical_json(task.setup.get("options", {}))
        arguments = {"dataset": dataset, "options": options, "entry": entry, "answer": text}
        value: float = self._worker.call("burnish.graders.reasoning:score_entry", arguments, timeout_s=self.timeout_s)
        return value

    @property
    def arbitration_s(self) -> float:
        """What a fresh process may take: it imports the package before it scores."""
        return START_TIMEOUT_S

    def close(self) -> None:
        """End the worker process."""
        self._worker.close()


def warm_up() -> bool:
    """Import the package, which takes seconds, before any deadline runs."""
    importlib.import_module("reasoning_gym")
    return True


def score_entry(dataset: str, options: str, entry: str, answer: str) -> float:
    """Score of an answer by the dataset's own scorer, cut to [0, 1].

    options: JSON of what the dataset was made with.  entry: a Python literal, since scorers tell tuples from lists.
    Where the scorer evaluates answers as code, one that could call anything is handed over as an empty answer.
    A scorer that raises on an answer and yet accepts the gold one has judged it: 0.
    """
    read: dict[str, Any] = ast.literal_eval(entry)
    scorer, evaluates = _scorer(dataset, options)
    gold = read.get("answer")
    if isinstance(gold, str) and answer == gold.strip():
        answer = gold
    elif evaluates and not may_be_scored(answer):
        answer = ""
    try:
        return _cut(scorer.score_answer(answer, read))
    except Exception:  # Whatever it raises; only a proof that the scorer works turns it into a verdict.
        if not isinstance(gold, str) or answer == gold or _cut(scorer.score_answer(gold, read)) < 1.0:
            raise
        return 0.0


def _cut(score: Any) -> float:
    return min(1.0, max(0.0, float(score)))


@functools.cache
def _scorer(dataset: str, options: str) -> tuple[Any, bool]:
    """A dataset for its scorer alone, and whether the code of its class evaluates text."""
    made = importlib.import_module("reasoning_gym").create_dataset(dataset, size=1, seed=0, **json.loads(options))
    modules = {kind.__module__ for kind in type(made).__mro__ if kind.__module__.startswith("reasoning_gym.")}
    sources = (inspect.getsource(importlib.import_module(module)) for module in modules)
    return made, any(_EVALUATES.search(source) for source in sources)
