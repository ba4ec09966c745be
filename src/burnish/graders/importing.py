"""What a grader graph names in code: an attribute of a package, or of a Python file beside the graph."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from burnish.core.errors import ConfigError
from burnish.core.hints import did_you_mean


def imported(use: str, folder: Path) -> Any:
    """The attribute that "file.py:attribute" (looked for in `folder`) or "package.module:attribute" names.

    Raises ConfigError where there is none.

    >>> imported("burnish.graders.rules:ExactGrader", Path()).name
    'exact'
    """
    source, _, attribute = use.rpartition(":")
    module = _file_module(folder / source) if source.endswith(".py") else _module(source)
    if not hasattr(module, attribute):
        known = [name for name in vars(module) if not name.startswith("_")]
        raise ConfigError(f"{source} has no {attribute!r}; {did_you_mean(attribute, known)}".rstrip("; "))
    return getattr(module, attribute)


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"module {name} cannot be imported: {error}") from error


def _file_module(path: Path) -> ModuleType:
    name = f"burnish_graders_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise ConfigError(f"there is no Python file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the boundary to the user's own file: whatever it raises is reported with its place
        raise ConfigError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
