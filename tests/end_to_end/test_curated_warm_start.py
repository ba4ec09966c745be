"""What curation keeps is a warm start as it lies: a tiny policy with eyes learns from the file, and writes traces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from burnish.cli import main
from burnish.core.errors import TaskError
from burnish.loop.conductor import start_run
from burnish.loop.config import Recipe
from burnish.loop.recipes import validate
from burnish.store.layout import RunLayout
from burnish.store.reader import RunReader

pytest.importorskip("PIL")

LOOK = {"size_px": 32, "least": 2, "most": 2}
OPTIONS = {"kinds": ["where"], "look": LOOK, "train": 200, "heldout": 20}


def _recipe(data: Path, *, has_eyes: bool = True) -> Recipe:
    return validate(
        {
            "run": {"seed": 0, "workers": 1, "in_process": True},
            "environment": {"name": "scenes", "isolation": "none", "options": OPTIONS},
            "model": {
                "tiny": {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64, "vocab_size": 320},
                "vision": {"on": has_eyes, "patch_px": 8, "vision_width": 32},
            },
            "warm_start": {"steps": 30, "data": str(data), "batch_size": 16, "lr": 1e-2, "warmup_steps": 5},
            "rl": {"steps": 0},
            "evaluation": {"every": 0, "tasks": 8, "modes": ("greedy",), "before": False},
        },
        source="test",
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curated")
    options = ["kinds=['where']", "look={size_px=32, least=2, most=2}"]
    stages = (
        ["find", "scenes", "--tasks", "64", "--out", f"{folder}/references.jsonl", *options],
        ["trace", f"{folder}/references.jsonl", "--out", f"{folder}/traces.jsonl"],
        ["filter", f"{folder}/traces.jsonl", "--out", f"{folder}/kept.jsonl", "--teacher", "shapes"],
    )
    for words in stages:
        assert main(["curate", *words]) == 0
    return folder / "kept.jsonl"


@pytest.fixture(scope="module")
def run(kept: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "curated"
    start_run(_recipe(kept), folder)
    return folder


def test_a_policy_with_eyes_learns_from_what_was_kept(run: Path, kept: Path) -> None:
    reader, layout = RunReader(run), RunLayout(run)
    losses = [value for _, value in reader.scalars("loss", "sft")]
    assert losses[-1] < 0.6 * losses[0]
    rows = reader.trajectories("sft", 0)
    assert len(rows) == len(kept.read_text().splitlines()) > 56
    for row in rows:
        (span,) = row.trajectory.nodes[0].images
        assert layout.artefact(span.sha256).read_bytes()[:4] == b"\x89PNG"
        assert span.end - span.start >= 16


def test_an_image_that_is_missing_is_a_line_that_is_left_out(kept: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in kept.read_text().splitlines()][:20]
    for row in rows[1:]:
        for part in row["messages"][0]["content"]:
            if "sha256" in part:
                target = tmp_path / "images" / part["sha256"][:2] / part["sha256"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((kept.parent / "images" / part["sha256"][:2] / part["sha256"]).read_bytes())
    data = tmp_path / "kept.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start_run(_recipe(data), tmp_path / "run")
    reader = RunReader(tmp_path / "run")
    assert len(reader.trajectories("sft", 0)) == 19
    assert any("kept.jsonl:1: image" in str(event) for event in reader.events())


def test_a_policy_without_eyes_cannot_start_from_images(kept: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"lines are unusable.*image"):
        start_run(_recipe(kept, has_eyes=False), tmp_path / "run")


def test_a_run_writes_traces_that_the_filter_judges(run: Path, kept: Path, tmp_path: Path) -> None:
    words = ["--writer", str(run), "--samples", "2", "--root", str(tmp_path)]
    traces = tmp_path / "traces.jsonl"
    assert main(["curate", "trace", str(kept.parent / "references.jsonl"), "--out", str(traces), *words]) == 0
    rows = [json.loads(line) for line in traces.read_text().splitlines()]
    assert 64 < len(rows) <= 128
    assert {row["writer"].partition("@")[0] for row in rows} == {"curated"}
    assert {row["id"][-3:] for row in rows} == {"/00", "/01"}
    told = main(["curate", "filter", str(traces), "--out", str(tmp_path / "kept.jsonl"), "--teacher", "shapes"])
    assert told in (0, 1)
    kept_rows = (tmp_path / "kept.jsonl").read_text().splitlines()
    assert len(kept_rows) < len(rows)
