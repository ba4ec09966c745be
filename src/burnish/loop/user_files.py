"""Python files of users."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from burnish.core.errors import ConfigError
from burnish.loop.recipes import suggested_file


def import_file(path: Path) -> ModuleType:
    """The module that a Python file is, its folder put on the path.  Raises ConfigError with the line that is wrong."""
    if not path.is_file():
        raise ConfigError(f"the file {path} does not exist{suggested_file(path)}")
    name = f"burnish_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be imported as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the boundary to the user's own code: whatever it raises is reported with its place
        raise ConfigError(f"{path} cannot be imported: {_place(error, path)}") from error
    return module


def _place(error: BaseException, path: Path) -> str:
    """The error with the line of `path` that it came from; its own message names a syntax error's line."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    line = f" (line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{line}"
