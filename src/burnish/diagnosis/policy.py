"""Rules of a domain as data: a small TOML form that is compiled into constraints.  Nothing in it is code.

    [tools]
    writes = "cancel_*|modify_*"            # patterns with "*", joined by "|"; without them the first word decides
    reads = "get_*"

    [values]                                # closed vocabularies of fields, for contradictions in text
    status = ["pending", "delivered"]

    [[rule]]
    id = "authenticate"                     # unique
    kind = "before"                         # see KINDS
    tool = "get_*|cancel_*"                 # guard: tools that it is about
    needs = "find_user_*"                   # the fields of the kind
    severity = 0.5                          # 0 to 1
    category = "instruction_adherence"
    text = "authenticate first"             # for people

KINDS
  before      a call that matched `needs` succeeded earlier
  confirm     the user consented after the agent's last proposal
  state       `field` of each object that argument `argument` names, as last shown, is in `allowed`
  belongs     each value of argument `argument` stands in the object that argument `object` names
  amount      number in `argument` is at most `most`, or at most `field` of the object that argument `object` names
  once        with equal arguments `key`, tools that match succeed at most once
  never_after with equal arguments `key`, it is not called once a call of `after` has succeeded
  equal_length the lists in arguments `arguments` are equally long
  no_self     no element of `arguments[0]` is replaced by itself in `arguments[1]`
  agreed      the value of `argument`, a text of the object that it names, or one of `or_phrases` stand in the talk
  same_value  `field` of the objects that `arguments[0]` and `arguments[1]` name, pair by pair, is equal
  alone       the message of the call says nothing and makes no other call
  proposed    the agent's last turn of talk proposed something, and the user's answer to it consents

Kinds about where values come from and about turns of talk stand in `flow_rules` and `turn_rules`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from burnish.core.errors import ConfigError
from burnish.diagnosis.constraint import PASS, UNKNOWN, CallCheck, Constraint, Event, Found, Guard, TextCheck, fail
from burnish.diagnosis.flow_rules import FLOW_KINDS
from burnish.diagnosis.plain import real
from burnish.diagnosis.rule_fields import text_of, texts_of
from burnish.diagnosis.talk import consents, content_words
from burnish.diagnosis.taxonomy import Category, category_of
from burnish.diagnosis.turn_rules import TURN_KINDS
from burnish.diagnosis.view import CallView, ToolKinds, View, leaves, matches

MAX_RULES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Constraints of a domain with its tools and vocabularies.  `Policy(name="none")` has none."""

    name: str
    kinds: ToolKinds = field(default_factory=ToolKinds)
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    constraints: tuple[Constraint, ...] = ()


