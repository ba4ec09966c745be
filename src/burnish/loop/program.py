"""The program of a recipe: the user's own agent loop, which asks the policy through an OpenAI client."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from burnish.core.errors import ConfigError
from burnish.loop.recipes import suggestion
from burnish.loop.user_files import import_file
from burnish.rollout.programs import Program

DEFAULT = "agent"


def load_program(spec: str) -> Program | None:
    """`file.py` or `file.py:function` (one argument, the task; default `agent`), else the words of a command line.

    None for "".  Raises ConfigError where the file or function is not there, or takes something else.
    """
    if not spec:
        return None
    stem, _, name = spec.partition(":")
    if not stem.endswith(".py"):
        return shlex.split(spec)
    module = import_file(Path(stem))
    functions = {
        key: value
        for key, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__ and not inspect.isclass(value)
    }
    wanted = name or DEFAULT
    if wanted not in functions:
        raise ConfigError(f"{stem} has no function {wanted!r}{suggestion(wanted, functions)}")
    return _checked(functions[wanted], f"{stem}:{wanted}")


def _checked(function: Callable[..., Any], name: str) -> Program:
    """The function, if it can be called with the task alone."""
    try:
        inspect.signature(function).bind(object())
    except TypeError as error:
        raise ConfigError(
            f"{name}{inspect.signature(function)} must take the task as its one argument ({error}); it is given a "
            "TaskView with prompt, base_url and api_key, and returns its answer"
        ) from error
    return function
