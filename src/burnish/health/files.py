"""Token streams of any trainer from Parquet or JSONL files, step by step."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from burnish.core.errors import StoreError
from burnish.core.streams import TokenStream
from burnish.health.rows import RowError, stream_of_row

SUFFIXES = (".jsonl", ".parquet")
BATCH_ROWS = 256
_NUMBERED = re.compile(r"(?P<step>.+)\.(?P<attempt>\d+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that could not be read: where it stands (from 1) and why.

    `BadRow(path=Path("a.jsonl"), line=3, why="step must be a whole number, got None")`
    """

    path: Path
    line: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStreams:
    """The trajectories of one step, and the rows between them that could not be read.

    `StepStreams(step=12, streams=(stream,), bad=())`
    """

    step: int
    streams: tuple[TokenStream, ...]
    bad: tuple[BadRow, ...] = ()


@dataclass(slots=True)
class _Gathering:
    """The step that is being read."""

    step: int = -1
    streams: dict[str, TokenStream] = field(default_factory=dict)
    bad: list[BadRow] = field(default_factory=list)

    def value(self) -> StepStreams:
        return StepStreams(step=self.step, streams=tuple(self.streams.values()), bad=tuple(self.bad))


def read_streams(path: Path) -> Iterator[StepStreams]:
    """Streams of a file or folder of *.jsonl / *.parquet, one step at a time, in ascending order of steps.

    Rows of one step stand together and steps ascend, through the files in the order of their names; one step is held in
    memory.  Of files NAME.0.parquet, NAME.1.parquet the highest number counts, which is what a resumed run leaves.
    A row that cannot be used is listed in `bad` of the step it stands in; the others are kept.  Raises StoreError where
    there is no such file, or where it cannot be opened.
    """
    now = _Gathering()
    number = 0
    for file in stream_files(path):
        for line, row in _rows(file):
            number += 1
            try:
                if isinstance(row, RowError):
                    raise row
                stream = stream_of_row(row, number)
                if stream.step < now.step:
                    raise RowError(f"step {stream.step} after step {now.step}; sort the rows by step")
                if stream.step == now.step and stream.id in now.streams:
                    raise RowError(f"the id {stream.id!r} stands in step {stream.step} twice")
            except RowError as error:
                now.bad.append(BadRow(path=file, line=line, why=str(error)))
                continue
            if stream.step > now.step:
                if now.streams:
                    yield now.value()
                    now = _Gathering()
                # rows before the first good one have no step of their own
                now.step = stream.step
            now.streams[stream.id] = stream
    if now.streams or now.bad:
        yield now.value()


def stream_files(path: Path) -> list[Path]:
    """The files to read, in order; raises StoreError where there are none."""
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise StoreError(f"{path} is neither {' nor '.join(SUFFIXES)}; convert it, docs/health.md has the columns")
        return [path]
    if not path.is_dir():
        raise StoreError(f"{path} does not exist; give a .jsonl or .parquet file, or a folder of them")
    newest: dict[str, tuple[int, Path]] = {}
    for file in sorted(found for found in path.iterdir() if found.suffix in SUFFIXES):
        match = _NUMBERED.match(file.stem)
        key, attempt = (match["step"], int(match["attempt"])) if match else (file.name, 0)
        if attempt >= newest.get(key, (-1, file))[0]:
            newest[key] = (attempt, file)
    if not newest:
        raise StoreError(f"{path} holds no .jsonl or .parquet file")
    return [newest[key][1] for key in sorted(newest)]


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Rows of one file with their number from 1."""
    if file.suffix == ".jsonl":
        yield from _json_rows(file)
        return
    try:
        with pq.ParquetFile(file) as opened:
            line = 0
            for batch in opened.iter_batches(batch_size=BATCH_ROWS):
                for row in batch.to_pylist():
                    line += 1
                    yield line, row
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{file} cannot be read as Parquet: {error}") from error


def _json_rows(file: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            for line, text in enumerate(lines, start=1):
                if not text.strip():
                    continue
                try:
                    row = json.loads(text)
                except json.JSONDecodeError as error:
                    yield line, RowError(f"not JSON: {error}")
                    continue
                yield line, row if isinstance(row, dict) else RowError(f"a row is an object, got {type(row).__name__}")
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error}") from error
