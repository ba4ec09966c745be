"""The whole way of an evaluation: runner, environment, graders, and an endpoint that only takes messages."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterable
from typing import Any

import httpx

from burnish.core.outcome import Limit
from burnish.core.sampling import Sampler
from burnish.core.task import Limits, Task
from burnish.environments.base import Environment
from burnish.environments.tool import tool
from burnish.evaluation.heldout import EvalResult, EvalSpec, evaluate
from burnish.evaluation.local import grade_with, rollout_with
from burnish.graders.aggregate import WeightedSum
from burnish.graders.registry import make_grader
from burnish.integrations.openai_chat import OpenAIChatSampler
from burnish.testing.fakes import FakeRenderer, ScriptedSampler


class Safe(Environment):
    """A number behind a tool."""

    def tasks(self, split: str, rng: random.Random) -> Iterable[Task]:
        for i in range(5):
            yield Task(prompt=f"What is in safe {i}?", setup={"content": i * 7}, reference={"answer": str(i * 7)})

    @tool(inline=True)
    def open(self) -> int:
        """Open the safe."""
        return int(self.task.setup["content"])


TASKS = list(Safe().tasks("heldout", random.Random(0)))


def run(sampler: Sampler, renderer: Any = None, limits: Limits | None = None) -> EvalResult:
    rollout = rollout_with(sampler, make_environment=lambda task: Safe(), renderer=renderer, limits=limits, max_live=3)
    grade = grade_with([make_grader("exact")])
    return asyncio.run(
        evaluate(TASKS, EvalSpec(label="a", samples=2), rollout=rollout, grade=grade, aggregator=WeightedSum())
    )


def endpoint(request: httpx.Request) -> httpx.Response:
    """A model that opens the safe and reads what is in it."""
    body = json.loads(request.content)
    last = body["messages"][-1]
    if last["role"] == "tool":
        message: dict[str, Any] = {"content": last["content"]}
    else:
        name = body["tools"][0]["function"]["name"]
        message = {"content": None, "tool_calls": [{"id": "x", "function": {"name": name, "arguments": "{}"}}]}
    return httpx.Response(200, json={"choices": [{"message": message, "finish_reason": "stop"}]})


def test_an_endpoint_is_evaluated_on_tools_without_a_tokenizer() -> None:
    result = run(OpenAIChatSampler("http://x/v1", "toy", transport=httpx.MockTransport(endpoint)))
    assert (result.rate.successes, result.rate.n, result.excluded) == (10, 10, 0)
    trajectory = result.trajectories[0]
    assert [message.role for message in trajectory.messages] == ["user", "assistant", "tool", "assistant"]
    assert not trajectory.is_token_exact
    assert trajectory.counters["tool_calls"] == 1


def test_an_endpoint_that_cannot_finish_is_truncated() -> None:
    def cut(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"choices": [{"message": {"content": "wel"}, "finish_reason": "length"}]})

    result = run(OpenAIChatSampler("http://x/v1", "toy", transport=httpx.MockTransport(cut)))
    assert result.outcomes == {"truncated:turn_tokens": 10}
    assert result.trajectories[0].outcome.limit is Limit.TURN_TOKENS
    assert (result.rate.n, result.rate.successes) == (10, 0)


def test_a_sampler_with_tokens_is_evaluated() -> None:
    result = run(ScriptedSampler(["0"]), FakeRenderer())
    assert (result.rate.n, result.rate.successes) == (10, 2)
    assert all(trajectory.is_token_exact for trajectory in result.trajectories)
