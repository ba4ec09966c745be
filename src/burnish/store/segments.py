"""Trajectories as Parquet: the schema of a segment, and the exact way there and back.

Token streams go from the arrays of the nodes to Arrow buffers by copying memory, so that ids and the bits of
log-probabilities (NaN included) come back as they were.  Text comes back as it was too, except that lone surrogates,
which UTF-8 cannot hold, become U+FFFD.  In JSON columns numbers that JSON cannot hold become the strings "NaN",
"Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from burnish.core.errors import StoreError
from burnish.core.grade import Grade
from burnish.core.images import ImageSpan
from burnish.core.kept import KeptSets
from burnish.core.message import message_from_json, message_to_json
from burnish.core.outcome import Ending, Limit, Outcome, Owner
from burnish.core.trajectory import Node, Trajectory
from burnish.store.rows import Fate, StoredTrajectory

GRADE_TYPE = pa.struct(
    [
        pa.field("grader", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("cause", pa.string(), nullable=False),
        pa.field("evidence", pa.string(), nullable=False),
        pa.field("cost_s", pa.float64(), nullable=False),
        pa.field("cost_tokens", pa.int64(), nullable=False),
    ]
)

NODE_TYPE = pa.struct(
    [
        pa.field("parent", pa.int32(), nullable=False),
        pa.field("is_action", pa.bool_(), nullable=False),
        pa.field("fork", pa.string(), nullable=False),
        pa.field("n_tokens", pa.int32(), nullable=False),
        pa.field("messages", pa.string(), nullable=False),
        pa.field("started_s", pa.float64(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("images", pa.string(), nullable=False),
    ]
)

_STREAMS = {
    "token_ids": ("i", pa.int32()),
    "action_mask": ("b", pa.int8()),
    "logprobs": ("f", pa.float32()),
    "versions": ("i", pa.int32()),
}

_Get = Callable[[StoredTrajectory], Any]

_COLUMNS: dict[str, tuple[pa.DataType, _Get]] = {
    "trajectory_id": (pa.string(), lambda r: r.trajectory.id),
    "phase": (pa.string(), lambda r: r.phase),
    "step": (pa.int64(), lambda r: r.step),
    "group_id": (pa.string(), lambda r: r.trajectory.group_id),
    "sample_index": (pa.int32(), lambda r: r.trajectory.sample_index),
    "task_id": (pa.string(), lambda r: r.trajectory.task_id),
    "task_hash": (pa.string(), lambda r: r.trajectory.task_hash),
    "tags": (pa.string(), lambda r: _json(r.trajectory.tags)),
    "seed": (pa.int64(), lambda r: r.trajectory.seed),
    "policy_version": (pa.int64(), lambda r: r.policy_version),
    "outcome": (pa.string(), lambda r: str(r.trajectory.outcome.ending)),
    "limit": (pa.string(), lambda r: _code(r.trajectory.outcome.limit)),
    "owner": (pa.string(), lambda r: _code(r.trajectory.outcome.owner)),
    "cause": (pa.string(), lambda r: r.trajectory.outcome.cause),
    "detail": (pa.string(), lambda r: r.trajectory.outcome.detail),
    "answer": (pa.string(), lambda r: r.trajectory.answer),
    "reward": (pa.float64(), lambda r: r.reward),
    "advantage": (pa.float64(), lambda r: r.advantage),
    "fate": (pa.string(), lambda r: str(r.fate)),
    "final_state": (pa.string(), lambda r: _json(r.trajectory.final_state)),
    "counters": (pa.string(), lambda r: _json(r.trajectory.counters)),
    "tool_s": (pa.float64(), lambda r: r.trajectory.tool_s),
    "total_s": (pa.float64(), lambda r: r.trajectory.total_s),
}
"""Name, type and source of every flat column; `docs/metrics.md` says what each means."""

SCHEMA = pa.schema(
    [pa.field(name, kind) for name, (kind, _) in _COLUMNS.items()]
    + [
        pa.field("attempt", pa.int32()),
        pa.field("grades", pa.list_(GRADE_TYPE)),
        pa.field("nodes", pa.list_(NODE_TYPE)),
    ]
    + [pa.field(name, pa.list_(pa.field("item", kind, nullable=False))) for name, (_, kind) in _STREAMS.items()]
    + [pa.field(name, pa.list_(pa.field("item", pa.int32(), nullable=False))) for name in ("kept_counts", "kept_ids")]
)
"""Of a segment: one row for each trajectory."""


def to_table(rows: Sequence[StoredTrajectory], *, attempt: int = 0) -> pa.Table:
    """Rows as an Arrow table of `SCHEMA`.

    Raises StoreError naming the trajectory where a value does not fit its column (a final state that is not JSON-able,
    a seed beyond 63 bits).
    """
    try:
        columns = _columns(rows, attempt)
    except _UNFIT:
        for row in rows:  # Again, one by one, for the name of the row.
            try:
                _columns([row], attempt)
            except _UNFIT as error:
                raise StoreError(
                    f"trajectory {row.trajectory.id} cannot be stored: {error}; tags, final_state, counters, evidence "
                    "and tool arguments must be JSON-able, numbers must fit their columns"
                ) from error
        raise
    return pa.Table.from_arrays(columns, schema=SCHEMA)


_UNFIT = (TypeError, ValueError, OverflowError, RecursionError, pa.ArrowException)


def from_table(table: pa.Table) -> list[StoredTrajectory]:
    """Inverse of `to_table`.

    Raises StoreError where columns are missing or a row is not one that `to_table` wrote.
    """
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise StoreError(f"a segment lacks the columns {', '.join(missing)}; it was written by another version")
    plain = [name for name in SCHEMA.names if name not in _STREAMS]
    records = table.select(plain).to_pylist()
    streams = {name: _split_stream(table.column(name), code) for name, (code, _) in _STREAMS.items()}
    try:
        return [
            _row(record, {name: stream[index] for name, stream in streams.items()})
            for index, record in enumerate(records)
        ]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"a segment holds a row that cannot be read back: {error!r}") from error


def encode_segment(rows: Sequence[StoredTrajectory], *, attempt: int = 0) -> bytes:
    """The Parquet file of a step, in memory.  Same rows, same bytes (for one version of pyarrow)."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        to_table(rows, attempt=attempt),
        sink,
        compression="zstd",
        compression_level=1,
        # A dictionary pays for columns that repeat; on floats it may also merge NaNs with different bits.
        use_dictionary=["phase", "group_id", "task_id", "task_hash", "tags", "outcome", "limit", "owner", "fate"],
        write_page_checksum=True,
        store_schema=True,
    )
    buffer: bytes = sink.getvalue().to_pybytes()
    return buffer


