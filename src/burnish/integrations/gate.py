"""A gate in front of a server whose weights change: while it is shut, no request is under way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio

from burnish.core.errors import RunStopped

T = TypeVar("T")


class Gate:
    """`await gate.passing(send)` on one side, `async with gate.shut():` on the other, in one event loop.

    Whoever shuts the gate waits with `empty` until nothing is under way; `recall` cancels what is left and lets it
    start again once the gate is open.  Where the body of `shut` raises, the weights are in an unknown state: the gate
    lets nothing through any more (RunStopped).
    """

    def __init__(self) -> None:
        self._opening: anyio.Event | None = None
        self._emptied: anyio.Event | None = None
        self._under_way: set[anyio.CancelScope] = set()
        self._failure = ""

    async def passing(self, send: Callable[[], Awaitable[T]]) -> T:
        """`await send()` with the gate open from beginning to end; begun again after a recall."""
        while True:
            while self._opening is not None:
                await self._opening.wait()
            if self._failure:
                raise RunStopped("weights_unknown", f"a weight update failed before ({self._failure}); resume the run")
            scope = anyio.CancelScope()
            self._under_way.add(scope)
            try:
                with scope:
                    return await send()
            finally:
                self._under_way.discard(scope)
                if self._emptied is not None and not self._under_way:
                    self._emptied.set()

    @asynccontextmanager
    async def shut(self) -> AsyncIterator[None]:
        """Let nothing new pass while the body runs."""
        if self._opening is not None:
            raise ValueError("the gate is shut already; weights are updated one version at a time")
        opening = self._opening = anyio.Event()
        try:
            yield
        except BaseException as error:
            self._failure = f"{type(error).__name__}: {error}"
            raise
        finally:
            self._opening = None
            opening.set()

    async def empty(self, within_s: float | None = None) -> bool:
        """Whether nothing is under way, at the latest after `within_s` (None: however long it takes)."""
        if not self._under_way:
            return True
        self._emptied = anyio.Event()
        try:
            with anyio.move_on_after(within_s):
                await self._emptied.wait()
        finally:
            self._emptied = None
        return not self._under_way

    def recall(self) -> None:
        """Cancel what is under way; it begins again when the gate opens."""
        for scope in self._under_way:
            scope.cancel()
