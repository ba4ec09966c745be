"""Constraints: each holds on a good trajectory and fires on the mutation that it is about, at the right message."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import burnish.diagnosis
from burnish.core.errors import ConfigError
from burnish.diagnosis.constraint import check_all
from burnish.diagnosis.diagnose import Engine
from burnish.diagnosis.policy import compile_rule, load_policy, policy_of
from burnish.diagnosis.record import Call, Item, Record, Tool
from burnish.diagnosis.schemas import problem
from burnish.diagnosis.view import View

POLICY = Path(burnish.diagnosis.__file__).parent / "policies" / "retail.toml"
ORDER = {
    "order_id": "#W7000001",
    "status": "delivered",
    "items": [
        {"name": "Lamp", "item_id": "4000000001", "price": 20.5},
        {"name": "Desk Fan", "item_id": "4000000002", "price": 31.0},
    ],
}
SCHEMA = {"type": "object", "properties": {"order_id": {"type": "string"}}, "required": ["order_id"]}
TOOLS = (
    Tool(name="find_user_id_by_email"),
    Tool(name="get_order_details", parameters=SCHEMA),
    Tool(name="return_delivered_order_items", parameters=SCHEMA),
)


def call(name: str, **arguments: Any) -> tuple[str, Call]:
    return "assistant", Call(id=name, name=name, arguments=arguments)


def record(turns: Sequence[tuple[str, str | Call]]) -> Record:
    items = []
    for number, (role, what) in enumerate(turns, start=1):
        if isinstance(what, Call):
            items.append(Item(index=number, role=role, calls=(what,)))
        else:
            items.append(Item(index=number, role=role, text=what))
    return Record(id="x", items=tuple(items), tools=TOOLS)


RETURN = call(
    "return_delivered_order_items", order_id="#W7000001", item_ids=["4000000001"], payment_method_id="card_55"
)
GOOD: list[tuple[str, str | Call]] = [
    ("user", "I am ann@example.com; return the lamp of order #W7000001 to card_55."),
    call("find_user_id_by_email", email="ann@example.com"),
    ("tool", "ann_1"),
    call("get_order_details", order_id="#W7000001"),
    ("tool", json.dumps(ORDER)),
    ("assistant", "Order #W7000001 is delivered and has 2 items. Would you like me to return the lamp for $20.50?"),
    ("user", "Yes, go ahead."),
    RETURN,
    ("tool", json.dumps(ORDER | {"status": "return requested"})),
    ("assistant", "The return has been processed."),
    ("user", "Great, thanks, that's all."),
]
ENGINE = Engine(policy=load_policy(POLICY))


def fired(turns: Sequence[tuple[str, str | Call]]) -> set[tuple[str, int]]:
    return {(v.constraint, v.index) for v in ENGINE.look(record(turns))[1].violations}


def put(at: int, *turns: tuple[str, str | Call], drop: int = 1) -> Callable[[], list[tuple[str, str | Call]]]:
    return lambda: [*GOOD[: at - 1], *turns, *GOOD[at - 1 + drop :]]


def test_nothing_fires_on_a_good_trajectory() -> None:
    assert fired(GOOD) == set()


MUTATIONS: dict[str, tuple[Callable[[], list[tuple[str, str | Call]]], str, int]] = {
    "confirmation dropped": (put(7, ("user", "What does it cost to ship?")), "confirm_before_write", 8),
    "identity not checked": (put(2, drop=2), "authenticate_first", 2),
    "id swapped": (
        put(
            8,
            call(
                "return_delivered_order_items",
                order_id="#W7000001",
                item_ids=["4999999999"],
                payment_method_id="card_55",
            ),
        ),
        "item_in_order",
        8,
    ),
    "id invented": (
        put(4, call("get_order_details", order_id="#W9999999"), ("tool", "Error: order not found"), drop=0),
        "ungrounded",
        4,
    ),
    "status changed": (put(5, ("tool", json.dumps(ORDER | {"status": "pending"}))), "status_delivered", 8),
    "state misread": (
        put(6, ("assistant", "Order #W7000001 is pending. Would you like to proceed?")),
        "claim_state",
        6,
    ),
    "count misread": (put(6, ("assistant", "There are 7 items in it. Would you like to proceed?")), "claim_count", 6),
    "call repeated": (put(6, GOOD[3], GOOD[4], drop=0), "repeated", 6),
    "done twice": (put(10, RETURN, GOOD[8], drop=0), "exchange_once", 10),
    "tool down": (
        put(4, call("get_order_details", order_id="#W7000001"), ("tool", "Error: service unavailable"), drop=0),
        "outage",
        5,
    ),
    "unknown tool": (put(4, call("teleport", order_id="#W7000001"), ("tool", "ok"), drop=0), "unknown_tool", 4),
    "missing argument": (put(4, call("get_order_details"), ("tool", "Error: order_id missing"), drop=0), "schema", 4),
    "success claimed after failure": (put(9, ("tool", "Error: non-delivered order"), drop=1), "claim_deed", 10),
    "payment never spoken of": (
        put(
            8,
            call(
                "return_delivered_order_items",
                order_id="#W7000001",
                item_ids=["4000000001"],
                payment_method_id="gift_99",
            ),
        ),
        "payment_agreed",
        8,
    ),
    "cut off": (put(8, drop=4), "unanswered", 7),
    "user takes it back": (put(11, ("user", "Actually, use my other card instead of that one.")), "changes_mind", 11),
}


@pytest.mark.parametrize("name", list(MUTATIONS))
def test_the_right_constraint_fires_at_the_right_message(name: str) -> None:
    mutate, constraint, index = MUTATIONS[name]
    assert (constraint, index) in fired(mutate())


def test_a_user_who_states_another_value_is_seen() -> None:
    turns = [("user", "My quantity is 3."), ("assistant", "Ok."), ("user", "As I said, my quantity is 5.")]
    assert ("contradicts_self", 3) in fired(turns)
    assert ("contradicts_self", 3) not in fired([*turns[:2], ("user", "As I said, my quantity is 3.")])


def test_a_lock_is_blamed_on_the_call_that_locked_where_both_were_known() -> None:
    def turns(first: str, second: str) -> list[tuple[str, str | Call]]:
        order = ORDER | {"status": "pending"}
        return [
            *GOOD[:3],
            call("get_order_details", order_id="#W7000001"),
            ("tool", json.dumps(order)),
            ("user", first),
            call(
                "modify_pending_order_items", order_id="#W7000001", item_ids=["4000000001"], new_item_ids=["4000000009"]
            ),
            ("tool", json.dumps(order | {"status": "pending (item modified)"})),
            ("user", second),
            call("modify_pending_order_address", order_id="#W7000001", address1="9 Hill Road", city="Springfield"),
            ("tool", "Error: non-pending order cannot be modified"),
        ]

    both = "Yes, another lamp, and the address 9 Hill Road in Springfield too."
    assert ("items_change_locks", 7) in fired(turns(both, "And now?"))
    late = fired(turns("Yes, another lamp please.", "Yes, and now the address: 9 Hill Road in Springfield."))
    assert ("items_change_locks", 10) in late
    assert ("items_change_locks", 7) not in late


def test_what_cannot_be_decided_is_unknown_and_not_a_violation() -> None:
    log = check_all(View(record=replace(record(GOOD), tools=())), ENGINE.constraints)
    assert log.verdicts["schema"][2] > 0
    assert log.verdicts["schema"][1] == 0


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"$ref": "http://example.invalid/x"},
        {"anyOf": [{"$ref": "#"}] * 8},
        {"type": 7, "required": "x", "properties": [1]},
        {"pattern": "(a+)+$"},
    ],
)
def test_hostile_schemas_end_and_find_nothing(schema: dict[str, Any]) -> None:
    assert problem({"a": "a" * 50 + "!"}, schema) == ""


def test_schemas_find_what_is_wrong() -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 1}, "c": {"enum": ["x", "y"]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    assert problem({"n": 1, "c": "x"}, schema) == ""
    assert "required" in problem({}, schema)
    assert "below" in problem({"n": 0}, schema)
    assert "expected integer" in problem({"n": True}, schema)
    assert "none of" in problem({"n": 1, "c": "z"}, schema)
    assert "not an argument" in problem({"n": 1, "d": 2}, schema)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"id": "a", "kind": "nope"}, "unknown kind"),
        ({"id": "a", "kind": "before"}, "needs must be a text"),
        ({"id": "a", "kind": "once", "key": "x"}, "key must be a list"),
        ({"id": "a", "kind": "confirm", "severity": 7}, "severity"),
        ({"kind": "confirm"}, "id must be a text"),
        (3, "a rule is a table"),
    ],
)
def test_a_wrong_rule_is_named(rule: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compile_rule(rule, "policy:x")


def test_amounts_are_bounded_by_a_number_or_by_a_field() -> None:
    rules = [
        {"id": "cap", "kind": "amount", "tool": "refund", "argument": "amount", "most": 100},
        {
            "id": "balance",
            "kind": "amount",
            "tool": "refund",
            "argument": "amount",
            "object": "order_id",
            "field": "total",
        },
    ]
    engine = Engine(policy=policy_of({"rule": rules}, "x"))
    for amount, wanted in ((10, set()), (60, {"balance"}), (200, {"cap", "balance"})):
        turns = [
            call("get", order_id="#W1"),
            ("tool", '{"order_id": "#W1", "total": 50}'),
            call("refund", order_id="#W1", amount=amount),
            ("tool", "ok"),
        ]
        seen = {v.constraint for v in engine.look(record(turns))[1].violations}
        assert seen & {"cap", "balance"} == wanted
