"""A user's own environment of 22 lines, trained from nothing by the recipe that `burnish train FILE` uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from burnish.loop.conductor import start_run
from burnish.loop.recipes import load_recipe
from burnish.store.reader import RunReader

EXAMPLE = Path(__file__).parents[2] / "examples" / "warehouse.py"
SETTINGS = (
    *("run.seed=0", "run.workers=2", "evaluation.every=0", "evaluation.tasks=200", "evaluation.before=true"),
    *("warm_start.steps=150", "warm_start.traces=1500", "warm_start.mistakes.same_shelf=0.6"),
    *("rl.steps=16", "rl.groups=24", "limits.max_turns=4", "limits.max_turn_tokens=24"),
)


@pytest.mark.slow
def test_a_users_environment_is_learned(tmp_path: Path) -> None:
    start_run(load_recipe(str(EXAMPLE), SETTINGS), tmp_path / "run")
    found = {(row.label, row.mode): row.mean for row in RunReader(tmp_path / "run").evaluations()}
    assert found["before", "sampled"] <= 0.1
    assert found["after_rl", "sampled"] >= found["after_sft", "sampled"] + 0.2
    assert found["after_rl", "greedy"] >= 0.6


def test_the_example_has_at_most_25_lines() -> None:
    lines = [line for line in EXAMPLE.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= 25


def test_the_readme_shows_it_whole() -> None:
    readme = (EXAMPLE.parents[1] / "README.md").read_text(encoding="utf-8")
    assert EXAMPLE.read_text(encoding="utf-8").strip() in readme
