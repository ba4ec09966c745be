"""Rows of Burnish's own, TRL's and verl's columns become the same streams; bad rows are named and the rest is kept."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from token_streams import make_step

from burnish.core.errors import StoreError
from burnish.core.streams import TokenStream
from burnish.health.files import read_streams, stream_files
from burnish.health.rows import RowError, stream_of_row
from burnish.health.slices import SliceNames
from burnish.health.sums import HealthSums
from burnish.store.streams import encode_streams


def own_row(stream: TokenStream) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(stream), default=list))


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_own_rows_come_back_whole_from_both_formats(tmp_path: Path) -> None:
    steps = [make_step(step, 8, step=step) for step in (1, 2)]
    folder = tmp_path / "streams"
    folder.mkdir()
    for step, streams in enumerate(steps, start=1):
        (folder / f"rl-{step:06d}.0.parquet").write_bytes(encode_streams(streams))
    lines = write_jsonl(tmp_path / "all.jsonl", [own_row(stream) for streams in steps for stream in streams])
    for path in (folder, lines):
        found = list(read_streams(path))
        assert [part.step for part in found] == [1, 2]
        assert [part.bad for part in found] == [(), ()]
        for part, streams in zip(found, steps, strict=True):
            assert list(part.streams) == streams


def test_the_newest_attempt_at_a_step_counts(tmp_path: Path) -> None:
    for name in ("rl-000001.0", "rl-000002.0", "rl-000002.1"):
        (tmp_path / f"{name}.parquet").write_bytes(b"")
    assert [path.name for path in stream_files(tmp_path)] == ["rl-000001.0.parquet", "rl-000002.1.parquet"]


def test_trl_rows_use_both_masks() -> None:
    row = {
        "step": 4,
        "completion_mask": [1, 1, 1, 1, 1, 0, 0],
        "tool_mask": [1, 1, 0, 1, 1, 1, 1],  # padded with 1
        "old_per_token_logps": [-1.0, -2.0, 0.0, -3.0, -4.0, 0.0, 0.0],
        "sampling_per_token_logps": [-1.5, -2.0, 0.0, -3.0, -4.0, 0.0, 0.0],
        "per_token_logps": [-1.1, -2.1, 0.0, -3.1, -4.1, 0.0, 0.0],
        "advantages": 0.5,
        "rewards": 1.0,
        "tool_names": ["search"],
    }
    stream = stream_of_row(row, 1)
    assert list(stream.behaviour) == [-1.5, -2.0, -3.0, -4.0]
    assert list(stream.proximal or ()) == [-1.0, -2.0, -3.0, -4.0]
    assert list(stream.learner or ()) == pytest.approx([-1.1, -2.1, -3.1, -4.1])
    assert [(s.start, s.end, s.tool, s.after_tool) for s in stream.spans] == [(0, 2, "", False), (2, 4, "search", True)]
    assert (stream.advantage, stream.reward, stream.turns, stream.tool_calls) == (0.5, 1.0, 2, 1)
    with pytest.raises(RowError, match="whole row is masked"):
        stream_of_row({**row, "tool_mask": [0] * 7}, 1)


def test_verl_rows_take_what_lies_between_for_tool_results() -> None:
    row = {
        "step": 1,
        "uid": "g",
        "data_source": "gsm8k",
        "response_mask": [1, 0, 0, 1, 1, 0],
        "rollout_log_probs": [-1.0, 0.0, 0.0, -2.0, -3.0, 0.0],
        "old_log_probs": [-1.1, 0.0, 0.0, -2.0, -3.0, 0.0],
        "advantages": [0.7, 0.0, 0.0, 0.7, 0.7, 0.0],
        "token_level_scores": [0.0, 0.0, 0.0, 0.0, 1.0, 0.0],
    }
    stream = stream_of_row(row, 9)
    assert list(stream.learner or ()) == pytest.approx([-1.1, -2.0, -3.0])
    assert [(s.start, s.end, s.after_tool) for s in stream.spans] == [(0, 1, False), (1, 3, True)]
    assert (stream.id, stream.group_id, stream.source, stream.advantage, stream.reward) == (
        "row-9",
        "g",
        "gsm8k",
        0.7,
        1.0,
    )
    begins_with_a_result = stream_of_row({**row, "response_mask": [0, 0, 0, 1, 1, 0]}, 9)
    assert [span.after_tool for span in begins_with_a_result.spans] == [True]


def test_bad_rows_are_named_and_good_ones_kept(tmp_path: Path) -> None:
    good = [own_row(stream) for stream in make_step(1, 4, step=3)]
    short = {**good[1], "learner": [0.0]}
    path = write_jsonl(
        tmp_path / "a.jsonl",
        [
            good[0],
            "{not json",
            short,
            [1],
            {**good[2], "step": 2},
            good[0],
            {"step": 3, "logits": []},
            {**good[2], "step": 3.5},
            {**good[2], "spans": [{"start": 0, "end": 1, "surprise": 1}]},
            good[3],
        ],
    )
    [part] = read_streams(path)
    assert [stream.id for stream in part.streams] == [good[0]["id"], good[3]["id"]]
    assert [row.line for row in part.bad] == [2, 3, 4, 5, 6, 7, 8, 9]
    reasons = ["not JSON", "equally long", "object", "sort the rows", "twice", "response_mask", "whole", "surprise"]
    for row, reason in zip(part.bad, reasons, strict=True):
        assert reason in row.why


def test_numbers_that_are_not_finite_are_let_through_to_be_found(tmp_path: Path) -> None:
    row = own_row(make_step(1, 1)[0])
    row["learner"][:3] = [None, "NaN", "-Infinity"]
    [part] = read_streams(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert HealthSums.of(part.streams, SliceNames()).nonfinite[0] == 3
    assert math.isnan(np.array(part.streams[0].learner)[0])


def test_parquet_of_another_trainer(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "response_mask": [1, 0, 1], "rollout_log_probs": [-1.0, 0.0, -2.0], "advantages": [1.0, 0.0, 1.0]},
        {"step": 2, "response_mask": [0, 0, 0], "rollout_log_probs": [-1.0, 0.0, -2.0], "advantages": [1.0, 0.0, 1.0]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    [part] = read_streams(tmp_path / "a.parquet")
    assert len(part.streams) == 1
    assert [(row.line, "masked" in row.why) for row in part.bad] == [(2, True)]


def test_files_that_are_not_there_say_so(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    for path, reason in (
        (tmp_path / "none.jsonl", "does not exist"),
        (tmp_path / "broken.parquet", "cannot be read as Parquet"),
    ):
        with pytest.raises(StoreError, match=reason):
            list(read_streams(path))
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(StoreError, match="neither"):
        list(read_streams(tmp_path / "x.csv"))