def decode_segment(data: bytes) -> list[StoredTrajectory]:
    """Inverse of `encode_segment`.  Raises StoreError for bytes that are not a sound segment."""
    return from_table(read_segment(data))


def read_segment(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The Arrow table in a segment, or some of its columns.  Raises StoreError for bytes that are no sound Parquet."""
    try:
        # `pq.read_table` would import the dataset machinery, which costs more than the reading.
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        return file.read(columns=None if columns is None else list(columns), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"a segment of {len(data)} bytes cannot be read: {error}") from error


def _columns(rows: Sequence[StoredTrajectory], attempt: int) -> list[pa.Array]:
    columns = [
        _strings([get(row) for row in rows]) if kind == pa.string() else pa.array([get(row) for row in rows], type=kind)
        for kind, get in _COLUMNS.values()
    ]
    columns.append(pa.array([attempt] * len(rows), type=pa.int32()))
    columns.append(_grades_column(rows))
    columns.append(_nodes_column(rows))
    columns.extend(_stream_column(rows, name) for name in _STREAMS)
    columns.extend(_kept_columns(rows))
    return columns


def _grades_column(rows: Sequence[StoredTrajectory]) -> pa.Array:
    grades = [grade for row in rows for grade in row.grades]
    children = [
        _strings([grade.grader for grade in grades]),
        _strings([grade.version for grade in grades]),
        pa.array([grade.score for grade in grades], type=pa.float64()),
        _strings([grade.cause for grade in grades]),
        _strings([_json(grade.evidence) for grade in grades]),
        pa.array([grade.cost_s for grade in grades], type=pa.float64()),
        pa.array([grade.cost_tokens for grade in grades], type=pa.int64()),
    ]
    structs = pa.StructArray.from_arrays(children, fields=list(GRADE_TYPE))
    return pa.ListArray.from_arrays(_offsets(len(row.grades) for row in rows), structs, type=pa.list_(GRADE_TYPE))


def _nodes_column(rows: Sequence[StoredTrajectory]) -> pa.Array:
    nodes = [node for row in rows for node in row.trajectory.nodes]
    children = [
        _flat("i", [node.parent for node in nodes], pa.int32()),
        pa.array([node.is_action for node in nodes], type=pa.bool_()),
        _strings([node.fork for node in nodes]),
        _flat("i", [len(node.token_ids) for node in nodes], pa.int32()),
        _strings([_messages_json(node) for node in nodes]),
        _flat("d", [node.started_s for node in nodes], pa.float64()),
        _flat("d", [node.duration_s for node in nodes], pa.float64()),
        _strings([_images_json(node) for node in nodes]),
    ]
    structs = pa.StructArray.from_arrays(children, fields=list(NODE_TYPE))
    counts = (len(row.trajectory.nodes) for row in rows)
    return pa.ListArray.from_arrays(_offsets(counts), structs, type=pa.list_(NODE_TYPE))


def _stream_column(rows: Sequence[StoredTrajectory], name: str) -> pa.Array:
    """One list for each trajectory: the streams of its nodes joined (arrays of one type join by copying memory)."""
    code, kind = _STREAMS[name]
    flat = array(code)
    lengths = []
    for row in rows:
        before = len(flat)
        for node in row.trajectory.nodes:
            stream = getattr(node, name)
            if stream.typecode != code:
                raise TypeError(f"{name} of a node must be array({code!r}), got array({stream.typecode!r})")
            flat.extend(stream)
        lengths.append(len(flat) - before)
    values = pa.Array.from_buffers(kind, len(flat), [None, pa.py_buffer(flat)])
    return pa.ListArray.from_arrays(_offsets(lengths), values, type=SCHEMA.field(name).type)


def _kept_columns(rows: Sequence[StoredTrajectory]) -> list[pa.Array]:
    """Counts and ids of the kept sets, one list each for a trajectory; null where its vocabulary was never cut."""
    kept = [
        KeptSets.join([(node.kept, len(node.token_ids)) for node in row.trajectory.nodes])
        if any(node.kept is not None for node in row.trajectory.nodes)
        else None
        for row in rows
    ]
    kind = SCHEMA.field("kept_ids").type
    return [
        pa.array([None if sets is None else np.frombuffer(sets.counts, np.int32) for sets in kept], type=kind),
        pa.array([None if sets is None else np.frombuffer(sets.ids, np.int32) for sets in kept], type=kind),
    ]


def _flat(code: str, values: list[Any], kind: pa.DataType) -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(array(code, values))])


def _offsets(lengths: Any) -> pa.Array:
    offsets = array("i", [0])
    total = 0
    for length in lengths:
        total += length
        offsets.append(total)
    return pa.Array.from_buffers(pa.int32(), len(offsets), [None, pa.py_buffer(offsets)])


def _strings(texts: list[str]) -> pa.Array:
    try:
        return pa.array(texts, type=pa.string())
    except UnicodeEncodeError:
        return pa.array([storable_text(text) for text in texts], type=pa.string())


def storable_text(text: str) -> str:
    """The text unchanged where UTF-8 can hold it, otherwise with lone surrogates replaced.

    >>> storable_text("a\\ud800b") == "a\\ufffdb"
    True
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _code(value: Limit | Owner | None) -> str:
    return "" if value is None else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON-able")


_encode = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False, default=_plain
).encode


