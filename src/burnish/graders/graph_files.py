"""The files that a grader graph names: rubrics, calibrations, code; as they lie beside it, or as a run kept them.

What a run's grading depends on is read once, when the run begins, and kept with it.  Its worker processes and
`burnish regrade` make graders and judges from these texts, whatever has become of the files; a resume compares them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, TracebackType
from typing import Self

from burnish.core.errors import ConfigError


class GraphFiles:
    """`GraphFiles(Path("graders"), {"memo.toml": 'name = "memo"...'})`

    folder: where names are looked for.  kept: name -> text, which goes before what lies there.  `read` has the text of
    every file that was asked for, by the name that the graph gives it.  Closed by `with`: paths that stand for kept
    texts are good until then.
    """

    def __init__(self, folder: Path, kept: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.read: dict[str, str] = {}
        self._kept = dict(kept or {})
        self._spot: TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._spot is not None:
            self._spot.cleanup()

    def placed(self, name: str) -> str:
        """Path of a file that has the text of `name`; that of the file itself where no text is kept."""
        path, text = self.folder / name, self._text(name)
        if text is None or name not in self._kept:
            return str(path)
        self._spot = self._spot or TemporaryDirectory(prefix="burnish-graph-")
        # The loaders look at the ending of a name, and two files may have one name in different folders.
        folder = Path(self._spot.name) / str(len(list(Path(self._spot.name).iterdir())))
        folder.mkdir()
        (folder / path.name).write_text(text, encoding="utf-8")
        return str(folder / path.name)

    def module(self, name: str) -> ModuleType:
        """The Python file as a module.  Raises ConfigError where there is none, or it cannot be imported."""
        path, text = self.folder / name, self._text(name)
        title = f"burnish_graders_{path.stem}"
        spec = importlib.util.spec_from_file_location(title, path)
        if text is None or spec is None:
            raise ConfigError(f"there is no Python file {path}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[title] = module
        try:
            exec(compile(text, str(path), "exec"), vars(module))
        except Exception as error:  # the boundary to the user's own file: whatever it raises is reported with its place
            raise ConfigError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
        return module

    def _text(self, name: str) -> str | None:
        """The kept text, else that of the file, None where there is none that can be read."""
        text = self._kept.get(name)
        try:
            text = (self.folder / name).read_text(encoding="utf-8") if text is None else text
        except (OSError, UnicodeDecodeError):
            return None
        self.read[name] = text
        return text
