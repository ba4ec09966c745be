"""Graders that follow a rule: exact answers, choices, numbers, final states, and the environment's own reward."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from burnish.core.grade import Grade, unanswered
from burnish.core.hashing import canonical_json
from burnish.core.outcome import Ending
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory

REWARD_KEY = "get_reward"
REWARD_CAUSE_KEY = "get_reward_cause"
MAX_ANSWER_CHARS = 20_000
MAX_NUMBER_CHARS = 64
_MAX_EXPONENT = 300
_EVIDENCE_CHARS = 200
_UNSIGNED = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,12}|[0-9]{1,48})(?:\.[0-9]{1,48})?|\.[0-9]{1,48}"
_NUMBER = re.compile(rf"([-+]?)\s?[$€£]?\s?([-+]?)({_UNSIGNED})(?:[eE]([-+]?[0-9]{{1,3}}))?(?:\s?/\s?([0-9]{{1,48}}))?")
_LETTER = re.compile(r"\(?([a-z])(?:[).:]+|\s|$)\s*(.*)", re.DOTALL)


def final_text(answer: str) -> str:
    """What is left of an answer after the last thinking block, spaces at the ends removed.

    >>> final_text("<think>2 + 2</think> 4 ")
    '4'
    """
    return answer.rpartition("</think>")[2].strip()


def normalised(text: str) -> str:
    """Case, runs of white space and punctuation at the end do not count.

    >>> normalised("  New   York. ")
    'new york'
    """
    plain = " ".join(text.split()).casefold()
    return plain.rstrip(".!,;: ") or plain


def parse_number(text: str) -> Fraction | None:
    """The number that a text is, exactly, or None.  Bounded: at most 64 characters and exponents up to 300.

    >>> parse_number("$1,200.50"), parse_number("-3."), parse_number("3/4"), parse_number("three")
    (Fraction(2401, 2), Fraction(-3, 1), Fraction(3, 4), None)
    """
    text = text.strip().replace("\N{MINUS SIGN}", "-").rstrip(".!,;: ")
    if len(text) > MAX_NUMBER_CHARS:
        return None
    match = _NUMBER.fullmatch(text)
    return _value(match) if match else None


def last_number(text: str) -> Fraction | None:
    """The last number in a text, or None.

    >>> last_number("3 + 4 makes 7 boxes.")
    Fraction(7, 1)
    """
    matches = list(_NUMBER.finditer(text[-MAX_ANSWER_CHARS:].replace("\N{MINUS SIGN}", "-")))
    return _value(matches[-1]) if matches else None


def _value(match: re.Match[str]) -> Fraction | None:
    sign, inner_sign, digits, exponent, denominator = match.groups()
    power = int(exponent or 0)
    if (sign and inner_sign) or abs(power) > _MAX_EXPONENT or (denominator and int(denominator) == 0):
        return None
    number = Fraction(digits.replace(",", "")) * Fraction(10) ** power / int(denominator or 1)
    return -number if "-" in (sign, inner_sign) else number


class RuleGrader:
    """Base of the rules that judge a finished answer: total, deterministic, and never slow.

    What cannot carry a reward gets no score; an episode that did not complete scores 0, so that an answer cut in
    its middle never passes.  A rule writes `score`, which returns None where the *task* cannot be judged by it.
    """

    __slots__ = ()
    name = "rule"
    version = "1"

    async def grade(self, task: Task, trajectory: Trajectory) -> Grade:
        """The verdict; never raises, whatever the answer is."""
        return self.judge(task, trajectory)

    def judge(self, task: Task, trajectory: Trajectory) -> Grade:
        """The same without waiting: a pure function of its arguments."""
        return self.unjudged(trajectory) or self.decide(task, final_text(trajectory.answer))

    def unjudged(self, trajectory: Trajectory) -> Grade | None:
        """The grade of what ended before there was an answer to judge, or is too long to be one; else None."""
        if undone := unanswered(trajectory.outcome):
            return self.verdict(undone[0], cause=undone[1])
        if len(trajectory.answer) > MAX_ANSWER_CHARS:
            return self.verdict(0.0, cause="answer_too_long", evidence={"chars": len(trajectory.answer)})
        return None

    def decide(self, task: Task, text: str) -> Grade:
        """The verdict on a final text."""
        score = self.score(task, text)
        if score is None:
            return self.verdict(None, cause="task_cannot_be_judged", evidence={"reference": sorted(task.reference)})
        return self.verdict(score, evidence={"answer": text[:_EVIDENCE_CHARS]})

    def score(self, task: Task, text: str) -> float | None:
        """Score of the final text in [0, 1]; None where the task's reference is missing or unfit."""
        raise NotImplementedError

    def verdict(self, score: float | None, *, cause: str = "", evidence: Mapping[str, Any] | None = None) -> Grade:
        """A grade of this grader."""
        return Grade(grader=self.name, version=self.version, score=score, cause=cause, evidence=evidence or {})


