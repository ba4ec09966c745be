"""Constraints for runs of teams and of agents that write free text: what members report instead of tools' results.

A member who reports (a browser, a terminal, a reader of files) shows the world: what it says is evidence, not a claim,
and where it failed, whoever had asked or had written the code is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from burnish.diagnosis.constraint import PASS, UNKNOWN, Constraint, Event, Found, Guard, fail
from burnish.diagnosis.own_rules import number_known
from burnish.diagnosis.talk import BARRED, GUESSES
from burnish.diagnosis.taxonomy import Category, Fault
from burnish.diagnosis.view import View, is_outage_text, speaker

_FAILED = re.compile(
    r"^\W{0,3}(?:error|exception|traceback|fatal|failed|failure)\b|traceback \(most recent call last\)|"
    r"\bexit(?:ed)?[^\n]{0,20}code\W{0,2}[1-9]|\b\w+ing error:|\b404\b[^\n]{0,20}not found|\bpage not found\b",
    re.I,
)
_LABEL = re.compile(r"final answer\W{0,4}", re.I)
_NUMBER = re.compile(r"(?<![\w.,-])\d[\d,]*(?:\.\d+)?(?![\w-])")
_HEADING = re.compile(r"^\W*(?:\d{1,2}[.)])?\W*[A-Z ]{4,}\W*$|^[^\n]{0,80}:\s*$", re.M)
MAX_TEXT = 20_000
MIN_REPEATED = 40
"""Characters of words that count as said again; shorter ones (thanks, go on) are no sign of a loop."""


def _asked(view: View, position: int) -> int:
    """The report that follows a message and is no result of a call; -1 for none."""
    at = position + 1
    if at >= len(view.items) or not view.is_report(at) or view.items[position].calls:
        return -1
    return at


def _failure(view: View, at: int) -> str:
    """What a report says of its failure; "" where it shows something."""
    text = view.items[at].text[:MAX_TEXT]
    match = BARRED.search(text) or _FAILED.search(text)
    return text[match.start() : match.start() + 200] if match else ""


def _recovered(view: View, at: int) -> bool:
    later = range(at + 1, len(view.items))
    same = (view.items[at].role, speaker(view.items[at]))
    return any((view.items[p].role, speaker(view.items[p])) == same and not _failure(view, p) for p in later)


def _said_before(view: View, at: int) -> bool:
    """Whether the same failure was reported earlier: what is tried again then follows from the first."""
    return any(view.is_report(p) and view.items[p].text == view.items[at].text for p in range(at))


def _report(recovered: bool, outage: bool) -> Any:
    def check(view: View, position: int) -> Found:
        at = _asked(view, position)
        failure = _failure(view, at) if at >= 0 else ""
        if at < 0:
            return UNKNOWN
        barred = BARRED.search(failure) is not None
        is_outage = not barred and is_outage_text(view.items[at].text[:MAX_TEXT])
        if (
            not failure
            or _said_before(view, at)
            or _recovered(view, at) != recovered
            or (outage != is_outage and not recovered)
        ):
            return PASS
        category = Category.GUARDRAIL if barred else None
        where = at if outage or barred or view.is_report(position) else position
        return fail(f"the report shows a failure: {failure[:100]}", position=where, quote=failure, category=category)

    return check


def _guess(view: View, position: int) -> Found:
    """It says that it assumes or makes up what it goes on with."""
    if view.is_report(position):
        return UNKNOWN
    match = GUESSES.search(_HEADING.sub("", view.items[position].text[:MAX_TEXT]))
    return fail("it says that it guesses", quote=match[0]) if match else PASS


def _answer(view: View, position: int) -> Found:
    """The answer of a run without a user who talks back holds a number that follows from nothing that was shown."""
    last = next(view.said("assistant", position + 1), -1)
    if view.has_user or last < 0 or not any(view.is_report(p) for p in range(last)):
        return UNKNOWN
    text = view.items[last].text[:MAX_TEXT]
    label = _LABEL.search(text)
    numbers = [match[0].replace(",", "") for match in _NUMBER.finditer(text[label.end() :] if label else text)]
    for number in numbers[:40]:
        if len(number) > 2 and not number_known(view, float(number), last):
            return fail(f"{number} follows from nothing that was shown", position=last, quote=number)
    return PASS if numbers else UNKNOWN


def _again(view: View, position: int) -> Found:
    """The same words of the same speaker as before, where no user could have asked for them."""
    item = view.items[position]
    if view.has_user or item.calls or view.is_report(position) or len(item.text) < MIN_REPEATED:
        return UNKNOWN
    for earlier in _own_words(view, position):
        if view.items[earlier].text.strip() == item.text.strip():
            return fail("the same words as before", quote=item.text, also=(earlier,))
    return PASS


def _own_words(view: View, position: int) -> Iterator[int]:
    agent = view.items[position].agent
    return (p for p in view.said("assistant", position) if view.items[p].agent == agent)


def team_constraints() -> tuple[Constraint, ...]:
    """The fixed list; it says little of records with tool calls and a user, which have rules of their own."""
    c, text, end = Category, Guard(event=Event.TEXT), Guard(event=Event.END)
    rows: tuple[tuple[str, float, Category, str, Any], ...] = (
        ("report_failed", 0.6, c.INVOCATION, "what was asked for failed for good", _report(False, False)),
        ("report_recovered", 0.1, c.INVOCATION, "it failed, a later one did not", _report(True, False)),
        ("guess", 0.6, c.INVENTION, "it goes on with a guess", _guess),
        ("again", 0.3, c.ADHERENCE, "the same words again", _again),
    )
    made = [
        Constraint(id=name, guard=text, severity=severity, category=category, text=words, on_text=check)
        for name, severity, category, words, check in rows
    ]
    down = Constraint(
        id="report_outage",
        guard=text,
        severity=0.8,
        category=c.SYSTEM,
        owner=Fault.ENVIRONMENT,
        text="what shows the world was down",
        on_text=_report(False, True),
    )
    unseen = Constraint(
        id="answer_unseen",
        guard=end,
        severity=0.6,
        category=c.INVENTION,
        text="an answer from nowhere",
        on_text=_answer,
    )
    return (*made, down, unseen)
