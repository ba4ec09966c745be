"""The proxy that programs ask: garbage, strangers, clients that go away, programs that hang."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import openai
import pytest
from agent_programs import agent, plans, roll
from captures import CALL

from burnish.core.errors import ConfigError
from burnish.core.outcome import COMPLETED, Limit, Owner
from burnish.core.sampling import Sample, SampleRequest, SamplingParams
from burnish.core.task import Limits
from burnish.core.trajectory import Trajectory
from burnish.rollout import programs as programs_module
from burnish.rollout import proxy as proxy_module
from burnish.rollout.capture import Capture
from burnish.rollout.programs import TaskView, run_program
from burnish.rollout.proxy import MAX_BODY_BYTES, Address, CaptureServer
from burnish.testing.fakes import FakeRenderer, ScriptedSampler


def served(work: Callable[[Address, Capture], Any], sampler: Any = None, **options: Any) -> Any:
    """Run `work` against an open episode of a fresh server."""

    async def run() -> Any:
        async with CaptureServer(**options) as server:
            capture = Capture(plans()[0], FakeRenderer(), sampler or ScriptedSampler(["5"]), SamplingParams())
            with server.open(capture) as address:
                return await work(address, capture)

    return asyncio.run(run())


GOOD = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("path", "content", "status", "code"),
    [
        ("/chat/completions", b"{oops", 400, "invalid_json"),
        ("/chat/completions", b"\xff\xfe", 400, "invalid_json"),
        ("/chat/completions", b"[" * 50_000, 400, "invalid_json"),
        ("/chat/completions", b"[]", 400, "invalid_json"),
        ("/chat/completions", b'{"messages": NaN}', 400, "invalid_json"),
        ("/chat/completions", b"{}", 400, "invalid_request"),
        ("/chat/completions", b'{"messages": [1]}', 400, "invalid_request"),
        ("/chat/completions", b'{"messages": [{"role": []}]}', 400, "invalid_request"),
        ("/chat/completions", b" " * (MAX_BODY_BYTES + 1), 413, "request_too_large"),
        ("/responses", b"{}", 404, "unsupported_endpoint"),
        ("/embeddings", b"{}", 404, "unsupported_endpoint"),
    ],
)
def test_garbage_gets_an_error_in_the_protocols_words(path: str, content: bytes, status: int, code: str) -> None:
    async def work(address: Address, capture: Capture) -> None:
        async with httpx.AsyncClient() as client:
            response = await client.post(address.base_url + path, content=content)
            assert (response.status_code, response.json()["error"]["code"]) == (status, code)
            assert response.headers["x-should-retry"] == "false"
            again = await client.post(address.base_url + "/chat/completions", json=GOOD)
            assert again.status_code == 200, "the server and the episode live on"

    served(work)


def test_wrong_tokens_find_nothing() -> None:
    async def work(address: Address, capture: Capture) -> None:
        root = address.base_url.partition("/e/")[0]
        async with httpx.AsyncClient() as client:
            for url, key in [(f"{root}/e/guess/v1", address.api_key), (f"{root}/v1", "guess"), (f"{root}/v1", "-")]:
                headers = {"Authorization": f"Bearer {key}"}
                response = await client.post(f"{url}/chat/completions", json=GOOD, headers=headers)
                assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        assert capture.turns == 0
        assert root.startswith("http://127.0.0.1:")

    served(work)


def test_an_address_ends_with_its_episode() -> None:
    async def run() -> int:
        async with CaptureServer() as server, httpx.AsyncClient() as client:
            capture = Capture(plans()[0], FakeRenderer(), ScriptedSampler(["5"]), SamplingParams())
            with server.open(capture) as address:
                pass
            return (await client.post(f"{address.base_url}/chat/completions", json=GOOD)).status_code

    assert asyncio.run(run()) == 401


class Slow(ScriptedSampler):
    """Takes its time, and knows whether it was interrupted."""

    interrupted = False

    async def sample(self, requests: Sequence[SampleRequest]) -> list[Sample]:
        try:
            await asyncio.sleep(0.5)
        except asyncio.CancelledError:
            self.interrupted = True
            raise
        return await super().sample(requests)


def test_a_client_that_goes_away_leaves_no_action() -> None:
    sampler = Slow(["5"])

    async def work(address: Address, capture: Capture) -> None:
        async with httpx.AsyncClient(timeout=0.1) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.post(f"{address.base_url}/chat/completions", json=GOOD)
        await asyncio.sleep(0.1)
        assert sampler.interrupted
        assert (capture.turns, capture.counters["abandoned_requests"]) == (0, 1)

    served(work, sampler)


def test_a_program_that_ends_with_requests_under_way() -> None:
    async def hasty(task: TaskView) -> str | None:
        answer = await agent(task)
        client = openai.AsyncOpenAI(base_url=task.base_url, api_key=task.api_key)
        left.append(
            asyncio.ensure_future(
                client.chat.completions.create(model="m", messages=[{"role": "user", "content": "bg"}])
            )
        )
        await asyncio.sleep(0.1)
        return answer

    left: list[Any] = []
    sampler = ScriptedSampler([CALL, "5"])
    ask_first = sampler.sample

    async def sample(requests: Sequence[SampleRequest]) -> list[Sample]:
        if requests[0].messages[-1].text == "bg":
            await asyncio.sleep(30)
        return await ask_first(requests)

    sampler.sample = sample  # type: ignore[method-assign]

    async def run() -> Trajectory:
        async with CaptureServer() as server:
            return await run_program(
                plans()[0],
                program=hasty,
                server=server,
                renderer=FakeRenderer(),
                sampler=sampler,
                params=SamplingParams(),
            )

    trajectory = asyncio.run(run())
    assert trajectory.outcome == COMPLETED
    assert trajectory.counters["turns"] == 2
    assert trajectory.counters["abandoned_requests"] == 1


def test_a_program_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs_module, "WORLD_TIMEOUT_S", 0.3)
    done = threading.Event()

    async def hangs(task: TaskView) -> str:
        await asyncio.sleep(60)
        return ""

    def hangs_on_a_thread(task: TaskView) -> str:
        done.wait(60)
        return ""

    for program in (hangs, hangs_on_a_thread):
        started_s = time.perf_counter()
        [trajectory] = roll(program)
        assert (trajectory.outcome.owner, trajectory.outcome.cause) == (Owner.ENVIRONMENT, "program_timeout")
        assert time.perf_counter() - started_s < 5
    done.set()


def test_sampling_that_takes_long_is_no_hanging_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs_module, "WORLD_TIMEOUT_S", 0.3)
    assert roll(agent, Slow([CALL, "5"]))[0].outcome == COMPLETED


def test_a_program_that_asks_for_ever_is_stopped() -> None:
    async def stubborn(task: TaskView) -> str:
        while True:
            with contextlib.suppress(openai.OpenAIError):
                await agent(task)

    [trajectory] = roll(stubborn, limits=Limits(max_turns=3))
    assert trajectory.outcome.limit is Limit.TURNS
    assert trajectory.counters["refused_requests"] >= 50


def test_a_missing_extra_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError, match=r"burnish\[proxy\]"):
        roll(agent)


def test_a_taken_port_is_a_config_error() -> None:
    async def run() -> None:
        async with CaptureServer() as server, CaptureServer(port=server._port):
            pass

    with pytest.raises(ConfigError, match="cannot listen"):
        asyncio.run(run())


def test_the_module_is_light() -> None:
    assert not {"uvicorn", "starlette"} & set(vars(proxy_module))
