"""The one writer of a run directory."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from burnish.core.errors import StoreError
from burnish.core.hashing import bytes_hash
from burnish.store import control, files, overrides
from burnish.store.layout import RunLayout
from burnish.store.overrides import Override
from burnish.store.rows import PHASES, EvaluationRow, Event, RunState, StepInfo, StepRecord, step_order
from burnish.store.segments import encode_segment, json_text, storable_text
from burnish.store.streams import encode_streams, stream_name


class RunWriter:
    """Writes a run; holds its lock until `close` (or the end of the process).

    A step exists if and only if its row in the control database does: `commit_step` first makes the Parquet segment
    durable, then commits one transaction with the segment's name and hash, scalars, events and evaluations.  Whatever
    moment the process is killed at, acknowledged steps are whole and others are absent.  Methods may be called from
    any thread, one at a time.
    """

    def __init__(self, layout: RunLayout, lock: int, connection: sqlite3.Connection) -> None:
        self.layout = layout
        self._lock = lock
        self._connection = connection
        self._mutex = threading.Lock()
        self._closed = False

    @classmethod
    def create(cls, directory: Path | str, manifest: Mapping[str, Any]) -> RunWriter:
        """Make a new run directory.  The manifest (JSON-able) is written once and never changed.

        Raises StoreError where the directory already holds a run or cannot be written.
        """
        layout = RunLayout(Path(directory))
        text = _manifest_text(manifest)
        with _storing(f"create {layout.root}"):
            for folder in (layout.root, layout.segments, layout.checkpoints, layout.artefacts, layout.logs):
                folder.mkdir(parents=True, exist_ok=True)
            lock = files.take_lock(layout.lock)
            try:
                if _is_created(layout.control):
                    raise StoreError(f"{layout.root} already holds a run; resume it, or choose another name")
                files.write_durably(layout.manifest, text.encode())
                connection = _create_control(layout.control)
            except BaseException:
                os.close(lock)
                raise
        return cls(layout, lock, connection)

    @classmethod
    def open(cls, directory: Path | str) -> RunWriter:
        """Take over a run that stopped.  Segments that no step refers to are set aside, and an event says so.

        Raises StoreError where there is no run, or another process writes to it.
        """
        layout = RunLayout(Path(directory))
        if not layout.control.is_file():
            raise StoreError(f"{layout.root} is no run directory: it has no {layout.control.name}")
        with _storing(f"open {layout.root}"):
            lock = files.take_lock(layout.lock)
            try:
                connection = control.connect_writer(layout.control)
            except BaseException:
                os.close(lock)
                raise
            writer = cls(layout, lock, connection)
            try:
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                control.check_version(layout.control, version)
                writer._set_orphans_aside()
            except BaseException:
                writer.close()
                raise
        return writer

    def commit_step(self, record: StepRecord) -> StepInfo:
        """Make a step durable, whole or not at all; when this returns, it is acknowledged.

        Raises StoreError where the step already exists, a value cannot be stored, or the disk is full: nothing of the
        step exists then, everything before it stays readable, and the call may be repeated.
        """
        with self._mutex, _storing(f"commit step {record.phase}/{record.step}"):
            self._check_open()
            attempt = self._attempt()
            order, _ = step_order(record.phase, record.step)
            if self._is_live(order, record.step):
                raise StoreError(f"step {record.phase}/{record.step} is already committed; a step is written once")
            data = encode_segment(record.rows, attempt=attempt) if record.rows else b""
            info = StepInfo(
                phase=record.phase,
                step=record.step,
                attempt=attempt,
                policy_version=record.policy_version,
                segment=f"{record.phase}-{record.step:06d}.{attempt}.parquet" if data else "",
                segment_sha256=bytes_hash(data) if data else "",
                n_trajectories=len(record.rows),
                n_tokens=sum(len(node.token_ids) for row in record.rows for node in row.trajectory.nodes),
                committed_at_s=time.time(),
                superseded=False,
            )
            if data:
                files.write_durably(self.layout.segment(info.segment), data)
            if record.streams:
                self.layout.streams.mkdir(exist_ok=True)
                name = stream_name(record.phase, record.step, attempt)
                files.write_durably(self.layout.streams / name, encode_streams(record.streams))
            try:
                with self._transaction() as cursor:
                    _insert_step(cursor, order, info, record)
            except BaseException:
                if info.segment and not self._is_live(order, record.step):
                    self.layout.segment(info.segment).unlink(missing_ok=True)
                raise
        return info

    def supersede_after(self, last: Mapping[str, int]) -> int:
        """Mark every step and checkpoint after the last one kept of its phase as superseded; begin the next attempt.

        Called on resume with what the loaded checkpoint had seen, for example `{"sft": 400, "rl": 12, "eval": 5}`; a
        phase that is not named loses all its steps.  Rows stay on disk and readable on request.  Returns how many
        steps were marked.
        """
        kept = [(order, last.get(phase, -1)) for order, phase in enumerate(PHASES)]
        for phase in last:
            step_order(phase, 0)
        after = "superseded = 0 AND phase_order = ? AND step > ?"
        with self._mutex, _storing(f"supersede after {dict(last)}"), self._transaction() as cursor:
            marked = 0
            for pair in kept:
                marked += cursor.execute(f"UPDATE steps SET superseded = 1 WHERE {after}", pair).rowcount
                cursor.execute(f"UPDATE checkpoints SET superseded = 1 WHERE {after}", pair)
            cursor.execute("UPDATE run SET attempt = attempt + 1, updated_at_s = ?", (time.time(),))
        return marked

    def record_checkpoint(self, name: str, *, phase: str, step: int, sha256: str) -> None:
        """Note a checkpoint that is complete and durable on disk."""
        order, _ = step_order(phase, step)
        row = (name, phase, order, step, sha256, time.time())
        with self._mutex, _storing(f"record checkpoint {name}"), self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO checkpoints (name, phase, phase_order, step, sha256, at_s) VALUES (?, ?, ?, ?, ?, ?)", row
            )

    def set_status(self, state: RunState, detail: str = "") -> None:
        """Say where the run stands.  `set_status(RunState.STOPPED, "no_signal: the first 40 groups ...")`"""
        if state is RunState.INTERRUPTED:
            raise ValueError("'interrupted' is what a reader concludes; a writer that can say so was not")
        row = (str(state), storable_text(detail), time.time())
        with self._mutex, _storing("set the status"), self._transaction() as cursor:
            cursor.execute("UPDATE run SET state = ?, detail = ?, updated_at_s = ?", row)

    def event(self, kind: str, detail: str = "", data: Mapping[str, Any] | None = None) -> None:
        """Record an event outside any step (resumed, interrupted by the user); a later resume does not supersede it."""
        event = Event(kind=kind, detail=detail, data=data or {})
        with self._mutex, _storing(f"record event {kind}"), self._transaction() as cursor:
            _insert_event(cursor, None, self._attempt(), event)

    def override(self, row: Override) -> None:
        """Add a person's word on a trajectory, with an event beside it; also on a run that ended long ago."""
        data = {"trajectory_id": row.trajectory_id, "name": row.name, "score": row.score, "before": row.before}
        said = row.label if row.score is None else f"{row.score:g}"
        detail = f"{row.person}: {row.kind} {row.name} of {row.trajectory_id} is {said}, because {row.reason}"
        event = Event(kind="override", detail=detail, data=data)
        with self._mutex, _storing(f"override {row.name} of {row.trajectory_id}"), self._transaction() as cursor:
            overrides.insert(cursor, row, time.time())
            _insert_event(cursor, None, self._attempt(), event)

    def heartbeat(self) -> None:
        """Say "alive" at the cost of one system call; not durable."""
        with _storing("renew the heartbeat"):
            os.utime(self.layout.lock)

    def put_artefact(self, data: bytes) -> str:
        """Keep bytes under their SHA-256, which is returned; the same bytes are kept once."""
        sha256 = bytes_hash(data)
        path = self.layout.artefact(sha256)
        with _storing(f"keep artefact {sha256[:12]}"):
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write_durably(path, data)
        return sha256

    def close(self) -> None:
        """Give the lock back.  Does not change the status."""
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            try:
                self._connection.close()
            finally:
                os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        self._check_open()
        cursor = self._connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        try:
            yield cursor
            cursor.execute("COMMIT")
        except BaseException:
            # A failed COMMIT may have rolled back by itself.
            if self._connection.in_transaction:
                cursor.execute("ROLLBACK")
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"the writer of {self.layout.root} is closed")

    def _attempt(self) -> int:
        self._check_open()
        attempt: int = self._connection.execute("SELECT attempt FROM run").fetchone()[0]
        return attempt

    def _is_live(self, order: int, step: int) -> bool:
        query = "SELECT 1 FROM steps WHERE phase_order = ? AND step = ? AND superseded = 0"
        return self._connection.execute(query, (order, step)).fetchone() is not None

    def _set_orphans_aside(self) -> None:
        known = {name for (name,) in self._connection.execute("SELECT segment FROM steps")}
        orphans = [path for path in sorted(self.layout.segments.iterdir()) if path.name not in known]
        if not orphans:
            return
        self.layout.set_aside.mkdir(exist_ok=True)
        for path in orphans:
            path.replace(self.layout.set_aside / f"{time.time_ns()}-{path.name}")
        files.sync_folder(self.layout.segments)
        names = [path.name for path in orphans]
        self.event("orphan_segments", f"{len(names)} uncommitted segments were set aside", {"segments": names})


