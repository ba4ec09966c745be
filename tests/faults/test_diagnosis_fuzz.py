"""Hostile and broken records: nothing crashes, nothing is executed, the good ones come through."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import burnish.diagnosis
from burnish.cli import main
from burnish.diagnosis import reading
from burnish.diagnosis.diagnose import Engine, diagnosis_json
from burnish.diagnosis.formats.atif import read_atif, write_atif
from burnish.diagnosis.markdown import markdown
from burnish.diagnosis.overview import Overview, overview_json
from burnish.diagnosis.page import page
from burnish.diagnosis.pairs import Passing, exported
from burnish.diagnosis.policy import load_policy
from burnish.diagnosis.reading import FORMATS, BadRecord, read_records
from burnish.diagnosis.record import Record
from burnish.diagnosis.tags import tag_row

POLICIES = Path(burnish.diagnosis.__file__).parent / "policies"
ENGINE = Engine(policy=load_policy(POLICIES / "retail.toml"))
OTHERS = [Engine(policy=load_policy(POLICIES / f"{name}.toml")) for name in ("shop", "shop_dialogue", "repair")]
GOOD = json.dumps(
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}], "passed": False}
)
KEYS = re.findall(
    r"\S+",
    "messages steps substeps traj role content tool_calls function name arguments id source message "
    "observation results tools parameters properties $ref type items order_id item_ids info task actions "
    "kwargs outputs reward scores samples attributes traceId resourceSpans spans gen_ai.input.messages "
    "parts extra burnish labels index src_index reference history failures step_number from value "
    "conversations payment_method_id new_item_ids status tool_call_id ",
)
WORDS = (
    "user",
    "assistant",
    "tool",
    "system",
    "agent",
    "#W1",
    "cancel_pending_order",
    "get_order_details",
    "\ud800",
    '{"order_id": "#W1", "status": "pending"}',
    "Error: x",
    "yes",
    "NaN",
    "text",
    "tool_call",
    "",
)
leaf = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.sampled_from(WORDS), st.text(max_size=8)
)
tree = st.recursive(
    leaf,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=25,
)
call = st.fixed_dictionaries({"id": leaf, "function": st.fixed_dictionaries({"name": leaf, "arguments": tree})})
message = st.fixed_dictionaries(
    {"role": st.sampled_from(("user", "assistant", "tool", "system")), "content": leaf | st.lists(tree, max_size=2)},
    optional={"tool_calls": st.lists(call, max_size=3), "tool_call_id": leaf, "index": leaf, "name": leaf},
)
chat = st.fixed_dictionaries({"messages": st.lists(message, max_size=7)}, optional={"tools": tree, "reference": tree})


def through(path: Path, form: str = "") -> tuple[int, int]:
    """(good, bad) after every record went all the way, through the report and the exports too."""
    good = bad = 0
    overview, passing = Overview(name=path.name), Passing()
    for row in read_records(path, form):
        if isinstance(row, BadRecord):
            bad += 1
            continue
        good += 1
        passing.add(row)
        found = ENGINE.diagnose(row, known_failed=True)
        json.dumps(diagnosis_json(found), allow_nan=False)
        case = overview.add(row, found)
        if case is not None:
            json.dumps([tag_row(case), *exported([case], passing)], allow_nan=False)
        for engine in OTHERS:
            engine.diagnose(row, known_failed=True)
        back = json.loads(json.dumps(write_atif(row), allow_nan=False))
        assert isinstance(read_atif(back, 1), Record)
    json.dumps(overview_json(overview), allow_nan=False)
    for text in (markdown(overview), page(overview)):
        text.encode()
    return good, bad


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=tree | chat, form=st.sampled_from(("", *FORMATS)))
def test_any_json_is_read_or_reported(tmp_path_factory: pytest.TempPathFactory, value: Any, form: str) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.jsonl"
    path.write_text(f"{json.dumps(value)}\n", encoding="utf-8")
    through(path, form)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=tree, junk=st.binary(max_size=60), order=st.permutations(range(4)))
def test_the_good_ones_come_through(
    tmp_path_factory: pytest.TempPathFactory, value: Any, junk: bytes, order: list[int]
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.jsonl"
    line = junk.replace(b"\n", b" ").replace(b"\r", b" ")
    lines = (GOOD.encode(), json.dumps(value).encode(), line, GOOD.encode())
    path.write_bytes(b"\n".join(lines[place] for place in order) + b"\n")
    assert through(path)[0] >= 2


CHAT = json.dumps(json.loads(GOOD)["messages"])
PRETTY = json.dumps(json.loads(GOOD), indent=1)
LAYOUTS = {
    "the first line is cut": (f'{{"messages": [{{"role": "user"\n{GOOD}\n{GOOD}\n', 2, [1]),
    "the first line is a brace": (f"{{\n{GOOD}\n{GOOD}\n", 2, [1]),
    "the first line opens a list": (f'[{{"role": "user"\n{GOOD}\n{GOOD}\n', 2, [1]),
    "lists of messages": (f"{CHAT}\n{CHAT}\n", 2, []),
    "an array": (f"[{GOOD},\n{GOOD}]", 2, []),
    "an element is cut": (f"[{GOOD},\n{GOOD[:-3]},\n{GOOD},\n{GOOD}]", 3, [2, 4]),
    "an element has an open string": (f'[{GOOD},\n{{"messages": "x}},\n{GOOD},\n{GOOD}]', 3, [2, 4]),
    "the array is cut": (f"[{GOOD},\n{GOOD},\n{GOOD[:30]}", 2, [3]),
    "an open string before everything": (f'["\n{GOOD}\n{GOOD}\n', 2, [4]),
    "a list before everything": (f"[]\n{GOOD}\n{GOOD}\n", 2, [1]),
    "lines after an array": (f"[{GOOD},\n{GOOD}\n]\n{GOOD}\nrest\n{GOOD}", 4, [5]),
    "commas at the ends of lines": (f"{GOOD},\n{GOOD},\n", 2, []),
    "an object over many lines": (PRETTY, 1, []),
    "two of them": (f"{PRETTY}\n{PRETTY}\n", 2, []),
    "the second of two is cut": (f"{PRETTY}\n{PRETTY[:-4]}", 1, [PRETTY.count("\n") + 2]),
    "nothing": ("\n \n", 0, []),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_broken_swallows_nothing_whole(tmp_path: Path, name: str) -> None:
    text, good, bad = LAYOUTS[name]
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    rows = list(read_records(path))
    assert sum(isinstance(row, Record) for row in rows) == good
    assert [row.line for row in rows if isinstance(row, BadRecord)] == bad


DEEP = "[" * 100_000 + "]" * 100_000
HOSTILE = {
    "deep": DEEP,
    "deep content": '{"messages": [{"role": "user", "content": ' + DEEP + "}]}",
    "deep but legal": '{"messages": [{"role": "user", "content": ' + "[" * 200 + "]" * 200 + "}]}",
    "not a number": '{"messages": [{"role": "user", "content": NaN}], "reward": Infinity}',
    "huge number": '{"messages": [{"role": "user", "content": "x"}], "reward": 1' + "0" * 400 + "}",
    "too many digits": '{"messages": [], "reward": ' + "9" * 10_000 + "}",
    "huge text": json.dumps({"messages": [{"role": "user", "content": "x " * 3_000_000}]}),
    "surrogate": '{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "markup": json.dumps({"id": "[red]\x1b[2J", "messages": [{"role": "user", "content": "[/]"}]}),
    "circle of parents": json.dumps(
        {
            "resourceSpans": [
                {
                    "scopeSpans": [
                        {
                            "spans": [
                                {
                                    "traceId": "t",
                                    "spanId": "a",
                                    "parentSpanId": "a",
                                    "attributes": [{"key": "gen_ai.input.messages", "value": {"stringValue": "[]"}}],
                                }
                            ]
                        }
                    ]
                }
            ]
        }
    ),
    "circle of schemas": json.dumps(
        {
            "messages": json.loads(GOOD)["messages"]
            + [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}],
            "tools": [{"name": "f", "parameters": {"$ref": "#/a", "a": {"$ref": "#"}}}],
        }
    ),
    "regular expression": json.dumps({"messages": [{"role": "assistant", "content": "for the " + "a " * 20_000}]}),
    "many numbers": json.dumps({"messages": [{"role": "assistant", "content": "$1.5 " * 20_000}]}),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.timeout(60)
def test_hostile_records_neither_crash_nor_spoil_others(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\n{HOSTILE[name]}\n{GOOD}\n", encoding="utf-8")
    good, bad = through(path)
    assert good >= 2
    assert good + bad == 3


@pytest.mark.parametrize("name", ["markup", "surrogate", "deep but legal", "regular expression", "circle of schemas"])
def test_the_command_shows_them_without_their_tricks(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\n{HOSTILE[name]}\nnonsense\n{GOOD}\n", encoding="utf-8")
    words = ["--all", "--report", str(tmp_path / "r.html"), "--out", str(tmp_path / "o.jsonl")]
    assert main(["diagnose", str(path), *words]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "bad record" in " ".join(shown.split())
    made = [line for line in shown.splitlines() if str(tmp_path) not in line]
    assert max(map(len, made)) <= 80


def test_nothing_that_stands_in_a_record_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    row = json.loads(GOOD) | {"reference": {"actions": [{"name": code, "kwargs": {code: code}}]}, "python_check": code}
    row["messages"].append({"role": "assistant", "tool_calls": [{"function": {"name": code, "arguments": code}}]})
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert through(path) == (1, 0)
    assert not mark.exists()


def test_a_reader_that_lets_an_error_through_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: one reader that trusts its record, and the target above is red."""
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\n{json.dumps({'messages': [{'role': 'user', 'content': {'a': 1}}, 3]})}\n{GOOD}\n")
    assert through(path) == (2, 1)

    def trusting(row: Any, position: int) -> Record:
        return Record(id="x", items=tuple(one["role"] for one in row["messages"]))

    monkeypatch.setitem(reading._READERS, "chat", trusting)
    with pytest.raises((TypeError, AttributeError)):
        through(path)


def test_a_check_that_raises_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\n")

    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("burnish.diagnosis.diagnose.check_all", broken)
    with pytest.raises(ZeroDivisionError):
        through(path)
