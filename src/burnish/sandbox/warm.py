"""Warm Pythons: imported once inside a sandbox, forked for each run; for one rollout and one world, never another.

A fork costs a few milliseconds where a start costs tens.  What a run leaves in the work folder stays for the next run
of the same rollout, which is what an agent's session is; processes do not stay.  A warm Python that served an agent
never serves the graders of that agent, nor anybody else: it is made for one (rollout, world), every request carries
the pair, and the trusted process outside refuses any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from burnish.core.sandbox import Rung, SandboxError, SandboxLimits, SandboxRefused, SandboxResult, World
from burnish.sandbox.local import DEFAULT_LIMITS, Channel, LocalSandbox, blobs, request, result

_RESIDENT_BYTES = 2**30
"""Address space that imported modules may take beyond a run's own limit."""


class WarmSandbox:
    """One warm Python: the sandbox of one rollout in one world, runs one after the other.

    `python` commands are forked from it; others are started in the same sandbox.  Get one from `WarmServers`.
    """

    def __init__(self, channel: Channel, rung: Rung, owner: tuple[str, World], limits: SandboxLimits) -> None:
        self._channel = channel
        self._rung = rung
        self._limits = limits
        self._turn = asyncio.Lock()
        self._is_open = True
        self.owner = owner

    @property
    def rung(self) -> Rung:
        """How commands are isolated here."""
        return self._rung

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
        """See `core.sandbox.Sandbox.run`.  The work folder is that of the run before.

        limits: at most those that the sandbox was opened with; disk is the opened one's throughout.  A run that is
        cancelled, or that ends the warm Python itself, ends this sandbox.
        """
        async with self._turn:
            if not self._is_open:
                raise SandboxError("this warm sandbox has ended; open another for the rollout")
            header = request(command, self._within(limits or self._limits), env, collect)
            header |= {"kind": "exec", "owner": _key(self.owner)}
            try:
                return result(await self._channel.ask(header, blobs(stdin, files)), self._rung)
            except BaseException:
                self._hang_up()
                raise

    def _within(self, limits: SandboxLimits) -> SandboxLimits:
        for name, value in asdict(self._limits).items():
            if getattr(limits, name) > value:
                raise SandboxRefused(f"limit {name} is {getattr(limits, name)}; this sandbox was opened with {value}")
        return limits

    async def close(self) -> None:
        """End the Python and everything in its sandbox."""
        self._hang_up()

    def _hang_up(self) -> None:
        self._is_open = False
        self._channel.close()


class WarmServers:
    """Makes warm sandboxes, one for each (rollout, world), and remembers those that are over."""

    def __init__(
        self, base: LocalSandbox, *, imports: Sequence[str] = (), limits: SandboxLimits = DEFAULT_LIMITS
    ) -> None:
        """base: the rung.  imports: modules to import once, such as ("json", "unittest")."""
        self._base = base
        self._imports = list(imports)
        self._limits = limits
        self._open: dict[tuple[str, World], asyncio.Task[WarmSandbox]] = {}
        self._over: set[tuple[str, World]] = set()

    @property
    def rung(self) -> Rung:
        """How commands are isolated in all of them."""
        return self._base.rung

    async def get(self, rollout_id: str, world: World) -> WarmSandbox:
        """The warm sandbox of this rollout in this world, started if it is the first time.

        Raises SandboxRefused once it was released: a rollout that is over gets no second one.
        """
        owner = (rollout_id, world)
        if owner in self._over:
            raise SandboxRefused(f"rollout {rollout_id!r} has left the {world} world; its sandbox is gone")
        if owner not in self._open:
            self._open[owner] = asyncio.ensure_future(self._start(owner))
        try:
            return await asyncio.shield(self._open[owner])
        except SandboxError:
            self._open.pop(owner, None)
            raise

    async def release(self, rollout_id: str, world: World) -> None:
        """End the sandbox of this rollout in this world for good."""
        owner = (rollout_id, world)
        self._over.add(owner)
        task = self._open.pop(owner, None)
        if task is not None:
            await (await task).close()

    async def close(self) -> None:
        """End all of them."""
        for rollout_id, world in list(self._open):
            await self.release(rollout_id, world)

    async def _start(self, owner: tuple[str, World]) -> WarmSandbox:
        limits = self._limits
        space_bytes = (limits.address_space_bytes or limits.memory_bytes) + _RESIDENT_BYTES
        # One process more than a run may have: the warm Python itself.
        roomy = replace(limits, address_space_bytes=space_bytes, processes=limits.processes + 1)
        header = request((), roomy, None, ()) | {"kind": "session", "plan": self._base.plan.to_json()}
        header |= {"owner": _key(owner), "imports": self._imports}
        channel = await Channel.over(self._base.spawner.connection())
        try:
            await channel.ask(header, {})
        except BaseException:
            channel.close()
            raise
        return WarmSandbox(channel, self._base.rung, owner, limits)


def _key(owner: tuple[str, World]) -> list[str]:
    return [owner[0], str(owner[1])]
