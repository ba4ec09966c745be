"""Reading a run directory, also while its writer goes on."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from burnish.core.errors import StoreError
from burnish.core.hashing import bytes_hash
from burnish.store import control, files, overrides, query
from burnish.store.layout import RunLayout
from burnish.store.overrides import Override
from burnish.store.rows import (
    CheckpointRow,
    EvaluationRow,
    Fate,
    RunState,
    RunStatus,
    StepInfo,
    StoredEvent,
    StoredTrajectory,
    TrajectorySummary,
)
from burnish.store.segments import decode_segment
from burnish.store.streams import stream_name

_STEP_COLUMNS = (
    "phase, step, attempt, policy_version, segment, segment_sha256, n_trajectories, n_tokens, committed_at_s, "
    "superseded"
)


class RunReader:
    """Reads a run; any number of readers may do so while the writer writes.

    It keeps no file open between calls, so one reader serves several threads.  Each method sees the steps that were
    committed when it was called, superseded ones left out unless asked for.  Every method raises StoreError where the
    directory holds no readable run.
    """

    def __init__(self, directory: Path | str) -> None:
        self.layout = RunLayout(Path(directory))
        with self._connected():
            pass

    def manifest(self) -> dict[str, Any]:
        """Resolved config, versions, git state, seeds, hardware."""
        try:
            data: dict[str, Any] = json.loads(self.layout.manifest.read_bytes())
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.layout.manifest} cannot be read: {error}") from error
        return data

    def status(self) -> RunStatus:
        """Where the run stands; a run that says "running" while no process writes to it was interrupted."""
        live = files.is_locked(self.layout.lock)
        with self._connected() as connection:
            row = connection.execute("SELECT state, detail, attempt, created_at_s, updated_at_s FROM run").fetchone()
        state = RunState(row[0])
        if state is RunState.RUNNING and not live:
            state = RunState.INTERRUPTED
        try:
            heartbeat_at_s = self.layout.lock.stat().st_mtime
        except FileNotFoundError:
            heartbeat_at_s = row[4]
        return RunStatus(
            state=state,
            detail=row[1],
            attempt=row[2],
            live=live,
            created_at_s=row[3],
            updated_at_s=row[4],
            heartbeat_at_s=heartbeat_at_s,
        )

    def steps(self, phase: str | None = None, *, include_superseded: bool = False) -> list[StepInfo]:
        """Committed steps in the order of phases and steps (then of attempts)."""
        with self._connected() as connection:
            rows = connection.execute(
                f"SELECT {_STEP_COLUMNS} FROM steps WHERE (?1 IS NULL OR phase = ?1) AND superseded <= ?2 "
                "ORDER BY phase_order, step, attempt",
                (phase, int(include_superseded)),
            ).fetchall()
        return [_step_info(row) for row in rows]

    def scalar_names(self, phase: str | None = None) -> list[str]:
        """Names of all scalars, sorted."""
        return sorted(self.all_scalars(phase))

    def scalars(self, name: str, phase: str) -> list[tuple[int, float]]:
        """(step, value) of one scalar in one phase, by step; empty where it was never written."""
        with self._connected() as connection:
            rows = connection.execute(
                "SELECT steps.step, value FROM scalars JOIN steps ON steps.id = step_id "
                "WHERE name = ? AND phase = ? AND superseded = 0 ORDER BY steps.step",
                (name, phase),
            ).fetchall()
        return [(step, _float(value)) for step, value in rows]

    def all_scalars(self, phase: str | None = None) -> dict[str, list[tuple[int, float]]]:
        """(step, value) of every scalar of a phase (of all phases one after the other for None)."""
        with self._connected() as connection:
            rows = connection.execute(
                "SELECT name, steps.step, value FROM scalars JOIN steps ON steps.id = step_id "
                "WHERE (?1 IS NULL OR phase = ?1) AND superseded = 0 ORDER BY name, phase_order, steps.step",
                (phase,),
            ).fetchall()
        series: dict[str, list[tuple[int, float]]] = {}
        for name, step, value in rows:
            series.setdefault(name, []).append((step, _float(value)))
        return series

    def step_scalars(self, phase: str, step: int) -> dict[str, float]:
        """Every scalar of one step."""
        with self._connected() as connection:
            rows = connection.execute(
                "SELECT name, value FROM scalars JOIN steps ON steps.id = step_id "
                "WHERE phase = ? AND steps.step = ? AND superseded = 0 ORDER BY name",
                (phase, step),
            ).fetchall()
        return {name: _float(value) for name, value in rows}

    def evaluations(self) -> list[EvaluationRow]:
        """Held-out evaluations in the order in which they were committed."""
        columns = "label, split, mode, evaluations.phase, evaluations.step, n, successes, mean, low, high, details"
        with self._connected() as connection:
            rows = connection.execute(
                f"SELECT {columns} FROM evaluations JOIN steps ON steps.id = step_id WHERE superseded = 0 "
                "ORDER BY evaluations.id"
            ).fetchall()
        return [
            EvaluationRow(
                label=row[0],
                split=row[1],
                mode=row[2],
                phase=row[3],
                step=row[4],
                n=row[5],
                successes=row[6],
                mean=_float(row[7]),
                low=_float(row[8]),
                high=_float(row[9]),
                details=json.loads(row[10]),
            )
            for row in rows
        ]

    def events(self, kind: str | None = None) -> list[StoredEvent]:
        """Events in the order in which they were recorded; those of superseded steps are left out."""
        with self._connected() as connection:
            rows = connection.execute(
                "SELECT kind, detail, data, COALESCE(phase, ''), COALESCE(step, -1), events.attempt, at_s FROM events "
                "LEFT JOIN steps ON steps.id = step_id WHERE COALESCE(superseded, 0) = 0 AND (?1 IS NULL OR kind = ?1) "
                "ORDER BY events.id",
                (kind,),
            ).fetchall()
        return [
            StoredEvent(
                kind=row[0],
                detail=row[1],
                data=json.loads(row[2]),
                phase=row[3],
                step=row[4],
                attempt=row[5],
                at_s=row[6],
            )
            for row in rows
        ]

    def overrides(self) -> list[Override]:
        """What people said against grades, flags and labels, in the order in which they did."""
        with self._connected() as connection:
            return overrides.read(connection)

    def checkpoints(self, *, include_superseded: bool = False) -> list[CheckpointRow]:
        """Checkpoints in the order in which they were recorded; whether they still are on disk is not looked at."""
        with self._connected() as connection:
            rows = connection.execute(
                "SELECT name, phase, step, sha256, at_s, superseded FROM checkpoints WHERE superseded <= ? ORDER BY id",
                (int(include_superseded),),
            ).fetchall()
        return [
            CheckpointRow(name=row[0], phase=row[1], step=row[2], sha256=row[3], at_s=row[4], superseded=bool(row[5]))
            for row in rows
        ]

    def trajectories(self, phase: str, step: int, *, attempt: int | None = None) -> list[StoredTrajectory]:
        """The trajectories of one step in the order in which they were committed; their segment's hash is checked.

        attempt None: the attempt that counts.  Raises StoreError where the step does not exist, or its segment is
        missing or not as it was written.
        """
        for info in self.steps(phase, include_superseded=attempt is not None):
            if info.step == step and attempt in (None, info.attempt):
                return decode_segment(self._segment_bytes(info)) if info.segment else []
        suffix = "" if attempt is None else f", attempt {attempt},"
        raise StoreError(f"{self.layout.root} has no step {phase}/{step}{suffix}; it has {self._extent()}")

    def stream_files(self, phase: str = "rl") -> list[Path]:
        """The files of token streams of the steps that count, in the order of the steps; empty where none were kept."""
        paths = [self.layout.streams / stream_name(phase, info.step, info.attempt) for info in self.steps(phase)]
        return [path for path in paths if path.is_file()]

    def trajectory(self, trajectory_id: str) -> StoredTrajectory:
        """One trajectory by its id.  Raises StoreError where there is none."""
        found = self.query("SELECT phase, step FROM trajectories WHERE trajectory_id = ?", [trajectory_id]).to_pylist()
        for place in found:
            for row in self.trajectories(place["phase"], place["step"]):
                if row.trajectory.id == trajectory_id:
                    return row
        raise StoreError(f"{self.layout.root} has no trajectory {trajectory_id!r}; an id looks like rl/000012/0003/05")

    def summaries(
        self, phase: str | None = None, *, step: int | None = None, fate: Fate | None = None, limit: int = 1000
    ) -> list[TrajectorySummary]:
        """Trajectories without messages and tokens: the newest steps first, at most `limit`."""
        wanted = [info for info in self.steps(phase) if info.segment and (step is None or info.step == step)]
        summaries: list[TrajectorySummary] = []
        for info in reversed(wanted):
            if len(summaries) >= limit:
                break
            rows = query.summary_rows(self._segment_bytes(info))
            summaries.extend(summary for row in rows if fate in (None, (summary := _summary(row)).fate))
        return summaries[:limit]

    def query(self, sql: str, parameters: list[Any] | None = None) -> pa.Table:
        """Run DuckDB SQL over the views `steps`, `scalars`, `events`, `evaluations`, `trajectories`, `tokens`.

        The views hold what counts (nothing superseded); `docs/metrics.md` lists their columns.  `.to_pylist()` gives
        rows.  Raises StoreError with DuckDB's message for a query that fails.
        """
        with self._connected() as connection:
            tables = query.control_tables(connection)
        paths = [self.layout.segment(name) for name in tables["steps"].column("segment").to_pylist() if name]
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise StoreError(f"{len(missing)} segments of {self.layout.root} are missing, such as {missing[0]}")
        return query.run_query(sql, parameters or [], tables, paths)

    def artefact(self, sha256: str) -> bytes:
        """Bytes by hash, checked.  Raises StoreError where they are missing or changed."""
        path = self.layout.artefact(sha256)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(f"artefact {sha256} cannot be read: {error}") from error
        if bytes_hash(data) != sha256:
            raise StoreError(f"artefact {path} does not hold the bytes that it is named after; restore it from a copy")
        return data

    def verify(self) -> list[str]:
        """Check the database and the hash of every segment, superseded ones too; returns what is wrong, or nothing."""
        problems = []
        with self._connected() as connection:
            for (line,) in connection.execute("PRAGMA integrity_check"):
                if line != "ok":
                    problems.append(f"{self.layout.control.name}: {line}")
        for info in self.steps(include_superseded=True):
            if info.segment:
                try:
                    self._segment_bytes(info)
                except StoreError as error:
                    problems.append(str(error))
        return problems

    def _segment_bytes(self, info: StepInfo) -> bytes:
        path = self.layout.segment(info.segment)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(
                f"segment {info.segment} of step {info.phase}/{info.step} cannot be read: {error}"
            ) from error
        if bytes_hash(data) != info.segment_sha256:
            raise StoreError(
                f"segment {info.segment} of step {info.phase}/{info.step} is not as it was written (its hash differs); "
                "restore it from a copy"
            )
        return data

    def _extent(self) -> str:
        ranges: dict[str, list[int]] = {}
        for info in self.steps():
            ranges.setdefault(info.phase, []).append(info.step)
        return ", ".join(f"{phase}/{steps[0]} to {phase}/{steps[-1]}" for phase, steps in ranges.items()) or "no steps"

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        connection = control.connect_reader(self.layout.control)
        try:
            yield connection
        except sqlite3.Error as error:
            raise StoreError(f"{self.layout.control} cannot be read: {error}") from error
        finally:
            connection.close()


def _float(value: float | None) -> float:
    return math.nan if value is None else value


def _step_info(row: tuple[Any, ...]) -> StepInfo:
    return StepInfo(
        phase=row[0],
        step=row[1],
        attempt=row[2],
        policy_version=row[3],
        segment=row[4],
        segment_sha256=row[5],
        n_trajectories=row[6],
        n_tokens=row[7],
        committed_at_s=row[8],
        superseded=bool(row[9]),
    )


def _summary(row: dict[str, Any]) -> TrajectorySummary:
    qualifier = row["limit"] or row["owner"]
    return TrajectorySummary(
        id=row["trajectory_id"],
        phase=row["phase"],
        step=row["step"],
        group_id=row["group_id"],
        sample_index=row["sample_index"],
        task_id=row["task_id"],
        policy_version=row["policy_version"],
        outcome=f"{row['outcome']}:{qualifier}" if qualifier else row["outcome"],
        cause=row["cause"],
        fate=Fate(row["fate"]),
        reward=row["reward"],
        advantage=row["advantage"],
        answer=row["answer"],
        n_nodes=row["n_nodes"],
        n_tokens=row["n_tokens"],
        action_tokens=row["action_tokens"],
        tags=json.loads(row["tags"]),
        scores=row["scores"],
        total_s=row["total_s"],
    )
