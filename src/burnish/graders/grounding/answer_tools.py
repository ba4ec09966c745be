"""Tools that judge the final answer by the task's answer type: text, choice, number or mathematics."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from burnish.core.detector import Detector
from burnish.core.task import Task
from burnish.graders.grounding.result import Case, Component, Status, ToolResult
from burnish.graders.grounding.spec import GroundingSpec
from burnish.graders.rules import ChoiceGrader, ExactGrader, parse_number, right_answers

_THRESHOLDS = tuple(Fraction(50 + 5 * step, 100) for step in range(10))
_UNITS: dict[str, tuple[str, Fraction]] = {
    name: (kind, Fraction(factor))
    for kind, units in {
        "length": {"mm": "1/1000", "cm": "1/100", "m": "1", "km": "1000", "in": "0.0254", "ft": "0.3048"},
        "time": {"ms": "1/1000", "s": "1", "min": "60", "h": "3600"},
        "mass": {"mg": "1/1000000", "g": "1/1000", "kg": "1", "t": "1000"},
        "share": {"%": "1/100", "": "1"},
        "pixels": {"px": "1"},
    }.items()
    for name, factor in units.items()
}


def answer_type(task: Task) -> str:
    """ "choice" where there are choices, else what `reference["answer_type"]` says, "exact" by default."""
    if "choices" in task.reference:
        return "choice"
    return str(task.reference.get("answer_type", "exact"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _AnswerTool:
    """Base: a response that commits to no single answer is wrong."""

    name: str = "answer"
    version: str = "1"
    component: Component = Component.ANSWER
    cost_ms: float = 0.05
    kind: str = ""

    def applies(self, task: Task, spec: GroundingSpec) -> bool:
        return answer_type(task) == self.kind

    def available(self, spec: GroundingSpec, detectors: Sequence[Detector]) -> str:
        return ""

    def verify(self, case: Case) -> ToolResult:
        if case.parsed.answer is None:
            return self._result(0.0, problems=list(case.parsed.problems))
        return self._judge(case.task, case.parsed.answer)

    def _judge(self, task: Task, answer: str) -> ToolResult:
        raise NotImplementedError

    def _result(self, score: float | None, **detail: Any) -> ToolResult:
        status = Status.ERROR if score is None else Status.OK
        return ToolResult(tool=self.name, component=self.component, score=score, status=status, detail=detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactAnswer(_AnswerTool):
    """The whole answer is a right one; case, white space and an end mark do not count."""

    name: str = "exact"
    kind: str = "exact"

    def _judge(self, task: Task, answer: str) -> ToolResult:
        return self._result(ExactGrader().score(task, answer), answer=answer[:100])


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceAnswer(_AnswerTool):
    """ "B", "(B)" and "B. cat" name a choice; "A or B" names none."""

    name: str = "choice"
    kind: str = "choice"

    def _judge(self, task: Task, answer: str) -> ToolResult:
        return self._result(ChoiceGrader().score(task, answer), answer=answer[:100])


@dataclass(frozen=True, slots=True, kw_only=True)
class NumericAnswer(_AnswerTool):
    """Mean relative accuracy (Yang et al. 2024, VSI-Bench): the share of thresholds t in .50, .55 .. .95 with
    |given - true| / |true| < 1 - t; exact equality alone where `reference["exact"]` is true or the truth is 0.

    A unit, where the task states one, must be given or convert: "1.2 m" answers 120 cm.

    >>> relative_accuracy(Fraction(9), Fraction(10))
    0.8
    """

    name: str = "numeric"
    kind: str = "numeric"

    def _judge(self, task: Task, answer: str) -> ToolResult:
        wanted = [parse_number(text) for text in right_answers(task)]
        if not wanted or None in wanted:
            return self._result(None, problem="the reference answer is no number")
        given = number_in_unit(answer, str(task.reference.get("unit", "")))
        if given is None:
            return self._result(0.0, answer=answer[:100])
        exact = bool(task.reference.get("exact", False))
        scores = [
            float(given == number) if exact else relative_accuracy(given, number)
            for number in wanted
            if number is not None
        ]
        return self._result(max(scores), given=float(given))


def relative_accuracy(given: Fraction, true: Fraction) -> float:
    """Share of the ten thresholds that a number meets; 1 or 0 where the truth is 0."""
    if true == 0 or given == true:
        return float(given == true)
    error = abs(given - true) / abs(true)
    return sum(error < 1 - threshold for threshold in _THRESHOLDS) / len(_THRESHOLDS)


def number_in_unit(text: str, unit: str) -> Fraction | None:
    """A number with its unit, converted to `unit`; None where it is no number or the units are of different kinds.

    >>> float(number_in_unit("1.2 m", "cm")), number_in_unit("3 kg", "cm"), number_in_unit("7", "cm")
    (120.0, None, Fraction(7, 1))
    """
    plain = parse_number(text)
    if plain is not None:
        return plain
    stripped = text.strip().rstrip(".")
    number = stripped.rstrip("%abcdefghijklmnopqrstuvwxyz ")
    given = stripped[len(number) :].strip()
    value = parse_number(number) if number else None
    if value is None or given not in _UNITS or unit not in _UNITS or _UNITS[given][0] != _UNITS[unit][0]:
        return None
    return value * _UNITS[given][1] / _UNITS[unit][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class MathAnswer(_AnswerTool):
    """Equal as mathematics, by the `math` grader, in a process that can be killed.  Needs the extra `graders`."""

    name: str = "math"
    kind: str = "math"
    cost_ms: float = 20.0
    _made: list[Any] = field(default_factory=list, repr=False, compare=False)

    def available(self, spec: GroundingSpec, detectors: Sequence[Detector]) -> str:
        return "" if importlib.util.find_spec("math_verify") else "math-verify: pip install 'burnish[graders]'"

    def _judge(self, task: Task, answer: str) -> ToolResult:
        if not self._made:
            module = importlib.import_module("burnish.graders.mathematics")
            self._made.append(module.MathGrader())
        grade = self._made[0].decide(task, answer)
        return self._result(grade.score, cause=grade.cause)


ANSWER_TOOLS: tuple[Callable[[], _AnswerTool], ...] = (ExactAnswer, ChoiceAnswer, NumericAnswer, MathAnswer)
