"""Reading recipes: TOML file or built-in name, `key=value` overrides, errors that name the key."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from burnish.core.errors import ConfigError
from burnish.loop.config import Recipe


def builtin_recipes() -> list[str]:
    """Names that `load_recipe` knows without a path."""
    folder = resources.files("burnish.recipes")
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_recipe(ref: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe named `ref` (built-in name, TOML file, environment file or environment name) with overrides applied.

    Raises ConfigError for an unknown recipe, key or value.
    """
    return validate(apply_overrides(_read(ref), overrides), source=ref)


def _read(ref: str) -> dict[str, Any]:
    path = Path(ref)
    if path.suffix == ".toml":
        if not path.is_file():
            raise ConfigError(f"recipe file {ref} does not exist")
        return _parse(path.read_text(encoding="utf-8"), ref)
    names = builtin_recipes()
    if ref in names:
        text = (resources.files("burnish.recipes") / f"{ref}.toml").read_text(encoding="utf-8")
        return _parse(text, f"{ref}.toml")
    stem = ref.split(":", 1)[0]
    if stem.endswith((".py", ".jsonl")) or stem == "reasoning-gym":
        base = _parse((resources.files("burnish.recipes") / "own.toml").read_text(encoding="utf-8"), "own.toml")
        return base | {"environment": {**base.get("environment", {}), "name": ref}}
    raise ConfigError(
        f"unknown recipe {ref!r}{suggestion(ref, names)}; built in: {', '.join(names)}; "
        "or give a .toml recipe, an environment file (.py) or a taskset (.jsonl)"
    )


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not valid TOML: {error}") from error


def apply_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `data` with every `section.key=value` set; values are TOML, anything else is taken as text.

    >>> apply_overrides({"rl": {"lr": 1.0}}, ["rl.lr=3e-4", "run.name=first"])
    {'rl': {'lr': 0.0003}, 'run': {'name': 'first'}}
    """
    result = _copy(data)
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator or not key:
            raise ConfigError(f"{item!r} is not of the form section.key=value")
        *sections, leaf = key.split(".")
        _check_key(key)
        target = result
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ConfigError(f"{key}: {section} is a value, not a section")
        target[leaf] = _value(text)
    return result


def _copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in data.items()}


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def all_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Every dotted key of the recipe, such as "rl.lr"."""
    keys: list[str] = []
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys += all_keys(info.annotation, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _check_key(key: str) -> None:
    known = all_keys()
    if key in known or any(key.startswith(f"{free}.") for free in ("environment.options", "warm_start.mistakes")):
        return
    if any(name.startswith(f"{key}.") for name in known):
        raise ConfigError(f"{key} is a section; set one of its keys, such as {key}.{_first_leaf(key, known)}=...")
    leaf = [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    raise ConfigError(f"unknown key {key!r}{suggestion(key, known, extra=leaf)}")


def _first_leaf(key: str, known: Sequence[str]) -> str:
    return next(name for name in known if name.startswith(f"{key}.")).removeprefix(f"{key}.")


def suggestion(word: str, known: Iterable[str], extra: Sequence[str] = ()) -> str:
    """`; did you mean ...?` for the closest known word, or nothing.

    >>> suggestion("shpo", ["shop", "calculator"])
    "; did you mean 'shop'?"
    """
    close = list(extra) or difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def validate(data: Mapping[str, Any], source: str) -> Recipe:
    """The typed recipe; raises ConfigError that lists every wrong key with its value."""
    try:
        return Recipe.model_validate(dict(data))
    except ValidationError as error:
        problems = []
        known = all_keys()
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                problems.append(f"unknown key {key!r}{suggestion(key, known)}")
            else:
                problems.append(f"{key} = {item['input']!r}: {item['msg'].lower()}")
        raise ConfigError(f"{source}: " + "; ".join(problems)) from error
