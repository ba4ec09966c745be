"""Kinds of rules about turns of talk and about what is left undone at the end.

told            each number that the agent says stood in a message before
answer_from     each number or text of the last answer that results have shown stands there in one of `fields`
asked           with `when`, a call of `tool` succeeded (with `each`, one for each value of that argument that the user
                named); an omission is put at the first action that should have followed it
acts            after the user agreed to a proposal, a call that writes comes before the next words
before_proposal a call of `needs` succeeded before anything is proposed
keeps           a user names no other value after one of the words `after`, and no other of `values`, than before
                where a phrase of `cues` takes something back, and than was proposed where he agrees
claims          words of `phrases` rest on the last call of `tool` (with `command`, one that holds this text) and on a
                result that holds one of `shows`
refuses         words of `phrases` are wrong where `field` of the last result of `lookup` is one of `allowed`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from burnish.diagnosis.constraint import PASS, UNKNOWN, Event, Found, TextCheck, fail
from burnish.diagnosis.flow_rules import applies, atoms, phrases, unshown, wrong_source
from burnish.diagnosis.rule_fields import text_of, texts_of
from burnish.diagnosis.talk import PROPOSES, consents
from burnish.diagnosis.taxonomy import Category
from burnish.diagnosis.view import CallView, View, matches

_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\w)")


def _told(rule: Mapping[str, Any]) -> TextCheck:
    when, unless = phrases(rule)

    def check(view: View, position: int) -> Found:
        numbers = _NUMBER.findall(view.items[position].text[:20_000])
        if not numbers or not applies(view, when, unless):
            return UNKNOWN
        for number in numbers[:100]:
            category = unshown(view, number, position)
            if category is not None:
                return fail(f"{number} was never shown before it was said", quote=number, category=category)
        return PASS

    return check


def _answer_from(rule: Mapping[str, Any]) -> TextCheck:
    fields = frozenset(texts_of(rule, "fields", least=0))
    when, unless = phrases(rule)

    def check(view: View, position: int) -> Found:
        if position != len(view.items) - 1 or not applies(view, when, unless):
            return UNKNOWN
        return wrong_source(view, atoms(view.items[position].text), fields, position)

    return check


def _asked(rule: Mapping[str, Any]) -> TextCheck:
    tool, each = text_of(rule, "tool"), text_of(rule, "each", "")
    when, unless = phrases(rule)

    def check(view: View, position: int) -> Found:
        if not applies(view, when, unless):
            return UNKNOWN
        done = [call for call in view.calls if matches(tool, call.name) and not call.is_error]
        if not each or not done:
            return PASS if done else fail(f"{tool} was asked for and never done", position=_omitted(view, when))
        named = {str(call.arguments[each]) for call in view.calls if each in call.arguments}
        named = {value for value in named if value.lower() in atoms(view.user_talk)}
        missing = sorted(named - {str(call.arguments.get(each)) for call in done})
        if not missing:
            return PASS
        return fail(f"{tool} was asked for {missing[0]} and never done", position=_omitted(view, when))

    return check


def _omitted(view: View, when: tuple[str, ...]) -> int:
    """The first action that should have followed what was left out: after a result that nobody used, else the first
    write that was asked for later, else the end."""
    for call in view.calls:
        if _is_unused(view, call):
            return next((p for p in range(call.result + 1, len(view.items)) if _acts(view, p)), len(view.items) - 1)
    talk = view.user_talk
    asked = min((talk.find(phrase) for phrase in when if phrase in talk), default=-1)
    for call in view.writes:
        words = [word for word in call.name.lower().split("_") if len(word) > 3]
        places = [talk.find(word) for word in words if word in talk]
        if places and max(places) > asked >= 0:
            return call.position
    return max((p for p in range(len(view.items)) if _acts(view, p)), default=len(view.items) - 1)


def _acts(view: View, position: int) -> bool:
    return view.items[position].role == "assistant"


def _is_unused(view: View, call: CallView) -> bool:
    """Whether a read's values appear in nothing that the agent does afterwards."""
    if call.is_write or call.is_error or call.result < 0:
        return False
    shown = set(atoms(call.value))
    used: set[str] = set()
    for item in view.items[call.result + 1 :]:
        if item.role == "assistant":
            used |= {atom for later in item.calls for atom in atoms(dict(later.arguments or {}))} | set(
                atoms(item.text)
            )
    return bool(shown) and not shown & used


def _agreed_at(view: View, position: int) -> int:
    """The user's turn before a position, where it consents to a proposal; else -1."""
    user = next(view.said("user", position), -1)
    said = next((p for p in view.said("assistant", user) if view.items[p].text), -1)
    if user < 0 or said < 0 or not PROPOSES.search(view.items[said].text):
        return -1
    return user if consents(view.items[user].text) else -1


