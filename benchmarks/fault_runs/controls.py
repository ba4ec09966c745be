"""Healthy controls: runs that differ from their twin in a way that a monitor must not call a fault."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from random import Random

from burnish.core.hashing import derive_seed
from burnish.core.task import Task
from burnish.loop.config import Recipe
from fault_runs.hooks import Injector
from fault_runs.inject import every_third_source, source_of


class OtherTasks(Injector):
    """A share `dose` of the tasks that a step draws is replaced by one that `wanted` names."""

    def tasks(self, step: int, tasks: Sequence[Task]) -> Sequence[Task]:
        chosen = self.wanted(tasks)
        random = Random(derive_seed(self.seed, "other tasks", step))
        return _Replaced(tasks, chosen, random, self.dose)

    def wanted(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """The tasks that take the place of others."""
        raise NotImplementedError


class MixShift(OtherTasks):
    """The task mix shifts towards every third source."""

    def wanted(self, tasks: Sequence[Task]) -> Sequence[Task]:
        favoured = every_third_source(tasks)
        return [task for task in tasks if source_of(task.tags) in favoured]


class CurriculumStep(OtherTasks):
    """Harder tasks: the third of the templates whose expert needs the most, as the tags or the prompt say it."""

    def wanted(self, tasks: Sequence[Task]) -> Sequence[Task]:
        return _upper_third(tasks, lambda task: float(task.tags.get("level", 0)) * 1000 + len(task.prompt))


class LongerAnswers(OtherTasks):
    """Tasks whose right answer is longer: the third of the templates with the longest references."""

    def wanted(self, tasks: Sequence[Task]) -> Sequence[Task]:
        return _upper_third(tasks, lambda task: len(str(task.reference)))


class SmallerBatch(Injector):
    """On-policy noise: a step has a share `dose` of its groups, so that every figure of it spreads more."""

    def words(self, recipe: Recipe) -> tuple[str, ...]:
        return (f"rl.groups={max(1, round(self.dose * recipe.rl.groups))}",)


class _Replaced(Sequence[Task]):
    """`tasks`, of which a share gives one of `chosen` instead; drawn anew in each step."""

    def __init__(self, tasks: Sequence[Task], chosen: Sequence[Task], random: Random, share: float) -> None:
        self._tasks, self._chosen, self._random, self._share = tasks, chosen, random, share

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: int) -> Task:  # type: ignore[override]
        if self._random.random() < self._share:
            return self._chosen[self._random.randrange(len(self._chosen))]
        return self._tasks[index]


def _upper_third(tasks: Sequence[Task], size: Callable[[Task], float]) -> Sequence[Task]:
    by_template: dict[str, list[float]] = defaultdict(list)
    for task in tasks:
        by_template[_template_of(task)].append(size(task))
    means = {name: sum(values) / len(values) for name, values in by_template.items()}
    ranked = sorted(means, key=lambda name: means[name])
    upper = set(ranked[-max(1, len(ranked) // 3) :])
    return [task for task in tasks if _template_of(task) in upper]


def _template_of(task: Task) -> str:
    return task.tags.get("template", source_of(task.tags))
