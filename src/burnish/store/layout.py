"""Where things lie in a run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunLayout:
    """The paths of one run.

    >>> RunLayout(Path("runs/first")).segment("rl-000012.0.parquet").as_posix()
    'runs/first/segments/rl-000012.0.parquet'
    """

    root: Path

    @property
    def manifest(self) -> Path:
        """Resolved config, versions, git state, seeds, hardware; written once."""
        return self.root / "manifest.json"

    @property
    def control(self) -> Path:
        """SQLite: steps, scalars, events, evaluations, checkpoints, status."""
        return self.root / "control.sqlite"

    @property
    def lock(self) -> Path:
        """Held by the one writer; its modification time is the heartbeat."""
        return self.root / "writer.lock"

    @property
    def segments(self) -> Path:
        """One immutable Parquet file for each step that has trajectories."""
        return self.root / "segments"

    @property
    def streams(self) -> Path:
        """Token streams of the steps that keep them, one Parquet file each; absent where none does."""
        return self.root / "streams"

    @property
    def set_aside(self) -> Path:
        """Segments that no step refers to (a writer was killed between segment and commit)."""
        return self.root / "set_aside"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def artefacts(self) -> Path:
        """Bytes by SHA-256: images, final states of worlds."""
        return self.root / "artefacts"

    @property
    def model(self) -> Path:
        """Config and tokenizer of the model, without weights."""
        return self.root / "model"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def segment(self, name: str) -> Path:
        """Path of one segment."""
        return self.segments / name

    def artefact(self, sha256: str) -> Path:
        """Path of one artefact; two-digit folders keep listings short."""
        return self.artefacts / sha256[:2] / sha256
