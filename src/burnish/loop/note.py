"""The note beside a model's files: how the policy in it was trained to be used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from burnish.core.errors import ConfigError

NAME = "burnish.json"


def write_note(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Write the part of a recipe that whoever uses the model needs: `{"model": {"show_tools": "none"}}`."""
    (folder / NAME).write_text(json.dumps(recipe, indent=1, sort_keys=True), encoding="utf-8")


def read_note(folder: Path) -> dict[str, Any]:
    """Inverse of `write_note`; empty for a folder that Burnish did not write, or a model id.

    Raises ConfigError where the file is there and holds no JSON object.
    """
    path = folder / NAME
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}; delete it to use the model as one from elsewhere"
        ) from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no object; delete it to use the model as one from elsewhere")
    return data
