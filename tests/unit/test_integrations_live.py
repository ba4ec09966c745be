"""A tracker that follows a run: everything arrives in order, and nothing that it does reaches the run."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from synthetic_run import example_manifest

from burnish.core.errors import ConfigError
from burnish.core.tracked import TrackedNote, TrackedStep
from burnish.integrations import live
from burnish.integrations.live import FAILURES, LiveTracker
from burnish.integrations.trackers import RunHead
from burnish.store.rows import StepRecord
from burnish.store.writer import RunWriter

NOTE = TrackedNote.of("finding", 2, "it rose", {"monitor": "grad_norm", "severity": "alarm", "onset_step": 1})


class FakeSink:
    """Keeps what it is given; `refuse` and `wait` make it fail and block."""

    def __init__(self) -> None:
        self.heads: list[RunHead] = []
        self.steps: list[int] = []
        self.notes: list[int] = []
        self.refuse: set[int] = set()
        self.wait = threading.Event()
        self.wait.set()
        self.closed = 0

    def open_run(self, head: RunHead, project: str) -> FakeSink:
        self.heads.append(head)
        return self

    def log(self, step: TrackedStep) -> None:
        self.wait.wait()
        if step.step in self.refuse:
            raise ConnectionError("the server is away")
        self.steps.append(step.step)

    def note(self, notes: Sequence[TrackedNote]) -> None:
        self.notes.append(len(notes))

    def close(self) -> str:
        self.closed += 1
        return "here"


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> FakeSink:
    made = FakeSink()
    monkeypatch.setitem(sys.modules, "trackio", ModuleType("trackio"))
    fake = ModuleType("burnish.integrations.trackio")
    fake.open_run = made.open_run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "burnish.integrations.trackio", fake)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with RunWriter.create(tmp_path / "run", example_manifest()) as writer:
        for step in range(1, 4):
            writer.commit_step(StepRecord(phase="rl", step=step, scalars={"loss": 1.0}))
    return tmp_path / "run"


def step(number: int) -> TrackedStep:
    return TrackedStep(phase="rl", step=number, at_s=1.7e9, values={"rl/loss": 0.5})


def test_steps_and_notes_arrive_in_order_and_the_run_is_ended(sink: FakeSink, folder: Path) -> None:
    tracker = LiveTracker("trackio", "mine", folder)
    for number in range(1, 20):
        tracker.take(step(number), [NOTE] if number in (2, 7) else [])
    tracker.close()
    assert sink.steps == list(range(1, 20))
    assert sink.notes == [1, 2], "the second time with the first one, since a table is written anew"
    assert sink.closed == 1
    assert tracker.troubles() == []


def test_a_run_that_goes_on_is_the_same_run_to_the_tracker(sink: FakeSink, folder: Path, tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "other", {**example_manifest(), "created_at": "2020-01-01"}) as writer:
        writer.commit_step(StepRecord(phase="rl", step=1))
    for place in (folder, folder, tmp_path / "other"):
        tracker = LiveTracker("trackio", "mine", place)
        tracker.take(step(1), [])
        tracker.close()
    first, again, other = sink.heads
    assert first.id
    assert first.id == again.id != other.id
    assert (first.name, first.steps_before, other.steps_before) == ("run", 2, 0)


def test_a_refusal_is_a_trouble_and_the_next_step_is_tried(sink: FakeSink, folder: Path) -> None:
    sink.refuse = {2, 4}
    tracker = LiveTracker("trackio", "mine", folder)
    for number in range(1, 6):
        tracker.take(step(number), [])
    tracker.close()
    assert sink.steps == [1, 3, 5]
    assert [text.partition(":")[0] for text in tracker.troubles()] == ["trackio refused rl 2", "trackio refused rl 4"]
    assert tracker.troubles() == [], "said once"


def test_a_tracker_that_keeps_refusing_is_left_alone(sink: FakeSink, folder: Path) -> None:
    sink.refuse = set(range(2, 2 + FAILURES))
    tracker = LiveTracker("trackio", "mine", folder)
    for number in range(1, 20):
        tracker.take(step(number), [])
    tracker.close()
    assert sink.steps == [1]
    troubles = tracker.troubles()
    assert len(troubles) == FAILURES
    assert troubles[-1].endswith("it gets nothing more of this run")


def test_a_tracker_that_stands_still_holds_up_nobody(
    sink: FakeSink, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MOST_WAITING", 5)
    sink.wait.clear()
    tracker = LiveTracker("trackio", "mine", folder, close_s=0.1)
    began_s = time.monotonic()
    for number in range(1, 50):
        tracker.take(step(number), [])
    tracker.close()
    assert time.monotonic() - began_s < 10
    troubles = " ".join(tracker.troubles())
    assert "5 steps behind" in troubles
    assert "was not done 0.1 s after the run" in troubles
    assert "lost 4" in troubles
    sink.wait.set()


def test_a_server_that_does_not_take_the_run_is_said_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("not logged in")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse, Error=RuntimeError))
    tracker = LiveTracker("wandb", "mine", folder)
    for number in range(1, 4):
        tracker.take(step(number), [])
    tracker.close()
    [trouble] = tracker.troubles()
    assert "wandb does not take the run: ConfigError: wandb did not take the run: not logged in" in trouble


def test_a_missing_library_is_said_before_there_is_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"burnish\[trackers\]"):
        LiveTracker("wandb", "mine", folder)


def test_no_run_no_thread(sink: FakeSink, folder: Path) -> None:
    LiveTracker("trackio", "mine", folder).close()
    assert sink.heads == []
