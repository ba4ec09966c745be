"""From the name of an environment to everything a run needs of it: factory, taskset, graders, expert."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from burnish.core.environment import Script, ScriptedPolicy
from burnish.core.errors import ConfigError, TaskError
from burnish.core.grade import Aggregator, Grader
from burnish.core.hashing import bytes_hash
from burnish.core.message import ImagePart
from burnish.core.sandbox import Sandbox
from burnish.core.task import Limits, Task, Taskset
from burnish.environments.base import Environment, expert_policy, has_expert
from burnish.environments.question import Question
from burnish.environments.source import EnvironmentSource
from burnish.graders.aggregate import WeightedSum
from burnish.graders.graph import GraderGraph, graph_from
from burnish.graders.node import GraderNode, WeightSchedule
from burnish.graders.registry import make_grader
from burnish.loop.config import ENVIRONMENTS, REASONING_GYM
from burnish.loop.recipes import suggested_file, suggestion
from burnish.loop.user_files import import_file
from burnish.tasks.jsonl import JsonlTaskset
from burnish.tasks.reasoning import ReasoningGymTaskset
from burnish.tasks.taskset import GeneratedTaskset

GYM_SIZE = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphText:
    """A graph's file as it was read.  `GraphText(file="/home/ann/graders.toml", text="[graders.answer]...")`

    files: name -> text of the files that it names (rubrics, calibrations, code), as they were read.
    """

    file: str
    text: str
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Hash of the text."""
        return bytes_hash(self.text.encode())

    def to_json(self) -> dict[str, Any]:
        """What a manifest holds."""
        files = {name: {"sha256": bytes_hash(text.encode()), "text": text} for name, text in self.files.items()}
        return {"file": self.file, "sha256": self.sha256, "text": self.text, "files": files}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> GraphText:
        """Inverse of `to_json`."""
        files = {str(name): str(row["text"]) for name, row in data["files"].items()}
        return GraphText(file=data["file"], text=data["text"], files=files)

    def changed(self, stored: Mapping[str, Any]) -> list[str]:
        """Names of the files that are not as in a manifest, the graph's own first."""
        then = GraphText.from_json(stored)
        names = sorted(self.files.keys() | then.files.keys())
        others = [name for name in names if self.files.get(name) != then.files.get(name)]
        return others if self.text == then.text else [self.file, *others]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """An environment, resolved.

    make: builds a fresh single-use environment (for a task, which it may ignore).  source: how another process builds
    it.  own: the environment is a user's file.  expert: None where it has none.
    problems: "file:line: reason" of each row of a user's file that was left out.  graph: what the graders were read
    from, None where they are the environment's own.  sandbox: what they run commands in, None where they run none.
    contradiction: what makes a task's impossible twin, None where there is none.  lays_files: extra files of a task are
    laid into its world.
    """

    name: str
    make: Callable[..., Environment]
    source: EnvironmentSource
    taskset: Taskset
    graders: tuple[Grader, ...]
    aggregator: Aggregator
    limits: Limits
    expert: ScriptedPolicy | None
    mistakes: tuple[str, ...]
    problems: tuple[str, ...] = ()
    own: bool = False
    graph: GraphText | None = None
    sandbox: Sandbox | None = None
    contradiction: Callable[[Task], Mapping[str, Any] | None] = lambda task: None
    lays_files: bool = False

    def tasks(self, split: str, limit: int | None = None) -> Sequence[Task]:
        """The first `limit` tasks of a split; raises TaskError where it is empty or unknown."""
        tasks = self.taskset.tasks(split)
        if not tasks:
            raise TaskError(f"environment {self.name} has no tasks in split {split!r}")
        return tasks if limit is None else tasks[:limit]

    def images(self) -> Iterator[ImagePart]:
        """The images of all prompts, split by split."""
        for split in self.taskset.splits:
            for task in self.taskset.tasks(split):
                yield from (part for part in task.parts if isinstance(part, ImagePart))


def load_world(name: str, options: Mapping[str, Any], *, seed: int) -> World:
    """Resolve `name`: a built-in environment, reasoning-gym:DATASET, file.py[:Class] or file.jsonl.

    Raises ConfigError for an unknown name (with a suggestion), a file without an environment, or wrong options.
    """
    stem, _, detail = name.partition(":")
    if stem == REASONING_GYM:
        if not detail:
            raise ConfigError(f"name a dataset: {REASONING_GYM}:DATASET, for example {REASONING_GYM}:chain_sum")
        return _reasoning_gym(name, detail, options, seed)
    if stem.endswith(".jsonl"):
        return _jsonl(name, options, seed)
    cls = _environment_class(name)
    return _from_class(name, cls, options, seed)


def own_aggregator(graders: Sequence[Grader], weights: Mapping[str, float] | None) -> Aggregator:
    """What an environment's `weights` mean: None is equal shares; a grader without a weight is heard and not counted.

    Raises ConfigError for a weight of a grader that is not there, and where none is above 0.
    """
    if weights is None:
        return WeightedSum()
    names = [grader.name for grader in graders]
    if unknown := [key for key in weights if key not in names]:
        raise ConfigError(f"weights names {unknown[0]!r}{suggestion(unknown[0], names)}; graders: {', '.join(names)}")
    nodes = [
        GraderNode(grader=grader, weight=WeightSchedule.constant(weights.get(grader.name, 0.0))) for grader in graders
    ]
    return GraderGraph.of(nodes).aggregator


