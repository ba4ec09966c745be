"""Who brought a departure from the reference into the trajectory: the user's words, the agent's, or the call itself.

A wrong value and the right one are told apart by the words that describe one and not the other (the fields of the
objects that they name).  Whoever used the wrong one's words first, or never the right one's, is the suspect.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from burnish.diagnosis.difference import Departure, Difference, Kind
from burnish.diagnosis.hypotheses import Board
from burnish.diagnosis.record import Call
from burnish.diagnosis.talk import ASKS_TO_ACT, NO, PROPOSES, REFUSES, consents, content_words, is_mere_consent
from burnish.diagnosis.taxonomy import Category
from burnish.diagnosis.view import CallView, View, is_key, leaves

_AMOUNT = re.compile(r"(?<![\w.#-])\$?\d[\d,]*(?:\.\d+)?(?![\w-])")
MOST = 4
"""Departures that are looked at; later ones mostly follow from the first."""


def blame(board: Board, found: Difference) -> None:
    """Add what the departures of a trajectory say about its messages."""
    for number, departure in enumerate(found.departures[:MOST]):
        weight = 1.0 if number == 0 else 0.5
        if departure.kind in (Kind.WRONG, Kind.EXTRA) and departure.call is not None:
            _done(board, departure, departure.call, weight)
        elif departure.kind is Kind.BLOCKED and departure.call is not None:
            _blocked(board, departure.call, weight)
        elif departure.wanted is not None:
            _missing(board, departure.wanted, weight)
    for text in found.untold[:MOST]:
        _untold(board, text)


def _done(board: Board, departure: Departure, call: CallView, weight: float) -> None:
    view, at = board.view, call.position
    given, wanted = _tellings(view, departure)
    request = _request(view, at)
    talk = [p for p in range(at) if view.items[p].role in ("user", "assistant") and view.items[p].text]
    users = [p for p in talk if view.items[p].role == "user"]
    asking = [p for p in users if _named(view, p, given) and not _named(view, p, wanted)]
    user_wrong, user_last = (asking[0], asking[-1]) if asking else (-1, -1)
    user_right = any(_named(view, p, wanted) for p in users)
    agent_wrong = next(
        (p for p in talk if p not in users and _named(view, p, given) and not _named(view, p, wanted)), -1
    )
    why = f"{call.name} departs from the reference ({departure.kind})"
    write = board.at(at, Category.MISALIGNMENT)
    write.add("diff:write", weight, why)
    if user_right:
        write.add("diff:user_named_right", weight, "the user had named what was wanted")
    elif given and wanted and not asking:
        write.add("diff:user_named_neither", weight, "the agent chose, the user named neither")
    last = next(view.said("user", at), -1)
    agreed = last >= 0 and consents(view.items[last].text)
    spoken = not given or any(_named(view, p, given) for p in talk)
    if not agreed or not spoken:
        board.at(at, Category.ADHERENCE).add("diff:not_agreed", weight * (1.0 + (not agreed and not spoken)), why)
    if request >= 0:
        user = board.at(request, Category.UNDERSPECIFIED)
        user.add("diff:request", weight, why)
        omitted = _described(view, (v for c in departure.fields if not c.given for v in c.wanted))
        if (omitted and not any(_named(view, p, omitted) for p in users)) or (wanted and asking and not user_right):
            user.add("diff:never_named", weight, "the user never named what was wanted")
        if not agreed:
            user.add("diff:unconfirmed", weight)
    if user_last >= 0:
        user = board.at(user_last, Category.UNDERSPECIFIED)
        user.add("diff:asked_for_wrong", weight, "the user asked for what was not wanted")
        user.add("diff:request", weight, why)
    if user_wrong not in (-1, user_last):
        board.at(user_wrong, Category.UNDERSPECIFIED).add("diff:first_asked_for_wrong", weight, why)
    if agent_wrong >= 0 and (user_wrong < 0 or agent_wrong < user_wrong):
        board.at(agent_wrong, Category.MISREADING).add("diff:agent_said_first", weight, "the agent named it first")
        write.add("diff:agent_chose", weight)
    for position in _declined(view, at):
        board.at(position, Category.UNDERSPECIFIED).add("diff:declined_before", weight)


def _tellings(view: View, departure: Departure) -> tuple[set[str], set[str]]:
    """(words of what was given, words of what was wanted), each without those of the other."""
    call = departure.call
    assert call is not None
    if departure.wanted is None:
        return _described(view, leaves(call.arguments)), set()
    given = [value for change in departure.fields for value in change.given]
    wanted = [value for change in departure.fields for value in change.wanted]
    a, b = _described(view, given), _described(view, wanted)
    return a - b, b - a


def _described(view: View, values: Iterable[str]) -> set[str]:
    """Each value with the name of the object that it stands for, or, where that has none, the texts of its fields."""
    found: set[str] = set()
    for value in values:
        found.add(value.lower())
        fields = view.smallest(value)
        names = [str(fields[key]) for key in ("name", "title", "source") if isinstance(fields.get(key), str)]
        found |= {text.lower() for text in names}
        for name, leaf in fields.items() if not names else ():
            if not name.endswith("id"):
                found |= {text.lower() for text in leaves(leaf, 2) if _tells(text)}
    return {text.replace("_", " ") for text in found} | found


def _tells(text: str) -> bool:
    return 1 < len(text) < 60 and text.lower() not in ("true", "false", "none", "yes", "no")


def _named(view: View, position: int, texts: set[str]) -> bool:
    lowered = view.lowered[position]
    return any(text in lowered and re.search(rf"(?<!\w){re.escape(text)}s?(?!\w)", lowered) for text in texts)


def _request(view: View, before: int) -> int:
    """The last turn of the user before a position that says more than yes."""
    first = -1
    for position in view.said("user", before):
        first = position if first < 0 else first
        if not is_mere_consent(view.items[position].text):
            return position
    return first


def _declined(view: View, before: int) -> list[int]:
    """Turns in which the user turns a proposal of the agent down."""
    found = []
    for position in view.said("user", before):
        said = next(view.said("assistant", position), -1)
        text = view.items[position].text
        if said >= 0 and PROPOSES.search(view.items[said].text) and NO.search(text) and not is_mere_consent(text):
            found.append(position)
    return found


def _blocked(board: Board, call: CallView, weight: float) -> None:
    """The wanted call was made and failed: an own earlier write on the same object is the suspect."""
    view = board.view
    keys = {v for k, v in call.arguments.items() if isinstance(v, str) and is_key(k)}
    causes = [
        other
        for other in view.writes
        if other.position < call.position and not other.is_error and keys & set(leaves(other.arguments))
    ]
    why = f"{call.name} was wanted and failed: {call.text[:80]}"
    if not causes:
        board.at(call.position, Category.INVOCATION).add("diff:blocked", weight, why)
        return
    cause = causes[-1]
    told = any(_mentions_call(view, p, call) for p in view.said("user", cause.position))
    if told:
        board.at(cause.position, Category.MISALIGNMENT).add("diff:blocked_by_own", weight, why)
    else:
        board.at(call.position, Category.UNSUPPORTED).add("diff:asked_too_late", weight, why)


def _mentions_call(view: View, position: int, call: CallView | Call) -> bool:
    talked = content_words(view.items[position].text)
    verbs = {word for word in re.split(r"[_\W]+", call.name.lower()) if len(word) > 3}
    values = {word for value in leaves(call.arguments) for word in content_words(value) if not word.isdigit()}
    return len((verbs | values) & talked) >= 2 or bool(values & talked and verbs & talked)


def _missing(board: Board, wanted: Call, weight: float) -> None:
    view, end = board.view, len(board.view.items)
    right = _described(view, leaves(wanted.arguments or {}))
    why = f"{wanted.name} was wanted and never tried"
    users = list(view.said("user", end))
    asked = any(_named(view, p, right) for p in users) or any(_mentions_call(view, p, wanted) for p in users)
    for number, position in enumerate(_declined(view, end)):
        said = next(view.said("assistant", position), -1)
        hypothesis = board.at(position, Category.UNDERSPECIFIED)
        hypothesis.add("diff:declined", weight * (1.0 if number == 0 else 0.6), why)
        if said >= 0 and _named(view, said, right) and not REFUSES.search(view.items[said].text):
            hypothesis.add("diff:declined_wanted", weight, "what was proposed was wanted")
    if view.items[-1].role == "user" and ASKS_TO_ACT.search(view.items[-1].text):
        board.at(end - 1, Category.SYSTEM).add("diff:cut_off", weight, why)
    failed = [c for c in view.writes if c.is_error]
    if failed:
        board.at(failed[0].position, Category.INVOCATION).add("diff:error_instead", weight, why)
    refusals = [
        p for p in view.said("assistant", end) if REFUSES.search(view.items[p].text) and not view.items[p].calls
    ]
    if refusals:
        category = Category.MISALIGNMENT if asked else Category.UNSUPPORTED
        board.at(refusals[-1], category).add("diff:refused", weight, why)
    gone = next((c for c in view.calls if "transfer" in c.name or "human" in c.name or "escalat" in c.name), None)
    if gone is not None:
        board.at(gone.position, Category.MISALIGNMENT).add("diff:handed_over", weight, why)
    last = next((p for p in users if not is_mere_consent(view.items[p].text)), users[0] if users else -1)
    if last >= 0 and not asked:
        board.at(last, Category.UNDERSPECIFIED).add("diff:never_asked", weight, why)
    done = [c for c in view.writes if not c.is_error]
    if asked and done:
        board.at(done[-1].position, Category.MISALIGNMENT).add("diff:left_out", weight, why)


def _untold(board: Board, text: str) -> None:
    """A text that the user must be told: who told another value of the same kind, or had the chance to."""
    view = board.view
    why = f"{text!r} was never told"
    source = view.first_seen(text)
    for position in range(len(view.items)):
        item = view.items[position]
        if item.role != "assistant" or not item.text or source > position:
            continue
        if _other_of_its_kind(view, position, text):
            board.at(position, Category.MISREADING).add("diff:told_another", 1.0, why)
        elif _is_number(text) and len(text) > 3 and len(_AMOUNT.findall(item.text)) >= 2:
            board.at(position, Category.MISREADING).add("diff:told_amounts", 1.0, why)
    last = next(view.said("user", len(view.items)), -1)
    if last >= 0:
        board.at(last, Category.UNDERSPECIFIED).add("diff:never_asked_to_tell", 1.0, why)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\$?\d[\d,]*(?:\.\d+)?", text.strip()) is not None


def _other_of_its_kind(view: View, position: int, text: str) -> bool:
    """Whether a message tells a value that stands under the same key as `text` does in a result, or a count for one."""
    lowered = view.lowered[position]
    keys = {name for entries in view.objects.values() for seen in entries for name in _holding(seen.fields, text)}
    for entries in view.objects.values() if keys else ():
        for seen in entries:
            for name in keys & set(seen.fields):
                values = [value for value in leaves(seen.fields[name]) if len(value) > 3 and value != text]
                if seen.position < position and any(value.lower() in lowered for value in values):
                    return True
    if text.isdigit() and len(text) <= 3:
        counts = re.findall(
            r"(?<![\w.$#-])(\d{1,3})\**\s+(?:[a-z-]+\s+){0,3}(?:options|types|items|kinds|variants|choices|"
            r"products|results|entries|available)",
            lowered,
        )
        return any(count != text for count in counts)
    return False


def _holding(fields: object, text: str) -> list[str]:
    if not isinstance(fields, dict):
        return []
    return [name for name, value in fields.items() if not isinstance(value, dict) and text in leaves(value, 3)]