def right_answers(task: Task) -> list[str]:
    """`reference["answers"]`, each of which is right, else `reference["answer"]`."""
    answers = task.reference.get("answers")
    if isinstance(answers, (list, tuple)) and answers:
        return [str(answer) for answer in answers]
    answer = task.reference.get("answer")
    return [] if answer is None else [str(answer)]


@dataclass(frozen=True, slots=True)
class ExactGrader(RuleGrader):
    """1 where the whole answer is the reference answer; case, white space and an end mark do not count."""

    name = "exact"

    def score(self, task: Task, text: str) -> float | None:
        right = right_answers(task)
        return float(normalised(text) in {normalised(answer) for answer in right}) if right else None


@dataclass(frozen=True, slots=True, kw_only=True)
class NumericGrader(RuleGrader):
    """1 where the answer is the reference number.  `NumericGrader(tolerance=0.01)` accepts 3.14 for 3.1416.

    tolerance: largest absolute difference.  take: "whole" wants the answer to be the number, with "$1,200.50", "3/4"
    and an end mark understood; "last" takes the last number in the text, for policies that reason aloud.
    """

    tolerance: float = 1e-9
    take: Literal["whole", "last"] = "whole"
    name = "numeric"

    def score(self, task: Task, text: str) -> float | None:
        right = [parse_number(answer) for answer in right_answers(task)]
        if not right or None in right:
            return None
        given = parse_number(text) if self.take == "whole" else last_number(text)
        if given is None:
            return 0.0
        return float(any(abs(given - number) <= Fraction(self.tolerance) for number in right if number is not None))


@dataclass(frozen=True, slots=True)
class ChoiceGrader(RuleGrader):
    """1 where the answer names the right one of `reference["choices"]`, by its letter ("B", "(b)", "B. Paris") or text.

    `reference["answer"]` is the text of the right choice, or its letter.
    """

    name = "choice"

    def score(self, task: Task, text: str) -> float | None:
        choices = task.reference.get("choices")
        if not isinstance(choices, (list, tuple)) or not 1 <= len(choices) <= 26:
            return None
        known = [normalised(str(choice)) for choice in choices]
        right = {index for answer in right_answers(task) for index in _chosen(answer, known)}
        if not right:
            return None
        chosen = _chosen(text, known)
        return float(bool(chosen) and chosen <= right)


def _chosen(text: str, choices: Sequence[str]) -> set[int]:
    """Indices of the choices that a text names; empty for none, also where letter and text disagree."""
    plain = normalised(text)
    found = {index for index, choice in enumerate(choices) if choice == plain}
    match = _LETTER.fullmatch(plain)
    if found or match is None:
        return found
    index, rest = ord(match[1]) - ord("a"), normalised(match[2])
    return {index} if index < len(choices) and rest in ("", choices[index]) else set()


@dataclass(frozen=True, slots=True)
class StateGrader(RuleGrader):
    """1 where the world ended as it should: `final_state["state"]` equals `reference["state"]` as JSON."""

    name = "state"

    def judge(self, task: Task, trajectory: Trajectory) -> Grade:
        grade = RuleGrader.judge(self, task, trajectory)
        if grade.cause:
            return grade
        if "state" not in trajectory.final_state:
            return self.verdict(None, cause="no_state_reported", evidence={"keys": sorted(trajectory.final_state)})
        right = canonical_json(trajectory.final_state["state"]) == canonical_json(task.reference["state"])
        return self.verdict(float(right))

    def score(self, task: Task, text: str) -> float | None:
        return 0.0 if "state" in task.reference else None


@dataclass(frozen=True, slots=True)
class RewardGrader(RuleGrader):
    """What the environment's `get_reward` gave; 0 where the model's own error kept it from being asked."""

    name = REWARD_KEY

    def judge(self, task: Task, trajectory: Trajectory) -> Grade:
        outcome = trajectory.outcome
        if not outcome.may_carry_reward:
            return self.verdict(None, cause=f"excluded:{outcome.label}")
        value = trajectory.final_state.get(REWARD_KEY)
        if value is None and outcome.ending is Ending.ERROR:
            return self.verdict(0.0, cause=f"not_completed:{outcome.label}")
        if not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
            return self.verdict(None, cause="no_reward_reported", evidence={"value": repr(value)[:_EVIDENCE_CHARS]})
        return self.verdict(float(value), cause=str(trajectory.final_state.get(REWARD_CAUSE_KEY, "")))
