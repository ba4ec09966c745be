"""The manifest of a run: everything needed to know, years later, what was run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from burnish.core.errors import StoreError
from burnish.core.hashing import bytes_hash, content_hash
from burnish.loop.config import Recipe
from burnish.loop.setup import available_cores
from burnish.loop.worlds import World
from burnish.policies.kernels import loaded_kernels, processor_lines
from burnish.store.reader import RunReader

_COUNTS = ("processor", "gpu", "compiled_decode")
"""Entries of the hardware that arithmetic depends on."""
PACKAGES = ("burnish", "torch", "transformers", "peft", "tokenizers", "numpy", "pyarrow")


def make_manifest(recipe: Recipe, world: World, parent: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Resolved recipe, versions, git state, hardware, hashes of tasks; `parent` says what a fork started from."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "recipe_hash": content_hash(recipe.model_dump(mode="json")),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": recipe.run.seed,
        "environment": {
            "name": world.name,
            "source_sha256": _source_hash(recipe.environment.name),
            "graders": {grader.name: grader.version for grader in world.graders},
            "graph": world.graph.to_json() if world.graph is not None else None,
            "splits": {split: tasks_hash(world, split) for split in world.taskset.splits},
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git": _git_state(),
        "hardware": _hardware(recipe),
        "parent": dict(parent) if parent else None,
    }


def stored_recipe(folder: Path) -> Recipe:
    """The recipe that a stored run was started with.  Raises StoreError where it cannot be used any more."""
    try:
        return Recipe.model_validate(RunReader(folder).manifest()["recipe"])
    except (KeyError, ValueError) as error:
        raise StoreError(f"the recipe stored in {folder} cannot be used by this version of Burnish: {error}") from error


def check_unchanged(folder: Path, world: World) -> None:
    """Raises StoreError where tasks or graders are not those that the run was started with."""
    stored = RunReader(folder).manifest()["environment"]
    for split, expected in stored["splits"].items():
        if tasks_hash(world, split) != expected:
            raise StoreError(
                f"the tasks of split {split!r} have changed since the run was started; restore the environment's "
                "source (or data file), or fork the run to go on with the new tasks"
            )
    if world.graph is not None and (changed := world.graph.changed(stored["graph"])):
        raise StoreError(
            f"grader graph {world.graph.file}: {', '.join(changed)} has changed since the run was started; restore it "
            "(its text stands in the run's manifest.json), or fork the run to go on with the new one"
        )
    graders = {grader.name: grader.version for grader in world.graders}
    if graders != stored["graders"]:
        raise StoreError(f"the graders have changed from {stored['graders']} to {graders}; fork the run to go on")


def source_notice(folder: Path, recipe: Recipe) -> str:
    """What to say where the environment's file is not as it was when the run was started; "" where it is."""
    stored, name = RunReader(folder).manifest()["environment"], recipe.environment.name
    if _source_hash(name) == stored["source_sha256"]:
        return ""
    return f"{name} has changed since the run was started, with the same tasks; what follows is made by the new file"


def machine_notice(folder: Path, recipe: Recipe) -> str:
    """What to say where a run goes on with another torch, processor or GPU, or with or without compiled functions, than
    it was started with; "" where it does not, as far as its manifest says."""
    manifest = RunReader(folder).manifest()
    then = {"torch": manifest["versions"].get("torch"), **{name: manifest["hardware"].get(name) for name in _COUNTS}}
    hardware = _hardware(recipe)
    now = {"torch": _version("torch"), **{name: hardware[name] for name in _COUNTS}}
    changed = [
        f"{name.replace('_', ' ')}: {then[name]} then, {now[name]} now"
        for name in now
        if then[name] is not None and now[name] != then[name]
    ]
    if not changed:
        return ""
    return f"{'; '.join(changed)}: what follows may differ by rounding from what would have followed there"


def tasks_hash(world: World, split: str) -> str:
    """Hash of the tasks of a split in order."""
    return content_hash([task.content_hash for task in world.taskset.tasks(split)])


def _source_hash(name: str) -> str:
    path = Path(name.partition(":")[0])
    return bytes_hash(path.read_bytes()) if path.suffix in (".py", ".jsonl") and path.is_file() else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _git_state() -> dict[str, str]:
    """Commit and whether the tree was changed, of the folder that the command was started in."""

    def ask(*words: str) -> str:
        try:
            done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    return {"commit": ask("rev-parse", "HEAD"), "changed_files": str(len(ask("status", "--porcelain").splitlines()))}


def _hardware(recipe: Recipe) -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": available_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if sys.platform != "win32" else 0,
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "",
        "workers": recipe.run.workers,
        "threads": recipe.run.threads,
        "compiled_decode": _compiled(recipe),
    }


def _processor() -> str:
    """Its model, where the system says so."""
    models = sorted(line.partition(":")[2].strip() for line in processor_lines("model name"))
    return ", ".join(models) or platform.processor()


def _compiled(recipe: Recipe) -> bool:
    """Whether compiled functions take part in a decode step here."""
    return recipe.run.threads == 1 and not torch.cuda.is_available() and loaded_kernels() is not None
