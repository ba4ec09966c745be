"""Reading recipes: TOML file or built-in name, `key=value` overrides, errors that name the key."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, time
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from burnish.core.errors import ConfigError
from burnish.loop.config import ENVIRONMENTS, REASONING_GYM, Recipe

OWN_MODEL_RECIPE, TINY_MODEL_RECIPE = "pretrained", "own"
_FREE_SECTIONS = ("environment.options", "warm_start.mistakes")


def builtin_recipes() -> list[str]:
    """Names that `load_recipe` knows without a path."""
    folder = resources.files("burnish.recipes")
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_recipe(ref: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe named `ref` (built-in name, TOML file, environment file or environment name) with overrides applied.

    An environment starts from the built-in recipe "own", or from "pretrained" where `model.path` is given.  Raises
    ConfigError for an unknown recipe, key or value.
    """
    # Applied to nothing first: a mistyped key is reported before any file is looked at.
    has_model = bool(apply_overrides({}, overrides).get("model", {}).get("path"))
    return validate(apply_overrides(_read(ref, has_model), overrides), source=ref)


def _read(ref: str, has_model: bool) -> dict[str, Any]:
    path = Path(ref)
    names = builtin_recipes()
    if path.suffix == ".toml":
        if not path.is_file():
            hint = f"; the built-in recipe is named {path.stem!r}" if path.stem in names else suggested_file(path)
            raise ConfigError(f"recipe file {ref} does not exist{hint}")
        return _relative_to(path.parent, _parse(_read_text(path), ref))
    if ref in names:
        return _built_in(ref)
    if is_environment(ref):
        base = _built_in(OWN_MODEL_RECIPE if has_model else TINY_MODEL_RECIPE)
        return base | {"environment": {**base.get("environment", {}), "name": ref}}
    known = [*names, *ENVIRONMENTS, REASONING_GYM]
    raise ConfigError(
        f"unknown recipe or environment {ref!r}{suggestion(ref.partition(':')[0], known) or suggested_file(path)}; "
        f"recipes: {', '.join(names)}; environments: {', '.join(ENVIRONMENTS)}, {REASONING_GYM}:DATASET; "
        "or give a recipe (.toml), an environment file (.py) or a taskset (.jsonl)"
    )


def is_environment(ref: str) -> bool:
    """Whether `ref` has the form of an environment: a built-in name, reasoning-gym:DATASET, a .py or a .jsonl file."""
    stem = ref.partition(":")[0]
    return stem.endswith((".py", ".jsonl")) or stem in ENVIRONMENTS or stem == REASONING_GYM


def _built_in(name: str) -> dict[str, Any]:
    return _parse((resources.files("burnish.recipes") / f"{name}.toml").read_text(encoding="utf-8"), f"{name}.toml")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe file {path} cannot be read: {error}") from error


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not valid TOML: {error}") from error


def _relative_to(folder: Path, data: dict[str, Any]) -> dict[str, Any]:
    """Files that a recipe names and that lie beside it are found from any working directory."""
    for section, key in (("environment", "name"), ("warm_start", "data"), ("graders", "file")):
        table = data.get(section)
        name = table.get(key) if isinstance(table, dict) else None
        if not isinstance(table, dict) or not isinstance(name, str):
            continue
        file, separator, detail = name.partition(":")
        beside = folder / file
        if file.endswith((".py", ".jsonl", ".toml")) and not Path(file).exists() and beside.is_file():
            data = data | {section: table | {key: f"{beside}{separator}{detail}"}}
    return data


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
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return text if isinstance(value, date | time) else value


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
    if key in known or any(key.startswith(f"{free}.") and key[len(free) + 1 :] for free in _FREE_SECTIONS):
        return
    within = [name for name in known if name.startswith(f"{key}.")]
    if within:
        raise ConfigError(f"{key} is a section; set one of its keys, such as {within[0]}=...")
    raise ConfigError(f"unknown key {key!r}{_meant(key, known)}")


def _meant(key: str, known: Sequence[str]) -> str:
    """What an unknown dotted key may have meant: the same last word elsewhere, else the nearest key or section."""
    leaf = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == leaf]
    if same and "." in key:
        same = difflib.get_close_matches(key, same, n=1, cutoff=0.0)
    if same:
        return f"; did you mean {' or '.join(repr(name) for name in same)}?"
    sections = sorted({name.rpartition(".")[0] for name in known})
    return suggestion(key, sections if "." not in key else known) or "; `burnish keys` lists all"


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` for the closest known word, or nothing.

    >>> suggestion("shpo", ["shop", "calculator"])
    "; did you mean 'shop'?"
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def suggested_file(path: Path) -> str:
    """`; did you mean ...?` for the file in the same folder whose name is closest to that of a missing one."""
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".toml", ".py", ".jsonl")]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"; did you mean {str(path.with_name(close[0]))!r}?" if close else ""


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
                problems.append(f"unknown key {key!r}{_meant(key, known)}")
            else:
                problems.append(f"{key} = {item['input']!r}: {_lowered(item['msg'])}")
        raise ConfigError(f"{source}: " + "; ".join(problems)) from error


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
