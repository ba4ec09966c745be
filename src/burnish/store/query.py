"""DuckDB over a run: control tables as Arrow, segments as Parquet, both behind views of fixed names."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from burnish.core.errors import StoreError
from burnish.store.segments import SCHEMA, read_segment

_CONTROL: dict[str, tuple[str, pa.Schema]] = {
    "steps": (
        "SELECT phase, step, attempt, policy_version, segment, segment_sha256, n_trajectories, n_tokens, "
        "committed_at_s FROM steps WHERE superseded = 0 ORDER BY phase_order, step",
        pa.schema(
            {
                "phase": pa.string(),
                "step": pa.int64(),
                "attempt": pa.int32(),
                "policy_version": pa.int64(),
                "segment": pa.string(),
                "segment_sha256": pa.string(),
                "n_trajectories": pa.int64(),
                "n_tokens": pa.int64(),
                "committed_at_s": pa.float64(),
            }
        ),
    ),
    "scalars": (
        "SELECT phase, steps.step, attempt, name, value FROM scalars JOIN steps ON steps.id = step_id "
        "WHERE superseded = 0 ORDER BY name, phase_order, steps.step",
        pa.schema(
            {
                "phase": pa.string(),
                "step": pa.int64(),
                "attempt": pa.int32(),
                "name": pa.string(),
                "value": pa.float64(),
            }
        ),
    ),
    "events": (
        "SELECT COALESCE(phase, ''), COALESCE(step, -1), events.attempt, kind, detail, data, at_s FROM events "
        "LEFT JOIN steps ON steps.id = step_id WHERE COALESCE(superseded, 0) = 0 ORDER BY events.id",
        pa.schema(
            {
                "phase": pa.string(),
                "step": pa.int64(),
                "attempt": pa.int32(),
                "kind": pa.string(),
                "detail": pa.string(),
                "data": pa.string(),
                "at_s": pa.float64(),
            }
        ),
    ),
    "evaluations": (
        "SELECT label, split, mode, evaluations.phase, evaluations.step, attempt, n, successes, mean, low, high, "
        "details FROM evaluations JOIN steps ON steps.id = step_id WHERE superseded = 0 ORDER BY evaluations.id",
        pa.schema(
            {
                "label": pa.string(),
                "split": pa.string(),
                "mode": pa.string(),
                "phase": pa.string(),
                "step": pa.int64(),
                "attempt": pa.int32(),
                "n": pa.int64(),
                "successes": pa.float64(),
                "mean": pa.float64(),
                "low": pa.float64(),
                "high": pa.float64(),
                "details": pa.string(),
            }
        ),
    ),
}

# A node's parent stands before it, so one pass gives the tokens from the root to each node; [parent + 1] since SQL
# counts from 1.
_TRAJECTORIES_VIEW = """
CREATE VIEW trajectories AS
SELECT *,
       CAST(coalesce(list_sum(action_mask), 0) AS BIGINT) AS action_tokens,
       coalesce(list_max(list_reduce(
           nodes,
           lambda reached, node: list_append(
               reached, node.n_tokens + CASE WHEN node.parent < 0 THEN 0 ELSE reached[node.parent + 1] END),
           []::BIGINT[])), 0) AS context_tokens,
       len([node for node in nodes if node.is_action]) AS turns,
       coalesce(CAST(counters->>'$.tool_calls' AS BIGINT), 0) AS tool_calls
FROM segments
"""

# `token_ids` and its siblings are equally long, so that DuckDB unnests them side by side.
_TOKENS_VIEW = """
CREATE VIEW tokens AS
SELECT trajectory_id, phase, step, group_id, task_id, fate, reward, advantage,
       unnest(range(len(token_ids))) AS position,
       unnest(token_ids) AS token_id,
       unnest(action_mask) = 1 AS is_action,
       unnest(logprobs) AS logprob,
       unnest(versions) AS version
FROM trajectories
"""

_SUMMARY_COLUMNS = (
    "trajectory_id",
    "phase",
    "step",
    "group_id",
    "sample_index",
    "task_id",
    "policy_version",
    "outcome",
    "limit",
    "owner",
    "cause",
    "fate",
    "reward",
    "advantage",
    "answer",
    "tags",
    "total_s",
)


def control_tables(connection: sqlite3.Connection) -> dict[str, pa.Table]:
    """The control database as Arrow tables, superseded rows left out, all of one moment."""
    connection.execute("BEGIN")
    try:
        return {name: _table(connection.execute(sql).fetchall(), schema) for name, (sql, schema) in _CONTROL.items()}
    finally:
        connection.execute("ROLLBACK")


def run_query(sql: str, parameters: list[Any], tables: Mapping[str, pa.Table], segments: Sequence[Path]) -> pa.Table:
    """Run `sql` over the views.  Raises StoreError with DuckDB's message."""
    with duckdb.connect(":memory:", config={"threads": 2}) as connection:
        for name, table in tables.items():
            connection.register(name, table)
        if segments:
            names = ", ".join("'" + str(path).replace("'", "''") + "'" for path in segments)
            connection.execute(f"CREATE VIEW segments AS SELECT * FROM read_parquet([{names}])")
        else:
            connection.register("segments", SCHEMA.empty_table())
        connection.execute(_TRAJECTORIES_VIEW)
        connection.execute(_TOKENS_VIEW)
        try:
            relation = connection.sql(sql, params=parameters)
            result: pa.Table = pa.table({}) if relation is None else relation.to_arrow_table()
        except duckdb.Error as error:
            raise StoreError(f"the query failed: {error}") from error
    return result


def summary_rows(segment: bytes) -> list[dict[str, Any]]:
    """One light row for each trajectory of a segment.

    `n_nodes`, `n_tokens` and `action_tokens` are counted, `scores` holds each grader's score.  Raises StoreError where
    the segment cannot be read.
    """
    table = read_segment(segment, [*_SUMMARY_COLUMNS, "action_mask", "grades", "nodes.list.element.parent"])
    rows: list[dict[str, Any]] = table.select(list(_SUMMARY_COLUMNS)).to_pylist()
    mask = table.column("action_mask").combine_chunks()
    lengths, sums = _list_counts(mask)
    node_lengths, _ = _list_counts(table.column("nodes").combine_chunks(), summed=False)
    for index, grades in enumerate(table.column("grades").to_pylist()):
        rows[index] |= {
            "n_nodes": node_lengths[index],
            "n_tokens": lengths[index],
            "action_tokens": sums[index],
            "scores": {grade["grader"]: grade["score"] for grade in grades},
        }
    return rows


def _list_counts(lists: pa.ListArray, *, summed: bool = True) -> tuple[list[int], list[int]]:
    """Lengths of the lists, and the sums of their values."""
    offsets = lists.offsets.to_numpy()
    lengths: list[int] = np.diff(offsets).tolist()
    if not summed:
        return lengths, []
    totals = np.concatenate([[0], np.cumsum(lists.values.to_numpy(), dtype=np.int64)])
    sums: list[int] = (totals[offsets[1:]] - totals[offsets[:-1]]).tolist()
    return lengths, sums


def _table(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)
