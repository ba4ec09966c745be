"""What the agent says against what the tools had shown: counts, states, amounts, identifiers, deeds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from burnish.diagnosis.constraint import PASS, UNKNOWN, Constraint, Event, Found, Guard, TextCheck, fail
from burnish.diagnosis.own_rules import number_known
from burnish.diagnosis.talk import content_words
from burnish.diagnosis.taxonomy import Category
from burnish.diagnosis.view import View, objects_in

_NUMBER_WORDS = {
    word: number
    for number, word in enumerate(
        re.findall(
            r"\w+",
            "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen",
        ),
        start=2,
    )
}
_COUNT = re.compile(
    r"\b(?:there (?:are|is)|we (?:have|offer)|have|total of|found)\s+(?:currently\s+|a total of\s+|exactly\s+)?"
    r"\**(\d{1,4}|"
    + "|".join(_NUMBER_WORDS)
    + r")\**\s+(?!(?:to|or|and|business|days?|hours?|minutes?|main)\b)([a-z][\w-]+)",
    re.I,
)
_HEDGE = re.compile(
    r"\b(?:not|n't|only|if|once|when|cannot|can't|until|unless|would|will|to be|should|could|or|either|may|must|"
    r"changed|become|becomes|updated|now|been|successfully)\b|n't\b",
    re.I,
)
_MONEY = re.compile(
    r"[$€£]\s?(\d[\d,]{0,9}(?:\.\d{1,2})?)|(?<![\w.,])(\d[\d,]{0,9}(?:\.\d{1,2})?)\s?(?:dollars|euros|pounds|USD|EUR|GBP|CHF)\b"
)
_IDENTIFIER = re.compile(
    r"(?<![\w$.,-])(?:#?(?=[A-Z]*\d)[A-Z]{0,3}\d{6,20}|(?=(?:[A-Z]*\d){2})(?=(?:\d*[A-Z]){2})[A-Z0-9]{6,20})\b"
)
"""Six digits or more, or six capitals and digits or more with two of each."""
_DONE = re.compile(
    r"\b(?:(?:has|have) (?:now )?been (?:successfully )?(?:cancel|return|exchang|modif|updat|chang|process|refund|book|"
    r"mov|fix|creat|delet|sent|submit|complet|initiat)\w*|successfully (?:cancel|return|exchang|modif|updat|chang|"
    r"process|book|creat|delet|submit|complet|initiat)\w*|"
    r"I(?:'ve| have)? (?:now |just |successfully )?(?:cancelled|canceled|booked|rebooked|moved|updated|changed|created|"
    r"deleted|removed|sent|submitted|scheduled|rescheduled|restarted|deployed|fixed|installed|upgraded|refunded))\b",
    re.I,
)
_ABOUT = re.compile(
    r"\b(?:for|of) (?:the|your) ([a-z][a-z -]{2,30}?)(?= you\b| is\b| was\b| are\b| in\b| from\b|[.,:;(*\n])", re.I
)
_SENTENCE = re.compile(r"(?<=[.!?:;])\s+|\n+")
_CLAUSE = re.compile(r"(?<=[.!?;:])\s+|\n+|,\s+(?:while|but|and|whereas)\s+|\s+(?:while|whereas)\s+")


def _counts(view: View, before: int) -> set[int]:
    """Sizes of lists and tables in results, of parts of them that share a scalar value, and their sums over results."""
    found: set[int] = set()
    for call in view.calls:
        if not 0 <= call.result < before or not isinstance(call.value, dict | list):
            continue
        holders: list[Any] = [call.value, *objects_in(call.value)]
        for holder in holders[:400]:
            for rows in (holder, *(holder.values() if isinstance(holder, Mapping) else ())):
                if isinstance(rows, Mapping | list):
                    found |= _sizes(rows)
    return found


def _sizes(rows: Mapping[str, Any] | Sequence[Any]) -> set[int]:
    members = list(rows.values()) if isinstance(rows, Mapping) else list(rows)
    sizes = {len(members)}
    tally: dict[tuple[str, str], int] = {}
    for member in members[:500]:
        if isinstance(member, Mapping):
            inner = [*member.items(), *(pair for v in member.values() if isinstance(v, Mapping) for pair in v.items())]
            for key, value in inner[:40]:
                if isinstance(value, str | bool | int):
                    tally[key, str(value)] = tally.get((key, str(value)), 0) + 1
    return sizes | set(tally.values())


def _count(view: View, position: int) -> Found:
    """A number of things that is the size of nothing that was shown."""
    claims = [
        (match, int(match[1]) if match[1].isdigit() else _NUMBER_WORDS[match[1].lower()])
        for match in _COUNT.finditer(view.items[position].text[:20_000])
    ]
    if not claims or not any(0 <= call.result < position for call in view.calls):
        return UNKNOWN
    counts = _counts(view, position)
    listed = len(re.findall(r"^\s*(?:\d{1,2}[.)]|[-*])\s", view.items[position].text, re.M))
    for match, number in claims:
        earlier = any(re.search(rf"\b{number}\b", view.lowered[p]) for p in view.said("user", position))
        if number > 1 and number not in counts and number != listed and not earlier:
            return fail(f"{number} is the size of nothing that was shown", quote=match[0])
    return PASS


def state_check(values: Mapping[str, Sequence[str]]) -> TextCheck:
    """A check that a sentence which names an object gives it no other state than it was last shown with.

    values: closed vocabularies of fields; those of fields that are not listed are what the trajectory shows.
    """

    def check(view: View, position: int) -> Found:
        text = view.items[position].text
        known = 0
        vocabulary = {name: {item.lower() for item in items} for name, items in values.items()} or _observed(view)
        for clause in _CLAUSE.split(text[:20_000]):
            lowered = clause.lower()
            if _HEDGE.search(lowered):
                continue
            for key in {token.strip("#*().,:") for token in clause.split()} | set(re.findall(r"#\w+", clause)):
                for name, states in vocabulary.items():
                    shown = view.field(key, name, position)
                    if shown is None:
                        shown = view.field(f"#{key}", name, position)
                    if not isinstance(shown, str):
                        continue
                    known += 1
                    own = shown.lower()
                    if own not in states:
                        continue
                    said = {state for state in states if re.search(rf"\b{re.escape(state)}\b", lowered)}
                    if said and not any(state in own or own in state for state in said):
                        return fail(f"{name} of {key} is {shown}, not {sorted(said)[0]}", quote=clause)
        return PASS if known else UNKNOWN

    return check


def _observed(view: View) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for entries in list(view.objects.values())[:500]:
        for seen in entries[:5]:
            state = seen.fields.get("status", seen.fields.get("state"))
            if isinstance(state, str) and 2 < len(state) < 30:
                found.setdefault("status" if "status" in seen.fields else "state", set()).add(state.lower())
    return found


def _amount(view: View, position: int) -> Found:
    found = _MONEY.findall(view.items[position].text[:20_000])
    amounts = [float((sign or word).replace(",", "")) for sign, word in found]
    if not amounts:
        return UNKNOWN
    unknown = next((amount for amount in amounts[:60] if not number_known(view, amount, position)), None)
    return PASS if unknown is None else fail(f"{unknown:g} follows from nothing that was shown", quote=f"{unknown:g}")


def _identifier(view: View, position: int) -> Found:
    """An identifier in talk that no message had shown."""
    found = _IDENTIFIER.findall(view.items[position].text[:20_000])
    unseen = [token for token in found if not 0 <= view.first_seen(token) < position]
    if not found:
        return UNKNOWN
    return fail(f"{unseen[0]} was never shown", quote=unseen[0]) if unseen else PASS


def _deed(view: View, position: int) -> Found:
    """It reports a deed although its last write failed, or although it never wrote."""
    text = view.items[position].text[:20_000]
    match = _DONE.search(text)
    if match is None or re.search(r"\balready\b", text, re.I):
        return UNKNOWN
    since = next(view.said("assistant", position), -1)
    writes = [call for call in view.writes if call.position < position]
    recent = [call for call in writes if call.position > next(view.said("user", position), -1)]
    # whom nobody talks to does one thing after the other: what counts is how the last one went
    recent = recent if view.has_user else writes[-1:]
    if recent and all(call.is_error for call in recent):
        return fail("it reports success after a failure", quote=match[0], also=(recent[-1].result,))
    if not writes and since >= 0 and any(call.position < position for call in view.calls):
        return fail("it reports a deed and wrote nothing", quote=match[0])
    return PASS


def _attribution(view: View, position: int) -> Found:
    """A value is given for a thing that the result it stands in does not mention."""
    item = view.items[position]
    known = 0
    for sentence in _SENTENCE.split(item.text[:20_000]):
        tokens = _IDENTIFIER.findall(sentence)
        about = _ABOUT.search(sentence)
        if not tokens or about is None:
            continue
        named = content_words(about[1])
        sources = [c for c in view.calls if 0 <= c.result < position and tokens[0].lower() in view.lowered[c.result]]
        asked = set().union(*(content_words(view.items[p].text) for p in view.said("user", position)), set())
        things = {word for word in named if word in asked}
        if not sources or not things:
            continue
        known += 1
        shown = " ".join(view.lowered[c.result] for c in sources)
        if not any(word.rstrip("s") in shown for word in things):
            return fail(f"{tokens[0]} stands in a result that names no {about[1]}", quote=sentence)
    return PASS if known else UNKNOWN


def _of_claims(check: TextCheck) -> TextCheck:
    """The check, of messages that claim something: who reports what the world shows claims nothing."""
    return lambda view, position: UNKNOWN if view.is_report(position) else check(view, position)


def claim_constraints(values: Mapping[str, Sequence[str]] | None = None) -> tuple[Constraint, ...]:
    """Checks of talk; `values`: closed vocabularies of fields, from a policy."""
    rows: tuple[tuple[str, float, Category, str, TextCheck], ...] = (
        ("claim_count", 0.8, Category.MISREADING, "a count against what was shown", _count),
        ("claim_state", 0.8, Category.MISREADING, "a state against what was shown", state_check(values or {})),
        ("claim_amount", 0.2, Category.INVENTION, "an amount from nowhere", _amount),
        ("claim_identifier", 0.5, Category.INVENTION, "an identifier from nowhere", _identifier),
        ("claim_deed", 0.7, Category.INVENTION, "a deed that was not done", _deed),
        ("claim_attribution", 0.8, Category.MISREADING, "a value of another thing", _attribution),
    )
    guard = Guard(event=Event.TEXT)
    return tuple(
        Constraint(id=name, guard=guard, severity=severity, category=category, text=text, on_text=_of_claims(check))
        for name, severity, category, text, check in rows
    )
