"""Constraints that need nothing but the trajectory: values never seen, repeats, errors, broken plans, early ends."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from burnish.diagnosis.constraint import PASS, UNKNOWN, Constraint, Event, Found, Guard, Verdict, fail
from burnish.diagnosis.flow_rules import unshown
from burnish.diagnosis.plain import real
from burnish.diagnosis.talk import ASKS_TO_ACT, BARRED, LEAVES, REFUSES, consents, content_words
from burnish.diagnosis.taxonomy import Category, Fault
from burnish.diagnosis.view import MOST_NUMBERS, CallView, View, is_key, leaves, name_words, objects_in, speaker

_IDENTIFIER = re.compile(r"^(?=.*\d)[#\w@.+:/-]{4,80}$")
_DATE = re.compile(r"^(?:\d{4}-\d{2}-(?P<day>\d{2})(?:[T ]\d{2}:\d{2}.{0,10})?|(?P<hour>\d{1,2}):\d{2}(?::\d{2})?)$")
_RELATIVE = re.compile(
    r"\b(?:today|tonight|tomorrow|yesterday|noon|midnight|next|(?:mon|tues|wednes|thurs|fri|satur|sun)day)\b"
)
_NUMBERED = re.compile(r"^\s*(?:\d{1,2}[.)]|[-*])\s+(.{3,200})$", re.M)
_LAST_CALL = re.compile(r"transfer|submit|finish|done|complete|answer|terminate|stop|exit|end_", re.I)
_TOOL_NAME = re.compile(r"^`?([a-z]{2,20}(?:_[a-z]{2,20}){1,4})\b")
_CHANGE = re.compile(
    r"\b(?:actually|instead of|i meant|no,? wait|on second thought|scratch that|changed my mind|rather than)\b", re.I
)
_STATED = re.compile(r"\b([a-z][a-z ]{2,24}?) (?:is|are|=|should be|must be) (?:the )?[\"'$#]?([\w.@#-]{1,40})", re.I)
_SKIP_SUBJECTS = frozenset(re.findall(r"\w+", "it that this which what there everything name here not all one"))


def _scalars(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(name, value) of every text and number in the arguments, those of lists and inner objects too."""
    for fields in objects_in(arguments):
        for name, value in fields.items():
            values = value if isinstance(value, list) else [value]
            for item in values[:100]:
                if isinstance(item, str | int | float) and not isinstance(item, bool):
                    yield name, item


def _ungrounded(view: View, call: CallView) -> Found:
    """An identifier in the arguments that nobody had said before."""
    known = 0
    for name, value in _scalars(call.arguments):
        text = str(value)
        if not isinstance(value, str) or not _IDENTIFIER.match(text) or ("/" in text and not call.is_write):
            # where to look (an address, a path) may be known without being told
            continue
        known += 1
        at = view.first_seen(text)
        if not call.is_write and not call.is_error and text.lower() in call.text.lower():
            # what a result confirms was no invention
            continue
        if 0 <= at <= call.position or _pieces_seen(view, text, call.position) or _date_said(view, text, call.position):
            continue
        category = unshown(view, text.lower(), call.position) if text.isalnum() else None
        return fail(f"{name}={text} was never seen before it was used", quote=text, category=category)
    return PASS if known else UNKNOWN


def _date_said(view: View, text: str, before: int) -> bool:
    """Whether a date or a time stands for what was said in another form, such as "July 3rd" or "next Friday"."""
    match = _DATE.match(text)
    if match is None:
        return False
    if "relative" not in view.memo:
        view.memo["relative"] = _RELATIVE.search(view.user_talk) is not None
    number = int(match["day"] or match["hour"])
    seen = (view.first_atom(text) for text in (str(number), f"{number:02d}"))
    return bool(view.memo["relative"]) or any(0 <= at < before for at in seen)


def _pieces_seen(view: View, text: str, before: int) -> bool:
    pieces = [piece for piece in re.split(r"[^a-z0-9]+", text.lower()) if len(piece) > 1]
    return all(0 <= view.first_seen(piece) <= before for piece in pieces)