def mistaken_expert(mistake: str | None) -> ScriptedPolicy:
    """The environment's expert, making the named mistake (None: none)."""

    def policy(environment: Any, task: Task, rng: Random) -> Script:
        return expert_policy(environment, task, rng, mistake)

    return policy


def _environment_class(name: str) -> type[Environment]:
    stem, _, wanted = name.partition(":")
    if stem.endswith(".py"):
        return _class_in(import_file(Path(stem)), stem, wanted)
    if stem in ENVIRONMENTS:
        if wanted:
            raise ConfigError(
                f"environment {stem} takes no {':' + wanted!r}; its options are given as OPTION=VALUE, "
                "and the splits that can be evaluated are train, heldout and unseen"
            )
        module, attribute = ENVIRONMENTS[stem]
        return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]
    known = [*ENVIRONMENTS, REASONING_GYM]
    raise ConfigError(
        f"unknown environment {name!r}{suggestion(stem, known) or suggested_file(Path(stem))}; "
        f"built in: {', '.join(ENVIRONMENTS)}, {REASONING_GYM}:DATASET; or give a .py or .jsonl file"
    )


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

    _check_options(name, options, inspect.signature(cls).parameters.values())
    try:
        sample = make()
    except (TypeError, ValueError) as error:
        raise _option_error(name, options, error) from error

    def make_tasks(split: str, rng: Random) -> Iterable[Task]:
        return make().tasks(split, rng)

    taskset = GeneratedTaskset(sample.name, sample.chance, tuple(sample.splits), make_tasks, seed)
    try:
        graders, aggregator = _own_graders(sample)
    except ConfigError as error:
        raise ConfigError(f"environment {name}: {error}") from error
    return World(
        name=name,
        make=make,
        source=EnvironmentSource.of(cls, options),
        own=name.partition(":")[0].endswith(".py"),
        taskset=taskset,
        graders=graders,
        aggregator=aggregator,
        limits=sample.limits,
        expert=mistaken_expert(None) if has_expert(sample) else None,
        mistakes=tuple(sample.mistakes),
        contradiction=sample.contradiction,
        lays_files=cls.lays_files,
    )


def _own_graders(sample: Environment) -> tuple[tuple[Grader, ...], Aggregator]:
    """What an environment brings: a graph, or graders and their weights."""
    if sample.grader_graph is not None:
        graph = graph_from(sample.grader_graph)
        return graph.graders, graph.aggregator
    graders = tuple(make_grader(ref) for ref in sample.graders)
    return graders, own_aggregator(graders, sample.weights)


def _question_world(name: str, taskset: Taskset, grader: str, limits: Limits) -> World:
    return World(
        name=name,
        make=lambda task: Question(graders=(grader,), limits=limits),
        source=EnvironmentSource.of(Question, {"graders": (grader,), "limits": limits}),
        taskset=taskset,
        graders=(make_grader(grader),),
        aggregator=WeightedSum(),
        limits=limits,
        expert=mistaken_expert(None),
        mistakes=(),
    )


def _check_options(name: str, options: Mapping[str, Any], parameters: Iterable[inspect.Parameter]) -> None:
    """Raises ConfigError, with a suggestion, where `parameters` do not take one of `options`, or ask for another."""
    listed = [p for p in parameters if p.kind is not p.VAR_POSITIONAL]
    named = [p for p in listed if p.kind is not p.VAR_KEYWORD]
    accepted = [p.name for p in named]
    unknown = [option for option in options if option not in accepted]
    if unknown and named == listed:
        hint = suggestion(unknown[0], accepted)
        raise ConfigError(
            f"environment {name} has no option {unknown[0]!r}{hint}; it takes: {', '.join(accepted) or 'none'}"
        )
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in options:
            raise ConfigError(f"environment {name} needs a value: environment.options.{parameter.name}=...")


def _option_error(name: str, options: Mapping[str, Any], error: Exception) -> ConfigError:
    return ConfigError(f"environment {name} cannot be made with options {dict(options)}: {error}")


def _jsonl(name: str, options: Mapping[str, Any], seed: int) -> World:
    own = inspect.Parameter("grader", inspect.Parameter.KEYWORD_ONLY, default="exact")
    theirs = inspect.signature(JsonlTaskset).parameters.values()
    _check_options(name, options, [own, *(p for p in theirs if p.name not in ("path", "seed"))])
    settings = dict(options)
    grader = str(settings.pop("grader", "exact"))
    try:
        taskset = JsonlTaskset(Path(name), seed=seed, **settings)
    except (TypeError, ValueError) as error:
        raise _option_error(name, options, error) from error
    return replace(_question_world(name, taskset, grader, Limits(max_turns=1)), problems=tuple(taskset.problems))


def _reasoning_gym(name: str, dataset: str, options: Mapping[str, Any], seed: int) -> World:
    settings = {"size": GYM_SIZE} | dict(options)
    for key in {"size", "heldout_size"} & settings.keys():
        if type(settings[key]) is not int:
            raise ConfigError(f"option {key} of {name} is a whole number, got {settings[key]!r}")
    if reserved := {"dataset", "seed"} & settings.keys():
        raise ConfigError(
            f"{name} takes no option {min(reserved)!r}; the dataset stands in its name, environment.seed seeds it"
        )
    taskset = ReasoningGymTaskset(dataset, seed=seed, **settings)
    return _question_world(name, taskset, "reasoning_gym", Limits(max_turns=1))
