"""A policy that sees, from nothing to the end of RL; its eyes are tested by taking the pixels away."""

from __future__ import annotations

import asyncio
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import pytest
from eyes_env import Eyes, picture
from rich.console import Console

from burnish.cli import evaluating, main
from burnish.core.images import SHELF
from burnish.core.message import Message, TextPart
from burnish.core.sampling import Renderer, Sample, SampleRequest, SamplingParams
from burnish.core.task import Task
from burnish.evaluation.ablation import Ablation, image_ablation, text_only_level
from burnish.loop.conductor import start_run
from burnish.loop.config import Recipe
from burnish.loop.recipes import validate
from burnish.loop.replay import replay_step
from burnish.loop.standalone import run_subject, stored_policy
from burnish.loop.worlds import World, load_world
from burnish.reports.trajectories import read_trajectory
from burnish.store.layout import RunLayout
from burnish.store.reader import RunReader

EYES = Path(__file__).parents[1] / "support" / "eyes_env.py"


def _recipe(**run: object) -> Recipe:
    data = {
        "run": {"seed": 0, "workers": 2, **run},
        "environment": {"name": str(EYES), "isolation": "none", "options": {"closer": False}},
        "model": {
            "tiny": {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64, "vocab_size": 320},
            "vision": {"on": True, "vision_width": 32},
        },
        "warm_start": {"steps": 60, "traces": 200, "batch_size": 16, "lr": 1e-2, "warmup_steps": 5},
        "rl": {"steps": 2, "groups": 4, "group_size": 4, "kl_weight": 0.1, "filter_zero_signal": False},
        "evaluation": {"every": 0, "tasks": 40, "modes": ("greedy",), "before": False},
        "checks": {"every": 1},
    }
    return validate(data, source="test")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "eyes"
    picture("red", -1)
    start_run(_recipe(), folder)
    picture("red", -2)
    return folder


def _world(**options: object) -> World:
    return load_world(str(EYES), {"closer": False} | options, seed=0)


def _ablated(world: World, sampler: object, renderer: Renderer) -> Ablation:
    return asyncio.run(
        image_ablation(
            world,
            world.tasks("heldout"),
            world.tasks("train"),
            sampler=sampler,  # type: ignore[arg-type]
            renderer=renderer,
        )
    )


def test_a_run_learns_to_see_and_passes_its_own_checks(run: Path) -> None:
    canary = RunReader(run).scalars("check/canary_nats", "rl")
    assert canary
    assert max(value for _, value in canary) < 1e-4
    subject = run_subject(run)
    assert subject.renderer is not None
    found = _ablated(_world(), subject.sampler, subject.renderer)
    assert found.seen > 0.9
    assert found.check().ok, found.check().detail
    assert found.blind < 0.75


def test_the_doctor_takes_the_pixels_from_a_policy_that_is_named(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluating, "console", Console(width=200))
    words = ["doctor", str(EYES), "--tasks", "40", "closer=false"]
    main([*words, "--policy", str(run)])
    told = next(line for line in capsys.readouterr().out.splitlines() if "image ablation" in line)
    assert "with images" in told
    assert "ok" in told
    main(words)
    assert "image ablation" not in capsys.readouterr().out


def test_images_lie_in_the_run_once_and_the_viewer_shows_them(run: Path) -> None:
    reader, layout = RunReader(run), RunLayout(run)
    rows = reader.trajectories("rl", 1)
    span = rows[0].trajectory.nodes[0].images[0]
    assert layout.artefact(span.sha256).exists()
    shown = read_trajectory(reader, rows[0].trajectory.id)
    assert shown["images"][span.sha256].startswith("data:image/png;base64,")


def test_images_of_other_worlds_in_the_process_stay_out_of_the_run(run: Path) -> None:
    kept = {path.name for path in RunLayout(run).artefacts.glob("*/*")}
    assert {part.sha256 for part in _world().images()} <= kept
    assert not {picture("red", seed).sha256 for seed in (-1, -2)} & kept


def test_a_stored_step_replays_with_its_images(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # as in a process that has seen nothing yet
    monkeypatch.setattr(SHELF, "_held", OrderedDict())
    said: list[str] = []
    replayed = replay_step(run, 1, said.append)
    assert replayed.same, said


def test_a_policy_that_reads_the_question_has_nothing_to_lose() -> None:
    world = _world(leak=True)
    assert text_only_level(world.tasks("train"), world.tasks("heldout")) == 1.0
    assert Ablation(n=60, seen=1.0, blind=1.0, text_only=1.0, se=0.06).check().ok is None


class _ByHeart:
    """Answers by what the prompt says about the picture besides its pixels: how many tokens it takes."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer

    async def sample(self, requests: Sequence[SampleRequest]) -> Sequence[Sample]:
        return [self._one(request) for request in requests]

    def _one(self, request: SampleRequest) -> Sample:
        (span,) = request.images
        ids = self.renderer.encode_action(Message.assistant("red" if span.end - span.start > 4 else "blue"))
        zeros = array("f", bytes(4 * len(ids)))
        return Sample(token_ids=ids, logprobs=zeros, versions=array("i", [0] * len(ids)))


class _Sized(Eyes):
    """Red pictures are larger."""

    def task_of(self, seed: int) -> Task:
        task = super().task_of(seed)
        colour = task.reference["answer"]
        parts = (picture(colour, seed, 24 if colour == "red" else 16), TextPart(text="Which colour?"))
        return Task(prompt=parts, setup=task.setup, reference=task.reference)


def test_an_answer_that_leaks_through_the_size_is_found(run: Path) -> None:
    _, policy, _ = stored_policy(run)
    world = _world()
    tasks = [_Sized().task_of(seed) for seed in range(80)]
    found = asyncio.run(
        image_ablation(
            world,
            tasks,
            tasks,
            sampler=_ByHeart(policy.renderer),
            renderer=policy.renderer,
            params=SamplingParams(),
        )
    )
    assert (found.seen, found.blind) == (1.0, 1.0)
    assert found.check().ok is False
