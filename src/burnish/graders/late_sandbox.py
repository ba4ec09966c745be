"""A sandbox that is opened when a grader first needs it: probing the ladder takes time, and most graphs run nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from burnish.core.sandbox import Rung, Sandbox, SandboxError, SandboxLimits, SandboxResult
from burnish.sandbox.ladder import SandboxSpec, open_sandbox


class LateSandbox:
    """The best rung of this machine, opened by the first command; a `Sandbox`."""

    def __init__(self, spec: SandboxSpec | None = None) -> None:
        self._spec = spec
        self._opening = asyncio.Lock()
        self._sandbox: Sandbox | None = None

    @property
    def rung(self) -> Rung:
        """How commands are isolated.  Raises SandboxError before the first one has run."""
        if self._sandbox is None:
            raise SandboxError("the sandbox is not open yet; run a command first")
        return self._sandbox.rung

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
        """As the protocol says.  Raises SandboxRefused where no rung holds."""
        async with self._opening:
            if self._sandbox is None:
                self._sandbox = await open_sandbox(self._spec)
        return await self._sandbox.run(command, files=files, limits=limits, stdin=stdin, env=env, collect=collect)

    async def close(self) -> None:
        """End what is still running."""
        if self._sandbox is not None:
            await self._sandbox.close()
            self._sandbox = None
