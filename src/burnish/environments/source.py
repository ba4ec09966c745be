"""How another process makes an environment: a module or a file, a class or function in it, and its options."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from burnish.core.environment import Environment
from burnish.core.errors import ConfigError

_MAIN = "burnish_main"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSource:
    """`attribute` of `module`, called with `options`, makes one fresh environment.

    `EnvironmentSource(module="burnish_user_warehouse", attribute="Warehouse", file="/home/ann/warehouse.py")`

    file: where the module is not importable by name; it is then imported under that name, its folder on the path, as
    `burnish train warehouse.py` does.  options: values that pickle can carry.
    """

    module: str
    attribute: str
    file: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(make: Callable[..., Any], options: Mapping[str, Any] | None = None) -> EnvironmentSource:
        """Describe a class, or a function that makes environments.  Raises ConfigError where no name leads to it."""
        name, module = getattr(make, "__qualname__", ""), getattr(make, "__module__", "")
        found: Any = sys.modules.get(module)
        if found is None or getattr(found, name, None) is not make:
            raise ConfigError(
                f"{name or make!r} of module {module or '?'} cannot be made in another process: define it at the top "
                'level of its file, or run it in this one (environment.isolation = "none")'
            )
        file = "" if _importable(found) else str(Path(getattr(found, "__file__", None) or "").resolve())
        if module == "__main__":
            module = _MAIN
        return EnvironmentSource(module=module, attribute=name, file=file, options=dict(options or {}))

    def load(self) -> Callable[[], Environment]:
        """Import what makes the environments; each call of the result makes one."""
        make = getattr(_module(self.module, self.file), self.attribute)
        options = dict(self.options)
        return lambda: make(**options)


def _importable(module: ModuleType) -> bool:
    """Whether a new process finds it by name; that it stands in `sys.modules` says nothing (a file run by its path)."""
    top = module.__name__.partition(".")[0]
    spec = next(filter(None, (finder.find_spec(top, None) for finder in sys.meta_path)), None)
    if spec is None or module.__name__ != top:
        return spec is not None
    return spec.origin == getattr(module, "__file__", None)


def _module(name: str, file: str) -> ModuleType:
    if not file:
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be imported as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(Path(file).parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec.loader.exec_module(module)
    return module
