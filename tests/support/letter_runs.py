"""Runs in the world of letters_env that take two seconds, and what is looked at in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_runs import in_its_place

from burnish.loop.conductor import start_run
from burnish.loop.config import Recipe
from burnish.loop.progress import Watcher, silent
from burnish.loop.recipes import apply_overrides, validate
from burnish.store.layout import RunLayout
from burnish.training.checkpoint import load_checkpoint

LETTERS = Path(__file__).parent / "letters_env.py"
BASE: dict[str, Any] = {
    "run": {"workers": 2, "in_process": True, "seed": 5},
    "environment": {"name": str(LETTERS)},
    "model": {
        "tiny": {
            "hidden_size": 32,
            "layers": 1,
            "heads": 2,
            "kv_heads": 1,
            "intermediate_size": 48,
            "vocab_size": 320,
            "max_positions": 256,
        }
    },
    # Enough for a policy that mostly ends its turns and says all kinds of things in them.
    "warm_start": {"steps": 20, "traces": 48, "batch_size": 8, "lr": 2e-2, "warmup_steps": 0},
    "rl": {"steps": 5, "groups": 4, "group_size": 3, "lr": 1e-3},
    "evaluation": {"every": 0, "tasks": 6, "quick_tasks": 4, "before": False},
    "checkpoint": {"every": 2},
    "checks": {"every": 2},
}


def letters_recipe(*overrides: str) -> Recipe:
    """The recipe above with `section.key=value` overrides."""
    return validate(apply_overrides(BASE, in_its_place(overrides)), source="test")


def run_letters(folder: Path, *overrides: str, watch: Watcher = silent) -> Path:
    """Train by that recipe into `folder`."""
    start_run(letters_recipe(*overrides), folder, watch=watch)
    return folder


def weights(folder: Path, checkpoint: str) -> dict[str, torch.Tensor]:
    """The trained tensors of a checkpoint."""
    return dict(load_checkpoint(RunLayout(folder).checkpoints, checkpoint, repair=False).model_state)


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that differ."""
    assert before.keys() == after.keys()
    return [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
