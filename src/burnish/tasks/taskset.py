"""Tasksets that are generated, and the checks that every taskset passes through."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from random import Random
from typing import Any

from burnish.core.errors import TaskError
from burnish.core.hashing import content_hash, derive_seed
from burnish.core.task import Task

MAX_TASKS = 200_000
_LISTED = 3


def problem_key(task: Task) -> str:
    """What the policy and the environment get to see of a task, hashed: tasks that share it are the same problem.

    Tags, id, limits and reference are left out, so that a held-out task cannot hide in train under another tag.
    """
    return content_hash((task.prompt, task.system, task.setup))


def check_serialisable(task: Task) -> None:
    """Raises TaskError, naming task and key, where setup, reference or tags would not survive JSON."""
    for part in ("setup", "reference", "tags"):
        problem = _json_problem(getattr(task, part), part)
        if problem:
            raise TaskError(f"task {task.id}: {problem}; use str, int, float, bool, None, list and dict")


def check_split(name: str, split: str, splits: Sequence[str]) -> None:
    """Raises TaskError, with a suggestion, where a taskset has no such split."""
    if split not in splits:
        close = difflib.get_close_matches(split, splits, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(splits)}"
        raise TaskError(f"taskset {name} has no split {split!r}; {hint}")


def distinct(name: str, split: str, tasks: Iterable[Task]) -> tuple[tuple[Task, ...], int]:
    """The tasks with repeats of the same content left out, and how many were.

    Raises TaskError for two different tasks with one id, for anything that is not a task or would not survive JSON,
    and past `MAX_TASKS`, which a generator without end would reach.
    """
    kept: dict[str, Task] = {}
    ids: dict[str, str] = {}
    repeats = 0
    for task in tasks:
        if not isinstance(task, Task):
            raise TaskError(f"taskset {name}, split {split}: expected a Task, got {task!r}")
        if task.content_hash in kept:
            repeats += 1
            if repeats > MAX_TASKS:
                raise TaskError(f"taskset {name}, split {split}: over {MAX_TASKS} repeats; does the generator end?")
            continue
        check_serialisable(task)
        if task.id in ids:
            raise TaskError(f"taskset {name}, split {split}: two different tasks have the id {task.id!r}")
        kept[task.content_hash] = task
        ids[task.id] = task.content_hash
        if len(kept) > MAX_TASKS:
            raise TaskError(f"taskset {name}, split {split}: over {MAX_TASKS} tasks; does the generator end?")
    return tuple(kept.values()), repeats


def check_disjoint(name: str, train: Iterable[Task], others: Mapping[str, Iterable[Task]]) -> None:
    """Raises TaskError where a task of another split also stands in train: success on it would prove nothing."""
    seen = {problem_key(task) for task in train}
    for split, tasks in others.items():
        leaked = [task for task in tasks if problem_key(task) in seen]
        if leaked:
            examples = "; ".join(repr(task.prompt_text[:80]) for task in leaked[:_LISTED])
            raise TaskError(
                f"taskset {name}: {len(leaked)} tasks of split {split!r} also stand in train, such as {examples}; "
                "let the split decide which problems may be drawn, for example by the combination of their parts"
            )


class HeldTasks:
    """The part of a taskset that hands out tasks which are all there: `_tasks`, by split, in their one order."""

    name: str
    _tasks: Mapping[str, tuple[Task, ...]]

    @property
    def splits(self) -> Sequence[str]:
        """The names that `tasks` takes."""
        return tuple(self._tasks)

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of a split.  Raises TaskError for an unknown one."""
        check_split(self.name, split, self.splits)
        return self._tasks[split]

    def content_hash(self, split: str) -> str:
        """Hash of a split: of its tasks in order (16 hex digits)."""
        return split_hash(self.tasks(split))


class GeneratedTaskset:
    """Tasks made by a function of split and random numbers; made when first asked for, then kept.

    make(split, rng) yields the tasks; rng is seeded by (seed, name, split).  Repeats within a split are left out
    and counted in `repeats`; a problem that stands in train and in another split is an error.

    `GeneratedTaskset("shop", 0.0, ("train", "heldout"), make, seed=0).tasks("train")`
    """

    def __init__(
        self,
        name: str,
        chance: float,
        splits: Sequence[str],
        make: Callable[[str, Random], Iterable[Task]],
        seed: int,
    ) -> None:
        self.name = name
        self.chance = chance
        self.repeats: dict[str, int] = {}
        self._splits = tuple(splits)
        self._make = make
        self._seed = seed
        self._tasks: dict[str, tuple[Task, ...]] = {}
        self._checked: set[str] = set()

    @property
    def splits(self) -> Sequence[str]:
        """The names that `tasks` takes."""
        return self._splits

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of a split in their one order.  Raises TaskError for an unknown split or a leak from train."""
        check_split(self.name, split, self._splits)
        tasks = self._made(split)
        if split != "train" and "train" in self._splits and split not in self._checked:
            check_disjoint(self.name, self._made("train"), {split: tasks})
            self._checked.add(split)
        return tasks

    def content_hash(self, split: str) -> str:
        """Hash of a split: of its tasks in order (16 hex digits)."""
        return split_hash(self.tasks(split))

    def _made(self, split: str) -> tuple[Task, ...]:
        if split not in self._tasks:
            rng = Random(derive_seed(self._seed, self.name, split))
            self._tasks[split], self.repeats[split] = distinct(self.name, split, self._make(split, rng))
        return self._tasks[split]


def split_hash(tasks: Iterable[Task]) -> str:
    """One hash for tasks in their order (16 hex digits); ids count, since seeds of episodes depend on them."""
    return content_hash([(task.id, task.content_hash) for task in tasks])


def best_constant_share(answers: Collection[str]) -> float:
    """The success of the one answer that is right most often, in [0, 1].

    >>> best_constant_share(["4", "4", "7", "9"])
    0.5
    """
    if not answers:
        return 0.0
    counts: dict[str, int] = {}
    for answer in answers:
        counts[answer] = counts.get(answer, 0) + 1
    return max(counts.values()) / len(answers)


def _json_problem(value: Any, where: str) -> str:
    """Where a value would not survive JSON, and why; empty if it would."""
    if value is None or isinstance(value, (bool, int, str)):
        return ""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{where} is {value}, which JSON does not have"
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                return f"{where} has the key {key!r}, which JSON would turn into text"
            problem = _json_problem(item, f"{where}[{key!r}]")
            if problem:
                return problem
        return ""
    if isinstance(value, (list, tuple)):
        problems = (_json_problem(item, f"{where}[{index}]") for index, item in enumerate(value))
        return next((problem for problem in problems if problem), "")
    return f"{where} is a {type(value).__name__}, which has no JSON form"
