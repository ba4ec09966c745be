"""Tasksets from files that somebody else wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from burnish.core.errors import ConfigError, TaskError
from burnish.core.message import message_from_json
from burnish.tasks.jsonl import JsonlTaskset
from burnish.tasks.lines import read_lines, strict_json


def write(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def good(n: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"Say {number}", "answer": str(number)} for number in range(start, start + n)]


def test_rows_become_tasks(tmp_path: Path) -> None:
    row = {"prompt": "2 + 2?", "answer": 4, "system": "Be brief.", "tags": {"skill": "sums"}, "id": 7, "extra": None}
    taskset = JsonlTaskset(write(tmp_path / "mine.jsonl", row, *good(9)), seed=0, heldout_share=0.0)
    task = next(task for task in taskset.tasks("train") if task.id == "7")
    assert (task.prompt, task.system, task.reference, task.tags) == (
        "2 + 2?",
        "Be brief.",
        {"answer": "4"},
        {"skill": "sums"},
    )
    assert (taskset.name, taskset.problems, taskset.chance) == ("mine", [], 0.2)


def test_conversations_lists_of_answers_and_choices(tmp_path: Path) -> None:
    prompt = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "Which?"},
    ]
    row = {"prompt": prompt, "answer": ["red", "rot"], "choices": ["red", "blue"]}
    task = JsonlTaskset(write(tmp_path / "a.jsonl", row), heldout_share=0.0).tasks("train")[0]
    assert (task.prompt, task.system) == ("Which?", "Be brief.")
    assert [message_from_json(item).text for item in task.setup["messages"]] == ["hi", "hello", "Which?"]
    assert task.reference == {"answer": "red", "answers": ["red", "rot"], "choices": ["red", "blue"]}


BAD_ROWS = [
    (b'{"prompt": "a", "answer": }', "not JSON"),
    (b'{"prompt": "a", "answer": NaN}', "NaN is not JSON"),
    (b'{"prompt": "a", "answer": 1e999}', "out of range"),
    (b'{"prompt": "a", "prompt": "b", "answer": "c"}', "stands twice"),
    (b'{"prompt": "a", "answer": ' + b"9" * 5000 + b"}", "5000 digits"),
    (b"[" * 100_000, "nested deeper than 64"),
    (b'["prompt", "answer"]', "expected an object"),
    (b"\xff\xfe", "not UTF-8"),
    (b'{"prompt": "a", "anwser": "b"}', "no 'answer' (is 'anwser' meant?)"),
    (b'{"prompt": "", "answer": "b"}', "'prompt' is empty"),
    (b'{"prompt": 3, "answer": "b"}', "'prompt' must be text"),
    (b'{"prompt": [{"role": "tool", "content": "x"}], "answer": "b"}', "a message of 'prompt'"),
    (b'{"prompt": [{"role": "assistant", "content": "x"}], "answer": "b"}', "end with the user"),
    (b'{"prompt": "a", "answer": true}', "'answer' must be"),
    (b'{"prompt": "a", "answer": []}', "empty list"),
    (b'{"prompt": "a", "answer": " "}', "'answer' is empty"),
    (b'{"prompt": "a", "answer": "b", "tags": {"x": 1}}', "'tags'"),
    (b'{"prompt": "a", "answer": "b", "choices": "x"}', "'choices'"),
    (b'{"prompt": "Say 1", "answer": "9"}', "repeats the problem of line 2"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS, ids=[reason for _, reason in BAD_ROWS])
def test_a_bad_row_is_set_aside_with_file_and_line(tmp_path: Path, row: bytes, reason: str) -> None:
    rows = good(20)
    path = write(tmp_path / "rows.jsonl", *rows[:5], row, *rows[5:])
    taskset = JsonlTaskset(path, seed=0)
    assert len(taskset.tasks("train")) + len(taskset.tasks("heldout")) == 20
    assert len(taskset.problems) == 1
    assert taskset.problems[0].startswith(f"{path}:6: ")
    assert reason in taskset.problems[0]


def test_too_many_bad_rows_stop_with_the_first_five(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *good(10), *[b"nonsense"] * 7)
    with pytest.raises(TaskError, match="7 of 17 rows cannot be used") as error:
        JsonlTaskset(path)
    assert str(error.value).count("not JSON") == 5
    assert f"{path}:11: " in str(error.value)
    assert len(JsonlTaskset(path, max_bad_share=0.5).problems) == 7


def test_files_that_give_nothing(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="cannot be read: No such file"):
        JsonlTaskset(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(TaskError, match="0 of 0 rows"):
        JsonlTaskset(tmp_path / "empty.jsonl")


def test_byte_order_mark_and_surrogates(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a\\ud800b\\u0000", "answer": "c"}\r\n')
    assert JsonlTaskset(path, heldout_share=0.0).tasks("train")[0].prompt == "a\ufffdb\ufffd"


def test_an_endless_line_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.tasks.lines.MAX_LINE_BYTES", 100)
    path = write(tmp_path / "rows.jsonl", *good(1), b"x" * 1000, *good(1, start=5))
    found = list(read_lines(path))
    assert [line.number for line in found] == [1, 2, 3]
    assert [bool(line.problem) for line in found] == [False, True, False]


def test_the_split_is_stable_and_disjoint(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *good(50))
    one, two = JsonlTaskset(path, seed=3), JsonlTaskset(path, seed=3)
    assert one.content_hash("heldout") == two.content_hash("heldout")
    assert len(one.tasks("heldout")) == 5
    assert not {task.id for task in one.tasks("train")} & {task.id for task in one.tasks("heldout")}
    assert JsonlTaskset(path, seed=4).content_hash("heldout") != one.content_hash("heldout")


def test_a_heldout_file_must_not_repeat_train(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", *good(10))
    other = write(tmp_path / "other.jsonl", *good(5, start=20))
    assert len(JsonlTaskset(train, heldout_path=other).tasks("heldout")) == 5
    leaky = write(tmp_path / "leaky.jsonl", *good(3, start=9))
    with pytest.raises(TaskError, match="also stand in train"):
        JsonlTaskset(train, heldout_path=leaky)


def test_a_share_out_of_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="heldout_share"):
        JsonlTaskset(tmp_path / "x.jsonl", heldout_share=1.0)


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any.jsonl"
    path.write_bytes(data)
    for line in read_lines(path):
        assert (line.value is None) == bool(line.problem)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=20))
def test_strict_json_agrees_with_json_on_good_texts(value: Any) -> None:
    assert strict_json(json.dumps({"x": 1, "y": None})) == {"x": 1, "y": None}
    assert strict_json(json.dumps(value)) == value