def _number(view: View, call: CallView) -> Found:
    """A number in a write that is neither seen nor a sum or difference of two that were."""
    if not call.is_write:
        return UNKNOWN
    known = 0
    for name, value in _scalars(call.arguments):
        number = real(value)
        if isinstance(value, str) or number is None or (abs(number) <= 12 and number == int(number)):
            continue
        known += 1
        if not number_known(view, number, call.position):
            return fail(f"{name}={value} is neither seen nor a sum or difference of what was", quote=str(value))
    return PASS if known else UNKNOWN


def numbers_before(view: View, before: int) -> set[float]:
    """Numbers that stand in any message before a position, little more than `MOST_NUMBERS` of them."""
    found: set[float] = set()
    for position in range(before):
        found |= view.numbers(position)
        if len(found) > MOST_NUMBERS:
            break
    return found


def number_known(view: View, number: float, before: int) -> bool:
    """Whether a number was seen or follows from two seen ones by adding, subtracting or multiplying."""
    text = f"{number:g}"
    if 0 <= view.first_seen(text) < before or 0 <= view.first_seen(f"{number:.2f}") < before:
        return True
    seen = numbers_before(view, before)
    number = round(number, 2)
    return (
        number in seen
        or any(round(number - a, 2) in seen or round(number + a, 2) in seen for a in seen)
        or any(a and abs(a) >= 1 and round(number / a, 4) in seen for a in seen)
    )


def _error(recovered: bool, outage: bool) -> Any:
    def check(view: View, call: CallView) -> Found:
        if not call.is_error or call.is_outage != outage:
            return PASS
        later = _recovery(view, call)
        if outage or (later is not None) == recovered:
            at = call.result if outage else call.position
            category = None if outage else _cause(view, call)
            return fail(f"{call.name} failed: {call.text[:100]}", position=at, quote=call.text, category=category)
        return PASS

    return check


def _cause(view: View, call: CallView) -> Category | None:
    """What kind of error a failed call is, other than a wrong call: made of what nobody had said, or not permitted."""
    if BARRED.search(call.text[:500]):
        return Category.GUARDRAIL
    found = _ungrounded(view, call)
    return (found.category or Category.INVENTION) if found.verdict is Verdict.FAIL else None


def _recovery(view: View, call: CallView) -> CallView | None:
    """A later call that succeeded in its place: the same tool, or another one on the same object."""
    key = _key(call)
    for other in view.calls:
        if other.position <= call.position or other.is_error:
            continue
        same_verb = not call.is_write and other.name.split("_")[0] == call.name.split("_")[0]
        if other.name == call.name or same_verb or (other.is_write == call.is_write and key and _key(other) == key):
            return other
    return None


def _key(call: CallView) -> str:
    return next((str(v) for k, v in call.arguments.items() if is_key(k)), "")


def _repeated(view: View, call: CallView) -> Found:
    """The same call as before, which had not failed, and nothing was written in between."""
    if not call.arguments and not call.is_write:
        return UNKNOWN
    own = json.dumps(dict(call.arguments), sort_keys=True, default=str)
    changed = False
    for other in reversed([c for c in view.calls if c.position < call.position]):
        if other.name == call.name and json.dumps(dict(other.arguments), sort_keys=True, default=str) == own:
            # to try again what was down is what there is to do
            again = not other.is_error or (other.text == call.text and not other.is_outage)
            return fail("the same call as before", also=(other.position,)) if again and not changed else PASS
        changed = changed or (other.is_write and not other.is_error)
    return PASS


def _consent(view: View, call: CallView) -> Found:
    last = next(view.said("user", call.position), -1)
    if not view.has_user or last < 0:
        return UNKNOWN
    text = view.items[last].text
    # who asks for the very thing needs no other yes, unless a policy says so
    named = {word for _, value in _scalars(call.arguments) for word in content_words(str(value))}
    asked = content_words(text) & (named | set(name_words(call.name)))
    return (
        PASS
        if consents(text) or asked
        else fail("a write after a turn that consents to nothing", quote=text, also=(last,))
    )


