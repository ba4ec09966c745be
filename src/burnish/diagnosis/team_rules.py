"""Constraints for runs of teams and of agents that write free text: what members report instead of tools' results.

A member who reports (a browser, a terminal, a reader of files) shows the world: what it says is evidence, not a claim,
and where it failed, whoever had asked or had written the code is looked at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class _Reports:
    """What the reports of a trajectory show, looked at once.

    failures: position -> what it says of its failure.  good: (role, speaker) -> last position without one.  first: text
    of a failure -> where it stands first.
    """

    failures: dict[int, str] = field(default_factory=dict)
    good: dict[tuple[str, str], int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)


def _reports(view: View) -> _Reports:
    known = view.memo.get("reports")
    if isinstance(known, _Reports):
        return known
    found = _Reports()
    for at, item in enumerate(view.items):
        if not view.is_report(at):
            continue
        text = item.text[:MAX_TEXT]
        match = BARRED.search(text) or _FAILED.search(text)
        if match:
            found.failures[at] = text[match.start() : match.start() + 200]
            found.first.setdefault(text, at)
        else:
            found.good[item.role, speaker(item)] = at
    view.memo["reports"] = found
    return found


def _report(recovered: bool, outage: bool) -> Any:
    def check(view: View, position: int) -> Found:
        at = position + 1
        if at >= len(view.items) or not view.is_report(at) or view.items[position].calls:
            return UNKNOWN
        found, text = _reports(view), view.items[at].text[:MAX_TEXT]
        failure = found.failures.get(at, "")
        # a failure that was reported before follows from what led to the first
        if not failure or found.first[text] < at:
            return PASS
        barred = BARRED.search(failure) is not None
        is_outage = not barred and is_outage_text(text)
        over = found.good.get((view.items[at].role, speaker(view.items[at])), -1) > at
        if over != recovered or (outage != is_outage and not recovered):
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
    earlier = _first_said(view)[item.agent, item.text.strip()]
    return fail("the same words as before", quote=item.text, also=(earlier,)) if earlier < position else PASS


def _first_said(view: View) -> dict[tuple[str, str], int]:
    known = view.memo.get("said")
    if isinstance(known, dict):
        return known
    found: dict[tuple[str, str], int] = {}
    for position in sorted(view.said("assistant", len(view.items))):
        item = view.items[position]
        found.setdefault((item.agent, item.text.strip()), position)
    view.memo["said"] = found
    return found


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
