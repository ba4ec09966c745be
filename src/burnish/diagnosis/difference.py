"""What was done against what should have been: calls that write, their arguments, final states, texts to be told.

Order does not count, nor that of lists which belong together (items and their replacements), nor elements that are
replaced by themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from burnish.diagnosis.plain import real
from burnish.diagnosis.record import Call, Reference
from burnish.diagnosis.view import CallView, View, is_key, leaves

MAX_ACTIONS = 200
FREE_TEXT_WORDS = 5
"""From so many words on an argument is free text, of whatever name."""
_FREE_TEXT = frozenset(
    (
        *("body", "comment", "content", "description", "details", "memo", "message", "note", "notes", "subject"),
        *("summary", "text", "title"),
    )
)
_WITH_DIGIT = re.compile(r"[\w-]*\d[\w-]*")


class Kind(StrEnum):
    """How an action departs from the reference."""

    WRONG = "wrong_argument"
    EXTRA = "extra"
    MISSING = "missing"
    BLOCKED = "blocked"


class Replayer(Protocol):
    """Runs actions in a fresh world; whoever owns the environment hands one in."""

    def final_state(self, actions: Sequence[Call]) -> Mapping[str, Any]:
        """The state after these actions, failed ones included."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange:
    """An argument with what was given and what should have been, each side without what both have.

    `FieldChange(name="item_ids", given=("7",), wanted=("8",))`
    """

    name: str
    given: tuple[str, ...]
    wanted: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """One action that is not as it should be.

    call: what was done (for `MISSING`, None; for `BLOCKED`, the attempt that failed).  wanted: the action of the
    reference, None for `EXTRA`.
    """

    kind: Kind
    call: CallView | None = None
    wanted: Call | None = None
    fields: tuple[FieldChange, ...] = ()

    @property
    def position(self) -> int:
        """Where it shows, counted from 0; beyond every message for what is missing."""
        return self.call.position if self.call is not None else 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Everything in which a trajectory departs from its reference, in order.

    compared: whether there was anything to compare with.  paths: of fields in which the final states differ.
    """

    compared: bool = False
    departures: tuple[Departure, ...] = ()
    untold: tuple[str, ...] = ()
    paths: tuple[str, ...] = field(default=())

    @property
    def is_clean(self) -> bool:
        """Compared, and nothing departs."""
        return self.compared and not self.departures and not self.untold and not self.paths


def difference(view: View, reference: Reference | None, replayer: Replayer | None = None) -> Difference:
    """Compare a trajectory with its reference; equal final states forgive actions that differ."""
    if reference is None or (reference.actions is None and not reference.outputs):
        return Difference()
    done = [call for call in view.writes if call.result < 0 or not call.is_error][:MAX_ACTIONS]
    failed = [call for call in view.writes if call.result >= 0 and call.is_error and not _corrected(view, call)]
    failed = failed[:MAX_ACTIONS]
    wanted = [a for a in (reference.actions or ())[:MAX_ACTIONS] if view.kinds.is_write(a.name)]
    departures = _departures(done, failed, wanted) if reference.actions is not None else []
    departures = [d for d in departures if d.kind is not Kind.EXTRA or not _in_passing(view, d.call, wanted)]
    paths: tuple[str, ...] = ()
    if replayer is not None and departures and reference.actions is not None:
        paths = state_paths(
            replayer.final_state([call.call for call in done]), replayer.final_state(list(reference.actions))
        )
        departures = departures if paths else []
    untold = tuple(text for text in reference.outputs if text.strip() and not _told(view, text))
    return Difference(compared=True, departures=tuple(departures), untold=untold, paths=paths)


def _corrected(view: View, call: CallView) -> bool:
    """Whether a failed call was mended at once: the next one of the tool succeeded, and with other arguments."""
    later = next((c for c in view.calls if c.position > call.position and c.name == call.name), None)
    return later is not None and not later.is_error and later.arguments != call.arguments


def _in_passing(view: View, call: CallView | None, wanted: Sequence[Call]) -> bool:
    """Whether an extra call is a step on the way, of a tool that the reference never names: it may only show
    something, or the rules of the record name it.

    References may leave out what changes nothing, and where nobody says which tools write that is a guess.
    """
    if call is None or view.kinds.is_told or any(action.name == call.name for action in wanted):
        return False
    if view.kinds.may_only_show(call.name):
        return True
    name = call.name.lower()
    return any(name in view.lowered[p] for p in view.said("system", call.position))


def _told(view: View, text: str) -> bool:
    wanted = text.lower().replace(",", "").strip()
    return any(
        wanted in view.lowered[p].replace(",", "") for p in range(len(view.items)) if view.items[p].role == "assistant"
    )


def _departures(done: list[CallView], failed: list[CallView], wanted: list[Call]) -> list[Departure]:
    open_done = list(done)
    open_wanted = []
    for action in wanted:
        target = normal(action.arguments or {})
        match = next((c for c in open_done if c.name == action.name and normal(c.arguments) == target), None)
        if match is None:
            match = next((c for c in open_done if c.name == action.name and not changes(c.call, action)), None)
        if match is None:
            open_wanted.append(action)
        else:
            open_done.remove(match)
    found = []
    for action in open_wanted:
        call = _closest(action, [c for c in open_done if c.name == action.name])
        if call is not None:
            open_done.remove(call)
            found.append(Departure(kind=Kind.WRONG, call=call, wanted=action, fields=changes(call.call, action)))
            continue
        attempt = _closest(action, [c for c in failed if c.name == action.name])
        if attempt is not None:
            fields = changes(attempt.call, action)
            if not fields and not _held_up(attempt, done):
                continue
            found.append(Departure(kind=Kind.BLOCKED, call=attempt, wanted=action, fields=fields))
        else:
            found.append(Departure(kind=Kind.MISSING, wanted=action))
    found += [Departure(kind=Kind.EXTRA, call=call) for call in open_done if not _is_idle(call)]
    return sorted(found, key=lambda departure: departure.position)


def _held_up(attempt: CallView, done: list[CallView]) -> bool:
    """Whether an own earlier write on the same object can be why the wanted call failed; else the world forbids it."""
    keys = {v for k, v in attempt.arguments.items() if isinstance(v, str) and is_key(k)}
    return any(c.position < attempt.position and keys & set(leaves(c.arguments)) for c in done)


def _is_idle(call: CallView) -> bool:
    lists = [value for value in call.arguments.values() if isinstance(value, list)]
    return len(lists) > 1 and all(value == lists[0] for value in lists)


def _closest(action: Call, calls: list[CallView]) -> CallView | None:
    def shared(call: CallView) -> int:
        return len(set(leaves(call.arguments)) & set(leaves(action.arguments or {})))

    return max(calls, key=shared, default=None)


def normal(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments in a form in which equal intentions are equal.

    >>> normal({"old": ["2", "1", "5"], "new": ["b", "a", "5"]}) == normal({"old": ["1", "2"], "new": ["a", "b"]})
    True
    """
    out: dict[str, Any] = {k: scalar(v) for k, v in arguments.items() if not isinstance(v, list) and v is not None}
    lists = {name: value for name, value in arguments.items() if isinstance(value, list)}
    for length in {len(value) for value in lists.values()}:
        names = sorted(name for name, value in lists.items() if len(value) == length)
        rows = [tuple(_element(item) for item in row) for row in zip(*(lists[n] for n in names), strict=True)]
        if len(names) > 1:
            rows = [row for row in rows if any(item != row[0] for item in row)]
        rows.sort(key=lambda row: json.dumps(row, sort_keys=True))
        for number, name in enumerate(names):
            out[name] = [row[number] for row in rows]
    return out


