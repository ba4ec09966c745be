"""The conformance of environments: ours pass it, and each law is seen to fail where it is broken."""

from __future__ import annotations

import importlib.util
import itertools
import random
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from burnish.core.errors import TaskError
from burnish.core.task import Task
from burnish.environments.base import Environment
from burnish.environments.calculator import Calculator
from burnish.environments.question import Question
from burnish.environments.tool import tool
from burnish.testing.environment import EnvironmentConformance


def _example(name: str) -> Any:
    path = Path(__file__).parents[2] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WAREHOUSE = _example("warehouse")


class TestWarehouse(EnvironmentConformance):
    make_environment = WAREHOUSE.Warehouse

    def test_it_is_short(self) -> None:
        """The example in the first screen of the documentation."""
        lines = Path(WAREHOUSE.__file__).read_text().splitlines()
        assert sum(bool(line.strip()) for line in lines) <= 25


class TestCalculator(EnvironmentConformance):
    make_environment = Calculator


class TestHardCalculator(EnvironmentConformance):
    make_environment = partial(Calculator, level=3)
    n_tasks = 5


class TestQuestion(EnvironmentConformance):
    make_environment = Question

    def all_tasks(self) -> dict[str, Sequence[Task]]:
        return {
            split: [Task(prompt=f"{n} + {n}?", reference={"answer": str(2 * n)}) for n in range(start, start + 20)]
            for split, start in (("train", 0), ("heldout", 20))
        }


class Sound(Environment):
    """What the broken ones below are variations of."""

    def tasks(self, split: str, rng: random.Random) -> Iterable[Task]:
        start = 0 if split == "train" else 100
        for number in range(start, start + 40):
            yield Task(prompt=f"Double {number}", setup={"n": number}, reference={"answer": f"{2 * number} in all"})

    @tool(inline=True)
    def double(self, n: int) -> int:
        """Double a number."""
        return 2 * n

    def get_reward(self, answer: str) -> float:
        return float(answer == self.task.reference["answer"])

    def solve(self) -> Any:
        return f"{(yield self.double.call(self.task.setup['n']))} in all"


class WrongExpert(Sound):
    def solve(self) -> Any:
        yield self.double.call(1)
        return "never"


class Generous(Sound):
    def get_reward(self, answer: str) -> float:
        return 1.0


class Random(Sound):
    @tool(inline=True)
    def double(self, n: int) -> float:
        """Double a number, about."""
        return 2 * n + random.random()


class Shared(Sound):
    calls: ClassVar[list[int]] = []

    @tool(inline=True)
    def double(self, n: int) -> str:
        """Double a number and count the calls."""
        self.calls.append(n)
        return f"{2 * n} after {len(self.calls)} calls"


class Vandal(Sound):
    kept: ClassVar[dict[str, Task]] = {}

    def tasks(self, split: str, rng: random.Random) -> Iterable[Task]:
        for task in super().tasks(split, rng):
            yield self.kept.setdefault(task.id, task)

    @tool(inline=True)
    def double(self, n: int) -> int:
        """Double a number and leave a mark."""
        self.kept[self.task.id].setup["mark"] = n  # type: ignore[index]
        return 2 * n


class Fragile(Sound):
    """Has no reference answer that would prove the answer at fault."""

    def tasks(self, split: str, rng: random.Random) -> Iterable[Task]:
        start = 0 if split == "train" else 100
        return (Task(prompt=f"Double {n}", setup={"n": n}) for n in range(start, start + 40))

    def get_reward(self, answer: str) -> float:
        return float(int(answer) == 2 * self.task.setup["n"])


class Leaky(Sound):
    def tasks(self, split: str, rng: random.Random) -> Iterable[Task]:
        return super().tasks("train", rng)


class Restless(Sound):
    count = itertools.count()

    def tasks(self, split: str, rng: random.Random) -> Iterable[Task]:
        yield Task(prompt=f"Task {next(self.count)} of {split}")


class Mute(Sound):
    @tool
    def double(self, n: int) -> int:
        return 2 * n


class Unstorable(Sound):
    def tasks(self, split: str, rng: random.Random) -> Iterable[Task]:
        yield Task(prompt=split, setup={"seen": {1, 2}})


BROKEN = [
    (WrongExpert, "test_oracle_scores_one_on_every_task"),
    (Generous, "test_idle_policies_stay_at_chance"),
    (Random, "test_equal_episodes_are_equal"),
    (Shared, "test_instances_share_no_state"),
    (Vandal, "test_tasks_are_left_as_they_were"),
    (Fragile, "test_hostile_answers_are_judged"),
    (Leaky, "test_every_split_has_tasks_that_survive_json"),
    (Restless, "test_tasks_are_a_function_of_split_and_seed"),
    (Mute, "test_tool_schemas_are_valid"),
    (Unstorable, "test_every_split_has_tasks_that_survive_json"),
]


class TestSound(EnvironmentConformance):
    make_environment = Sound


@pytest.mark.parametrize(("broken", "law"), BROKEN, ids=[broken.__name__ for broken, _ in BROKEN])
def test_each_law_is_seen_to_fail(broken: type[Environment], law: str) -> None:
    conformance = EnvironmentConformance()
    conformance.make_environment = broken
    conformance.n_tasks = 6
    with pytest.raises((AssertionError, TaskError)):
        getattr(conformance, law)()
