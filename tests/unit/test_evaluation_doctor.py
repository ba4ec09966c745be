"""The doctor finds what is wrong with broken environments, and nothing with a sound one."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from burnish.core.environment import Script, ScriptedPolicy
from burnish.core.errors import ConfigError
from burnish.core.grade import Aggregator, Grader
from burnish.core.task import Limits, Task
from burnish.core.tool import ToolSpec
from burnish.environments.base import Environment, expert_policy, has_expert
from burnish.environments.tool import tool
from burnish.evaluation.doctor import Check, DoctorOptions, DoctorReport, examine, write_kind
from burnish.evaluation.schema_lint import schema_problems
from burnish.graders.aggregate import WeightedSum
from burnish.graders.registry import make_grader
from burnish.tasks.taskset import GeneratedTaskset

OPTIONS = DoctorOptions(n=24, repeats=6)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What the doctor examines."""

    name: str
    make: Callable[[Task], Environment]
    taskset: GeneratedTaskset
    graders: tuple[Grader, ...]
    aggregator: Aggregator
    limits: Limits
    expert: ScriptedPolicy | None
    mistakes: tuple[str, ...]


def world(cls: type[Environment]) -> World:
    sample = cls()
    return World(
        name=sample.name,
        make=lambda task: cls(),
        taskset=GeneratedTaskset(
            sample.name, sample.chance, tuple(sample.splits), lambda split, rng: cls().tasks(split, rng), 0
        ),
        graders=tuple(make_grader(reference) for reference in sample.graders),
        aggregator=WeightedSum(),
        limits=sample.limits,
        expert=expert_policy if has_expert(sample) else None,
        mistakes=tuple(sample.mistakes),
    )


def diagnose(cls: type[Environment], options: DoctorOptions = OPTIONS) -> DoctorReport:
    return asyncio.run(examine(world(cls), options=options))


class Warehouse(Environment):
    """Sound: shelves with pears, counted or moved."""

    mistakes = ("wrong_shelf",)

    def tasks(self, split: str, rng: random.Random) -> Iterable[Task]:
        for i in range(30 if split == "train" else 10):
            pears = {shelf: rng.randint(100, 999) for shelf in "ABC"}
            offset = 0 if split == "train" else 1000
            yield Task(
                prompt=f"Visit {i + offset}: how many pears are on shelves A and B together?",
                setup={"pears": pears},
                reference={"answer": str(pears["A"] + pears["B"])},
                tags={"kind": "read"},
            )

    def setup(self, task: Task) -> None:
        self.pears: dict[str, int] = dict(task.setup["pears"])

    @tool(inline=True)
    def count(self, shelf: str) -> int:
        """Count the pears on a shelf.

        Args:
            shelf: letter of the shelf.
        """
        return self.pears[shelf]

    def final_state(self) -> Mapping[str, Any]:
        return {"pears": self.pears}

    def solve(self, mistake: str | None = None) -> Script:
        first = yield self.count.call(shelf="C" if mistake else "A")
        second = yield self.count.call(shelf="B")
        return str(int(first) + int(second))

    @property
    def gold(self) -> str:
        return str(self.pears["A"] + self.pears["B"])


def only_failure(report: DoctorReport) -> Check:
    [check] = report.failures
    assert not report.healthy
    return check


def test_a_sound_environment_is_healthy() -> None:
    report = diagnose(Warehouse)
    assert report.failures == ()
    assert report.healthy
    assert report.n_tasks == 40
    assert report.check("oracle").measured["mean"] == 1.0
    assert report.check("oracle").measured["n"] == 34  # the first 24 of train, all 10 of heldout
    assert report.check("no_op").measured["mean"] == 0.0
    assert report.check("random").measured["n"] == 24
    assert report.check("tool_latency").measured["calls"] > 0
    assert all(check.ok for check in report.checks), [check for check in report.checks if not check.ok]
    with pytest.raises(KeyError):
        report.check("taste")


def test_an_expert_that_fails_one_task_is_named() -> None:
    class Forgetful(Warehouse):
        def solve(self, mistake: str | None = None) -> Script:
            yield self.count.call(shelf="B")
            return "0" if mistake or "Visit 3:" in self.task.prompt_text else self.gold

    check = only_failure(diagnose(Forgetful))
    assert check.name == "oracle"
    assert check.measured["unsolved"] == 1
    assert "with answer '0'" in check.detail


def test_an_expert_that_raises_is_a_failure_with_its_reason() -> None:
    class Broken(Warehouse):
        def solve(self, mistake: str | None = None) -> Script:
            yield self.count.call(shelf="B")
            raise RuntimeError("out of ideas")

    assert "out of ideas" in diagnose(Broken).check("oracle").detail


