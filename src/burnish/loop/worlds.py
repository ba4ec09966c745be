"""From the name of an environment to everything a run needs of it: factory, taskset, graders, expert."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from burnish.core.environment import Script, ScriptedPolicy
from burnish.core.errors import ConfigError, TaskError
from burnish.core.grade import Aggregator, Grader
from burnish.core.task import Limits, Task, Taskset
from burnish.environments.base import Environment, expert_policy, has_expert
from burnish.environments.question import Question
from burnish.graders.aggregate import WeightedSum
from burnish.graders.registry import make_grader
from burnish.loop.recipes import suggestion
from burnish.tasks.jsonl import JsonlTaskset
from burnish.tasks.reasoning import ReasoningGymTaskset
from burnish.tasks.taskset import GeneratedTaskset

BUILT_IN = {
    "calculator": ("burnish.environments.calculator", "Calculator"),
    "shop": ("burnish.environments.shop", "Shop"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """An environment, resolved.

    make: builds a fresh single-use environment (for a task, which it may ignore).  expert: None where it has none.
    """

    name: str
    make: Callable[..., Environment]
    taskset: Taskset
    graders: tuple[Grader, ...]
    aggregator: Aggregator
    limits: Limits
    expert: ScriptedPolicy | None
    mistakes: tuple[str, ...]

    def tasks(self, split: str, limit: int | None = None) -> Sequence[Task]:
        """The first `limit` tasks of a split; raises TaskError where it is empty or unknown."""
        tasks = self.taskset.tasks(split)
        if not tasks:
            raise TaskError(f"environment {self.name} has no tasks in split {split!r}")
        return tasks if limit is None else tasks[:limit]


def load_world(name: str, options: Mapping[str, Any], *, seed: int) -> World:
    """Resolve `name`: a built-in environment, reasoning-gym:DATASET, file.py[:Class] or file.jsonl.

    Raises ConfigError for an unknown name (with a suggestion), a file without an environment, or wrong options.
    """
    stem, _, detail = name.partition(":")
    if stem == "reasoning-gym":
        if not detail:
            raise ConfigError("name a dataset: reasoning-gym:DATASET, for example reasoning-gym:chain_sum")
        return _reasoning_gym(name, detail, options, seed)
    if stem.endswith(".jsonl"):
        return _jsonl(name, options, seed)
    cls = _environment_class(name)
    return _from_class(name, cls, options, seed)


def mistaken_expert(mistake: str | None) -> ScriptedPolicy:
    """The environment's expert, making the named mistake (None: none)."""

    def policy(environment: Any, task: Task, rng: Random) -> Script:
        return expert_policy(environment, task, rng, mistake)

    return policy


def _environment_class(name: str) -> type[Environment]:
    stem, _, wanted = name.partition(":")
    if stem.endswith(".py"):
        return _class_in(_import_file(Path(stem)), stem, wanted)
    if stem in BUILT_IN:
        module, attribute = BUILT_IN[stem]
        return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]
    known = [*BUILT_IN, "reasoning-gym"]
    raise ConfigError(
        f"unknown environment {name!r}{suggestion(stem, known)}; built in: {', '.join(BUILT_IN)}, "
        "reasoning-gym:DATASET; or give a .py or .jsonl file"
    )


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"environment file {path} does not exist")
    name = f"burnish_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be imported as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec.loader.exec_module(module)
    return module


def _class_in(module: ModuleType, source: str, wanted: str) -> type[Environment]:
    found = {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, Environment)
        and value is not Environment
        and value.__module__ == module.__name__
    }
    if wanted:
        if wanted not in found:
            raise ConfigError(f"{source} has no environment class {wanted!r}{suggestion(wanted, found)}")
        return found[wanted]
    if len(found) != 1:
        listed = ", ".join(found) or "none"
        raise ConfigError(
            f"{source} must define exactly one Environment class (found: {listed}); "
            f"with several, name one: {source}:{next(iter(found), 'Class')}"
        )
    return next(iter(found.values()))


def _from_class(name: str, cls: type[Environment], options: Mapping[str, Any], seed: int) -> World:
    options = dict(options)

    def make(task: Task | None = None) -> Environment:
        return cls(**options)

    try:
        sample = make()
    except TypeError as error:
        accepted = [p for p in inspect.signature(cls).parameters if p not in ("self", "args", "kwargs")]
        raise ConfigError(
            f"environment {name} does not take options {options}: {error}; it takes {accepted}"
        ) from error

    def make_tasks(split: str, rng: Random) -> Iterable[Task]:
        return make().tasks(split, rng)

    taskset = GeneratedTaskset(sample.name, sample.chance, tuple(sample.splits), make_tasks, seed)
    graders = tuple(make_grader(ref) for ref in sample.graders)
    return World(
        name=name,
        make=make,
        taskset=taskset,
        graders=graders,
        aggregator=WeightedSum(),
        limits=sample.limits,
        expert=mistaken_expert(None) if has_expert(sample) else None,
        mistakes=tuple(sample.mistakes),
    )


def _question_world(name: str, taskset: Taskset, grader: str, limits: Limits) -> World:
    return World(
        name=name,
        make=lambda task: Question(graders=(grader,), limits=limits),
        taskset=taskset,
        graders=(make_grader(grader),),
        aggregator=WeightedSum(),
        limits=limits,
        expert=mistaken_expert(None),
        mistakes=(),
    )


def _jsonl(name: str, options: Mapping[str, Any], seed: int) -> World:
    settings = dict(options)
    grader = str(settings.pop("grader", "exact"))
    limits = Limits(max_turns=1)
    taskset = JsonlTaskset(Path(name), seed=seed, **settings)
    return _question_world(name, taskset, grader, limits)


def _reasoning_gym(name: str, dataset: str, options: Mapping[str, Any], seed: int) -> World:
    settings = dict(options)
    taskset = ReasoningGymTaskset(dataset, size=int(settings.pop("size", 2000)), seed=seed, **settings)
    return _question_world(name, taskset, "reasoning_gym", Limits(max_turns=1))
