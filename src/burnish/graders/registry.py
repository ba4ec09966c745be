"""From the name of a grader, as environments and recipes give it, to the grader."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from burnish.core.errors import ConfigError
from burnish.core.grade import Grader
from burnish.core.hints import did_you_mean
from burnish.graders.function import FunctionGrader
from burnish.graders.graph_files import GraphFiles


@dataclass(frozen=True, slots=True)
class Known:
    """Where a grader of a name is: imported when it is asked for.  `Known("rules", "ExactGrader")`"""

    module: str
    attribute: str
    options: Mapping[str, Any] = field(default_factory=dict)


GRADERS: dict[str, Known] = {
    "exact": Known("rules", "ExactGrader"),
    "choice": Known("rules", "ChoiceGrader"),
    "numeric": Known("rules", "NumericGrader"),
    "last_number": Known("rules", "NumericGrader", {"take": "last"}),
    "state": Known("rules", "StateGrader"),
    "get_reward": Known("rules", "RewardGrader"),
    "reasoning_gym": Known("reasoning", "ReasoningGymGrader"),
    "math": Known("mathematics", "MathGrader"),
    "json_schema": Known("json_schema", "JsonSchemaGrader"),
    "sql": Known("sql", "SqlGrader"),
    "tables": Known("state", "TablesGrader"),
    "files": Known("state", "FilesGrader"),
    "calls": Known("calls", "CallsGrader"),
    "constraint": Known("constraints", "ConstraintGrader"),
    "integrity": Known("integrity.grader", "IntegrityGrader"),
    "optimisation": Known("optimisation", "OptimisationGrader"),
    "rubric": Known("rubric", "RubricGrader"),
    "wer": Known("speech", "SpeechGrader", {"unit": "word"}),
    "cer": Known("speech", "SpeechGrader", {"unit": "character"}),
    "grounded": Known("grounding.graders", "GroundedGrader"),
    "grounded_answer": Known("grounding.graders", "GroundedGrader", {"component": "answer"}),
    "grounded_format": Known("grounding.graders", "GroundedGrader", {"component": "format"}),
    "grounded_spatial": Known("grounding.graders", "GroundedGrader", {"component": "spatial"}),
    "grounded_temporal": Known("grounding.graders", "GroundedGrader", {"component": "temporal"}),
    "grounded_reasoning": Known("grounding.graders", "GroundedGrader", {"component": "reasoning"}),
    "grounded_process": Known("grounding.graders", "GroundedGrader", {"component": "process"}),
    "report": Known("composite.grader", "ReportGrader"),
}
"""Graders by the name that a task, an environment or a graph calls them by."""

RESOURCES = ("sandbox", "artefact", "judge")
"""Arguments of graders that are handed to them by whoever makes them, not written in a file."""


def make_grader(
    reference: str | Grader | Callable[..., Any],
    options: Mapping[str, Any] | None = None,
    *,
    resources: Mapping[str, Any] | None = None,
    needed: Sequence[str] = (),
    files: GraphFiles | None = None,
) -> Grader:
    """The grader of a name or class, made with `options`; a grader as it is; a function (task, trajectory) -> score,
    wrapped.

    resources: by name (`RESOURCES`), given to graders whose constructor has an argument of that name; needed: those
    that it must have.  files: those that options which a class lists in `paths` name.  Raises ConfigError, with a
    suggestion, for a name that is not known, options that do not fit, a resource that is needed and missing or given
    and not taken, and for anything that cannot grade.

    >>> make_grader("exact").name, make_grader("numeric", {"tolerance": 0.5}).tolerance
    ('exact', 0.5)
    """
    if isinstance(reference, str):
        if reference not in GRADERS:
            hint = did_you_mean(reference, GRADERS, f"known are {', '.join(GRADERS)}")
            raise ConfigError(f"unknown grader {reference!r}; {hint}")
        known = GRADERS[reference]
        kind = getattr(importlib.import_module(f"burnish.graders.{known.module}"), known.attribute)
        made = _placed({**known.options, **(options or {})}, kind, files)
        return _made(reference, kind, made, resources or {}, needed)
    if inspect.isclass(reference):
        if options is None:
            raise ConfigError(f"{reference.__name__} is a class; name a grader that is made: {reference.__name__}()")
        return _made(reference.__name__, reference, _placed(options, reference, files), resources or {}, needed)
    if needed:
        raise ConfigError(f"{reference!r} takes no {needed[0]}; only classes of graders do")
    if options:
        raise ConfigError(f"{reference!r} takes no options, got {dict(options)}; options go to classes of graders")
    if not inspect.isroutine(reference):
        return _checked(reference)
    return FunctionGrader(reference)


def _placed(options: Mapping[str, Any], kind: Any, files: GraphFiles | None) -> Mapping[str, Any]:
    """The options with the files among them, which `kind.paths` names, as paths of `files`."""
    if files is None:
        return options
    named = [key for key in getattr(kind, "paths", ()) if isinstance(options.get(key), str)]
    return {**options, **{key: files.placed(options[key]) for key in named}}


def _made(
    name: str,
    kind: Callable[..., Any],
    options: Mapping[str, Any],
    resources: Mapping[str, Any],
    needed: Sequence[str],
) -> Grader:
    parameters = inspect.signature(kind).parameters
    if unused := [key for key in needed if key not in parameters]:
        raise ConfigError(f"grader {name} takes no {unused[0]}")
    unknown = [option for option in options if option not in parameters or option in RESOURCES]
    if unknown:
        allowed = [parameter for parameter in parameters if parameter not in RESOURCES]
        hint = did_you_mean(unknown[0], allowed, f"it takes: {', '.join(allowed) or 'none'}")
        raise ConfigError(f"grader {name} has no option {unknown[0]!r}; {hint}")
    given = {key: resources[key] for key in RESOURCES if key in parameters and resources.get(key) is not None}
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in options and key not in given:
            wanted = f"a {key} handed in, and there is none" if key in RESOURCES else f"a value for its option {key}"
            raise ConfigError(f"grader {name} needs {wanted}")
    try:
        return _checked(kind(**options, **given))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"grader {name} cannot be made with options {dict(options)}: {error}") from error


def _checked(grader: Any) -> Grader:
    missing = [name for name in ("name", "version", "grade") if not hasattr(grader, name)]
    if missing:
        raise ConfigError(f"{grader!r} is no grader: it has no {', '.join(missing)}")
    return grader  # type: ignore[no-any-return]
