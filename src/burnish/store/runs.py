"""The runs under one folder: list them, find one, and keep them within a disk budget."""

from __future__ import annotations

import contextlib
import difflib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from burnish.core.errors import StoreError
from burnish.store import files
from burnish.store.layout import RunLayout
from burnish.store.reader import RunReader
from burnish.store.rows import RunState, RunStatus

_DELETED = ".deleted-"
_HALF_DELETED = ".tmp"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """A run in a list.

    `RunInfo(path=Path("runs/first"), status=RunStatus(...), n_steps=240, last_step="rl/200", size_bytes=31_000_000)`

    last_step: "" before the first.
    """

    path: Path
    status: RunStatus
    n_steps: int
    last_step: str
    size_bytes: int

    @property
    def name(self) -> str:
        """Name of its directory."""
        return self.path.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Something that `prune` removed (or would).

    `Removal(run="first", what="checkpoint rl-000040", path=Path("runs/first/checkpoints/rl-000040"),
    size_bytes=6_000_000)`.  what: "run" or "checkpoint NAME".
    """

    run: str
    what: str
    path: Path
    size_bytes: int


def list_runs(root: Path | str) -> list[RunInfo]:
    """The runs directly under `root`, oldest first; an absent folder has none.  Unreadable directories are left out."""
    runs = []
    for path in _candidates(Path(root)):
        try:
            reader = RunReader(path)
            status, steps = reader.status(), reader.steps()
        except StoreError:
            continue
        last = f"{steps[-1].phase}/{steps[-1].step}" if steps else ""
        size = size_bytes(path)
        runs.append(RunInfo(path=path, status=status, n_steps=len(steps), last_step=last, size_bytes=size))
    return sorted(runs, key=lambda run: (run.status.created_at_s, run.name))


def find_run(root: Path | str, ref: str) -> Path:
    """The run that `ref` means: a path, a name under `root`, the one name that begins so, or "latest".

    Raises StoreError where none does, with the nearest names, or where several do.
    """
    root = Path(root)
    if ref == "latest":
        runs = list_runs(root)
        if not runs:
            raise StoreError(f"there are no runs under {root}; begin one with `burnish demo` or `burnish train RECIPE`")
        return runs[-1].path
    for path in (Path(ref), root / ref):
        if ref and RunLayout(path).control.is_file():
            return path
    names = [path.name for path in _candidates(root)]
    matches = [name for name in names if ref and name.startswith(ref)]
    if len(matches) == 1:
        return root / matches[0]
    if matches:
        raise StoreError(f"{ref!r} fits {len(matches)} runs: {', '.join(matches[:5])}; give more of the name")
    close = difflib.get_close_matches(ref, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "`burnish runs list` shows what there is"
    raise StoreError(f"there is no run {ref!r} under {root}; {hint}")


def size_bytes(path: Path) -> int:
    """Bytes of all files under a directory (links are not followed); files that vanish meanwhile count as none."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def prune(root: Path | str, *, max_bytes: int, keep_last: int = 1, dry_run: bool = False) -> list[Removal]:
    """Remove from the runs under `root` until they take at most `max_bytes`; returns what was removed, in order.

    First all but the newest checkpoint of each run, then the newest, then whole runs; the oldest run first each time.
    Never touched: a run that a process writes to, and the `keep_last` newest runs.  It stops when nothing removable is
    left, so the runs may still take more.  dry_run: nothing is removed, the list is the same.
    """
    if max_bytes < 0 or keep_last < 0:
        raise StoreError(f"prune needs max_bytes >= 0 and keep_last >= 0, got {max_bytes} and {keep_last}")
    root = Path(root)
    if not dry_run:
        _finish_removals(root)
    runs = list_runs(root)
    total = sum(run.size_bytes for run in runs)
    removed: list[Removal] = []
    gone: dict[str, int] = {}
    for removal in _removals(runs, runs[: max(0, len(runs) - keep_last)]):
        if total <= max_bytes:
            break
        # What was taken from a run before no longer counts when the run itself goes.
        size = removal.size_bytes - (gone.get(removal.run, 0) if removal.what == "run" else 0)
        if dry_run or _remove(removal, root):
            total -= size
            gone[removal.run] = gone.get(removal.run, 0) + size
            removed.append(Removal(run=removal.run, what=removal.what, path=removal.path, size_bytes=size))
    return removed


def _removals(runs: list[RunInfo], removable: list[RunInfo]) -> Iterator[Removal]:
    idle = [run for run in removable if not run.status.live and run.status.state is not RunState.RUNNING]
    checkpoints = {run.name: _checkpoints(run) for run in idle}
    for choose in (_all_but_last, _last):
        for run in idle:
            for path in choose(checkpoints[run.name]):
                yield Removal(run=run.name, what=f"checkpoint {path.name}", path=path, size_bytes=size_bytes(path))
    for run in idle:
        yield Removal(run=run.name, what="run", path=run.path, size_bytes=run.size_bytes)


def _all_but_last(paths: list[Path]) -> list[Path]:
    return paths[:-1]


def _last(paths: list[Path]) -> list[Path]:
    return paths[-1:]


def _checkpoints(run: RunInfo) -> list[Path]:
    """Folders of checkpoints, oldest first; those that the run has recorded count as newer than strays."""
    folder = RunLayout(run.path).checkpoints
    recorded = [row.name for row in RunReader(run.path).checkpoints()]

    def order(path: Path) -> tuple[int, str]:
        return (recorded.index(path.name) if path.name in recorded else -1, path.name)

    return sorted((path for path in folder.iterdir() if path.is_dir()), key=order) if folder.is_dir() else []


def _remove(removal: Removal, root: Path) -> bool:
    """Remove it unless a process has begun to write to its run.  A renamed folder is no run and no checkpoint, so an
    interruption leaves nothing that looks whole."""
    run = root / removal.run
    try:
        lock = files.take_lock(RunLayout(run).lock)
    except StoreError:
        return False
    try:
        if removal.what == "run":
            aside = root / f"{_DELETED}{removal.run}"
        else:
            aside = removal.path.with_name(removal.path.name + _HALF_DELETED)
        shutil.rmtree(aside, ignore_errors=True)
        removal.path.replace(aside)
        shutil.rmtree(aside)
    except OSError as error:
        raise StoreError(f"could not remove {removal.path}: {error}; check its permissions") from error
    finally:
        os.close(lock)
    return True


def _finish_removals(root: Path) -> None:
    if root.is_dir():
        for path in root.glob(f"{_DELETED}*"):
            shutil.rmtree(path, ignore_errors=True)


def _candidates(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(
        path for path in root.iterdir() if not path.name.startswith(".") and RunLayout(path).control.is_file()
    )
