"""The benchmark of injected faults: what a fault is, which step it makes critical, and that the quick form runs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from burnish.core.message import Message, Role, ToolCall
from burnish.diagnosis.taxonomy import Category, Fault

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def load(name: str) -> Any:
    return importlib.import_module(name)


def texts(record: Any) -> list[tuple[int, str, str]]:
    return [(i.index, i.role, i.text or str([(c.name, dict(c.arguments)) for c in i.calls])) for i in record.items]


def test_the_critical_step_is_where_the_run_departs_from_its_twin() -> None:
    worlds, faults = load("diagnosis_runs.worlds"), load("diagnosis_runs.faults")
    seen: dict[Any, int] = {}
    for make in (worlds.shop_runs, worlds.dialogue_runs):
        clean: dict[str, list[tuple[int, str, str]]] = {}
        for one in make(107):
            if one.kind is None:
                assert one.record.passed
                clean[one.record.id] = texts(one.record)
                continue
            category, owner, role = faults.TRUTH[one.kind]
            root = one.record.root
            assert one.record.passed is False
            assert (root.category, root.owner) == (category, owner)
            told, twin = texts(one.record), clean[one.record.id.rpartition("/")[0]]
            first = next(row for row, other in zip(told, [*twin, *[(0, "", "")] * 99], strict=False) if row != other)
            assert told[root.index - 1][1] == str(role)
            assert root.index >= first[0]
            # nobody of the party at fault had said anything else before
            assert not [row for row in told[: root.index - 1] if row[1] == str(role) and row not in twin]
            seen[one.kind] = seen.get(one.kind, 0) + 1
    assert set(seen) == set(faults.Kind)


def test_an_omission_is_critical_at_the_action_that_should_have_followed() -> None:
    worlds, faults = load("diagnosis_runs.worlds"), load("diagnosis_runs.faults")
    for one in worlds.shop_runs(103):
        if one.kind is faults.Kind.DROP:
            wanted = {(call.name, str(dict(call.arguments))) for call in one.record.reference.actions}
            done = {(call.name, str(dict(call.arguments))) for item in one.record.items for call in item.calls}
            (missing,) = wanted - done
            later = [i for i in one.record.items if i.index >= one.record.root.index and i.role == "assistant"]
            assert later[0].index == one.record.root.index
            assert missing[0] not in str(later[0].calls) or later[0].calls
            return
    raise AssertionError("no run of this seed has an omission")


def test_the_critical_message_is_one_of_the_party_at_fault() -> None:
    """A tool that answers otherwise is the critical one, not the user who speaks otherwise before it."""
    faults = load("diagnosis_runs.faults")

    def run(*messages: Message) -> Any:
        return SimpleNamespace(messages=messages)

    call = ToolCall(id="c", name="look")
    clean = run(Message.user("a"), Message.assistant("", (call,)), Message.tool("7", call=call))
    other = run(Message.user("b"), Message.assistant("", (call,)), Message.tool("8", call=call))
    assert faults.first_departure(clean, other, Role.USER) == 1
    assert faults.first_departure(clean, other, Role.TOOL) == 3
    assert faults.first_departure(clean, clean, Role.USER) is None


def test_faults_change_what_they_say_they_change() -> None:
    faults = load("diagnosis_runs.faults")
    call = ToolCall(id="c", name="cancel_order", arguments={"order": 17, "fee": 35})
    for seed in range(40):
        made = faults.corrupted(call, Random(seed))
        assert made.name == call.name
        assert dict(made.arguments) != dict(call.arguments)
        assert sum(made.arguments.get(key) != value for key, value in call.arguments.items()) == 1
    assert faults.misread("47", Random(0)) == "74"
    assert faults.misread('{"price":47,"weight":23}', Random(0)) == '{"price": 23, "weight": 47}'
    text = faults.invented('{"units":47,"shelf":"B4"}', Random(0), known="47 23")
    assert "47" not in text
    assert "B4" in text


def test_the_rules_find_most_of_it_and_trivial_answers_do_not() -> None:
    """Two seeds to fit on and one to score, of the worlds that cost next to nothing; the bar is the benchmark's."""
    injected, labelled = load("diagnosis_injected"), load("diagnosis_runs.labelled")
    worlds = ["shop", "shop_dialogue"]
    tuning, reported = injected.collect(worlds, range(100, 102)), injected.collect(worlds, range(110, 111))
    model = labelled.train(tuning["passed"], tuning["failed"], False)
    found = labelled.figures([labelled.answer(run, model, False) for run in reported["failed"]])
    assert found["n"] >= 30
    assert min(found[name]["share"] for name in ("within_0", "category", "owner")) >= 0.7
    rows = injected._baselines(tuning, reported)
    assert max(labelled.figures(row)["within_0"]["share"] for row in rows.values()) < 0.6
    assert {one.category for row in rows.values() for one in row} <= set(Category)
    assert {one.owner for row in rows.values() for one in row} == {Fault.AGENT}


def test_without_its_policy_a_world_is_understood_less() -> None:
    """The control of the score above: the rules of the world are what finds omissions, and tells categories apart."""
    injected, labelled = load("diagnosis_injected"), load("diagnosis_runs.labelled")
    tuning, reported = (injected.collect(["shop_dialogue"], seeds) for seeds in (range(100, 102), range(110, 112)))
    model = labelled.train(tuning["passed"], tuning["failed"], False)
    ours = labelled.figures([labelled.answer(run, model, False) for run in reported["failed"]])
    theirs = labelled.figures(injected._without_policy(tuning, reported))
    assert ours["within_0"]["hits"] >= theirs["within_0"]["hits"] + 5


def test_the_quick_form_of_one_world_runs() -> None:
    command = [sys.executable, str(FOLDER / "diagnosis_injected.py"), "--quick", "--world", "shop"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["holds"] is None
    assert figures["blind"]["n"] == figures["with_gold"]["n"] > 10
    assert set(figures["baselines"]) == {"last step", "last agent step", "first tool error", "last write"}
