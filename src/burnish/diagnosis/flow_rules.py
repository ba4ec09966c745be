"""Kinds of rules about where a value comes from: shown before, from the right field, by the right table, a known name.

  grounded    each number and word in `arguments` stood in a message before
  drawn_from  each number or text in argument `argument` that results have shown stands there in one of `fields` (a
              result that is one value counts as a field named like its tool), or in what the user said
  by_field    `argument` is what `table` gives for `field` of the last result of `lookup` with equal argument `key`
  known_names each name that the code in `argument` calls was shown before, is defined there, or is one of `known`
  proposed    the agent's last turn of talk proposed something, and the user's answer to it consents

`when` and `unless` are phrases of what the user said: the rule is about trajectories with one, and with none, of them.
A value nobody showed is an invention, unless it is one slip (two characters swapped, one left out or doubled) away
from one that was: then it is a wrong call where the user had said it, and a misreading where a result had.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from burnish.core.errors import ConfigError
from burnish.diagnosis.constraint import PASS, UNKNOWN, CallCheck, Found, fail
from burnish.diagnosis.rule_fields import text_of, texts_of
from burnish.diagnosis.talk import PROPOSES, consents
from burnish.diagnosis.taxonomy import Category
from burnish.diagnosis.view import ATOM, CallView, View, leaves

_CALLED = re.compile(r"(?<![\w.])([A-Za-z_]\w*)\s*\(")
_DEFINED = re.compile(r"\b(?:def|class|for|import|as)\s+([A-Za-z_]\w*)")
MAX_ATOMS = 400
MAX_NEAR = 5000
"""Values that one is compared with; more would let a long record take its time."""


def atoms(value: Any) -> list[str]:
    """Numbers and words of a value, in lower case.

    >>> atoms({"a": "3*47", "b": ["Lamp", 5]})
    ['3', '47', 'lamp', '5']
    """
    texts = list(leaves(value)) if isinstance(value, Mapping | list) else [str(value)]
    return [atom.lower() for text in texts for atom in ATOM.findall(text[:20_000])][:MAX_ATOMS]


def slip(used: str, shown: str) -> bool:
    """Whether what was used is one slip away from what was shown: neighbours swapped, a character left out or doubled.

    >>> slip("71", "17"), slip("lap", "lamp"), slip("177", "17"), slip("170", "17"), slip("18", "17")
    (True, True, True, False, False)
    """
    if len(shown) < 2:
        return False
    if len(used) == len(shown):
        odd = [n for n in range(len(used)) if used[n] != shown[n]]
        return len(odd) == 2 and odd[1] == odd[0] + 1 and used[odd[0]] + used[odd[1]] == shown[odd[1]] + shown[odd[0]]
    if len(used) == len(shown) - 1:
        return any(shown[:n] + shown[n + 1 :] == used for n in range(len(shown)))
    return len(used) == len(shown) + 1 and any(
        shown[:n] + shown[n - 1] + shown[n:] == used for n in range(1, len(used))
    )


def unshown(view: View, atom: str, before: int) -> Category | None:
    """None where a message before a position holds this number or word; else what kind of error it is to use it."""
    if 0 <= view.first_atom(atom) < before:
        return None
    near = [role for other, _, role in islice(view.atoms_before(before), MAX_NEAR) if slip(atom, other)]
    if "user" in near:
        return Category.INVOCATION
    return Category.MISREADING if near else Category.INVENTION


def applies(view: View, when: tuple[str, ...], unless: tuple[str, ...]) -> bool:
    """Whether what the user says has one of the phrases `when` (if there are any) and none of `unless`."""
    talk = view.user_talk
    return (not when or any(phrase in talk for phrase in when)) and not any(phrase in talk for phrase in unless)


def phrases(rule: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`when` and `unless` of a rule, in lower case."""
    when, unless = (tuple(text.lower() for text in texts_of(rule, key, least=0)) for key in ("when", "unless"))
    return when, unless


def _grounded(rule: Mapping[str, Any]) -> CallCheck:
    names = texts_of(rule, "arguments")
    when, unless = phrases(rule)

    def check(view: View, call: CallView) -> Found:
        found = [atom for name in names if name in call.arguments for atom in atoms(call.arguments[name])]
        if not found or not applies(view, when, unless):
            return UNKNOWN
        for atom in found:
            category = unshown(view, atom, call.position)
            if category is not None:
                return fail(f"{atom} was never shown before it was used", quote=atom, category=category)
        return PASS

    return check


