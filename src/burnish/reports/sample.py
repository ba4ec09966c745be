"""Which trajectories a report of one file carries along: a bounded choice from all over the run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from burnish.reports.failures import Failures
from burnish.reports.findings import read_findings
from burnish.reports.trajectories import read_trajectories
from burnish.store.reader import RunReader

MAX_BYTES = 3_000_000
"""Of all trajectories of a report, as JSON."""

_SHARES = {"found": 0.15, "rl": 0.5, "eval": 0.2, "failed": 0.1, "sft": 0.05}
_GROUPS_PER_STEP = 8
_EVALUATIONS = 8
_PER_SCORE = 3
_FAILED = 12
_FOUND = 24
_DEMONSTRATIONS = 12


def choose_sample(reader: RunReader, failures: Failures, *, max_bytes: int = MAX_BYTES) -> list[dict[str, Any]]:
    """Whole trajectories, those that failed with their diagnosis, of at most `max_bytes` of JSON.

    Those that findings name, groups of the first, the middle and the last RL step (those with signal first), right and
    wrong episodes of up to eight evaluations, the newest episodes that failed, and some demonstrations.  Raises
    StoreError where segments cannot be read.
    """
    chosen = {
        "found": _found(reader),
        "rl": _from_rl(reader),
        "eval": _from_evaluations(reader),
        "failed": _failed(reader),
        "sft": _shown(reader),
    }
    found: dict[str, dict[str, Any]] = {}
    for kind, ids in chosen.items():
        budget = _SHARES[kind] * max_bytes
        read = read_trajectories(reader, [one for one in ids if one not in found])
        diagnoses = failures.of(read)
        for trajectory in read:
            trajectory["diagnosis"] = diagnoses.get(trajectory["id"])
            size = len(json.dumps(trajectory, separators=(",", ":")))
            if size <= budget:
                budget -= size
                found[trajectory["id"]] = trajectory
    return list(found.values())


def _steps(reader: RunReader, phase: str) -> list[int]:
    return [info.step for info in reader.steps(phase) if info.n_trajectories]


def spread(items: Sequence[int], count: int) -> list[int]:
    """`count` items, the first and the last among them, the others evenly between.

    >>> spread([1, 2, 3, 4, 5, 6, 7], 3)
    [1, 4, 7]
    """
    if len(items) <= count:
        return list(items)
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def _from_rl(reader: RunReader) -> list[str]:
    """Whole groups in turns over the steps, so that each step gets its share of the budget."""
    groups = reader.query(
        "WITH groups AS (SELECT step, group_id, list(trajectory_id ORDER BY sample_index) AS ids, "
        "coalesce(max(reward) > min(reward), false) AS signal FROM trajectories "
        "WHERE phase = 'rl' AND step IN (SELECT unnest(?)) GROUP BY step, group_id), "
        "ranked AS (SELECT *, row_number() OVER (PARTITION BY step ORDER BY signal DESC, group_id) AS rank "
        "FROM groups) "
        "SELECT ids FROM ranked WHERE rank <= ? ORDER BY rank, step",
        [spread(_steps(reader, "rl"), 3), _GROUPS_PER_STEP],
    )
    return [one for ids in groups.column("ids").to_pylist() for one in ids]


def _from_evaluations(reader: RunReader) -> list[str]:
    return _ids(
        reader,
        "SELECT trajectory_id FROM trajectories WHERE phase = 'eval' AND step IN (SELECT unnest(?)) "
        "QUALIFY row_number() OVER (PARTITION BY step, coalesce(reward >= 1, false) ORDER BY trajectory_id) <= ? "
        "ORDER BY row_number() OVER (PARTITION BY step ORDER BY trajectory_id), step",
        [spread(_steps(reader, "eval"), _EVALUATIONS), _PER_SCORE],
    )


def _found(reader: RunReader) -> list[str]:
    """The trajectories that findings name, those of the newest finding first."""
    named = [one for finding in reversed(read_findings(reader.events())) for one in finding.trajectory_ids]
    return list(dict.fromkeys(named))[:_FOUND]


def _failed(reader: RunReader) -> list[str]:
    return _ids(
        reader,
        "SELECT trajectory_id FROM trajectories WHERE fate IN ('failed', 'dropped') OR outcome = 'error' "
        "ORDER BY phase = 'rl' DESC, step DESC, trajectory_id LIMIT ?",
        [_FAILED],
    )


def _shown(reader: RunReader) -> list[str]:
    return _ids(
        reader,
        "SELECT trajectory_id FROM trajectories WHERE phase = 'sft' ORDER BY step, trajectory_id LIMIT ?",
        [_DEMONSTRATIONS],
    )


def _ids(reader: RunReader, sql: str, parameters: Iterable[Any]) -> list[str]:
    ids: list[str] = reader.query(sql, list(parameters)).column("trajectory_id").to_pylist()
    return ids
