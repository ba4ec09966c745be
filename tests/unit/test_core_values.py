"""Copies of values and what comes back from their text."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import FrozenInstanceError, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import pytest

from burnish.core.hashing import canonical_json, content_hash, through_json
from burnish.core.message import Message
from burnish.core.pickling import copied, twin
from burnish.core.task import Task
from burnish.core.text import clean_json
from burnish.core.tool import Tool, Toolset, ToolSpec, specs_of


class Colour(StrEnum):
    RED = "red"


VALUES: list[Any] = [
    {"b": (1, 2), "a": [None, True, {"c": 1.5}]},
    {1: "one", None: 2, "z": {3, 1, 2}},
    {"é": "ü", "a": "\ud83d\ude00"},
    [Colour.RED, MappingProxyType({"b": 1, "a": 2}), b"\x01\xff"],
    Message.user("hi"),
    [2**63, -(2**63), 2**200, -0.0, 1e300],
    "\x00\ud800",
]


@pytest.mark.parametrize("value", VALUES, ids=[str(place) for place in range(len(VALUES))])
def test_through_json_is_the_way_there_and_back(value: Any) -> None:
    found, expected = through_json(value), json.loads(canonical_json(value))
    assert found == expected
    assert canonical_json(found) == canonical_json(expected)
    assert repr(found) == repr(expected)  # order of keys, kinds of numbers


@pytest.mark.parametrize("bad", [math.nan, {"a": math.inf}, object(), [{"a": object()}]])
def test_through_json_raises_as_the_text_does(bad: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as found:
        through_json(bad)
    with pytest.raises(found.type):
        canonical_json(bad)


def test_canonical_json_is_what_plain_json_says() -> None:
    value = {"b": [1, {"d": None, "c": "é"}], "a": 0.1}
    assert canonical_json(value) == json.dumps(value, sort_keys=True, separators=(",", ":"))
    assert content_hash({"a": 1}) == "015abd7f5cc57a2d"


def test_a_copy_shares_nothing() -> None:
    value = {"a": [1, {"b": [2]}], "c": (3, [4]), "d": {5}}
    found = copied(value)
    assert found == copy.deepcopy(value)
    found["a"][1]["b"].append(9)
    found["c"][1].append(9)
    found["d"].add(9)
    assert value == {"a": [1, {"b": [2]}], "c": (3, [4]), "d": {5}}


def test_a_twin_keeps_what_was_worked_out() -> None:
    task = Task(prompt="hi", setup={"seed": 1}, reference={"answer": "4"})
    other = twin(task, setup={"seed": 2})
    assert (other.setup, other.reference, other.content_hash) == ({"seed": 2}, task.reference, task.content_hash)
    assert replace(task, setup={"seed": 2}, content_hash="").content_hash != task.content_hash
    with pytest.raises(FrozenInstanceError):
        other.id = "x"  # type: ignore[misc]


def test_clean_json_reaches_names_and_lists() -> None:
    assert clean_json({"a\ud800": ["\x00", {"b": "\udfff"}], "n": 1}) == {
        "a\ufffd": ["\ufffd", {"b": "\ufffd"}],
        "n": 1,
    }


def test_a_toolset_makes_what_is_asked_for() -> None:
    specs = tuple(ToolSpec(name=name, description="", parameters={"type": "object"}) for name in "abc")
    made: list[int] = []

    async def call(arguments: Any) -> str:
        return "ok"

    def make(place: int) -> Tool:
        made.append(place)
        return Tool(spec=specs[place], call=call)

    tools = Toolset(specs, make)
    assert len(tools) == 3
    assert specs_of(tools) is specs
    assert made == []
    assert (tools[1].spec, tools[-1].spec) == (specs[1], specs[2])
    assert made == [1, 2]
    assert tuple(tool.spec for tool in tools) == specs == specs_of(list(tools)) == tuple(t.spec for t in tools[:])
    with pytest.raises(IndexError):
        tools[3]
