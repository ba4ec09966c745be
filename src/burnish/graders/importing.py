"""What a grader graph names in code: an attribute of a package, or of a Python file beside the graph."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from burnish.core.errors import ConfigError
from burnish.core.hints import did_you_mean
from burnish.graders.graph_files import GraphFiles


def imported(use: str, files: GraphFiles) -> Any:
    """The attribute that "file.py:attribute" (one of `files`) or "package.module:attribute" names.

    Raises ConfigError where there is none.

    >>> from pathlib import Path
    >>> imported("burnish.graders.rules:ExactGrader", GraphFiles(Path())).name
    'exact'
    """
    source, _, attribute = use.rpartition(":")
    module = files.module(source) if source.endswith(".py") else _module(source)
    if not hasattr(module, attribute):
        known = [name for name in vars(module) if not name.startswith("_")]
        raise ConfigError(f"{source} has no {attribute!r}; {did_you_mean(attribute, known)}".rstrip("; "))
    return getattr(module, attribute)


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"module {name} cannot be imported: {error}") from error