def test_paying_for_nothing_is_found() -> None:
    class Generous(Warehouse):
        graders = ("get_reward",)

        def get_reward(self, answer: str) -> float:
            return 1.0 if answer in ("", self.gold) else 0.0

    report = diagnose(Generous)
    assert [check.name for check in report.failures] == ["no_op", "hostile_answers"]
    assert "earns 1.0" in report.check("no_op").detail


def test_a_constant_answer_that_wins_is_found_unless_chance_is_declared() -> None:
    class Coin(Environment):
        def tasks(self, split: str, rng: random.Random) -> Iterable[Task]:
            for i in range(20):
                yield Task(prompt=f"{split}: is {i} even?", reference={"answer": "no" if i % 2 else "yes"})

    class HonestCoin(Coin):
        chance = 0.5

    assert only_failure(diagnose(Coin)).name == "constant"
    report = diagnose(HonestCoin)
    assert report.healthy
    assert report.check("oracle").ok is None
    assert report.check("schema").ok


def test_luck_with_tools_is_found() -> None:
    class Lucky(Warehouse):
        graders = ("get_reward",)

        def setup(self, task: Task) -> None:
            super().setup(task)
            self.counted = False

        @tool(inline=True)
        def count(self, shelf: str) -> int:
            """Count the pears on a shelf.

            Args:
                shelf: letter of the shelf.
            """
            self.counted = True
            return self.pears.get(shelf, 0)

        def get_reward(self, answer: str) -> float:
            return float(self.counted)

    assert [check.name for check in diagnose(Lucky).failures] == ["random", "mistakes"]


def test_a_mistake_that_pays_is_found() -> None:
    class Lax(Warehouse):
        graders = ("get_reward",)

        def get_reward(self, answer: str) -> float:
            return float(answer.isdecimal() and int(answer) > 200)

    report = diagnose(Lax, DoctorOptions(n=24, repeats=6))
    assert report.check("mistakes").ok is False
    assert "wrong_shelf earn" in report.check("mistakes").detail


def test_a_reward_that_breaks_on_some_answers_is_found() -> None:
    class Fragile(Warehouse):
        graders = ("get_reward",)

        def tasks(self, split: str, rng: random.Random) -> Iterable[Task]:
            # Without a reference answer nobody can tell whose fault the exception is.
            for task in super().tasks(split, rng):
                yield Task(prompt=task.prompt, setup=task.setup)

        def get_reward(self, answer: str) -> float:
            return float(int(answer) == int(self.gold))

    report = diagnose(Fragile)
    assert report.check("oracle").ok
    assert report.check("hostile_answers").ok is False
    assert "not judged: ''" in report.check("hostile_answers").detail
    assert report.check("no_op").measured["excluded"] == 24
    assert report.check("no_op").ok is False


def test_a_tool_that_crashes_on_strange_arguments_is_found() -> None:
    class Crashing(Warehouse):
        @tool(inline=True)
        def count(self, shelf: str) -> int:
            """Count the pears on a shelf.

            Args:
                shelf: letter of the shelf.
            """
            if shelf not in self.pears:
                raise OSError("the disk is on fire")
            return self.pears[shelf]

    check = only_failure(diagnose(Crashing))
    assert check.name == "random"
    assert "the disk is on fire" in check.detail


def _counter() -> Iterator[int]:
    return itertools.count()


def test_state_that_outlives_an_episode_is_found() -> None:
    visits = _counter()

    class Leaky(Warehouse):
        def final_state(self) -> Mapping[str, Any]:
            return {"visit": next(visits)}

    report = diagnose(Leaky)
    assert report.check("determinism").ok is False
    assert "final state" in report.check("determinism").detail


def test_random_results_are_found() -> None:
    class Moody(Warehouse):
        @tool(inline=True)
        def count(self, shelf: str) -> str:
            """Count the pears on a shelf.

            Args:
                shelf: letter of the shelf.
            """
            return f"{self.pears[shelf]} at {time.perf_counter_ns()}"

        def solve(self, mistake: str | None = None) -> Script:
            first = yield self.count.call(shelf="C" if mistake else "A")
            second = yield self.count.call(shelf="B")
            return str(int(first.split()[0]) + int(second.split()[0]))

    check = only_failure(diagnose(Moody))
    assert check.name == "determinism"
    assert "(tool)" in check.detail