def _json(value: Any) -> str:
    if not value:
        return "{}"
    try:
        return _encode(dict(value))
    except ValueError:
        return _encode(_finite(dict(value)))


def _images_json(node: Node) -> str:
    return _encode([[span.start, span.end, span.sha256] for span in node.images]) if node.images else ""


def _images(text: str) -> tuple[ImageSpan, ...]:
    spans = json.loads(text) if text else ()
    return tuple(ImageSpan(start=start, end=end, sha256=sha256) for start, end, sha256 in spans)


def _messages_json(node: Node) -> str:
    data = [message_to_json(message) for message in node.messages]
    try:
        return _encode(data)
    except ValueError:
        return _encode(_finite(data))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def json_text(value: Mapping[str, Any]) -> str:
    """A mapping as the JSON text of a column.  Raises StoreError where it is not JSON-able."""
    try:
        return storable_text(_json(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"a value cannot be stored as JSON: {error}") from error


def _split_stream(column: pa.ChunkedArray, code: str) -> list[array[Any]]:
    """The lists of a column as arrays; one memory copy each."""
    streams: list[array[Any]] = []
    for chunk in column.chunks:
        values = memoryview(chunk.values.to_numpy(zero_copy_only=True)).cast("B")
        width = array(code).itemsize
        offsets = chunk.offsets.to_pylist()
        for start, end in pairwise(offsets):
            stream = array(code)
            stream.frombytes(values[start * width : end * width])
            streams.append(stream)
    return streams


def _row(record: Mapping[str, Any], streams: Mapping[str, array[Any]]) -> StoredTrajectory:
    outcome = Outcome(
        ending=Ending(record["outcome"]),
        limit=Limit(record["limit"]) if record["limit"] else None,
        owner=Owner(record["owner"]) if record["owner"] else None,
        cause=record["cause"],
        detail=record["detail"],
    )
    trajectory = Trajectory(
        id=record["trajectory_id"],
        task_id=record["task_id"],
        task_hash=record["task_hash"],
        group_id=record["group_id"],
        sample_index=record["sample_index"],
        seed=record["seed"],
        nodes=_nodes(record["nodes"], streams, _kept(record)),
        outcome=outcome,
        answer=record["answer"],
        final_state=json.loads(record["final_state"]),
        counters=json.loads(record["counters"]),
        tags=json.loads(record["tags"]),
        tool_s=record["tool_s"],
        total_s=record["total_s"],
    )
    grades = tuple(Grade(**{**grade, "evidence": json.loads(grade["evidence"])}) for grade in record["grades"])
    return StoredTrajectory(
        trajectory=trajectory,
        phase=record["phase"],
        step=record["step"],
        policy_version=record["policy_version"],
        fate=Fate(record["fate"]),
        grades=grades,
        reward=record["reward"],
        advantage=record["advantage"],
        attempt=record["attempt"],
    )


def _kept(record: Mapping[str, Any]) -> KeptSets | None:
    if record["kept_counts"] is None:
        return None
    return KeptSets(counts=array("i", record["kept_counts"]), ids=array("i", record["kept_ids"]))


def _nodes(
    records: Sequence[Mapping[str, Any]], streams: Mapping[str, array[Any]], kept: KeptSets | None
) -> tuple[Node, ...]:
    nodes = []
    start = 0
    for record in records:
        end = start + record["n_tokens"]
        mine = kept.part(start, end) if kept is not None and any(kept.counts[start:end]) else None
        nodes.append(
            Node(
                parent=record["parent"],
                messages=tuple(message_from_json(data) for data in json.loads(record["messages"])),
                token_ids=streams["token_ids"][start:end],
                action_mask=streams["action_mask"][start:end],
                logprobs=streams["logprobs"][start:end],
                versions=streams["versions"][start:end],
                is_action=record["is_action"],
                kept=mine,
                fork=record["fork"],
                images=_images(record["images"]),
                started_s=record["started_s"],
                duration_s=record["duration_s"],
            )
        )
        start = end
    return tuple(nodes)