def _element(value: Any) -> Any:
    """An element of a list: objects and lists stay what they are, everything else becomes text."""
    value = scalar(value)
    return value if isinstance(value, dict | list) else str(value)


def scalar(value: Any) -> Any:
    """Texts without case and outer blanks, numbers as floats, objects and lists with such values, the rest as it is.

    >>> scalar({"b": " X", "a": [1, None]})
    {'b': 'x', 'a': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): scalar(item) for key, item in value.items()}
    if isinstance(value, list):
        return [scalar(item) for item in value]
    if isinstance(value, str):
        return value.strip().lower()
    number = real(value)
    return number if number is not None and not isinstance(value, bool) else value


def changes(call: Call, wanted: Call) -> tuple[FieldChange, ...]:
    """Arguments in which two calls differ."""
    a, b = normal(call.arguments or {}), normal(wanted.arguments or {})
    found = []
    for name in sorted({*a, *b}):
        if a.get(name) == b.get(name) or _says_the_same(name, a.get(name), b.get(name)):
            continue
        given, right = list(leaves(a.get(name))), list(leaves(b.get(name)))
        found.append(
            FieldChange(
                name=name,
                given=tuple(x for x in given if x not in right),
                wanted=tuple(x for x in right if x not in given),
            )
        )
    return tuple(found)


def _says_the_same(name: str, given: Any, wanted: Any) -> bool:
    """Whether two free texts agree: what one means stands in no two texts alike, so numbers and identifiers count.

    >>> _says_the_same("note", "restarted pump 7, all well", "pump 7 restarted"), _says_the_same("size", "l", "xl")
    (True, False)
    """
    if not isinstance(given, str) or not isinstance(wanted, str) or not given or not wanted:
        return False
    if name.lower() not in _FREE_TEXT and min(len(given.split()), len(wanted.split())) < FREE_TEXT_WORDS:
        return False
    return set(_WITH_DIGIT.findall(wanted)) <= set(_WITH_DIGIT.findall(given))


def state_paths(actual: Any, expected: Any, path: str = "", depth: int = 12) -> tuple[str, ...]:
    """Paths at which two states differ, at most 200.

    >>> state_paths({"a": {"b": 1}}, {"a": {"b": 2}, "c": 0})
    ('a.b', 'c')
    """
    if isinstance(actual, Mapping) and isinstance(expected, Mapping) and depth > 0:
        found: list[str] = []
        for key in sorted({*map(str, actual), *map(str, expected)}):
            inner = f"{path}.{key}" if path else key
            found += state_paths(actual.get(key), expected.get(key), inner, depth - 1)
            if len(found) >= 200:
                break
        return tuple(found[:200])
    return () if actual == expected else (path or ".",)