def _contradicts_object(view: View, call: CallView) -> Found:
    """An argument that differs from the field of the same name of the object that another argument names."""
    known = 0
    for name, value in call.arguments.items():
        if name.endswith("id") or is_key(name) or isinstance(value, Mapping | list) or value is None:
            continue
        for key in call.arguments:
            if key == name or not is_key(key):
                continue
            shown = view.field(call.arguments[key], name, call.position)
            if shown is None or isinstance(shown, Mapping | list):
                continue
            known += 1
            spoken = any(str(value).lower() in view.lowered[p] for p in view.said("user", call.position))
            if str(shown).lower() != str(value).lower() and not spoken and real(shown) != real(value):
                return fail(f"{name} of {call.arguments[key]} is {shown}, not {value}", quote=str(value))
    return PASS if known else UNKNOWN


def _unanswered(view: View, position: int) -> Found:
    """It ends on a request or on a tool's result."""
    item = view.items[position]
    if item.role == "user" and len(view.items) > 2:
        text = LEAVES.sub("", item.text)
        waiting = ASKS_TO_ACT.search(text) is not None and not re.search(
            r"\bthank(?:s| you)\b[^.!?]{0,60}$", text, re.I
        )
        return fail("it ends on a request that nobody answered", quote=text[-160:]) if waiting else PASS
    if item.role == "tool":
        call = next((c for c in view.calls if c.result == position), None)
        ended = call is not None and (not view.has_user or _LAST_CALL.search(call.name) is not None)
        if call is not None and (call.is_error or (call.is_write and not ended)):
            return fail("it ends on a tool's result, before the agent could act on it", quote=item.text)
    return PASS


def _idle(view: View, position: int) -> Found:
    """Something was asked for and nothing was ever written, though the agent could."""
    asked = next((p for p in range(len(view.items)) if view.items[p].role == "user"), -1)
    if (
        asked < 0
        or not view.has_user
        or not any(ASKS_TO_ACT.search(view.items[p].text) for p in view.said("user", 10**9))
    ):
        return UNKNOWN
    if any(not call.is_error for call in view.writes):
        return PASS
    said = list(view.said("assistant", 10**9))
    refused = next((p for p in said if REFUSES.search(view.items[p].text)), said[0] if said else position)
    return fail("asked to act, nothing was ever done", position=refused)


def _plan(view: View, position: int) -> Found:
    """A list of the agent's names tools, or members of a team, that then never act; at the next one that does."""
    members = {speaker(item) for item in view.items if item.role == "assistant"} - {""}
    names = {tool.name for tool in view.record.tools} | {call.name for call in view.calls} | members
    names = {name for name in names if len(name) > 2}
    acting: dict[int, set[str]] = {}
    for call in view.calls:
        acting.setdefault(call.position, set()).add(call.name)
    later: set[str] = set()
    for at in range(len(view.items) - 1, -1, -1):
        item = view.items[at]
        here = acting.setdefault(at, set())
        later |= here
        if item.role != "assistant":
            continue
        planned: list[str] = []
        for line in _NUMBERED.findall(item.text[:5000]) if names else ():
            planned += sorted({n for n in names if n in line} | set(_TOOL_NAME.findall(line)))
        skipped = [name for name in planned if name not in later]
        if len(planned) >= 2 and skipped and len(skipped) < len(planned):
            after = set(planned[planned.index(skipped[0]) + 1 :])
            last = next(view.said("assistant", len(view.items)), position)
            where = next((p for p in range(at + 1, len(view.items)) if after & acting.get(p, set())), last)
            return fail(f"planned {skipped[0]} and never called it", position=where, also=(at,))
        here.add(speaker(item))
        later.add(speaker(item))
    return PASS


def _changes_mind(view: View, position: int) -> Found:
    """After something was written, the user asks for it otherwise."""
    done = [c for c in view.writes if not c.is_error and c.position < position]
    match = _CHANGE.search(view.items[position].text)
    if not done:
        return UNKNOWN
    return fail("the user takes back what was done for them", quote=view.items[position].text) if match else PASS


