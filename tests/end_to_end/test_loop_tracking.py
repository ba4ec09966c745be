"""A recipe's trackers: they hear of every stored step, and whatever they do the run is the run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from letter_runs import LETTERS, letters_recipe, run_letters, weights

from burnish.cli import EXIT_USAGE, main
from burnish.core.errors import ConfigError, RunStopped
from burnish.core.tracked import TrackedNote, TrackedStep
from burnish.integrations.live import LiveTracker
from burnish.loop.conductor import resume_run, start_run
from burnish.store.reader import RunReader

TRACKED = 'track.to=["trackio"]'


class FakeTrackio:
    """Stands for the library: keeps every row; `refuses` makes each of them an error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.opened: list[dict[str, Any]] = []
        self.finished, self.refuses = 0, False
        module = ModuleType("trackio")
        module.__dict__.update(init=self.init, Markdown=str)
        monkeypatch.setitem(sys.modules, "trackio", module)

    def init(self, **options: Any) -> Any:
        self.opened.append(options)
        return SimpleNamespace(log=self.log, finish=self.finish)

    def log(self, values: dict[str, Any], step: int) -> None:
        if self.refuses:
            raise ConnectionError("away")
        self.rows.append((step, values))

    def finish(self) -> None:
        self.finished += 1

    def steps(self, phase: str) -> list[int]:
        return [values[f"{phase}/step"] for _, values in self.rows if f"{phase}/step" in values]


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> FakeTrackio:
    return FakeTrackio(monkeypatch)


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_letters(tmp_path_factory.mktemp("runs") / "untracked")


def train(folder: Path, *words: str) -> None:
    start_run(letters_recipe(TRACKED, *words), folder, trackers=[LiveTracker("trackio", "burnish", folder)])


def same_training(one: Path, other: Path) -> bool:
    pairs = zip(weights(one, "final").values(), weights(other, "final").values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_every_step_of_every_phase_arrives_as_it_is_stored(
    trackio: FakeTrackio, untracked: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(folder)
    reader = RunReader(folder)
    for phase in ("sft", "rl", "eval"):
        assert trackio.steps(phase) == [info.step for info in reader.steps(phase)] != []
    stored = reader.step_scalars("rl", 3)
    [row] = [values for _, values in trackio.rows if values.get("rl/step") == 3]
    assert {name: value for name, value in row.items() if name != "rl/step"} == {
        f"rl/{name}": value for name, value in stored.items() if value == value
    }
    assert [number for number, _ in trackio.rows] == list(range(len(trackio.rows)))
    assert trackio.finished == 1
    assert reader.events("tracker_trouble") == []
    assert same_training(folder, untracked)


def test_a_tracker_that_fails_is_an_event_and_the_run_goes_on(
    trackio: FakeTrackio, untracked: Path, tmp_path: Path
) -> None:
    trackio.refuses = True
    folder = tmp_path / "run"
    train(folder)
    reader = RunReader(folder)
    assert str(reader.status().state) == "finished"
    troubles = [event.detail for event in reader.events("tracker_trouble")]
    assert len(troubles) == 3
    assert all("ConnectionError: away" in text for text in troubles)
    assert same_training(folder, untracked)


class Stopping:
    """A tracker that ends the run, as Ctrl-C would, once it has heard of a step."""

    def __init__(self, step: int) -> None:
        self._step, self.asked = step, False

    def take(self, step: TrackedStep, notes: Sequence[TrackedNote]) -> None:
        self.asked |= (step.phase, step.step) == ("rl", self._step)

    def troubles(self) -> Sequence[str]:
        return ()

    def close(self) -> None:
        pass


def test_a_run_that_is_resumed_goes_on_in_the_same_tracked_run(trackio: FakeTrackio, tmp_path: Path) -> None:
    folder, stopping = tmp_path / "run", Stopping(3)
    with pytest.raises(RunStopped, match="on request"):
        start_run(
            letters_recipe(TRACKED),
            folder,
            stop=lambda: stopping.asked,
            trackers=[stopping, LiveTracker("trackio", "burnish", folder)],
        )
    assert trackio.finished == 1, "also of a run that ends early"
    resume_run(folder, trackers=[LiveTracker("trackio", "burnish", folder)])
    first, second = trackio.opened
    assert (first["name"], first["resume"]) == (second["name"], second["resume"]) == ("run", "allow")
    assert sorted(set(trackio.steps("rl"))) == [1, 2, 3, 4, 5]
    numbers = [number for number, _ in trackio.rows]
    assert sorted(set(numbers)) == list(range(max(numbers) + 1)), "no row is left out"


def test_a_recipe_that_names_trackers_is_not_run_without(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no trackers"):
        start_run(letters_recipe(TRACKED), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_says_which_library_is_missing_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    assert main(["train", str(LETTERS), f"run.root={tmp_path / 'runs'}", TRACKED]) == EXIT_USAGE
    assert 'pip install "burnish[trackers]"' in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()
