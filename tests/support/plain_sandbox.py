"""A sandbox that isolates nothing: a folder and a process with a deadline, for tests of what uses sandboxes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from burnish.core.sandbox import PYTHON, KilledFor, Rung, SandboxLimits, SandboxResult


class PlainSandbox:
    """Runs what tests wrote themselves; `seen` are the files of the last run."""

    rung = Rung.UNSAFE

    def __init__(self) -> None:
        self.seen: dict[str, bytes] = {}

    async def run(
        self,
        command: Sequence[str],
        *,
        files: Mapping[str, bytes] | None = None,
        limits: SandboxLimits | None = None,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        collect: Sequence[str] = (),
    ) -> SandboxResult:
        """As the protocol says."""
        self.seen = dict(files or {})
        return await asyncio.to_thread(self._run, command, limits or SandboxLimits(), stdin, collect)

    async def close(self) -> None:
        """Nothing is held."""

    def _run(
        self, command: Sequence[str], limits: SandboxLimits, stdin: bytes, collect: Sequence[str]
    ) -> SandboxResult:
        words = [sys.executable, "-I", *command[1:]] if command[0] == PYTHON else list(command)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for path, data in self.seen.items():
                (folder / path).write_bytes(data)
            killed = None
            try:
                done = subprocess.run(
                    words, cwd=folder, input=stdin, capture_output=True, timeout=limits.wall_s, check=False
                )
                code, out, err = done.returncode, done.stdout, done.stderr
            except subprocess.TimeoutExpired:
                killed, code, out, err = KilledFor.WALL, None, b"", b""
            found = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        kept = {path: data for path, data in found.items() if any(fnmatch(path, pattern) for pattern in collect)}
        return SandboxResult(exit=code, stdout=out, stderr=err, rung=self.rung, killed_for=killed, files_out=kept)