def _contradicts_self(view: View, position: int) -> Found:
    """A user who states another value for the same thing than before."""
    now = dict(_statements(view.items[position].text))
    if not now:
        return UNKNOWN
    for earlier in view.said("user", position):
        for subject, value in _statements(view.items[earlier].text):
            if subject in now and now[subject] != value:
                why = f"{subject} was {value} and is now {now[subject]}"
                return fail(why, quote=view.items[position].text, also=(earlier,))
    return PASS


def _statements(text: str) -> Iterator[tuple[str, str]]:
    for subject, value in _STATED.findall(text[:5000]):
        named = subject.lower().split()
        key = " ".join(word for word in named if word not in ("my", "the", "and", "so", "but", "a"))
        if key and key.split()[-1] not in _SKIP_SUBJECTS and (real_like(value) or value[:1].isupper()):
            yield key, value.lower().rstrip(".")


def real_like(text: str) -> bool:
    """Whether a word holds a digit."""
    return any(char.isdigit() for char in text)


def _off_request(view: View, call: CallView) -> Found:
    """A write whose objects share no word with anything the user said, where others shown do."""
    if not view.has_user:
        return UNKNOWN
    talk: set[str] = set()
    for position in view.said("user", call.position):
        talk |= content_words(view.items[position].text)
    named = [value for _, value in _scalars(call.arguments) if isinstance(value, str)]
    shown = [view.object(value, call.position) for value in named]
    texts = {leaf.lower() for fields in shown if fields for leaf in leaves(fields) if len(leaf) > 2}
    if not texts:
        return UNKNOWN
    said = {word for text in texts for word in content_words(text)} | {value.lower().lstrip("#") for value in named}
    return PASS if said & talk else fail("it acts on things that the user never named", quote=call.name)


def _constraint(name: str, severity: float, category: Category, text: str, **more: Any) -> Constraint:
    event = more.pop("event", Event.CALL)
    guard = Guard(event=event, writes=more.pop("writes", False))
    return Constraint(id=name, guard=guard, severity=severity, category=category, text=text, **more)


def own_constraints() -> tuple[Constraint, ...]:
    """The fixed list; none knows a domain."""
    make = _constraint
    c = Category
    return (
        make("ungrounded", 0.7, c.INVENTION, "an identifier nobody had said", on_call=_ungrounded),
        make("ungrounded_number", 0.5, c.INVENTION, "a number from nowhere", on_call=_number),
        make("error_unrecovered", 0.6, c.INVOCATION, "a call failed for good", on_call=_error(False, False)),
        make("error_recovered", 0.1, c.INVOCATION, "a call failed, a later one did not", on_call=_error(True, False)),
        make("outage", 0.8, c.SYSTEM, "a tool was down", on_call=_error(False, True), owner=Fault.ENVIRONMENT),
        make("repeated", 0.3, c.ADHERENCE, "the same call again", on_call=_repeated),
        make("consent", 0.3, c.ADHERENCE, "a write without consent", on_call=_consent, writes=True),
        make("off_request", 0.3, c.MISALIGNMENT, "a write on things never named", on_call=_off_request, writes=True),
        make("contradicts_object", 0.5, c.MISREADING, "an argument against a result", on_call=_contradicts_object),
        make(
            "unanswered",
            0.8,
            c.SYSTEM,
            "it ends too early",
            on_text=_unanswered,
            event=Event.END,
            owner=Fault.INFRASTRUCTURE,
        ),
        make("idle", 0.4, c.MISALIGNMENT, "asked to act, nothing done", on_text=_idle, event=Event.END),
        make("plan_skipped", 0.6, c.ADHERENCE, "a planned step was skipped", on_text=_plan, event=Event.END),
        make(
            "changes_mind",
            0.5,
            c.UNDERSPECIFIED,
            "the user takes it back",
            on_text=_changes_mind,
            event=Event.USER,
            owner=Fault.USER,
        ),
        make(
            "contradicts_self",
            0.6,
            c.UNDERSPECIFIED,
            "the user contradicts himself",
            on_text=_contradicts_self,
            event=Event.USER,
            owner=Fault.USER,
        ),
    )
