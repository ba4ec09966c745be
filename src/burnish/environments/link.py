"""One host process and the calls that run in it, as the pool in the training process sees them."""

from __future__ import annotations

import asyncio
import pickle
import time
from typing import TYPE_CHECKING, Any

from burnish.core.errors import HostLost
from burnish.environments.base import EnvironmentFault
from burnish.environments.process import HostProcess
from burnish.environments.wire import Channel, FrameError, error_from_json, from_frame, relayed_line

if TYPE_CHECKING:
    from burnish.environments.hosted import HostedEnvironment, HostPool

_HEADROOM_BYTES = 4096
"""What an answer may have beyond the value that it carries."""

_EXIT_S = 0.2
"""How long a process may take to end after its stream has."""


class _Call:
    """One call in a host.

    ended: the host has said so, or is gone.  acked: its loop has seen the cancellation.  overdue_s: when a cancelled
    call has taken too long to end (0: not cancelled).  judged: it did not end in time, and that has had its effect.
    verdict: raised in place of the cancellation where another call is at fault.
    """

    __slots__ = ("acked", "ended", "environment", "future", "id", "judged", "overdue_s", "settled", "verdict")

    def __init__(self, call_id: int, environment: HostedEnvironment, future: asyncio.Future[Any]) -> None:
        self.id = call_id
        self.environment = environment
        self.future = future
        self.settled: asyncio.Future[None] | None = None
        self.verdict: HostLost | None = None
        self.overdue_s = 0.0
        self.acked = self.ended = self.judged = False


