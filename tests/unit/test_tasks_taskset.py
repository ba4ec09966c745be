"""Generated tasksets, the calculator's tasks, and the cursor."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.core.errors import ConfigError, TaskError
from burnish.core.task import Task
from burnish.environments.calculator import Calculator
from burnish.tasks.cursor import TaskCursor
from burnish.tasks.taskset import GeneratedTaskset, best_constant_share, check_serialisable


def taskset(make: object, splits: tuple[str, ...] = ("train", "heldout")) -> GeneratedTaskset:
    return GeneratedTaskset("numbers", 0.1, splits, make, seed=0)  # type: ignore[arg-type]


def numbers(split: str, rng: Random) -> Iterable[Task]:
    low = 0 if split == "train" else 100
    return (Task(prompt=f"Say {number}", tags={"split": split}) for number in rng.sample(range(low, low + 50), 20))


def test_tasks_are_made_once_and_alike_for_a_seed() -> None:
    one, two = taskset(numbers), taskset(numbers)
    assert one.tasks("train") is one.tasks("train")
    assert one.content_hash("train") == two.content_hash("train")
    other = GeneratedTaskset("numbers", 0.1, ("train", "heldout"), numbers, seed=1)
    assert one.content_hash("train") != other.content_hash("train")


def test_an_unknown_split_gets_a_suggestion() -> None:
    with pytest.raises(TaskError, match="did you mean 'heldout'"):
        taskset(numbers).tasks("held_out")


def test_repeats_are_left_out_and_counted() -> None:
    made = taskset(lambda split, rng: [Task(prompt="a"), Task(prompt="b"), Task(prompt="a")], ("train",))
    assert len(made.tasks("train")) == 2
    assert made.repeats == {"train": 1}


def test_a_leak_into_heldout_is_found_whatever_its_tags() -> None:
    made = taskset(lambda split, rng: [Task(prompt="same", tags={"split": split}, id=split)])
    made.tasks("train")
    with pytest.raises(TaskError, match="1 tasks of split 'heldout' also stand in train, such as 'same'"):
        made.tasks("heldout")


def test_the_same_question_in_another_world_is_another_problem() -> None:
    made = taskset(lambda split, rng: [Task(prompt="same", setup={"split": split})])
    assert len(made.tasks("heldout")) == 1


def test_two_tasks_with_one_id_are_refused() -> None:
    with pytest.raises(TaskError, match="two different tasks have the id 'x'"):
        taskset(lambda split, rng: [Task(prompt="a", id="x"), Task(prompt="b", id="x")]).tasks("train")


def test_anything_but_a_task_is_refused() -> None:
    with pytest.raises(TaskError, match="expected a Task"):
        taskset(lambda split, rng: [{"prompt": "a"}]).tasks("train")


@pytest.mark.parametrize("prompt", ["the same {}", "another {n}"])
def test_a_generator_without_end_is_stopped(prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.tasks.taskset.MAX_TASKS", 500)
    with pytest.raises(TaskError, match="does the generator end"):
        taskset(lambda split, rng: (Task(prompt=prompt.format(0, n=n)) for n in itertools.count())).tasks("train")


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        ({"a": {1, 2}}, r"setup\['a'\] is a set"),
        ({"a": [1, b"x"]}, r"setup\['a'\]\[1\] is a bytes"),
        ({1: "a"}, "has the key 1"),
    ],
)
def test_tasks_that_json_would_change_are_refused(setup: dict[str, object], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        check_serialisable(Task(prompt="a", setup=setup, id="t"))


def test_tuples_lists_and_none_survive() -> None:
    check_serialisable(Task(prompt="a", setup={"a": (1, None, [True, 0.5])}))


@pytest.mark.parametrize("level", [1, 2, 3])
def test_calculator_answers_agree_with_python(level: int) -> None:
    calculator = Calculator(level=level)
    made = GeneratedTaskset("calculator", 0.0, Calculator.splits, calculator.tasks, seed=0)
    expressions = {split: {task.setup["expression"] for task in made.tasks(split)} for split in made.splits}
    assert not expressions["train"] & (expressions["heldout"] | expressions["unseen"])
    for split in made.splits:
        tasks = made.tasks(split)
        assert len(tasks) >= 250
        for task in tasks:
            assert task.reference["answer"] == str(eval(task.setup["expression"]))
        answers = [task.reference["answer"] for task in tasks]
        assert best_constant_share(answers) <= calculator.chance + 0.05


def test_calculator_refuses_other_levels() -> None:
    with pytest.raises(ConfigError, match="levels 1 to 3"):
        Calculator(level=4)


@given(st.integers(1, 17), st.lists(st.integers(0, 9), max_size=12), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_restored_cursor_goes_on_exactly(n_tasks: int, takes: list[int], seed: int) -> None:
    whole = TaskCursor(n_tasks, seed)
    wanted = [whole.next(k) for k in takes]
    cursor, got = TaskCursor(n_tasks, seed), []
    for k in takes:
        fresh = TaskCursor(n_tasks, seed)
        fresh.restore(cursor.state())
        got.append(fresh.next(k))
        cursor = fresh
    assert got == wanted
    flat = [index for taken in wanted for index in taken]
    for start in range(0, len(flat) - n_tasks + 1, n_tasks):
        assert sorted(flat[start : start + n_tasks]) == list(range(n_tasks))


def test_epochs_differ_in_order() -> None:
    cursor = TaskCursor(50, seed=0)
    assert cursor.next(50) != cursor.next(50)
    assert cursor.epoch == 2


@pytest.mark.parametrize("change", [{"n_tasks": 4}, {"seed": 1}, {"position": 3}, {"epoch": -1}])
def test_a_cursor_of_other_tasks_is_refused(change: dict[str, int]) -> None:
    cursor = TaskCursor(3, seed=0)
    with pytest.raises(TaskError):
        cursor.restore(cursor.state() | change)


def test_a_cursor_needs_tasks() -> None:
    with pytest.raises(TaskError):
        TaskCursor(0, seed=0)