def load_policy(path: Path) -> Policy:
    """A policy file.  Raises ConfigError naming the file and the rule that is wrong."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as a policy: {error}") from error
    return policy_of(data, path.stem)


def policy_of(data: Mapping[str, Any], name: str) -> Policy:
    """The policy that a TOML document, or the same as JSON, says.  Raises ConfigError."""
    tools = data.get("tools", {})
    values = data.get("values", {})
    rules = data.get("rule", [])
    if not isinstance(tools, Mapping) or not isinstance(values, Mapping) or not isinstance(rules, list):
        raise ConfigError(f"policy {name}: [tools] and [values] are tables and [[rule]] a list of tables")
    if len(rules) > MAX_RULES:
        raise ConfigError(f"policy {name}: {len(rules)} rules; at most {MAX_RULES} are read")
    constraints = tuple(compile_rule(rule, f"policy:{name}") for rule in rules)
    ids = [constraint.id for constraint in constraints]
    if len(set(ids)) != len(ids):
        raise ConfigError(f"policy {name}: rule ids must be unique, got {sorted(ids)}")
    return Policy(
        name=name,
        kinds=ToolKinds(writes=text_of(tools, "writes", ""), reads=text_of(tools, "reads", "")),
        values={
            str(key): tuple(str(item) for item in items) for key, items in values.items() if isinstance(items, list)
        },
        constraints=constraints,
    )


def compile_rule(rule: Any, origin: str) -> Constraint:
    """One rule as a constraint.  Raises ConfigError naming the field that is missing or wrong."""
    if not isinstance(rule, Mapping):
        raise ConfigError(f"{origin}: a rule is a table, got {type(rule).__name__}")
    name, kind = text_of(rule, "id"), text_of(rule, "kind")
    if kind not in KINDS and kind not in TURN_KINDS:
        known = ", ".join([*KINDS, *TURN_KINDS])
        raise ConfigError(f"{origin}: rule {name}: unknown kind {kind!r}; there are {known}")
    severity = real(rule.get("severity", 0.5))
    category = category_of(rule.get("category", "instruction_adherence"))
    if severity is None or not 0.0 <= severity <= 1.0 or category is None:
        raise ConfigError(f"{origin}: rule {name}: severity is in [0, 1] and category one of the taxonomy")
    on_call: CallCheck | None = None
    on_text: TextCheck | None = None
    event = Event.CALL
    try:
        if kind in KINDS:
            on_call = KINDS[kind](rule)
        else:
            event, make = TURN_KINDS[kind]
            on_text = make(rule)
    except ConfigError as error:
        raise ConfigError(f"{origin}: rule {name}: {error}") from None
    return Constraint(
        id=name,
        guard=Guard(event=event, tool=text_of(rule, "tool", "*"), writes=rule.get("writes") is True),
        severity=severity,
        category=Category(category),
        origin=origin,
        text=text_of(rule, "text", ""),
        on_call=on_call,
        on_text=on_text,
    )


def _earlier(view: View, call: CallView, pattern: str) -> list[CallView]:
    return [
        other
        for other in view.calls
        if other.position < call.position and not other.is_error and other.result >= 0 and matches(pattern, other.name)
    ]


def _before(rule: Mapping[str, Any]) -> CallCheck:
    needs = text_of(rule, "needs")

    def check(view: View, call: CallView) -> Found:
        return PASS if _earlier(view, call, needs) else fail(f"{call.name} before {needs} had succeeded")

    return check


def _confirm(rule: Mapping[str, Any]) -> CallCheck:
    def check(view: View, call: CallView) -> Found:
        if not view.has_user:
            return UNKNOWN
        last = next(view.said("user", call.position), -1)
        if last < 0:
            return fail("nobody was asked", quote=call.name)
        text = view.items[last].text
        return PASS if consents(text) else fail("the user's last turn is no consent", quote=text, also=(last,))

    return check


def _state(rule: Mapping[str, Any]) -> CallCheck:
    argument, name, allowed = text_of(rule, "argument"), text_of(rule, "field"), texts_of(rule, "allowed")

    lowered = {item.lower() for item in allowed}

    def check(view: View, call: CallView) -> Found:
        given = call.arguments.get(argument)
        known = 0
        for key in given[:200] if isinstance(given, list) else [given]:
            value = view.field(key, name, call.position)
            known += value is not None
            if value is not None and str(value).lower() not in lowered:
                return fail(f"{name} of {key} is {value}, not {' or '.join(allowed)}", quote=str(value))
        return PASS if known else UNKNOWN

    return check


def _belongs(rule: Mapping[str, Any]) -> CallCheck:
    argument, holder = text_of(rule, "argument"), text_of(rule, "object")

    def check(view: View, call: CallView) -> Found:
        owner = view.object(call.arguments.get(holder), call.position)
        values = list(leaves(call.arguments.get(argument)))
        if owner is None or not values:
            return UNKNOWN
        held = set(leaves(owner)) | {str(key) for key in owner}
        missing = [value for value in values if value not in held]
        return fail(f"{missing[0]} is not in {call.arguments.get(holder)}", quote=missing[0]) if missing else PASS

    return check


def _amount(rule: Mapping[str, Any]) -> CallCheck:
    argument, most = text_of(rule, "argument"), real(rule.get("most"))
    holder, name = text_of(rule, "object", ""), text_of(rule, "field", "")
    if most is None and not (holder and name):
        raise ConfigError("amount needs `most`, or `object` and `field`")

    def check(view: View, call: CallView) -> Found:
        value = real(call.arguments.get(argument))
        limit = most if most is not None else real(view.field(call.arguments.get(holder), name, call.position))
        if value is None or limit is None:
            return UNKNOWN
        return PASS if value <= limit + 1e-9 else fail(f"{argument} {value:g} is above {limit:g}")

    return check


def _same_key(a: CallView, b: CallView, key: tuple[str, ...]) -> bool:
    return all(a.arguments.get(name) == b.arguments.get(name) and name in a.arguments for name in key)


def _once(rule: Mapping[str, Any]) -> CallCheck:
    key, pattern = texts_of(rule, "key"), text_of(rule, "tool", "*")

    def check(view: View, call: CallView) -> Found:
        earlier = [other for other in _earlier(view, call, pattern) if _same_key(other, call, key)]
        return fail(f"{call.name} again", also=(earlier[0].position,)) if earlier else PASS

    return check


def _never_after(rule: Mapping[str, Any]) -> CallCheck:
    key, after = texts_of(rule, "key"), text_of(rule, "after")

    def check(view: View, call: CallView) -> Found:
        earlier = [other for other in _earlier(view, call, after) if _same_key(other, call, key)]
        if not earlier:
            return PASS
        cause = earlier[0]
        asked = next(view.said("user", cause.position), -1)
        # What was asked for before the locking call could have been done first; else the request itself came too late.
        known = any(_mentions(view, position, call) for position in view.said("user", cause.position + 1))
        if known or asked < 0:
            return fail(f"{cause.name} made {call.name} impossible", position=cause.position, also=(call.position,))
        why = f"{call.name} is not possible after {cause.name}"
        return fail(why, also=(cause.position,), category=Category.UNSUPPORTED)

    return check


def _mentions(view: View, position: int, call: CallView) -> bool:
    named = {word for word in call.name.lower().split("_") if len(word) > 4}
    talked = content_words(view.items[position].text)
    wanted = {word for value in leaves(call.arguments) for word in content_words(value) if not word.isdigit()}
    return bool((named - {"order", "items", "pending"}) & talked) or len(wanted & talked) >= 2


def _equal_length(rule: Mapping[str, Any]) -> CallCheck:
    names = texts_of(rule, "arguments", least=2)

    def check(view: View, call: CallView) -> Found:
        lengths = [len(value) for name in names if isinstance(value := call.arguments.get(name), list)]
        if len(lengths) < 2:
            return UNKNOWN
        return PASS if len(set(lengths)) == 1 else fail(f"lists of {lengths} entries must be equally long")

    return check


def _no_self(rule: Mapping[str, Any]) -> CallCheck:
    names = texts_of(rule, "arguments", least=2)

    def check(view: View, call: CallView) -> Found:
        old, new = call.arguments.get(names[0]), call.arguments.get(names[1])
        if not isinstance(old, list) or not isinstance(new, list):
            return UNKNOWN
        same = [a for a, b in zip(old, new, strict=False) if a == b]
        return fail(f"{same[0]} is replaced by itself", quote=str(same[0])) if same else PASS

    return check


def _agreed(rule: Mapping[str, Any]) -> CallCheck:
    argument = text_of(rule, "argument")
    phrases = tuple(phrase.lower() for phrase in texts_of(rule, "or_phrases", least=0)) if "or_phrases" in rule else ()

    def check(view: View, call: CallView) -> Found:
        value = call.arguments.get(argument)
        if not isinstance(value, str | int):
            return UNKNOWN
        shown = view.smallest(value)
        names = {str(value).lower(), *phrases}
        for leaf in leaves(shown or {}):
            names |= {leaf.lower().replace("_", " ")} if len(leaf) > 3 else set()
        talk = (
            " ".join(view.lowered[p] for p in range(call.position) if view.items[p].role in ("user", "assistant"))
            + view.lowered[call.position]
        )
        if any(name in talk for name in names):
            return PASS
        return fail(f"{argument} {value} was never spoken of", quote=str(value))

    return check


def _same_value(rule: Mapping[str, Any]) -> CallCheck:
    names, name = texts_of(rule, "arguments", least=2), text_of(rule, "field")

    def check(view: View, call: CallView) -> Found:
        old, new = call.arguments.get(names[0]), call.arguments.get(names[1])
        if not isinstance(old, list) or not isinstance(new, list):
            return UNKNOWN
        known = 0
        for a, b in zip(old, new, strict=False):
            x, y = view.field(a, name, call.position), view.field(b, name, call.position)
            known += x is not None and y is not None
            if x is not None and y is not None and x != y:
                return fail(f"{name} of {a} is {x} and of {b} {y}", quote=str(b))
        return PASS if known else UNKNOWN

    return check


def _alone(rule: Mapping[str, Any]) -> CallCheck:
    def check(view: View, call: CallView) -> Found:
        item = view.items[call.position]
        return fail("a call beside talk or another call") if item.text.strip() or len(item.calls) > 1 else PASS

    return check


KINDS: dict[str, Callable[[Mapping[str, Any]], CallCheck]] = {
    "before": _before,
    "confirm": _confirm,
    "state": _state,
    "belongs": _belongs,
    "amount": _amount,
    "once": _once,
    "never_after": _never_after,
    "equal_length": _equal_length,
    "no_self": _no_self,
    "agreed": _agreed,
    "same_value": _same_value,
    "alone": _alone,
    **FLOW_KINDS,
}
"""Kinds of rules about calls."""

NO_POLICY = Policy(name="none")