class HostLink:
    """A host process with the calls that run in it.

    environments: those that live there.  retired_s: since when it takes no new ones (on the monotonic clock).
    exclusive: it serves one environment alone.  ended: it is gone.
    """

    def __init__(self, pool: HostPool, hello: bytes, process: HostProcess) -> None:
        self.process = process
        self.environments: set[HostedEnvironment] = set()
        self.retired_s: float | None = None
        self.exclusive = False
        self.ended = False
        self._pool = pool
        self._calls: dict[int, _Call] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel = Channel(
            process.socket, on_frame=self._take, on_end=self._broken, max_bytes=pool.max_frame_bytes + _HEADROOM_BYTES
        )
        self._channel.send(hello)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve this loop; whoever waited on the one before waits no more."""
        self._loop = loop
        for call in list(self._calls.values()):
            call.settled = None
            if not call.overdue_s:
                self._cancel(call)
        self._channel.attach(loop)
        if self.process.pid_fd >= 0:
            loop.add_reader(self.process.pid_fd, self._died)

    async def call(self, environment: HostedEnvironment, method: str, argument: Any) -> Any:
        """Run a method there.  A cancelled wait returns once the host has confirmed, or after the grace."""
        frame = self._frame(call_id := next(self._pool.ids), environment, method, argument)
        call = _Call(call_id, environment, asyncio.get_running_loop().create_future())
        self._calls[call_id] = call
        self._pool.count("calls")
        self._channel.send(frame)
        try:
            return await call.future
        except asyncio.CancelledError:
            if not call.ended:
                self._cancel(call)
                await self._wait(call)
                self._judge(call)
            if call.verdict is not None:
                raise call.verdict from None
            raise

    def _frame(self, call_id: int, environment: HostedEnvironment, method: str, argument: Any) -> bytes:
        if self.ended:
            raise environment.fault or HostLost("its process is gone")
        frame = pickle.dumps((call_id, environment.id, method, argument), protocol=pickle.HIGHEST_PROTOCOL)
        if len(frame) > self._pool.max_frame_bytes:
            raise EnvironmentFault(
                f"what is sent to {method} is {len(frame)} bytes, at most {self._pool.max_frame_bytes} are carried"
            )
        return frame

    async def settle(self, environment: HostedEnvironment) -> None:
        """Wait until the environment's cancelled calls have ended or were judged."""
        for call in [call for call in self._calls.values() if call.environment is environment]:
            if not call.overdue_s:
                self._cancel(call)
            if time.monotonic() < call.overdue_s:
                await self._wait(call)
            self._judge(call)

    def begun_calls(self) -> list[_Call]:
        """Those that have not ended and that the host had begun: one of them is to blame for how it ended."""
        begun = self.process.begun()
        return [call for call in self._calls.values() if call.id <= begun]

    def has_overdue(self) -> bool:
        """Whether a cancelled call is not judged yet."""
        return any(call.overdue_s and not call.judged for call in self._calls.values())

    def judge_overdue(self, now_s: float) -> None:
        """Judge the cancelled calls whose waiters have been cancelled themselves."""
        for call in list(self._calls.values()):
            if call.overdue_s and now_s >= call.overdue_s and not call.judged:
                self._judge(call)

    def release(self, reason: str) -> None:
        """The process was killed: end every call."""
        self.ended = True
        if self._loop is not None and not self._loop.is_closed() and self.process.pid_fd >= 0:
            self._loop.remove_reader(self.process.pid_fd)
        self._channel.close()
        for call in list(self._calls.values()):
            self._settle(call, error=call.environment.fault or HostLost(reason))
        self._calls.clear()

    def _cancel(self, call: _Call) -> None:
        call.overdue_s = time.monotonic() + self._pool.grace_s
        self._channel.send(pickle.dumps((call.id, 0, "cancel", None)))
        self._pool.tick_soon()

    async def _wait(self, call: _Call) -> None:
        if not call.ended:
            call.settled = call.settled or asyncio.get_running_loop().create_future()
            await asyncio.wait([call.settled], timeout=max(0.0, call.overdue_s - time.monotonic()))

    def _judge(self, call: _Call) -> None:
        """What becomes of a host in which a cancelled call has not ended in time.

        A call that was never begun is not at fault, since something else holds the host: its verdict is HostLost.
        """
        if call.ended or call.judged or self.ended:
            return
        call.judged = True
        begun = self.begun_calls()
        if call.acked or call in begun:
            self._pool.count("stuck")
        if call.acked:
            self._pool.retire(self)
            return
        if call in begun:
            self._pool.end(self, "killed", "its event loop did not answer", guilty=call.environment)
            return
        if not begun:
            self._pool.end(self, "killed", "its event loop did not answer")
        else:
            self._pool.retire(self)  # Whoever holds it ends by a limit of its own, which kills the host.
        call.verdict = HostLost("the process of this environment was held by another one's call")
        call.environment.fault = call.environment.fault or call.verdict

    def _take(self, frame: bytes) -> None:
        call_id, kind, value = from_frame(frame)
        if kind in ("error", "failed") and not isinstance(value, dict):
            raise FrameError(f"an error is told as {value!r:.80}")
        if call_id == 0:
            if kind == "failed":
                self._pool.failed(self, relayed_line(value))
            return
        if kind == "ack":
            if call_id in self._calls:
                self._calls[call_id].acked = True
            return
        call = self._calls.pop(call_id, None)
        if call is None:
            raise FrameError(f"an answer to call {call_id}, which nobody made")
        if call.judged and not any(other.judged for other in self._calls.values()):
            self._pool.reinstate(self)
        if kind == "error":
            self._settle(call, error=error_from_json(value))
        elif kind == "cancelled":
            self._settle(call, cancelled=True)
        else:
            self._settle(call, value)

    def _settle(
        self, call: _Call, value: Any = None, *, error: Exception | None = None, cancelled: bool = False
    ) -> None:
        call.ended = True
        if self._loop is None or self._loop.is_closed():
            return
        if not call.future.done():
            if cancelled:
                call.future.cancel()
            elif error is not None:
                call.future.set_exception(error)
            else:
                call.future.set_result(value)
        if call.settled is not None and not call.settled.done():
            call.settled.set_result(None)

    def _broken(self, why: str) -> None:
        """The stream has ended; how the process did is known a moment later."""
        if self.ended or self._loop is None:
            return
        if self.process.pid_fd >= 0 and self.process.alive():
            self._loop.call_later(_EXIT_S, self._lost, why)
        else:
            self._lost(why)

    def _died(self) -> None:
        """The kernel says that the process has ended; what it had sent before still counts."""
        if not self.ended:
            self._channel.drain()
            self._lost("it ended")

    def _lost(self, why: str) -> None:
        if not self.ended:
            self._pool.end(self, "lost", why)
