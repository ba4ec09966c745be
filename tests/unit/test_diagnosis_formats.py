"""Trajectory files of others: what is read, what is reported, and what comes back the way it went in."""

from __future__ import annotations

import json
import os
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from burnish.core.message import Message, ToolCall
from burnish.core.outcome import COMPLETED
from burnish.core.trajectory import Node, Trajectory
from burnish.diagnosis.formats.agentrx import calls_in_text, labels_of, read_agentrx, write_agentrx
from burnish.diagnosis.formats.atif import read_atif, step_of_message, write_atif
from burnish.diagnosis.formats.chat import read_chat, read_tau, write_chat
from burnish.diagnosis.formats.inspect_log import read_sample
from burnish.diagnosis.formats.run import record_of
from burnish.diagnosis.formats.spans import read_spans, write_spans
from burnish.diagnosis.plain import RecordError
from burnish.diagnosis.reading import BadRecord, read_records
from burnish.diagnosis.record import Call, Item, Label, Record, Reference, Tool
from burnish.diagnosis.taxonomy import Category, Fault
from burnish.store.rows import Fate, StoredTrajectory

RECORD = Record(
    id="r1",
    task_id="t1",
    source="chat",
    items=(
        Item(index=1, role="system", text="Be helpful."),
        Item(index=2, role="user", text="Cancel order 7, please."),
        Item(
            index=3, role="assistant", calls=(Call(id="a", name="get", arguments={"id": "7"}), Call(id="b", name="f"))
        ),
        Item(index=4, role="tool", text='{"id": "7"}', call_id="a", name="get", is_error=False),
        Item(index=5, role="tool", text="Error: no", call_id="b", name="f", is_error=True),
        Item(
            index=6, role="assistant", text="Done — „ok“.", calls=(Call(id="c", name="g", arguments=None, raw="{oops"),)
        ),
        Item(index=7, role="user", text="Thanks"),
    ),
    tools=(Tool(name="get", description="d", parameters={"type": "object"}),),
    reference=Reference(actions=(Call(name="cancel", arguments={"id": "7"}),), outputs=("7",), instruction="cancel 7"),
    passed=False,
    reward=0.0,
    outcome="completed",
)
LABELLED = replace(
    RECORD,
    labels=(
        Label(index=3, category=Category.MISREADING, owner=Fault.AGENT, party="Assistant", reason="x", is_root=True),
        Label(index=7, category=Category.UNDERSPECIFIED, owner=Fault.USER, party="User"),
    ),
    extra={"trial": 2},
)


def test_atif_gives_the_same_record_back() -> None:
    text = json.dumps(write_atif(LABELLED))
    assert read_atif(json.loads(text), 1) == LABELLED
    steps = json.loads(text)["steps"]
    assert [step["step_id"] for step in steps] == [1, 2, 3, 4, 5]
    assert steps[2]["observation"]["results"][1]["extra"]["src_index"] == 5
    assert steps[3]["tool_calls"][0]["extra"] == {"raw_arguments": "{oops"}
    changed = replace(LABELLED, items=LABELLED.items[:-1])
    assert read_atif(write_atif(changed), 1) != LABELLED  # the comparison can fail


