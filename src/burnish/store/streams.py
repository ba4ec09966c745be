"""Token streams as Parquet: one row for each trajectory, columns named as the fields of `core.streams.TokenStream`."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from burnish.core.streams import TokenStream

SPAN_TYPE = pa.struct(
    [
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("turn", pa.int32()),
        ("tool", pa.string()),
        ("after_tool", pa.bool_()),
        ("after_error", pa.bool_()),
        ("after_image", pa.bool_()),
        ("after_compaction", pa.bool_()),
    ]
)

_ARRAYS = {
    "behaviour": ("f", pa.float32()),
    "learner": ("f", pa.float32()),
    "proximal": ("f", pa.float32()),
    "reference": ("f", pa.float32()),
    "entropy": ("f", pa.float32()),
    "score_norm": ("f", pa.float32()),
    "control": ("b", pa.int8()),
    "staleness": ("i", pa.int32()),
}

_PLAIN = {
    "id": pa.string(),
    "group_id": pa.string(),
    "step": pa.int64(),
    "advantage": pa.float64(),
    "reward": pa.float64(),
    "source": pa.string(),
    "skill": pa.string(),
    "turns": pa.int32(),
    "tool_calls": pa.int32(),
    "tool_errors": pa.int32(),
    "retries": pa.int32(),
    "success": pa.float64(),
    "progress": pa.float64(),
    "outcome": pa.string(),
}


def stream_name(phase: str, step: int, attempt: int) -> str:
    """File name of a step's streams.

    >>> stream_name("rl", 12, 0)
    'rl-000012.0.parquet'
    """
    return f"{phase}-{step:06d}.{attempt}.parquet"


def encode_streams(streams: Sequence[TokenStream]) -> bytes:
    """A Parquet file; `reward_parts` is a JSON text, spans are structs, arrays that do not exist are null."""
    columns: dict[str, pa.Array] = {
        name: pa.array([getattr(stream, name) for stream in streams], type=kind) for name, kind in _PLAIN.items()
    }
    columns["reward_parts"] = pa.array([json.dumps(dict(stream.reward_parts)) for stream in streams], type=pa.string())
    spans = [[asdict(span) for span in stream.spans] for stream in streams]
    columns["spans"] = pa.array(spans, type=pa.list_(SPAN_TYPE))
    for name, (code, kind) in _ARRAYS.items():
        columns[name] = _lists([getattr(stream, name) for stream in streams], code, kind)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _lists(arrays: Sequence[array[Any] | None], code: str, kind: pa.DataType) -> pa.Array:
    """A column of lists from arrays, by copying memory; None becomes null."""
    joined = array(code)
    ends = [0]
    for values in arrays:
        joined.extend(values if values is not None else array(code))
        ends.append(len(joined))
    missing = pa.array([values is None for values in arrays], type=pa.bool_())
    offsets = pa.array(np.asarray(ends, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(np.frombuffer(joined, dtype=code), type=kind), mask=missing)
