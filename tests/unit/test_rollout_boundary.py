"""Calls into a world: most are over in one step and need no clock, all others are bounded from their beginning."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from burnish.core.outcome import Ending, Limit, Outcome
from burnish.rollout.boundary import Deadline, EpisodeStop, in_world


def outcome_of(call: Callable[[], Awaitable[Any]], *, timeout_s: float = 5.0, episode_s: float = 0.0) -> Any:
    """What a call gives, or the outcome that it ends the episode with."""

    async def go() -> Any:
        try:
            return await in_world("tool", call, timeout_s=timeout_s, deadline=Deadline(episode_s))
        except EpisodeStop as stop:
            return stop.outcome

    return asyncio.run(asyncio.wait_for(go(), 10.0))


async def at_once() -> int:
    return 7


async def later() -> int:
    await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    return 8


def test_a_call_that_waits_for_nothing_sets_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks: list[float | None] = []
    real = asyncio.timeout_at
    monkeypatch.setattr(asyncio, "timeout_at", lambda when: (clocks.append(when), real(when))[1])
    assert outcome_of(at_once) == 7
    assert clocks == []
    assert outcome_of(later) == 8
    assert len(clocks) == 1


@pytest.mark.parametrize("before_s", [0.0, 0.1])
def test_the_time_before_the_first_wait_counts(before_s: float) -> None:
    async def hangs() -> None:
        time.sleep(before_s)  # noqa: ASYNC251 - a world that blocks
        await asyncio.sleep(0.01)
        await asyncio.sleep(60)

    started = time.perf_counter()
    ended = outcome_of(hangs, timeout_s=0.1)
    assert isinstance(ended, Outcome)
    assert ended.cause == "tool_timeout"
    assert time.perf_counter() - started < before_s + 2.0


def test_an_awaitable_that_is_no_coroutine_is_bounded_too() -> None:
    ended = outcome_of(lambda: asyncio.get_running_loop().create_future(), timeout_s=0.05)
    assert ended.cause == "tool_timeout"
    assert outcome_of(lambda: None).detail.startswith("tool raised TypeError")  # type: ignore[arg-type, return-value]


def test_a_spent_episode_is_cut_at_its_first_wait() -> None:
    async def slow() -> None:
        time.sleep(0.03)  # noqa: ASYNC251 - a world that blocks
        await asyncio.sleep(60)

    ended = outcome_of(slow, episode_s=0.01)
    assert (ended.ending, ended.limit) == (Ending.TRUNCATED, Limit.TIME)


def test_what_is_raised_between_two_waits_reaches_the_call() -> None:
    async def mends() -> str:
        broken = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(broken.set_exception, KeyError("A"))
        try:
            await broken
        except KeyError:
            await asyncio.sleep(0)
        return "mended"

    async def breaks() -> None:
        await asyncio.sleep(0)
        raise KeyError("B")

    assert outcome_of(mends) == "mended"
    assert outcome_of(breaks).detail.startswith("tool raised KeyError: 'B' (test_rollout_boundary.py:")


def test_a_call_has_one_task_and_may_bound_itself() -> None:
    async def bounded() -> str:
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(0.02):
                await asyncio.sleep(60)
        except TimeoutError:
            return "cut" if asyncio.current_task() is task else "moved"
        return "not cut"

    assert outcome_of(bounded) == "cut"


def test_cancelling_the_episode_unwinds_the_call() -> None:
    unwound: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            unwound.append("done")

    async def go() -> None:
        episode = asyncio.ensure_future(in_world("tool", waits, timeout_s=30.0, deadline=Deadline(0.0)))
        await asyncio.sleep(0.01)
        episode.cancel()
        with pytest.raises(asyncio.CancelledError):
            await episode

    asyncio.run(go())
    assert unwound == ["done"]
