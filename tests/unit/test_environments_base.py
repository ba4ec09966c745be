"""The base class: defaults, hooks in both colours, and what is refused."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

import pytest

from burnish.core.errors import ConfigError, TaskError
from burnish.core.message import Message, Role
from burnish.core.task import Task
from burnish.environments.base import Environment, EnvironmentFault, expert_policy, has_expert
from burnish.environments.question import Question
from burnish.environments.tool import tool

TASK = Task(prompt="How many?", system="Be brief.", setup={"boxes": {"A": 3}}, reference={"answer": "3"})


class Rewarded(Environment):
    def get_reward(self, answer: str) -> float:
        return float(int(answer) == int(self.task.reference["answer"]))


def finish(environment: Environment, answer: str, task: Task = TASK) -> Mapping[str, Any]:
    async def play() -> Mapping[str, Any]:
        await environment.start(task)
        try:
            return await environment.finish(answer)
        finally:
            await environment.close()

    return asyncio.run(play())


def test_defaults_follow_what_is_written() -> None:
    class Plain(Environment):
        pass

    class Child(Rewarded):
        pass

    class Named(Rewarded):
        name = "other"
        graders = ("exact",)

    assert (Plain.name, Plain.graders) == ("plain", ("exact",))
    assert (Rewarded.name, Rewarded.graders) == ("rewarded", ("get_reward",))
    assert (Child.name, Child.graders) == ("child", ("get_reward",))
    assert (Named.name, Named.graders) == ("other", ("exact",))


def test_first_messages_are_system_and_prompt() -> None:
    messages = asyncio.run(Rewarded().start(TASK))
    assert [(message.role, message.text) for message in messages] == [
        (Role.SYSTEM, "Be brief."),
        (Role.USER, "How many?"),
    ]


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        ("look", ["Be brief.", "look"]),
        (Message.user("look"), ["Be brief.", "look"]),
        ([Message.system("mine"), Message.user("look")], ["mine", "look"]),
    ],
)
def test_observe_may_give_text_a_message_or_all_of_them(observed: Any, expected: list[str]) -> None:
    class Looks(Environment):
        def observe(self) -> Any:
            return observed

    assert [message.text for message in asyncio.run(Looks().start(TASK))] == expected


@pytest.mark.parametrize("observed", [None, 3, [], ["text"]])
def test_observe_that_gives_something_else_is_refused(observed: Any) -> None:
    class Looks(Environment):
        def observe(self) -> Any:
            return observed

    with pytest.raises(EnvironmentFault, match="observe returns"):
        asyncio.run(Looks().start(TASK))


def test_every_hook_may_be_async() -> None:
    class Async(Environment):
        closed = False

        async def setup(self, task: Task) -> None:
            self.boxes = task.setup["boxes"]

        async def observe(self) -> str:
            return f"{len(self.boxes)} shelves"

        async def respond(self, text: str) -> str | None:
            return "go on" if text == "more" else None

        async def get_reward(self, answer: str) -> float:
            return 0.5

        async def final_state(self) -> dict[str, Any]:
            return {"boxes": self.boxes}

        async def teardown(self) -> None:
            self.closed = True

    async def play() -> None:
        world = Async()
        assert (await world.start(TASK))[-1].text == "1 shelves"
        assert [message.text for message in await world.reply(Message.assistant("more")) or ()] == ["go on"]
        assert await world.reply(Message.assistant("3")) is None
        assert await world.finish("3") == {"boxes": {"A": 3}, "get_reward": 0.5}
        await world.close()
        assert world.closed

    asyncio.run(play())


def test_an_environment_serves_one_episode() -> None:
    world = Rewarded()
    finish(world, "3")
    with pytest.raises(EnvironmentFault, match="one episode"):
        asyncio.run(world.start(TASK))


def test_an_episode_cannot_change_the_task_of_another() -> None:
    class Greedy(Environment):
        def setup(self, task: Task) -> None:
            task.setup["boxes"]["A"] = 0
            task.reference["answer"] = "0"  # type: ignore[index]

    finish(Greedy(), "0")
    assert TASK.setup == {"boxes": {"A": 3}}
    assert TASK.reference == {"answer": "3"}


@pytest.mark.parametrize(("answer", "reward"), [("3", 1.0), (" 3\n", 1.0), ("4", 0.0)])
def test_get_reward_lands_in_the_final_state(answer: str, reward: float) -> None:
    assert finish(Rewarded(), answer) == {"get_reward": reward}


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), None, "1", [1]])
def test_a_reward_out_of_range_is_the_environments_fault(value: Any) -> None:
    class Wrong(Environment):
        def get_reward(self, answer: str) -> Any:
            return value

    with pytest.raises(EnvironmentFault, match=r"return a number in \[0, 1\]"):
        finish(Wrong(), "3")


def test_truth_values_are_rewards() -> None:
    class Strict(Environment):
        def get_reward(self, answer: str) -> bool:
            return answer == "3"

    assert finish(Strict(), "3") == {"get_reward": 1.0}


@pytest.mark.parametrize("answer", ["", "three", "nan", "3 boxes"])
def test_an_answer_that_breaks_get_reward_is_the_models_fault(answer: str) -> None:
    assert finish(Rewarded(), answer) == {"get_reward": 0.0, "get_reward_cause": "raised_on_answer:ValueError"}


def test_get_reward_that_breaks_on_the_right_answer_too_is_the_environments_fault() -> None:
    class Broken(Environment):
        def get_reward(self, answer: str) -> float:
            raise ValueError("always")

    with pytest.raises(ValueError, match="always"):
        finish(Broken(), "x")


def test_without_a_reference_nothing_is_proven() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        finish(Rewarded(), "three", Task(prompt="How many?"))


@pytest.mark.parametrize("state", [{"x": {1, 2}}, {"x": float("nan")}, {"x": object()}, [1], {"get_reward": 1.0}])
def test_a_final_state_that_json_cannot_hold_is_refused(state: Any) -> None:
    class Odd(Environment):
        def final_state(self) -> Any:
            return state

    if state == {"x": {1, 2}}:
        assert finish(Odd(), "") == {"x": [1, 2]}
        return
    with pytest.raises(EnvironmentFault):
        finish(Odd(), "")


def test_the_final_state_is_as_it_comes_back_from_the_store() -> None:
    class Tuples(Environment):
        def final_state(self) -> dict[Any, Any]:
            return {1: (2, 3)}

    assert finish(Tuples(), "") == {"1": [2, 3]}


class Shelves(Environment):
    mistakes = ("guess",)

    @tool
    def count(self, shelf: str) -> int:
        """Count boxes."""
        return int(self.task.setup["boxes"][shelf])

    @tool
    def look(self) -> str:
        """Look around."""
        return "shelves"

    def solve(self, mistake: str | None = None) -> Any:
        if mistake == "guess":
            return "7"
        return (yield self.count.call("A"))


def test_a_task_may_offer_some_of_the_tools() -> None:
    world = Shelves()
    asyncio.run(world.start(Task(prompt="?", tools=("look",))))
    assert [item.spec.name for item in world.tools()] == ["look"]
    assert [item.spec.name for item in Shelves().tools()] == ["count", "look"]


def test_a_task_that_offers_an_unknown_tool_gets_a_suggestion() -> None:
    with pytest.raises(TaskError, match="did you mean 'look'"):
        asyncio.run(Shelves().start(Task(prompt="?", tools=("loook",))))


def test_experts_and_mistakes() -> None:
    world = Shelves()
    asyncio.run(world.start(TASK))
    rng = random.Random(0)
    script = expert_policy(world, TASK, rng)
    assert next(script).name == "count"  # type: ignore[union-attr]
    with pytest.raises(StopIteration) as stopped:
        script.send("3")
    assert stopped.value.value == "3"
    with pytest.raises(StopIteration) as stopped:
        next(expert_policy(world, TASK, rng, "guess"))
    assert stopped.value.value == "7"
    with pytest.raises(ConfigError, match="makes no mistake 'nap'"):
        expert_policy(world, TASK, rng, "nap")


def test_an_expert_may_take_rng_and_task_or_return_text() -> None:
    class Direct(Environment):
        def solve(self, task: Task, rng: random.Random) -> str:
            return f"{task.reference['answer']} {rng.random() < 2}"

    with pytest.raises(StopIteration) as stopped:
        next(expert_policy(Direct(), TASK, random.Random(0)))
    assert stopped.value.value == "3 True"


def test_who_has_an_expert() -> None:
    assert has_expert(Shelves)
    assert not has_expert(Rewarded())
    with pytest.raises(ConfigError, match="no expert"):
        expert_policy(Rewarded(), TASK, random.Random(0))


def test_an_async_expert_is_refused() -> None:
    class Wrong(Environment):
        async def solve(self) -> str:  # type: ignore[override]
            return "3"

    with pytest.raises(ConfigError, match="must be a generator"):
        expert_policy(Wrong(), TASK, random.Random(0))


@pytest.mark.parametrize("attributes", [{"chance": 1.5}, {"chance": "x"}, {"graders": "exact"}, {"splits": "train"}])
def test_wrong_class_attributes_are_said_at_once(attributes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        type("Wrong", (Environment,), attributes)


def test_an_environment_without_tasks_says_what_to_write() -> None:
    with pytest.raises(TaskError, match="write tasks"):
        Rewarded().tasks("train", random.Random(0))


def test_question_shows_a_conversation_and_knows_the_answer() -> None:
    earlier = [{"role": "user", "parts": [{"text": "hi"}]}, {"role": "assistant", "parts": [{"text": "hello"}]}]
    task = Task(
        prompt="2 + 2?",
        system="Be brief.",
        setup={"messages": [*earlier, {"role": "user", "parts": [{"text": "2 + 2?"}]}]},
        reference={"answer": "4"},
    )
    question = Question(graders=("numeric",))
    assert [message.text for message in asyncio.run(question.start(task))] == ["Be brief.", "hi", "hello", "2 + 2?"]
    assert question.graders == ("numeric",)
    with pytest.raises(StopIteration) as stopped:
        next(expert_policy(question, task, random.Random(0)))
    assert stopped.value.value == "4"


def test_question_without_a_stored_answer_has_no_oracle() -> None:
    question = Question()
    asyncio.run(question.start(Task(prompt="?")))
    with pytest.raises(TaskError, match="oracle is unavailable"):
        next(expert_policy(question, Task(prompt="?"), random.Random(0)))
