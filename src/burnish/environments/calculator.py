"""Mental arithmetic: one expression, one number, no tools."""

from __future__ import annotations

import itertools
import operator
import random
from collections.abc import Iterable, Iterator
from typing import ClassVar

from burnish.core.environment import Script
from burnish.core.errors import ConfigError
from burnish.core.grade import Grader
from burnish.core.hashing import derive_seed
from burnish.core.task import Limits, Task
from burnish.environments.base import Environment

_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_TEMPLATES = ("What is {}?", "Compute {}.", "{} =", "How much is {}?")
_UNSEEN_TEMPLATES = ("Give the value of {}.", "Work out {}.")
_HELDOUT_ONE_IN = 6
_SIZES = {"train": 2000, "heldout": 300, "unseen": 300}
_CHANCE = {1: 0.05, 2: 0.07, 3: 0.09}
_LARGEST = {1: 20, 2: 9, 3: 9}


class Calculator(Environment):
    """Sums and products of whole numbers; the answer is one number.

    level 1: `a + b` and `a - b` with numbers up to 20.  level 2: two operations of + - * on digits, products first.
    level 3: two operations, of which brackets say which is first.

    Held-out expressions never occur in train under any template; "unseen" asks them in templates that train never uses.
    chance: what the best constant answer gets.
    """

    name: ClassVar[str] = "calculator"
    splits: ClassVar[tuple[str, ...]] = ("train", "heldout", "unseen")
    graders: tuple[str | Grader, ...] = ("numeric",)
    limits: Limits = Limits(max_turns=1, max_turn_tokens=16)

    def __init__(self, *, level: int = 1) -> None:
        if level not in _LARGEST:
            raise ConfigError(f"calculator has levels 1 to 3, got {level!r}")
        self.level = level
        self.chance = _CHANCE[level]
        self.mistakes = ("off_by_one",) if level == 1 else ("off_by_one", "left_to_right")

    def tasks(self, split: str, rng: random.Random) -> Iterable[Task]:
        """Distinct tasks in random order, each expression in one or more templates."""
        templates = _UNSEEN_TEMPLATES if split == "unseen" else _TEMPLATES
        expressions = [text for text in _expressions(self.level) if _is_heldout(text) == (split != "train")]
        pairs = list(itertools.product(expressions, templates))
        for expression, template in rng.sample(pairs, min(len(pairs), _SIZES[split])):
            yield Task(
                prompt=template.format(expression),
                setup={"expression": expression},
                reference={"answer": str(_value(expression))},
                tags={"source": "calculator", "level": str(self.level), "template": template.format("...")},
            )

    def solve(self, mistake: str | None = None) -> Script:
        """The right number, one beside it, or (from level 2) the one that ignores brackets and precedence."""
        expression = self.task.setup["expression"]
        if mistake == "off_by_one":
            return str(_value(expression) + 1)
        if mistake == "left_to_right":
            return str(_left_to_right(expression))
        return str(_value(expression))
        yield  # A script is a generator, also where it needs no tool.


def _expressions(level: int) -> Iterator[str]:
    """All expressions of a level, in a fixed order."""
    numbers = range(_LARGEST[level] + 1)
    if level == 1:
        yield from (f"{a} {sign} {b}" for a in numbers for sign in "+-" for b in numbers)
        return
    for first, second in itertools.product(_OPERATIONS, repeat=2):
        for a, b, c in itertools.product(numbers, repeat=3):
            if level == 2:
                yield f"{a} {first} {b} {second} {c}"
            else:
                yield f"( {a} {first} {b} ) {second} {c}"
                yield f"{a} {first} ( {b} {second} {c} )"


def _is_heldout(expression: str) -> bool:
    return derive_seed("calculator", expression) % _HELDOUT_ONE_IN == 0


def _value(expression: str) -> int:
    """The value of an expression of this file, its tokens set apart by spaces.

    >>> _value("2 + 3 * 4"), _value("( 2 + 3 ) * 4"), _value("9 - ( 2 - 3 )")
    (14, 20, 10)
    """
    tokens = expression.split()
    if "(" in tokens:
        start, end = tokens.index("("), tokens.index(")")
        tokens[start : end + 1] = [str(_value(" ".join(tokens[start + 1 : end])))]
    for signs in ("*", "+-"):
        while (index := next((i for i, token in enumerate(tokens) if token in signs), None)) is not None:
            result = _OPERATIONS[tokens[index]](int(tokens[index - 1]), int(tokens[index + 1]))
            tokens[index - 1 : index + 2] = [str(result)]
    return int(tokens[0])


def _left_to_right(expression: str) -> int:
    tokens = [token for token in expression.split() if token not in "()"]
    value = int(tokens[0])
    for sign, number in zip(tokens[1::2], tokens[2::2], strict=True):
        value = _OPERATIONS[sign](value, int(number))
    return value
