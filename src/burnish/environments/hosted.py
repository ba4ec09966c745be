"""Environments in processes of their own, which can be killed: what they do cannot stop the process that trains.

The training process holds proxies with the methods of the core protocol; the environments live in a few long-lived
host processes, many in each.  A call that runs past its limit is cancelled in its host.  Where it does not stop, the
host is *retired* (it takes no new environments and is killed once the others are done) if its event loop still answers,
and killed at once if not: a regex that backtracks for ever holds the interpreter lock, and no thread or signal handler
of that process runs again.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import pickle
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import TracebackType
from typing import Any

from burnish.core.errors import ConfigError, HostLost, WorldFault
from burnish.core.message import Message
from burnish.core.outcome import Owner
from burnish.core.task import Limits, Task
from burnish.core.tool import Tool
from burnish.environments.base import EnvironmentFault
from burnish.environments.blame import Blame
from burnish.environments.link import HostLink
from burnish.environments.process import HostProcess
from burnish.environments.source import EnvironmentSource
from burnish.environments.wire import (
    MAX_FRAME_BYTES,
    HostSettings,
    error_from_json,
    message_in,
    relayed_line,
    result_in,
    tools_from_json,
)

GRACE_S = 0.5
"""How long a host may take to confirm that a cancelled call has ended.  A confirmation takes a millisecond; code that
holds the event loop of its host for longer than this is taken for hung once a call there has run out of time."""

RETIRE_S = 120.0
"""How long the other environments of a retired host may go on; as long as one call into a world may take."""

READY_S = 60.0
_TICK_S = 0.1
_CLOSE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCounts:
    """What has happened in a pool so far.

    started: host processes; each is live, or was killed (it hung, or its retirement was over), lost (it ended by
    itself) or closed (with the pool, as one too many, or since it could not import the environment).  retired: hosts
    with a call that would not stop (one that stops later has its host reinstated).  stuck: calls that would not stop.
    environments, calls: how many were started.
    """

    started: int = 0
    live: int = 0
    killed: int = 0
    lost: int = 0
    closed: int = 0
    retired: int = 0
    stuck: int = 0
    environments: int = 0
    calls: int = 0


class HostPool:
    """`hosts` processes that make and run the environments of `source`.

        with HostPool(EnvironmentSource.of(Warehouse), hosts=2) as pool:
            trajectories = asyncio.run(run_episodes(plans, make_environment=pool.make, ...))

    Hosts are started when first needed and replaced when they end.  The pool may serve one event loop after another,
    never two at a time, and belongs to the process that made it.

    limits: what the proxies show as theirs (an environment's own, which rollouts ask for before it is made).
    memory_bytes: bound on the address space of a host (0: none).  show_output: let the hosts print where this process
    prints; by default what environments print is dropped.
    """

    def __init__(
        self,
        source: EnvironmentSource,
        *,
        hosts: int = 1,
        limits: Limits | None = None,
        grace_s: float = GRACE_S,
        retire_s: float = RETIRE_S,
        memory_bytes: int = 0,
        max_frame_bytes: int = MAX_FRAME_BYTES,
        show_output: bool = False,
    ) -> None:
        if hosts < 1:
            raise ConfigError(f"a pool has at least one host, got {hosts}")
        self.limits = limits
        self.grace_s, self.retire_s = grace_s, retire_s
        self.max_frame_bytes = max_frame_bytes
        settings = HostSettings(source=source, max_frame_bytes=max_frame_bytes, memory_bytes=memory_bytes)
        self._hello = pickle.dumps(settings)
        self._size = hosts
        self._show_output = show_output
        self._owner_pid = os.getpid()
        self._hosts: list[HostLink] = []
        self._dying: list[HostProcess] = []
        self._counts: Counter[str] = Counter()
        self._blame = Blame()
        self.ids = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ticking = False
        self._failure: WorldFault | None = None
        self.closed = False

    def __enter__(self) -> HostPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def counts(self) -> HostCounts:
        """A snapshot."""
        return HostCounts(**asdict(HostCounts()) | self._counts | {"live": len(self._hosts)})

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the live hosts."""
        return tuple(host.process.pid for host in self._hosts)

    def make(self, task: Task) -> HostedEnvironment:
        """A proxy for one episode of `task`; its environment is made when it is started."""
        return HostedEnvironment(self, task)

    async def ready(self) -> None:
        """Start every host and wait until it has imported the environment.  Raises ConfigError where it cannot."""
        self.attach()
        hosts = [*self._open_hosts(), *(self._spawn() for _ in range(self._size - len(self._open_hosts())))]
        probe = HostedEnvironment(self, Task(prompt="", id="ready"))
        try:
            async with asyncio.timeout(READY_S):
                await asyncio.gather(*(host.call(probe, "ping", None) for host in hosts))
        except TimeoutError:
            raise ConfigError(f"the environment is not imported after {READY_S:g} s; see what its file does") from None
        except WorldFault as fault:
            raise ConfigError(f"the environment cannot be made in a process of its own: {fault}") from None

    def close(self) -> None:
        """Kill every host; calls that still run raise HostLost.  Safe to call twice."""
        if self.closed or self._owner_pid != os.getpid():
            return
        self.closed = True
        for host in list(self._hosts):
            self.end(host, "closed", "the pool was closed")
        end_s = time.monotonic() + _CLOSE_S
        while self._reap() and time.monotonic() < end_s:
            time.sleep(0.002)

    # -- for proxies and hosts -----------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Serve the running event loop from now on."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self.closed or self._owner_pid != os.getpid():
            raise HostLost("the pool was closed" if self.closed else "the pool belongs to another process")
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("a pool of hosts serves one event loop at a time; make one pool for each")
        self._loop = loop
        self._ticking = False
        for host in list(self._hosts):
            host.attach(loop)
        self.tick_soon()

    def place(self, environment: HostedEnvironment) -> HostLink:
        """Choose the host of a new environment: the one with the fewest, or a new one while there are too few.

        A task that was seen when a host died gets one to itself; there may be as many of these as the pool has hosts.
        """
        self.attach()
        if self.closed:
            raise HostLost("the pool was closed")
        if self._failure is not None:
            raise self._failure
        self._counts["environments"] += 1
        open_hosts = self._open_hosts()
        alone = [host for host in self._hosts if host.exclusive]
        if self._blame.is_suspect(environment.task.id) and len(alone) < self._size:
            host = next((host for host in open_hosts if not host.environments), None) or self._spawn()
            host.exclusive = True
        else:
            least = min(open_hosts, key=lambda host: len(host.environments), default=None)
            if least is None or (least.environments and len(open_hosts) < self._size):
                least = self._spawn()
            host = least
        host.environments.add(environment)
        return host

    def leave(self, host: HostLink, environment: HostedEnvironment) -> None:
        """The environment is closed."""
        host.environments.discard(environment)
        if host.ended:
            return
        if host.exclusive:
            self._blame.cleared(environment.task.id)
        if host.environments:
            return
        if host.retired_s is not None:
            self.end(host, "killed", "it was retired")
        elif host.exclusive and len(self._open_hosts()) >= self._size:
            self.end(host, "closed", "one too many")
        host.exclusive = False

    def retire(self, host: HostLink) -> None:
        """Let a host take no new environments, since something in it would not stop."""
        if host.retired_s is None and not host.ended:
            host.retired_s = time.monotonic()
            self._counts["retired"] += 1
            self.tick_soon()

    def reinstate(self, host: HostLink) -> None:
        """Everything in a retired host has stopped after all."""
        host.retired_s = None

    def count(self, name: str) -> None:
        """Count an event of `HostCounts`."""
        self._counts[name] += 1

    def end(self, host: HostLink, how: str, why: str, guilty: HostedEnvironment | None = None) -> None:
        """Kill a host and tell everyone whose environment was there; `how` is what it counts as."""
        if host.ended:
            return
        self._hosts.remove(host)
        self._counts[how] += 1
        begun = host.begun_calls() if how == "lost" else []
        story = host.process.kill()
        self._dying.append(host.process)
        reason = f"the process of this environment {story}" if how == "lost" else f"its process was ended: {why}"
        if how == "lost" and story == "is running":
            reason = f"the process of this environment broke off: {why}"
        convicted = self._blame.died(sorted({call.environment.task.id for call in begun}))
        for environment in host.environments:
            if environment.fault is not None:
                continue
            environment.fault = HostLost(reason)
            if environment is guilty:
                environment.fault = _killed(f"a call of it did not stop and its process was killed ({why})")
            elif environment.task.id in convicted:
                environment.fault = _killed(f"{reason}, as before, with nothing else running there")
        host.release(reason)
        self.tick_soon()

    def failed(self, host: HostLink, line: str) -> None:
        """The environment cannot be imported, in this host or in any other."""
        self._failure = WorldFault(Owner.ENVIRONMENT, "make_environment_raised", line)
        for environment in host.environments:
            environment.fault = self._failure
        self.end(host, "closed", line)

    def tick_soon(self) -> None:
        """Look after overdue calls, retired and dying hosts again in a moment, if there are any."""
        if self._ticking or self._loop is None or self._loop.is_closed() or not self._has_duties():
            return
        self._ticking = True
        self._loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = False
        now_s = time.monotonic()
        for host in list(self._hosts):
            host.judge_overdue(now_s)
            if host.retired_s is not None and not host.environments:
                self.end(host, "killed", "it was retired")
            elif host.retired_s is not None and now_s - host.retired_s > self.retire_s:
                self.end(host, "killed", f"a call there did not stop, and {self.retire_s:g} s later it was killed")
        self._reap()
        self.tick_soon()

    def _has_duties(self) -> bool:
        return bool(self._dying) or any(host.retired_s is not None or host.has_overdue() for host in self._hosts)

    def _reap(self) -> bool:
        """Collect what has been killed; whether something is still dying."""
        self._dying = [process for process in self._dying if not process.gone()]
        return bool(self._dying)

    def _open_hosts(self) -> list[HostLink]:
        return [host for host in self._hosts if host.retired_s is None and not host.exclusive]

    def _spawn(self) -> HostLink:
        self._reap()
        try:
            process = HostProcess(show_output=self._show_output)
        except OSError as error:
            raise HostLost(f"a process for environments cannot be started: {error}") from error
        host = HostLink(self, self._hello, process)
        self._counts["started"] += 1
        self._hosts.append(host)
        host.attach(asyncio.get_running_loop())
        return host


class HostedEnvironment:
    """Stands for one environment in a host; satisfies the core protocol `Environment`.

    What is not in that protocol (an expert's `solve`, attributes) is not here: scripts that look into the environment
    need one in their own process.
    """

    def __init__(self, pool: HostPool, task: Task) -> None:
        self.task = task
        self.limits = pool.limits
        self.id = next(pool.ids)
        self.fault: WorldFault | None = None
        self._pool = pool
        self._host: HostLink | None = None
        self._tools: str = ""
        self._tools_error: Mapping[str, Any] | None = None

    async def start(self, task: Task) -> Sequence[Message]:
        """Make the environment in a host and start it there."""
        if self._host is None:
            self.task = task
            self._host = self._pool.place(self)
        answer = await self._call("start", task)
        if "unmade" in answer:
            detail = f"make_environment raised {relayed_line(answer['unmade'])}"
            raise WorldFault(Owner.ENVIRONMENT, "make_environment_raised", detail)
        self._tools, self._tools_error = answer.get("tools", "[]"), answer.get("tools_error")
        return _messages(answer["messages"])

    def tools(self) -> Sequence[Tool]:
        """The tools that the environment had right after its start."""
        if self._tools_error is not None:
            raise error_from_json(self._tools_error)
        return [
            Tool(spec=spec, call=partial(self._tool, index), timeout_s=timeout_s, timeout_owner=owner)
            for index, (spec, timeout_s, owner) in enumerate(tools_from_json(self._tools) if self._tools else ())
        ]

    async def reply(self, message: Message) -> Sequence[Message] | None:
        """What the environment says to a turn without tool calls."""
        answer = await self._call("reply", message)
        return None if answer is None else _messages(answer)

    async def finish(self, answer: str) -> Mapping[str, Any]:
        """The final state."""
        state: Mapping[str, Any] = json.loads(await self._call("finish", answer))
        return state

    async def close(self) -> None:
        """Close the environment; with its process gone there is nothing left to release."""
        host = self._host
        if host is None:
            return
        try:
            self._pool.attach()
            await host.settle(self)
            if self.fault is None and not host.ended:
                await host.call(self, "close", None)
        except WorldFault:
            return
        finally:
            self._pool.leave(host, self)
            self._host = None
            self.fault = self.fault or WorldFault(Owner.ENVIRONMENT, "closed", "the environment was closed")

    async def _tool(self, index: int, arguments: Mapping[str, Any]) -> str:
        return result_in(await self._call("tool", (index, dict(arguments))))

    async def _call(self, method: str, argument: Any) -> Any:
        if self.fault is not None:
            raise self.fault.with_traceback(None)
        if self._host is None:
            raise EnvironmentFault(f"{method} was called before start")
        self._pool.attach()
        return await self._host.call(self, method, argument)


def _killed(message: str) -> WorldFault:
    return WorldFault(Owner.ENVIRONMENT, "host_killed", message)


def _messages(data: Any) -> list[Message]:
    try:
        return [message_in(item) for item in data]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EnvironmentFault(f"a host sent what are no messages: {type(error).__name__}: {error}") from None
