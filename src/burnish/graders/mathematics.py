"""Mathematical answers, compared as expressions by math-verify.

math-verify parses LaTeX and plain arithmetic into sympy and compares numerically and symbolically.  Its own timeouts
are alarms of the main thread and are off here: the process around it has a deadline that the kernel keeps.  What it
evaluates as Python is made of digits and operators alone; everything else goes through a LaTeX grammar.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from burnish.core.task import Task
from burnish.graders.killable import KillableRule, require, verdict
from burnish.graders.rules import normalised, parse_number, right_answers

MAX_EXPRESSION_CHARS = 1000
_BOXED = "\\boxed{"
_WORD = re.compile(r"[^\W\d_]{4}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MathGrader(KillableRule):
    r"""1 where the answer equals `reference["answer"]` (or one of "answers") as mathematics: 1/2, 0.5, \frac{1}{2}.

    Of an answer with \boxed{...} the last box counts, else its last 1000 characters.  Needs the extra `graders`.
    """

    name = "math"
    function = "burnish.graders.mathematics:compare"
    preload = "burnish.graders.mathematics:warm_up"

    def __post_init__(self) -> None:
        require("math_verify", "math-verify")
        KillableRule.__post_init__(self)

    def arguments(self, task: Task, text: str) -> Mapping[str, Any] | None:
        right = right_answers(task)
        return {"right": right, "given": stated(text)} if right else None


def stated(text: str) -> str:
    r"""The content of the last complete box, or of the only formula, else the end of the text.

    >>> stated("so \\boxed{\\frac{1}{2}}."), stated("I get $x+1$."), stated("The answer is 4")
    ('\\frac{1}{2}', 'x+1', 'The answer is 4')
    """
    start = text.rfind(_BOXED)
    if start < 0:
        end = text[-MAX_EXPRESSION_CHARS:]
        parts = end.split("$")
        return parts[1] if len(parts) == 3 and parts[1].strip() else end
    inside = text[start + len(_BOXED) :]
    depth = 1
    for index, character in enumerate(inside[: MAX_EXPRESSION_CHARS + 1]):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return inside[:index]
    return inside[:MAX_EXPRESSION_CHARS]


def warm_up() -> bool:
    """Import sympy and build the parser, which takes a second, before any deadline runs."""
    logging.disable(logging.WARNING)
    compare(["\\frac{1}{2}"], "\\sqrt{4} + x")
    return True


def compare(right: list[str], given: str) -> dict[str, Any]:
    """The verdict on one stated answer; a right answer that cannot be read is the task's fault.

    Equal texts and plain numbers are settled exactly, without sympy.
    """
    plain, number = normalised(given), parse_number(given)
    if any(plain == normalised(answer) for answer in right):
        return verdict(1.0, given=given)
    numbers = [parse_number(answer) for answer in right]
    if number is not None and None not in numbers:
        return verdict(float(number in numbers), given=given)
    golds = [_gold(answer) for answer in right]
    if not all(golds):
        return verdict(None, "task_cannot_be_judged", unreadable=right)
    read = _read(given)
    verify = importlib.import_module("math_verify").verify
    equal = any(verify(list(gold), read, timeout_seconds=None) for gold in golds)
    return verdict(float(equal), given=given, read=[str(part)[:100] for part in read])


@functools.lru_cache(maxsize=4096)
def _gold(answer: str) -> tuple[Any, ...]:
    return tuple(_read(answer))


def _read(text: str) -> list[Any]:
    """Expressions in a text: prose as it stands, a formula as LaTeX and then as plain arithmetic."""
    parse = importlib.import_module("math_verify").parse
    is_marked = any(mark in text for mark in ("$", "\\(", "\\[", _BOXED))
    is_prose = "\\" not in text and _WORD.search(text) is not None
    for whole in (text,) if is_marked or is_prose else (f"${text}$", text):
        found = parse(whole, parsing_timeout=None, fallback_mode="no_fallback")
        if found:
            return list(found)
    return []
