"""Kinds of rules about where values come from and about turns: each fires on its witness and not on its counterpart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import burnish.diagnosis
from burnish.core.errors import ConfigError
from burnish.diagnosis.constraint import check_all
from burnish.diagnosis.flow_rules import slip
from burnish.diagnosis.policy import load_policy, policy_of
from burnish.diagnosis.record import Call, Item, Record
from burnish.diagnosis.taxonomy import Category
from burnish.diagnosis.view import View

POLICIES = Path(burnish.diagnosis.__file__).parent / "policies"
U, A, T = "user", "assistant", "tool"


def act(name: str, **arguments: Any) -> Call:
    return Call(name=name, arguments=arguments)


def record(*turns: tuple[str, str | Call]) -> Record:
    return Record(
        id="x",
        items=tuple(
            Item(index=n, role=role, calls=(what,)) if isinstance(what, Call) else Item(index=n, role=role, text=what)
            for n, (role, what) in enumerate(turns, start=1)
        ),
    )


ORDER = (A, act("get_order", order=17)), (T, '{"customer": 52, "status": "open", "day": 42}')
PRICE = (A, act("get_item", item="lamp")), (T, '{"price": 47, "weight": 23}')
ASK = (U, "What do 3 lamps of order 17 cost?")
AGREED = (A, "I would cancel order 17. Shall I go ahead?"), (U, "Yes, please.")
CASES: dict[str, tuple[dict[str, Any], Record, int, Category, Record]] = {
    "an argument out of thin air": (
        {"kind": "grounded", "arguments": ["order"]},
        record(ASK, (A, act("get_order", order=88))),
        2,
        Category.INVENTION,
        record(ASK, (A, act("get_order", order=17))),
    ),
    "an argument that the user had otherwise": (
        {"kind": "grounded", "arguments": ["order"]},
        record(ASK, (A, act("get_order", order=71))),
        2,
        Category.INVOCATION,
        record(ASK, (A, act("get_order", order=17))),
    ),
    "a result with swapped digits": (
        {"kind": "grounded", "arguments": ["sum"]},
        record(ASK, *PRICE, (A, act("calculator", sum="3*74"))),
        4,
        Category.MISREADING,
        record(ASK, *PRICE, (A, act("calculator", sum="3*47"))),
    ),
    "the wrong column": (
        {"kind": "drawn_from", "argument": "sum", "fields": ["price"], "when": ["cost"]},
        record(ASK, *PRICE, (A, act("calculator", sum="3*23"))),
        4,
        Category.MISREADING,
        record(ASK, *PRICE, (A, act("calculator", sum="3*47"))),
    ),
    "a fee of another status, at the words that said it": (
        {"kind": "by_field", "tool": "cancel", "argument": "fee", "lookup": "get_order", "key": "order",
         "field": "status", "table": {"open": 5, "packed": 12}},
        record(ASK, *ORDER, (A, "It costs 12. Shall I?"), (U, "yes"), (A, act("cancel", order=17, fee=12))),
        4,
        Category.ADHERENCE,
        record(ASK, *ORDER, (A, "It costs 5. Shall I?"), (U, "yes"), (A, act("cancel", order=17, fee=5))),
    ),
    "a name that does not exist": (
        {"kind": "known_names", "argument": "new", "known": ["len"]},
        record(ASK, (T, "def total(x):"), (A, act("edit", new="return fix_up(len(x))"))),
        3,
        Category.ADHERENCE,
        record(ASK, (T, "def total(x):"), (A, act("edit", new="return total(len(x)) + x.own()"))),
    ),
    "nobody had agreed": (
        {"kind": "proposed", "tool": "cancel"},
        record(ASK, (A, "Who are you?"), (U, "Yes. I am Ana."), (A, act("cancel", order=17))),
        4,
        Category.ADHERENCE,
        record(ASK, *AGREED, (A, act("cancel", order=17))),
    ),
    "a number that is only said": (
        {"kind": "told"},
        record(ASK, *PRICE, (A, "They cost 999.")),
        4,
        Category.INVENTION,
        record(ASK, *PRICE, (A, "One costs 47.")),
    ),
    "an answer from the wrong column": (
        {"kind": "answer_from", "fields": ["price"], "when": ["cost"]},
        record(ASK, *PRICE, (A, "23")),
        4,
        Category.MISREADING,
        record(ASK, *PRICE, (A, "47")),
    ),
    "asked for and never done, before what was asked later": (
        {"kind": "asked", "tool": "cancel_order", "when": ["cancel"]},
        record((U, "Cancel order 17 and restock it."), (A, act("restock_order", order=17)), (T, "ok"), (A, "done")),
        2,
        Category.ADHERENCE,
        record((U, "Cancel order 17 and restock it."), (A, act("cancel_order", order=17)), (T, "ok"), (A, "done")),
    ),
    "asked for and never tried, so that no value of it is known": (
        {"kind": "asked", "tool": "set_price", "each": "item", "when": ["raise"]},
        record((U, "Raise lamp by 3."), (A, "done")),
        2,
        Category.ADHERENCE,
        record((U, "Raise lamp by 3."), (A, act("set_price", item="lamp", price=8)), (T, "ok"), (A, "done")),
    ),
    "asked for two things, one done": (
        {"kind": "asked", "tool": "set_price", "each": "item", "when": ["raise"]},
        record(
            (U, "Raise lamp and vase by 3."), (A, act("get_item", item="lamp")), (T, "5"),
            (A, act("get_item", item="vase")), (T, "6"),
            (A, act("set_price", item="vase", price=6)), (T, "ok"), (A, "done"),
        ),
        4,
        Category.ADHERENCE,
        record(
            (U, "Raise lamp and vase by 3."), (A, act("set_price", item="lamp", price=8)), (T, "ok"),
            (A, act("set_price", item="vase", price=9)), (T, "ok"), (A, "done"),
        ),
    ),
    "agreed to and not done": (
        {"kind": "acts"},
        record(ASK, *AGREED, (A, "It is cancelled.")),
        4,
        Category.ADHERENCE,
        record(ASK, *AGREED, (A, act("cancel", order=17)), (T, "ok"), (A, "It is cancelled.")),
    ),
    "proposed before it was looked up": (
        {"kind": "before_proposal", "needs": "get_order"},
        record(ASK, *AGREED),
        2,
        Category.ADHERENCE,
        record(ASK, *ORDER, *AGREED),
    ),
    "a user who takes it back": (
        {"kind": "keeps", "values": ["Oslo", "Rome"], "cues": ["make that"]},
        record((U, "I moved to Oslo."), (A, "To Oslo?"), (U, "Make that Rome.")),
        3,
        Category.ADHERENCE,
        record((U, "I moved to Oslo."), (A, "To Rome?"), (U, "Make that Oslo.")),
    ),
    "a user who agrees to something else": (
        {"kind": "keeps", "after": ["units"], "cues": ["i meant"]},
        record((U, "Refund 6 units."), (A, "I would refund 6 units. Shall I go ahead?"), (U, "Yes, all 7 units.")),
        3,
        Category.ADHERENCE,
        record((U, "Refund 6 units."), (A, "I would refund 6 units. Shall I go ahead?"), (U, "Yes, all 6 units.")),
    ),
    "tests that were never run": (
        {"kind": "claims", "tool": "run", "command": "unittest", "phrases": ["tests pass"], "shows": ["exit 0"]},
        record(ASK, (A, act("run", command="ls")), (T, "exit 0"), (A, "All tests pass.")),
        4,
        Category.INVENTION,
        record(ASK, (A, act("run", command="python -m unittest")), (T, "exit 0"), (A, "All tests pass.")),
    ),
    "tests that failed": (
        {"kind": "claims", "tool": "run", "phrases": ["tests pass"], "shows": ["exit 0"]},
        record(ASK, (A, act("run", command="python -m unittest")), (T, "exit 1 FAILED"), (A, "All tests pass.")),
        4,
        Category.MISREADING,
        record(ASK, (A, act("run", command="python -m unittest")), (T, "exit 1 FAILED"), (A, "Two of them fail.")),
    ),
    "a refusal against what was shown": (
        {"kind": "refuses", "phrases": ["cannot"], "lookup": "get_order", "field": "status", "allowed": ["open"]},
        record(ASK, *ORDER, (A, "I cannot cancel it.")),
        4,
        Category.MISREADING,
        record(ASK, (A, act("get_order", order=17)), (T, '{"status": "delivered"}'), (A, "I cannot cancel it.")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_rule_fires_on_its_witness_alone(name: str) -> None:
    rule, bad, index, category, good = CASES[name]
    policy = policy_of({"rule": [{"id": "r", **rule}]}, "p")
    found = check_all(View(record=bad, kinds=policy.kinds), policy.constraints).violations
    assert [(v.index, v.category) for v in found] == [(index, category)]
    log = check_all(View(record=good, kinds=policy.kinds), policy.constraints)
    assert not log.violations
    assert log.verdicts["r"][0] + log.verdicts["r"][2] > 0


def test_a_slip_is_no_other_value() -> None:
    assert slip("71", "17")
    assert slip("1", "17")
    assert slip("117", "17")
    assert not slip("18", "17")
    assert not slip("170", "17")
    assert not slip("40", "4")


@pytest.mark.parametrize("path", sorted(POLICIES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_policy_that_comes_along_compiles(path: Path) -> None:
    assert load_policy(path).constraints


def test_a_wrong_field_names_its_rule() -> None:
    with pytest.raises(ConfigError, match="rule r: table must give"):
        policy_of(
            {"rule": [{"id": "r", **CASES["a fee of another status, at the words that said it"][0], "table": 3}]}, "p"
        )
    with pytest.raises(ConfigError, match=r"unknown kind 'nothing'.*grounded.*keeps"):
        policy_of({"rule": [{"id": "r", "kind": "nothing"}]}, "p")