def _manifest_text(manifest: Mapping[str, Any]) -> str:
    try:
        # Keys stay in their order: an environment may draw from its options in the order in which they were written.
        return storable_text(json.dumps(dict(manifest), indent=1, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise StoreError(f"the manifest is not JSON-able: {error}") from error


def _is_created(path: Path) -> bool:
    """Whether the run exists; one whose creation was cut short holds nothing and is made anew."""
    if not path.exists():
        return False
    connection = sqlite3.connect(path)
    try:
        return bool(connection.execute("PRAGMA user_version").fetchone()[0])
    finally:
        connection.close()


def _create_control(path: Path) -> sqlite3.Connection:
    connection = control.connect_writer(path)
    now = time.time()
    connection.executescript(
        f"BEGIN; {control.TABLES} INSERT INTO run VALUES (1, '{RunState.RUNNING}', '', 0, {now!r}, {now!r}); "
        f"PRAGMA user_version = {control.SCHEMA_VERSION}; COMMIT;"
    )
    files.sync_folder(path.parent)
    return connection


def _insert_step(cursor: sqlite3.Cursor, order: int, info: StepInfo, record: StepRecord) -> None:
    cursor.execute(
        "INSERT INTO steps (phase, phase_order, step, attempt, policy_version, segment, segment_sha256, n_trajectories,"
        " n_tokens, committed_at_s) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            info.phase,
            order,
            info.step,
            info.attempt,
            info.policy_version,
            info.segment,
            info.segment_sha256,
            info.n_trajectories,
            info.n_tokens,
            info.committed_at_s,
        ),
    )
    step_id = cursor.lastrowid
    scalars = [(step_id, storable_text(name), _number(name, value)) for name, value in record.scalars.items()]
    cursor.executemany("INSERT INTO scalars (step_id, name, value) VALUES (?, ?, ?)", scalars)
    for event in record.events:
        _insert_event(cursor, step_id, info.attempt, event)
    for evaluation in record.evaluations:
        _insert_evaluation(cursor, step_id, evaluation)


def _number(name: str, value: Any) -> float:
    """The scalar as a float.  SQLite keeps NaN as NULL, and the reader turns NULL back into NaN."""
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise StoreError(f"scalar {name} must be a number, got {value!r}") from error


def _insert_event(cursor: sqlite3.Cursor, step_id: int | None, attempt: int, event: Event) -> None:
    row = (step_id, attempt, storable_text(event.kind), storable_text(event.detail), json_text(event.data), time.time())
    cursor.execute(
        "INSERT INTO events (step_id, attempt, kind, detail, data, at_s) VALUES (?, ?, ?, ?, ?, ?)",
        row,
    )


def _insert_evaluation(cursor: sqlite3.Cursor, step_id: int | None, row: EvaluationRow) -> None:
    if row.phase not in PHASES:
        raise StoreError(f"evaluation {row.label!r} names the phase {row.phase!r}; phases are {', '.join(PHASES)}")
    if not math.isfinite(row.successes):
        raise StoreError(f"evaluation {row.label!r} has successes={row.successes}; leave out what was not graded")
    cursor.execute(
        "INSERT INTO evaluations (step_id, label, split, mode, phase, step, n, successes, mean, low, high, details) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            step_id,
            storable_text(row.label),
            storable_text(row.split),
            storable_text(row.mode),
            row.phase,
            row.step,
            row.n,
            row.successes,
            row.mean,
            row.low,
            row.high,
            json_text(row.details),
        ),
    )


@contextlib.contextmanager
def _storing(action: str) -> Iterator[None]:
    """The boundary at which errors of disk and database become StoreError."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"could not {action}: {error}; {files.full_disk_advice(error)}") from error
