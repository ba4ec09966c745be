"""The synchronous runner: joined in episode order, alike however long anything takes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import threading
from random import Random

import pytest

from burnish.core.errors import BurnishError, InvariantViolation
from burnish.core.message import Message, ToolCall
from burnish.core.outcome import COMPLETED, Owner
from burnish.core.sampling import SamplingParams
from burnish.core.task import Limits, Task
from burnish.core.trajectory import NO_VERSION, Trajectory
from burnish.rollout.audit import audit_trajectory
from burnish.rollout.group import plan_groups
from burnish.rollout.runner import run_episodes, run_scripted
from burnish.rollout.samples import demonstration_samples
from burnish.rollout.scripts import best_constant, constant, no_op, random_valid
from burnish.testing.fakes import FakeEnvironment, FakeRenderer, ScriptedSampler, fake_tool


def plans(n_tasks: int = 4, group_size: int = 3):
    tasks = [Task(prompt=f"task {index}", id=f"t{index}") for index in range(n_tasks)]
    return plan_groups(tasks, phase="rl", step=12, group_size=group_size, run_seed=0)


def timeless(trajectory: Trajectory) -> Trajectory:
    nodes = tuple(dataclasses.replace(node, started_s=0.0, duration_s=0.0) for node in trajectory.nodes)
    return dataclasses.replace(trajectory, nodes=nodes, tool_s=0.0, total_s=0.0)


def same(left: list[Trajectory], right: list[Trajectory]) -> bool:
    # repr, because the NaN log-probabilities of observations are not equal to themselves
    return [repr(timeless(one)) for one in left] == [repr(timeless(one)) for one in right]


def random_say(request):
    """1 to 4 turns of calls, then an answer; a function of the request alone."""
    rng = Random(request.seed)
    if rng.random() < 0.3 or len(request.messages) > 6:
        return f"answer {rng.random()}"
    calls = [ToolCall(id="x", name="nap", arguments={"n": rng.randint(0, 99)}) for _ in range(rng.randint(1, 3))]
    return Message.assistant("", tuple(calls))


def napping_world(rng: random.Random | None):
    """A world whose results tell in which order its calls were started, with naps that differ from run to run."""
    started = []

    async def nap(arguments) -> str:
        started.append(arguments["n"])
        position = len(started)
        if rng is not None:
            await asyncio.sleep(rng.random() * 0.01)
        return f"{arguments['n']} came as {position}"

    return FakeEnvironment(tools=[fake_tool("nap", nap)])


def roll(chosen, *, say=random_say, make=None, max_live=None, sampler=None):
    sampler = sampler or ScriptedSampler(say)
    trajectories = asyncio.run(
        run_episodes(
            chosen,
            make_environment=make or (lambda task: napping_world(None)),
            renderer=FakeRenderer(),
            sampler=sampler,
            params=SamplingParams(),
            max_live=max_live,
        )
    )
    return trajectories, sampler


def test_plans_have_ids_and_seeds_of_their_own():
    made = plans()
    assert made[4].id == "rl/000012/0001/01"
    assert made[4].group_id == "rl/000012/0001"
    assert len({plan.seed for plan in made}) == len(made)
    shard = plan_groups([made[3].task], phase="rl", step=12, group_size=3, run_seed=0, first_group=1)
    assert shard == made[3:6], "a shard makes the same plans as the whole"


def test_random_naps_change_nothing_but_timings():
    """The unseeded generator is on purpose: other naps each time, one result."""
    calm, _ = roll(plans())
    for _ in range(3):
        napped, _ = roll(plans(), make=lambda task: napping_world(random.SystemRandom()))
        assert same(calm, napped)


def test_the_comparison_sees_a_world_that_depends_on_time():
    """Negative control: results that depend on which nap ends first do change."""

    def racing(rng):
        finished = []

        async def nap(arguments) -> str:
            await asyncio.sleep(rng.random() * 0.01)
            finished.append(1)
            return f"{arguments['n']} ended as {len(finished)}"

        return FakeEnvironment(tools=[fake_tool("nap", nap)])

    results = [roll(plans(), make=lambda task, seed=seed: racing(random.Random(seed)))[0] for seed in range(4)]
    assert not all(same(results[0], other) for other in results[1:])


def test_a_blocking_tool_on_a_thread_stalls_nobody():
    """16 episodes whose tools wait for each other: they would never end one after another."""
    barrier = threading.Barrier(16, timeout=10)

    async def meet(arguments) -> str:
        await asyncio.get_running_loop().run_in_executor(pool, barrier.wait)
        return "met"

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(16) as pool:
        trajectories, _ = roll(
            plans(4, 4),
            say=ScriptedSampler([Message.assistant("", (ToolCall(id="x", name="meet"),)), "done"])._reply,
            make=lambda task: FakeEnvironment(tools=[fake_tool("meet", meet)]),
        )
    assert {trajectory.answer for trajectory in trajectories} == {"done"}


def test_one_batch_for_each_turn_in_plan_order():
    trajectories, sampler = roll(plans())
    first = [request.key for request in sampler.requests[: sampler.batch_sizes[0]]]
    assert first == [f"{plan.id}/0" for plan in plans()]
    second = [request.key for request in sampler.requests[sampler.batch_sizes[0] :][: sampler.batch_sizes[1]]]
    assert second == sorted(second)
    assert [trajectory.id for trajectory in trajectories] == [plan.id for plan in plans()]
    assert max(trajectory.counters["turns"] for trajectory in trajectories) == len(sampler.batch_sizes)


@pytest.mark.parametrize("max_live", [1, 2, 5, 100])
def test_max_live_bounds_the_batch_and_changes_no_result(max_live):
    everything, _ = roll(plans())
    some, sampler = roll(plans(), max_live=max_live)
    assert same(everything, some)
    assert max(sampler.batch_sizes) <= max_live
    assert max(sampler.batch_sizes) == min(max_live, 12)


def test_places_are_filled_again_while_others_go_on():
    _, sampler = roll(plans(), max_live=4)
    total = sum(sampler.batch_sizes)
    assert all(size == 4 for size in sampler.batch_sizes[: total // 4 - 4]), "free places are filled at once"


def test_no_plans_no_trajectories():
    assert roll([])[0] == []


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="max_live"):
        roll(plans(), max_live=0)
    with pytest.raises(ValueError, match="more than once"):
        roll([*plans(), plans()[0]])


class FailingSampler(ScriptedSampler):
    async def sample(self, requests):
        if self.batch_sizes:
            raise BurnishError("the engine is gone")
        return await super().sample(requests)


class ShortSampler(ScriptedSampler):
    async def sample(self, requests):
        return (await super().sample(requests))[:-1]


@pytest.mark.parametrize(("kind", "error"), [(FailingSampler, BurnishError), (ShortSampler, InvariantViolation)])
def test_a_sampler_that_breaks_ends_the_call_and_closes_every_world(kind, error):
    worlds = []

    def make(task):
        worlds.append(napping_world(None))
        return worlds[-1]

    with pytest.raises(error):
        roll(plans(), make=make, sampler=kind(random_say))
    assert len(worlds) == 12
    assert all(world.calls.count("close") == 1 for world in worlds)


def test_cancellation_closes_every_world():
    worlds = []

    async def hang(arguments) -> str:
        await asyncio.sleep(3600)
        return ""

    def make(task):
        worlds.append(FakeEnvironment(tools=[fake_tool("nap", hang)]))
        return worlds[-1]

    async def go():
        task = asyncio.create_task(
            run_episodes(
                plans(),
                make_environment=make,
                renderer=FakeRenderer(),
                sampler=ScriptedSampler([Message.assistant("", (ToolCall(id="x", name="nap"),))]),
                params=SamplingParams(),
            )
        )
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())
    assert len(worlds) == 12
    assert all(world.calls[-1] == "close" for world in worlds)


# -- scripted policies -------------------------------------------------------------------------------------------------

COUNT = fake_tool(
    "count",
    lambda arguments: str(len(arguments["shelf"])),
    parameters={"type": "object", "properties": {"shelf": {"type": "string"}}, "required": ["shelf"]},
)


def count_call(shelf: str) -> ToolCall:
    return ToolCall(id="any", name="count", arguments={"shelf": shelf})


def script(policy, *, chosen=None, renderer=None, limits=None, environment=None):
    return asyncio.run(
        run_scripted(
            chosen or plans(2, 1),
            make_environment=lambda task: environment or FakeEnvironment(tools=[COUNT]),
            policy=policy,
            renderer=renderer,
            limits=limits,
        )
    )


def expert(environment, task, rng):
    one = yield count_call("ab")
    two, three = yield [count_call("abc"), count_call("abcd")]
    return str(int(one) + int(two) + int(three))


def test_expert_script_gives_exact_demonstrations():
    trajectories = script(expert, renderer=FakeRenderer())
    for trajectory in trajectories:
        assert trajectory.outcome == COMPLETED
        assert trajectory.answer == "9"
        assert audit_trajectory(trajectory, FakeRenderer()) == []
        (sample,) = demonstration_samples(trajectory)
        trained = [pair for pair in zip(sample.loss_mask, sample.advantages, sample.versions, strict=True) if pair[0]]
        assert set(trained) == {(1, 1.0, NO_VERSION)}
        assert sample.trained_tokens == trajectory.action_tokens


def test_scripts_run_without_a_tokenizer():
    (trajectory, _) = script(expert)
    assert trajectory.answer == "9"
    assert not trajectory.is_token_exact


def test_a_message_is_sent_the_texts_of_the_reply():
    heard = []

    def talk(environment, task, rng):
        heard.append((yield Message.assistant("hello")))
        return "bye"

    (trajectory,) = script(talk, chosen=plans(1, 1), environment=FakeEnvironment(replies=["who is there?"]))
    assert heard == [["who is there?"]]
    assert trajectory.answer == "bye"


def raising_script(environment, task, rng):
    yield count_call("a")
    raise RuntimeError("expert bug")


def text_script(environment, task, rng):
    yield "not a call"


@pytest.mark.parametrize(
    ("policy", "environment", "cause"),
    [
        (raising_script, None, "script_raised"),
        (text_script, None, "script_raised"),
        (no_op, FakeEnvironment(replies=["go on"]), "script_ended"),
    ],
)
def test_broken_scripts_are_environment_errors(policy, environment, cause):
    (trajectory,) = script(policy, chosen=plans(1, 1), environment=environment)
    assert trajectory.outcome.owner is Owner.ENVIRONMENT
    assert trajectory.outcome.cause == cause


def test_scripts_obey_the_limits_of_the_policy():
    assert script(expert, limits=Limits(max_turns=2))[0].outcome.label == "truncated:turns"
    cut = script(expert, renderer=FakeRenderer(), limits=Limits(max_turn_tokens=10))[0]
    assert cut.outcome.label == "truncated:turn_tokens"


class LossyRenderer(FakeRenderer):
    def parse(self, token_ids):
        return Message.assistant("something else")


def test_a_demonstration_that_changes_in_its_tokens_is_refused():
    (trajectory, _) = script(expert, renderer=LossyRenderer())
    assert trajectory.outcome.cause == "action_round_trip"
    assert trajectory.outcome.owner is Owner.INFRASTRUCTURE


def test_no_op_and_constant():
    assert script(no_op)[0].answer == ""
    assert script(no_op, renderer=FakeRenderer())[0].nodes[1].token_ids == FakeRenderer().encode_action(
        Message.assistant("")
    )
    assert script(constant("7"))[0].answer == "7"
    assert best_constant([]) == ""
    answers = ["b", "a", "a", "b", "c"]
    assert best_constant([Task(prompt=str(i), reference={"answer": a}) for i, a in enumerate(answers)]) == "a"


MANY = {
    "type": "object",
    "properties": {
        "order": {"type": "string"},
        "n": {"type": "integer", "minimum": 3, "maximum": 9},
        "price": {"type": "number", "exclusiveMinimum": 0},
        "kind": {"enum": ["x", "y"]},
        "flag": {"type": "boolean"},
        "items": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 3},
        "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "point": {"$ref": "#/$defs/point"},
        "always": {"const": 1},
        "many": {"type": ["integer", "string"]},
    },
    "required": ["order", "n", "price", "kind", "flag", "items", "maybe", "point", "always", "many"],
    "additionalProperties": False,
    "$defs": {"point": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}},
}


def test_random_calls_fit_the_schema_and_use_the_world():
    seen: list[dict] = []

    def keep(arguments) -> str:
        seen.append(dict(arguments))
        return json.dumps({"order": "B77", "total": 31})

    tasks = [Task(prompt="Where is order A12 of 2024?", reference={"answer": 3 if i % 2 else "late"}) for i in range(2)]
    environment = FakeEnvironment(tools=[fake_tool("look", keep, parameters=MANY)])
    environment.vocabulary = lambda: ["harbour"]
    chosen = plan_groups(tasks, phase="eval", step=0, group_size=40, run_seed=1)
    trajectories = asyncio.run(run_scripted(chosen, make_environment=lambda task: environment, policy=random_valid))
    assert all(trajectory.counters["invalid_arguments"] == 0 for trajectory in trajectories)
    calls = [trajectory.counters["tool_calls"] for trajectory in trajectories]
    assert set(calls) == {1, 2, 3}
    assert {"A12", "B77", "harbour"} <= {arguments["order"] for arguments in seen}
    numbers = [trajectory.answer for trajectory in trajectories if trajectory.task_id == tasks[1].id]
    assert all(float(answer) is not None for answer in numbers)
    words = {trajectory.answer for trajectory in trajectories if trajectory.task_id == tasks[0].id}
    assert "B77" in words
    again = asyncio.run(run_scripted(chosen, make_environment=lambda task: environment, policy=random_valid))
    assert [one.answer for one in again] == [one.answer for one in trajectories]


def test_random_policy_without_tools_answers_at_once():
    (trajectory, _) = script(random_valid, environment=FakeEnvironment())
    assert trajectory.counters["tool_calls"] == 0
    assert trajectory.answer