def test_a_source_that_counts_otherwise_keeps_its_count_through_atif() -> None:
    items = tuple(replace(item, index=10 + item.index // 3, sub=item.index % 3) for item in RECORD.items)
    record = replace(LABELLED, items=items)
    assert read_atif(write_atif(record), 1) == record


def test_chat_gives_the_same_record_back() -> None:
    assert read_chat(json.loads(json.dumps(write_chat(RECORD))), 1) == RECORD


def test_spans_give_the_conversation_back() -> None:
    found = read_spans(json.loads(json.dumps(write_spans(RECORD))), 1)[0]
    assert [(i.role, i.text, i.call_id) for i in found.items] == [(i.role, i.text, i.call_id) for i in RECORD.items]
    assert [call for item in found.items for call in item.calls] == [
        call for item in RECORD.items for call in item.calls
    ]
    assert (found.tools, found.reward, found.passed) == (RECORD.tools, 0.0, False)


def test_a_wrapper_span_without_tool_turns_is_completed_from_its_children() -> None:
    call = {"type": "tool_call", "id": "c1", "name": "look", "arguments": {"x": 1}}
    spans = [
        {
            "traceId": "t",
            "startTimeUnixNano": "2",
            "attributes": {
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.call.id": "c1",
                "gen_ai.tool.call.result": "42",
            },
        },
        {
            "traceId": "t",
            "startTimeUnixNano": "1",
            "parentSpanId": "self",
            "spanId": "self",
            "attributes": {
                "gen_ai.operation.name": "chat",
                "gen_ai.input.messages": [{"role": "user", "parts": [{"type": "text", "content": "hi"}]}],
                "gen_ai.output.messages": json.dumps([{"role": "assistant", "parts": [call]}]),
            },
        },
    ]
    assert [(i.role, i.text) for i in read_spans(spans, 1)[0].items] == [
        ("user", "hi"),
        ("assistant", ""),
        ("tool", "42"),
    ]


def test_agentrx_keeps_steps_substeps_agents_and_calls() -> None:
    steps = [
        {"index": 1, "substeps": [{"sub_index": 1, "role": "human", "content": "Find the year."}]},
        {
            "index": 2,
            "substeps": [
                {"sub_index": 1, "role": "Orchestrator (thought)", "content": "Ask the surfer."},
                {"sub_index": 2, "role": "WebSurfer", "content": '{"name": "open", "arguments": {"url": "x"}}'},
                {"sub_index": 3, "role": "tool", "content": "page"},
            ],
        },
    ]
    record = read_agentrx({"trajectory_id": "m1", "instruction": "year", "steps": steps}, 1)
    assert [(i.index, i.sub, i.role, i.agent) for i in record.items] == [
        (1, 1, "user", ""),
        (2, 1, "assistant", "Orchestrator (thought)"),
        (2, 2, "assistant", "WebSurfer"),
        (2, 3, "tool", ""),
    ]
    assert record.items[2].calls[0].arguments == {"url": "x"}
    again = read_agentrx(json.loads(json.dumps(write_agentrx(record))), 1)
    assert again.items == record.items


def test_labels_name_their_root_by_its_id_and_count_as_the_source_counts() -> None:
    row = {
        "failures": [
            {"failure_id": 1, "step_number": 3, "failure_category": "Invalid Invocation", "failed_agent": "Assistant"},
            {
                "failure_id": 11,
                "step_number": "21",
                "failure_category": "underspecified user intent",
                "failed_agent": "User",
            },
        ],
        "root_cause": {"failure_id": 11},
    }
    first, second = labels_of(row)
    assert (first.is_root, second.is_root) == (False, True)
    assert (second.index, second.category, second.owner) == (21, Category.UNDERSPECIFIED, Fault.USER)
    with pytest.raises(RecordError, match="step_number"):
        list(labels_of({"failures": [{"failure_id": 1}]}))


def test_step_of_message_maps_both_counts() -> None:
    roles = ["system", "user", "assistant", "tool", "tool", "assistant"]
    assert step_of_message(roles) == [1, 2, 3, 3, 3, 4]


def test_tau_inspect_and_hugging_face_are_read() -> None:
    traj = [{"role": "user", "content": "hi", "index": 2}, {"role": "assistant", "content": "yo", "index": 3}]
    tau = read_tau(
        {
            "task_id": 4,
            "reward": 0.0,
            "traj": traj,
            "info": {
                "task": {"actions": [{"name": "f", "kwargs": {"a": 1}}], "outputs": ["9"], "instruction": "say hi"}
            },
        },
        1,
    )
    assert (tau.id, tau.items[0].index, tau.passed) == ("4", 2, False)
    assert tau.reference is not None
    assert tau.reference.actions == (Call(name="f", arguments={"a": 1}),)
    call = {"id": "c", "function": "f", "arguments": {"a": 1}, "type": "function"}
    sample = read_sample(
        {
            "id": "s",
            "epoch": 2,
            "scores": {"match": {"value": "I"}},
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                {"role": "assistant", "tool_calls": [call]},
                {
                    "role": "tool",
                    "tool_call_id": "c",
                    "function": "f",
                    "content": "",
                    "error": {"type": "x", "message": "no"},
                },
            ],
        },
        1,
    )
    assert (sample.id, sample.passed, sample.items[2].is_error, sample.items[1].calls[0].name) == (
        "s/2",
        False,
        True,
        "f",
    )
    rows = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    assert [i.role for i in read_chat(rows, 1).items] == ["user", "assistant"]


def test_calls_in_text_leave_plain_braces_alone() -> None:
    assert calls_in_text("a {set} of words") == ([], "a {set} of words")


def rows_of(path: Path, text: str, form: str = "") -> list[Record | BadRecord]:
    path.write_text(text, encoding="utf-8")
    return list(read_records(path, form))


def test_a_bad_line_is_reported_by_file_and_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = json.dumps(write_chat(RECORD))
    found = rows_of(tmp_path / "a.jsonl", f"{good}\n{{oops\n\n[1]\n{good}\n{json.dumps({'messages': 3})}\n")
    assert [type(row) for row in found] == [Record, BadRecord, BadRecord, Record, BadRecord]
    bad = [row for row in found if isinstance(row, BadRecord)]
    assert [(row.path.name, row.line) for row in bad] == [("a.jsonl", 2), ("a.jsonl", 4), ("a.jsonl", 6)]


@pytest.mark.parametrize("indent", [None, 1])
def test_arrays_are_read_element_by_element(tmp_path: Path, indent: int | None) -> None:
    rows: list[Any] = [write_chat(replace(RECORD, id=f'é[{n}]"}}')) for n in range(40)]
    text = json.dumps(rows, indent=indent)
    assert [row.id for row in rows_of(tmp_path / "a.json", text) if isinstance(row, Record)] == [
        row["id"] for row in rows
    ]
    # one broken element spoils no other
    broken = text.replace('"role": "system"', '"role": system', 1)
    assert [type(row) for row in rows_of(tmp_path / "b.json", broken)] == [BadRecord] + [Record] * 39


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    import tracemalloc

    peaks = []
    for n in (200, 2000):
        path = tmp_path / f"{n}.jsonl"
        path.write_text((json.dumps(write_chat(RECORD)) + "\n") * n, encoding="utf-8")
        tracemalloc.start()
        assert sum(1 for _ in read_records(path)) == n
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


DATA = Path(os.environ.get("BURNISH_DATA", "data")) / "agentrx_tau"


@pytest.mark.skipif(not DATA.exists(), reason="labelled runs of others are not part of the project; set BURNISH_DATA")
def test_labels_of_real_runs_are_the_same_after_the_way_there_and_back() -> None:
    labels = {
        str(row["trajectory_id"]): tuple(labels_of(row))
        for row in json.loads((DATA / "tau_ground_truth.json").read_text(encoding="utf-8"))
    }
    records = [row for row in read_records(DATA / "tau_dataset_failed.json") if isinstance(row, Record)]
    assert len(records) == len(labels) == 29
    for row in records:
        labelled = replace(row, labels=labels[row.id])
        assert read_atif(json.loads(json.dumps(write_atif(labelled))), 1) == labelled
        assert {label.index for label in labelled.labels} <= {item.index for item in labelled.items}


def test_a_stored_trajectory_of_a_run_is_read() -> None:
    empty = {"token_ids": array("i"), "action_mask": array("b"), "logprobs": array("f"), "versions": array("i")}
    call = ToolCall(id="c", name="get", arguments={"id": 7})
    broken = ToolCall(id="d", name="get", error="not JSON")
    messages = (
        (Message.user("Find 7."), False),
        (Message.assistant("", (call, broken)), True),
        (Message.tool("Error: gone", call=call, is_error=True), False),
    )
    nodes = tuple(
        Node(parent=n - 1, messages=(message,), is_action=is_action, **empty)
        for n, (message, is_action) in enumerate(messages)
    )
    trajectory = Trajectory(
        id="rl/1", task_id="t", task_hash="h", group_id="g", sample_index=0, seed=1, nodes=nodes, outcome=COMPLETED
    )
    stored = StoredTrajectory(
        trajectory=trajectory, phase="rl", step=1, policy_version=0, fate=Fate.TRAINED, reward=0.0
    )
    found = record_of(stored)
    assert (found.id, found.passed, found.outcome) == ("rl/1", False, "completed")
    assert [(item.index, item.role, item.is_error) for item in found.items] == [
        (1, "user", None),
        (2, "assistant", None),
        (3, "tool", True),
    ]
    assert [c.arguments for c in found.items[1].calls] == [{"id": 7}, None]
    assert read_atif(write_atif(found), 1) == found