def _acts_on_consent(rule: Mapping[str, Any]) -> TextCheck:
    def check(view: View, position: int) -> Found:
        user = _agreed_at(view, position)
        if user < 0 or any(view.items[p].role == "assistant" and view.items[p].text for p in range(user, position)):
            return UNKNOWN
        if PROPOSES.search(view.items[position].text):
            return UNKNOWN
        done = any(user < call.position < position for call in view.writes)
        return PASS if done else fail("what was agreed to was not done", also=(user,))

    return check


def _before_proposal(rule: Mapping[str, Any]) -> TextCheck:
    needs = text_of(rule, "needs")

    def check(view: View, position: int) -> Found:
        if not PROPOSES.search(view.items[position].text):
            return UNKNOWN
        had = any(c.position < position and matches(needs, c.name) and not c.is_error for c in view.calls)
        return PASS if had else fail(f"a proposal before {needs} had succeeded")

    return check


def _keeps(rule: Mapping[str, Any]) -> TextCheck:
    words, values = texts_of(rule, "after", least=0), frozenset(v.lower() for v in texts_of(rule, "values", least=0))
    cues = tuple(text.lower() for text in texts_of(rule, "cues"))

    def named(text: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for word in words:
            match = re.findall(rf"\b{re.escape(word.lower())}s? (?:is |was )?#?(\d[\w-]*)", text)
            match += re.findall(rf"\b(\d[\w-]*) {re.escape(word.lower())}\b", text)
            found |= {word: match[-1]} if match else {}
        spoken = [atom for atom in atoms(text) if atom in values]
        return found | ({"": spoken[-1]} if spoken else {})

    def check(view: View, position: int) -> Found:
        text = view.lowered[position]
        now = named(text)
        if not now:
            return UNKNOWN
        earlier_turns = list(view.said("user", position)) if any(cue in text for cue in cues) else []
        if consents(text):
            # to agree and to name something else than was proposed is to take it back, without a cue
            said = next((p for p in view.said("assistant", position) if view.items[p].text), -1)
            earlier_turns += [said] if said >= 0 and PROPOSES.search(view.items[said].text) else []
        for earlier in earlier_turns:
            for word, value in named(view.lowered[earlier]).items():
                if word in now and now[word] != value:
                    why = f"{word or 'it'} was {value} and is now {now[word]}"
                    return fail(why, quote=view.items[position].text, also=(earlier,))
        return PASS

    return check


def _claims(rule: Mapping[str, Any]) -> TextCheck:
    said, shows = (tuple(text.lower() for text in texts_of(rule, key)) for key in ("phrases", "shows"))
    tool, command = text_of(rule, "tool"), text_of(rule, "command", "").lower()

    def check(view: View, position: int) -> Found:
        if not any(phrase in view.lowered[position] for phrase in said):
            return UNKNOWN
        rests = [
            call
            for call in view.calls
            if call.position < position
            and matches(tool, call.name)
            and (not command or command in " ".join(str(v) for v in call.arguments.values()).lower())
        ]
        if not rests:
            return fail("it claims what it never looked at", category=Category.INVENTION)
        last = rests[-1]
        if not last.is_error and any(text in last.text.lower() for text in shows):
            return PASS
        return fail("it claims what the result denies", category=Category.MISREADING, also=(last.result,))

    return check


def _refuses(rule: Mapping[str, Any]) -> TextCheck:
    said, allowed = (tuple(text.lower() for text in texts_of(rule, key)) for key in ("phrases", "allowed"))
    lookup, name = text_of(rule, "lookup"), text_of(rule, "field")

    def check(view: View, position: int) -> Found:
        if not any(phrase in view.lowered[position] for phrase in said):
            return UNKNOWN
        shown = [
            call
            for call in view.calls
            if 0 <= call.result < position and matches(lookup, call.name) and isinstance(call.value, dict)
        ]
        if not shown or name not in shown[-1].value:
            return UNKNOWN
        state = str(shown[-1].value[name])
        if state.lower() not in allowed:
            return PASS
        return fail(f"it refuses although {name} is {state}", category=Category.MISREADING, also=(shown[-1].result,))

    return check


TURN_KINDS: dict[str, tuple[Event, Callable[[Mapping[str, Any]], TextCheck]]] = {
    "told": (Event.TEXT, _told),
    "answer_from": (Event.TEXT, _answer_from),
    "asked": (Event.END, _asked),
    "acts": (Event.TEXT, _acts_on_consent),
    "before_proposal": (Event.TEXT, _before_proposal),
    "keeps": (Event.USER, _keeps),
    "claims": (Event.TEXT, _claims),
    "refuses": (Event.TEXT, _refuses),
}
"""Kinds of rules about turns: the event that they look at, and how a rule becomes a check."""
