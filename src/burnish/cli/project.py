"""The example project that `burnish init` writes."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from burnish.core.errors import ConfigError

FILES = ("warehouse.py", "recipe.toml", "README.md")


def write_project(folder: Path) -> list[Path]:
    """Write a small environment, a recipe for it and a note; raises ConfigError where `folder` is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty; give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in FILES:
        text = (resources.files("burnish.recipes") / "project" / f"{name}.txt").read_text(encoding="utf-8")
        path = folder / name
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written
