"""Wrong ways of an expert: material for a warm start that leaves something to learn, and proof that the grader grades.

Each wraps a right script, changes what it does, and makes sure that the task fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from burnish.core.message import ToolCall
from burnish.environments.shop.arithmetic import evaluate
from burnish.environments.shop.templates import DONE, Steps
from burnish.environments.shop.world import CITIES, pick

WRITES = frozenset({"cancel_order", "add_stock", "set_price", "set_city", "add_points", "create_refund"})
ENTITIES = ("order", "product", "customer")
AMOUNT_ARGUMENTS = ("units", "price", "points", "amount", "fee")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a mistake may know.  `Case(answer="141", rows={"order": (17, 23)}, rng=Random(0))`

    answer: the right one, None for a job.  rows: the keys that exist, by the name of the argument that holds them.
    """

    answer: str | None
    rows: Mapping[str, Sequence[Any]]
    rng: Random


def _other(rng: Random, items: Sequence[Any], item: Any) -> Any:
    return pick(rng, [choice for choice in items if choice != item])


def plausible(answer: str, rng: Random) -> str:
    """Another answer of the same kind: each number becomes one of as many digits, each word a city.

    >>> len(plausible("141", Random(0)))
    3
    """

    def redraw(match: re.Match[str]) -> str:
        text = match[0]
        if text.isdigit():
            lowest = 10 ** (len(text) - 1)
            return str(lowest + int(rng.random() * 9 * lowest))
        return pick(rng, CITIES)

    guess = answer
    while guess == answer:
        guess = re.sub(r"[0-9]+|[A-Za-z]+", redraw, answer)
    return guess


def guess(script: Steps, case: Case) -> Steps:
    """Answer at once; claim that the job is done."""
    script.close()
    return DONE if case.answer is None else plausible(case.answer, case.rng)
    yield  # A generator without a single yield.


def _off(value: int, rng: Random) -> int:
    """A sum done in the head: near the right one, never it, and never negative."""
    slip = 1 + int(rng.random() * 9)
    return value + slip if value < 10 or rng.random() < 0.5 else value - slip


def _with_other_amount(call: ToolCall, case: Case) -> ToolCall:
    for name in AMOUNT_ARGUMENTS:
        if name in call.arguments:
            return replace(call, arguments={**call.arguments, name: _off(call.arguments[name], case.rng)})
    return _with_other_row(call, case)


def _with_other_row(call: ToolCall, case: Case) -> ToolCall:
    name = next(name for name in ENTITIES if name in call.arguments)
    row = _other(case.rng, case.rows[name], call.arguments[name])
    return replace(call, arguments={**call.arguments, name: row})


def skip_calculator(script: Steps, case: Case) -> Steps:
    """Work sums out in the head, slightly wrong.  Where there is no sum: a wrong amount in a job, a wrong answer."""
    wrong = False
    text: str | None = None
    while True:
        try:
            call = next(script) if text is None else script.send(text)
        except StopIteration as end:
            return _surely_wrong(end.value, case)
        if call.name == "calculator":
            text, wrong = str(_off(evaluate(call.arguments["expression"]), case.rng)), True
            continue
        if call.name in WRITES and not wrong:
            call, wrong = _with_other_amount(call, case), True
        text = yield call


def _rotated(text: str) -> str:
    """A lookup read one place to the side: the whole numbers of a record, or of the lines of an order, change places.

    >>> _rotated('{"price":47,"weight":23}')
    '{"price": 23, "weight": 47}'
    """
    found = json.loads(text)
    if isinstance(found, int):
        return text
    records = found if isinstance(found, list) else [found]
    places = [(record, key) for record in records for key, value in record.items() if isinstance(value, int)]
    numbers = [record[key] for record, key in places]
    for (record, key), number in zip(places, numbers[1:] + numbers[:1], strict=True):
        record[key] = number
    return json.dumps(found)


def wrong_column(script: Steps, case: Case) -> Steps:
    """Read the wrong column of a lookup, or another value than was asked for; write to the wrong row."""
    misdirected = False
    seen: list[str] = []
    text: str | None = None
    while True:
        try:
            call = next(script) if text is None else script.send(text)
        except StopIteration as end:
            return _surely_wrong(end.value, case, seen)
        if call.name in WRITES and not misdirected:
            call, misdirected = _with_other_row(call, case), True
        text = yield call
        if case.answer is not None and call.name != "calculator":
            if text[:1] not in "{[0123456789":
                script.close()
                return _surely_wrong(seen[-1], case, seen)
            seen += re.findall(r"[0-9]+|[A-Z]\w*", text)
            text = _rotated(text)


def _surely_wrong(answer: str, case: Case, seen: Sequence[str] = ()) -> str:
    """`answer` where it is wrong; else another value that was seen, else a plausible one."""
    if case.answer is None or answer != case.answer:
        return answer
    others = [value for value in seen if value != case.answer]
    return others[-1] if others else plausible(case.answer, case.rng)


MISTAKES: Mapping[str, Callable[[Steps, Case], Steps]] = {
    "guess": guess,
    "skip_calculator": skip_calculator,
    "wrong_column": wrong_column,
}
