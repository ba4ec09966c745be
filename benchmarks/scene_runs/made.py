"""Runs of the command line, made where they are missing, and the warm starts that others fork."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CLAIM = Path(__file__).resolve().parents[2] / "claims" / "grounding_collapse"
RL = ("rl.steps=100", "rl.lr=8e-4", "environment.options.train=2400", "checks.logprob_tolerance=1e-3")
"""A few undecided tokens amplify float32 rounding to 1.2e-4 nats between sampler and learner (docs/multimodal.md)."""
QUICK = (
    "warm_start.steps=5",
    "warm_start.traces=64",
    "environment.options.train=200",
    "environment.options.heldout=40",
)
QUICK_RL = ("rl.steps=1", "rl.groups=4", "environment.options.train=200")


def burnish(words: Sequence[str], folder: Path) -> Path:
    """The finished run in `folder`, made where it is missing by these words of a `train` or `fork`."""
    if not (folder / "done").exists():
        command = [sys.executable, "-m", "burnish.cli", *words, f"run.root={folder.parent}", f"run.name={folder.name}"]
        folder.parent.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        (folder / "done").write_text("", encoding="utf-8")
    return folder


def warm(seed: int, data: Path, more: Sequence[str] = ()) -> Path:
    """The warm start of a seed: no shortcuts, no RL."""
    folder = data / "runs" / f"warm-{seed}"
    words = ["train", str(CLAIM / "recipe.toml"), f"run.seed={seed}", f"environment.seed={1000 + seed}"]
    return burnish([*words, "rl.steps=0", f"graders.file={CLAIM / 'outcome.toml'}", *more], folder)