def sources(view: View, atom: str, before: int) -> Iterator[str]:
    """Fields under which results before a position show a number or word; "" for what the user said."""
    for call in view.calls:
        if not 0 <= call.result < before or call.is_error:
            continue
        if not isinstance(call.value, dict | list):
            if atom in atoms(call.value):
                yield call.name
            continue
        for name, leaf in view.leaves_of(call):
            if str(leaf).lower() == atom:
                yield name
    if re.search(rf"(?<!\w){re.escape(atom)}(?!\w)", view.talk_before(before)):
        yield ""


def wrong_source(view: View, found: list[str], fields: frozenset[str], before: int) -> Found:
    """The first of some values that was shown, and only under other fields."""
    known = 0
    for atom in found:
        shown = set(sources(view, atom, before))
        known += bool(shown)
        if shown and not shown & fields and "" not in shown:
            return fail(f"{atom} was shown as {', '.join(sorted(shown))}", quote=atom, category=Category.MISREADING)
    return PASS if known else UNKNOWN


def _drawn_from(rule: Mapping[str, Any]) -> CallCheck:
    name, fields = text_of(rule, "argument"), frozenset(texts_of(rule, "fields", least=0))
    when, unless = phrases(rule)

    def check(view: View, call: CallView) -> Found:
        if name not in call.arguments or not applies(view, when, unless):
            return UNKNOWN
        return wrong_source(view, atoms(call.arguments[name]), fields, call.position)

    return check


def _by_field(rule: Mapping[str, Any]) -> CallCheck:
    argument, lookup = text_of(rule, "argument"), text_of(rule, "lookup")
    key, name = text_of(rule, "key"), text_of(rule, "field")
    table = rule.get("table")
    if not isinstance(table, Mapping) or not table:
        raise ConfigError("table must give a value for each value of the field")

    def check(view: View, call: CallView) -> Found:
        shown = [
            other
            for other in view.calls
            if other.position < call.position
            and other.name == lookup
            and other.arguments.get(key) == call.arguments.get(key)
            and isinstance(other.value, dict)
            and other.value.get(name) in table
        ]
        given = call.arguments.get(argument)
        if not shown or given is None:
            return UNKNOWN
        last = shown[-1]
        state = last.value[name]
        if str(given) == str(table[state]):
            return PASS
        return fail(
            f"{argument} of {call.arguments.get(key)} is {table[state]} since it is {state}, not {given}",
            quote=str(given),
            position=first_use(view, str(given), last.result, call.position),
            also=(last.result,),
        )

    return check


def first_use(view: View, text: str, after: int, before: int) -> int:
    """The first turn of the agent between two positions that says a value, else the later position."""
    word = re.compile(rf"(?<!\w){re.escape(text.lower())}(?!\w)")
    said = (p for p in sorted(view.said("assistant", before, after)) if word.search(view.lowered[p]))
    return next(said, before)


def _known_names(rule: Mapping[str, Any]) -> CallCheck:
    argument, known = text_of(rule, "argument"), frozenset(texts_of(rule, "known", least=0))

    def check(view: View, call: CallView) -> Found:
        code = call.arguments.get(argument)
        if not isinstance(code, str):
            return UNKNOWN
        code = code[:50_000]
        names = set(_CALLED.findall(code)) - known - set(_DEFINED.findall(code))
        if not names:
            return UNKNOWN
        unknown = sorted(name for name in names if not 0 <= view.first_seen(name) < call.position)
        return fail(f"{unknown[0]} was never shown and is not defined", quote=unknown[0]) if unknown else PASS

    return check


def _proposed(rule: Mapping[str, Any]) -> CallCheck:
    def check(view: View, call: CallView) -> Found:
        user = next(view.said("user", call.position), -1)
        said = next((p for p in view.said("assistant", user) if view.items[p].text), -1)
        if user < 0 or not view.has_user:
            return UNKNOWN
        asked = said >= 0 and PROPOSES.search(view.items[said].text) is not None
        if asked and consents(view.items[user].text):
            return PASS
        return fail("nobody had agreed to a proposal of it", quote=view.items[user].text, also=(user,))

    return check


FLOW_KINDS: dict[str, Callable[[Mapping[str, Any]], CallCheck]] = {
    "grounded": _grounded,
    "drawn_from": _drawn_from,
    "by_field": _by_field,
    "known_names": _known_names,
    "proposed": _proposed,
}
