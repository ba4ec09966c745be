"""Programs through the proxy with a real model: the tokens are those of an episode, and the learner agrees on them."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch

from burnish.core.message import Message, ToolCall
from burnish.core.outcome import COMPLETED
from burnish.core.sampling import SamplingParams
from burnish.core.task import Limits, Task
from burnish.core.tool import ToolSpec
from burnish.core.trajectory import Trajectory
from burnish.policies.build import TinySpec, build_tiny
from burnish.policies.chat import ChatRenderer
from burnish.policies.sampler import EmbeddedSampler
from burnish.policies.template import conversation_text
from burnish.policies.tokenizer import train_tokenizer
from burnish.rollout.audit import audit_samples, audit_trajectory
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.group import plan_groups
from burnish.rollout.programs import TaskView, run_programs
from burnish.rollout.runner import run_episodes
from burnish.rollout.samples import training_samples
from burnish.testing.fakes import FakeEnvironment, ScriptedSampler, fake_tool

EXAMPLE = Path(__file__).parents[2] / "examples" / "agent_program.py"
CALL = Message.assistant("Let me see.", (ToolCall(id="x", name="calculate", arguments={"expression": "7 * 8 + 1"}),))
MORE = ("Are you sure?", "Why?")
PARAMS = SamplingParams(temperature=0.9)
LIMITS = Limits(max_turns=4, max_turn_tokens=48, max_episode_tokens=100)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    texts = [
        conversation_text([Message.user(f"What is {n} * 8 + 1?"), CALL, Message.tool(str(n), call=CALL.tool_calls[0])])
        for n in range(20)
    ]
    return train_tokenizer(texts, vocab_size=400)


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    spec = TinySpec(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=48, tie_embeddings=False)
    model = build_tiny(tokenizer, spec, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15, generator=generator)
        # Turns of some length: the end is drawn often enough to come, and not at once.
        model.lm_head.weight[tokenizer.eos_token_id] *= 4.0
    return model


@pytest.fixture(scope="module")
def example() -> Any:
    found = importlib.util.spec_from_file_location("agent_program", EXAMPLE)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def plans(group_size: int = 8) -> list[EpisodePlan]:
    tasks = [Task(prompt="What is 7 * 8 + 1?", reference={"answer": "57"}, id="t")]
    return plan_groups(tasks, phase="rl", step=3, group_size=group_size, run_seed=0)


def audited(trajectories: list[Trajectory], renderer: ChatRenderer) -> list[Trajectory]:
    for trajectory in trajectories:
        assert audit_trajectory(trajectory, renderer) == []
        assert audit_samples(trajectory, training_samples(trajectory, 1.0)) == []
    return trajectories


async def insistent(task: TaskView) -> str | None:
    """Asks the model whether it is sure."""
    async with openai.AsyncOpenAI(base_url=task.base_url, api_key=task.api_key) as client:
        messages: list[Any] = list(task.messages)
        for more in (*MORE, None):
            reply = await client.chat.completions.create(model=task.model, messages=messages)
            messages.append(reply.choices[0].message.model_dump(exclude_none=True))
            messages += [{"role": "user", "content": more}] if more else []
    return str(messages[-1].get("content") or "")


def make_sampler(model: Any, tokenizer: Any) -> EmbeddedSampler:
    return EmbeddedSampler(model, pad_id=tokenizer.pad_token_id)


def test_a_model_through_the_proxy_says_what_it_says_in_an_episode(model: Any, tokenizer: Any) -> None:
    """Golden: 32 episodes at a time, up to three turns each; the seeds are the same, so the tokens are."""
    renderer = ChatRenderer(tokenizer)
    captured = asyncio.run(
        run_programs(
            plans(32),
            program=insistent,
            renderer=renderer,
            sampler=make_sampler(model, tokenizer),
            params=PARAMS,
            limits=LIMITS,
        )
    )
    expected = asyncio.run(
        run_episodes(
            plans(32),
            make_environment=lambda task: FakeEnvironment(replies=MORE),
            renderer=renderer,
            sampler=make_sampler(model, tokenizer),
            params=PARAMS,
            limits=LIMITS,
        )
    )
    audited(captured, renderer)
    assert len({trajectory.outcome.label for trajectory in captured}) == 2, "some are cut and some are complete"
    # A call that cannot be read is text to a program; an environment answers it with an error.
    pairs = [(a, b) for a, b in zip(captured, expected, strict=True) if not b.counters["malformed_calls"]]
    assert len(pairs) > 16
    for ours, theirs in pairs:
        assert ours.outcome == theirs.outcome
        assert [node.token_ids for node in ours.nodes] == [node.token_ids for node in theirs.nodes]
        assert [node.messages for node in ours.nodes] == [node.messages for node in theirs.nodes]
        assert ours.answer == theirs.answer
        assert ours.counters["forks"] == 0
        for one, other in zip(ours.nodes, theirs.nodes, strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


def test_captured_log_probabilities_are_the_learners(model: Any, tokenizer: Any) -> None:
    """Teacher-forced: a plain forward pass over what would be trained gives the stored log-probabilities."""
    renderer = ChatRenderer(tokenizer)
    trajectories = asyncio.run(
        run_programs(
            plans(8),
            program=insistent,
            renderer=renderer,
            sampler=make_sampler(model, tokenizer),
            params=PARAMS,
            limits=LIMITS,
        )
    )
    checked = 0
    for trajectory in audited(trajectories, renderer):
        for sample in training_samples(trajectory, 1.0):
            ids = torch.tensor(sample.token_ids.tolist())
            where = torch.tensor([i for i, trained in enumerate(sample.loss_mask) if trained])
            with torch.no_grad():
                logits = model(ids.unsqueeze(0)).logits[0] / PARAMS.temperature
            forced = torch.log_softmax(logits[where - 1], -1)[torch.arange(len(where)), ids[where]]
            stored = np.asarray(sample.behaviour_logprobs)[where.numpy()]
            np.testing.assert_allclose(stored, forced.numpy(), atol=1e-4)
            checked += len(where)
    assert checked > 200


@pytest.mark.parametrize("said", [CALL, Message.assistant("", CALL.tool_calls)])
def test_the_example_agent_is_captured_as_an_episode_with_its_tool(example: Any, tokenizer: Any, said: Message) -> None:
    """Golden, with the tool loop of examples/agent_program.py as it stands there."""
    renderer = ChatRenderer(tokenizer)
    script = [said, "57"]
    captured = asyncio.run(
        run_programs(
            plans(),
            program=example.agent,
            renderer=renderer,
            sampler=ScriptedSampler(script, renderer=renderer),
            params=PARAMS,
        )
    )
    function = example.CALCULATOR["function"]
    tool = fake_tool("calculate", lambda arguments: example.calculate(**arguments))
    spec = ToolSpec(name=function["name"], description=function["description"], parameters=function["parameters"])
    world = FakeEnvironment(tools=[type(tool)(spec=spec, call=tool.call)])
    expected = asyncio.run(
        run_episodes(
            plans(),
            make_environment=lambda task: world,
            renderer=renderer,
            sampler=ScriptedSampler(script, renderer=renderer),
            params=PARAMS,
        )
    )
    for ours, theirs in zip(audited(captured, renderer), expected, strict=True):
        assert ours.outcome == theirs.outcome == COMPLETED
        assert ours.answer == theirs.answer == "57"
        assert ours.seed == theirs.seed
        streams = ("parent", "token_ids", "action_mask", "versions", "messages", "is_action", "fork")
        for one, other in zip(ours.nodes, theirs.nodes, strict=True):
            assert all(getattr(one, name) == getattr(other, name) for name in streams)


def test_the_comparison_sees_a_prompt_of_another_wording(example: Any, tokenizer: Any) -> None:
    """Negative control: one word more in the program's prompt is another trajectory."""
    renderer = ChatRenderer(tokenizer)

    async def rewording(task: TaskView) -> str | None:
        changed = [{**message, "content": f"Now: {message['content']}"} for message in task.messages]
        async with openai.AsyncOpenAI(base_url=task.base_url, api_key=task.api_key) as client:
            reply = await client.chat.completions.create(model="m", messages=changed)  # type: ignore[arg-type]
            return reply.choices[0].message.content

    def roll(program: Any) -> list[Trajectory]:
        sampler = ScriptedSampler(["57"], renderer=renderer)
        return asyncio.run(run_programs(plans(2), program=program, renderer=renderer, sampler=sampler, params=PARAMS))

    ids = [[node.token_ids for node in roll(program)[0].nodes] for program in (rewording, example.agent)]
    assert ids[0] != ids[1]


def test_the_example_calculates(example: Any) -> None:
    assert example.calculate("(2 + 3) * -4") == "-20"
    assert example.calculate("2 ** 9999999").startswith("Error")
    assert example.calculate("__import__('os')").startswith("Error")
    assert example.calculate("2 +").startswith("Error")