def test_a_read_that_writes_and_a_write_that_does_not_are_found() -> None:
    class Nibbling(Warehouse):
        @tool(inline=True)
        def count(self, shelf: str) -> int:
            """Count the pears on a shelf.

            Args:
                shelf: letter of the shelf.
            """
            count = self.pears[shelf]
            self.pears[shelf] -= 1
            return count

    check = only_failure(diagnose(Nibbling))
    assert check.name == "state"
    assert "read task" in check.detail

    class Idle(Warehouse):
        def tasks(self, split: str, rng: random.Random) -> Iterable[Task]:
            for task in super().tasks(split, rng):
                yield Task(prompt=task.prompt, setup=task.setup, reference=task.reference, tags={"kind": "write"})

    check = only_failure(diagnose(Idle))
    assert check.name == "state"
    assert "does not change" in check.detail


def test_what_a_task_says_about_writing() -> None:
    assert write_kind(Task(prompt="", tags={"kind": "read"}, reference={"state": 1})) == "read"
    assert write_kind(Task(prompt="", reference={"state": 1})) == "write"
    assert write_kind(Task(prompt="", reference={"answer": "1"})) == ""


def test_slow_tools_and_blocked_loops_are_told_apart() -> None:
    class Slow(Warehouse):
        @tool
        def count(self, shelf: str) -> int:
            """Count the pears on a shelf.

            Args:
                shelf: letter of the shelf.
            """
            time.sleep(0.03)
            return self.pears[shelf]

    class Blocking(Slow):
        @tool
        async def count(self, shelf: str) -> int:
            """Count the pears on a shelf.

            Args:
                shelf: letter of the shelf.
            """
            time.sleep(0.03)  # noqa: ASYNC251 - the fault to be found
            return self.pears[shelf]

    few = DoctorOptions(n=3, repeats=1, slow_tool_s=0.02, lag_s=0.02)
    assert only_failure(diagnose(Slow, few)).name == "tool_latency"
    report = diagnose(Blocking, few)
    assert [check.name for check in report.failures] == ["tool_latency", "event_loop"]
    assert report.check("event_loop").measured["lag_s"] > 0.02


def test_undescribed_tools_are_found() -> None:
    class Terse(Warehouse):
        @tool(inline=True)
        def count(self, shelf: str) -> int:
            return self.pears[shelf]

    check = only_failure(diagnose(Terse))
    assert check.name == "schema"
    assert check.measured == {"tools": 1, "problems": 2}
    assert "no description" in check.detail


def test_an_undescribed_parameter_is_named_and_fails_nothing() -> None:
    class Brief(Warehouse):
        @tool(inline=True)
        def count(self, shelf: str) -> int:
            """Count the pears on a shelf."""
            return self.pears[shelf]

    report = diagnose(Brief)
    assert report.healthy
    assert "parameter shelf has no description" in report.check("schema").detail


def test_tasks_that_stand_in_two_splits_and_empty_splits_are_found() -> None:
    class Shared:
        name, chance, splits = "shared", 0.0, ("train", "heldout", "unseen")

        def tasks(self, split: str) -> list[Task]:
            return [] if split == "unseen" else list(world(Warehouse).taskset.tasks("train"))

    subject = replace(world(Warehouse), taskset=Shared())  # type: ignore[arg-type]
    check = only_failure(asyncio.run(examine(subject, options=OPTIONS)))
    assert check.name == "tasks"
    assert check.detail == "split unseen has no tasks; 30 tasks stand in more than one split"


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        DoctorOptions(n=0)


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"type": "object", "properties": {"a": {"description": "x"}}}, "no type"),
        ({"type": "object", "properties": {"a": {"type": "string"}}}, "no description"),
        ({"type": "object", "properties": {"a": True}}, "no schema of its own"),
        ({"type": "object", "properties": {}, "required": ["b"]}, "required but not described"),
        ({"type": "array"}, "must have type object"),
        ({"type": "objekt"}, "not a JSON Schema"),
    ],
)
def test_schema_problems_are_found(parameters: dict[str, Any], problem: str) -> None:
    [found] = schema_problems([ToolSpec(name="f", description="Does f.", parameters=parameters)])
    assert found.startswith("f: ")
    assert problem in found


def test_tool_names_are_checked() -> None:
    good = ToolSpec(name="f", description="Does f.", parameters={"type": "object"})
    bad = ToolSpec(name="get order", description="Does f.", parameters={"type": "object"})
    assert schema_problems([good]) == []
    assert "endpoints refuse it" in schema_problems([bad])[0]
    assert schema_problems([good, good]) == ["f: two tools have this name"]
