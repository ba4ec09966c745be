"""Health in the loop: it changes nothing that is trained, loses nothing on resume, is the same in every executor."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from scripted_control import ScriptedLadder, ScriptedWatch
from tiny_runs import (
    GROUP_SIZE,
    GROUPS,
    HOSTED,
    StopAt,
    asynchronous_problems,
    differences,
    facts,
    resume_run,
    start_run,
    tiny_recipe,
)

from burnish.core.errors import RunStopped
from burnish.core.finding import Act, Decision
from burnish.loop import oversight, shard_step
from burnish.store.reader import RunReader

ON, OFF = ("health.on=true", "health.softmax_every=2"), ("health.on=false", "control.mode=off")
SHORT = ("rl.steps=3", "evaluation.before=false")


def trained(folder: Path) -> dict[str, object]:
    """What training is: weights, optimizer, trajectories and their judgement, figures of the learner."""
    return {
        key: value
        for key, value in facts(folder).items()
        if key != "final state.json" and not any(part in key for part in (" health/", " control/"))
    }


@pytest.mark.parametrize("settings", [(), ("rl.updates=2", "rl.kl_weight=0.1"), ("rl.loss=m2po",)])
def test_weights_are_the_same_to_the_bit_with_health_on_and_off(tmp_path: Path, settings: tuple[str, ...]) -> None:
    start_run(tiny_recipe(*SHORT, *settings, *ON), tmp_path / "on")
    start_run(tiny_recipe(*SHORT, *settings, *OFF), tmp_path / "off")
    assert differences(trained(tmp_path / "on"), trained(tmp_path / "off")) == []
    names = RunReader(tmp_path / "on").scalar_names("rl")
    assert any(name.startswith("health/all/") for name in names)
    assert not any(name.startswith("health/") for name in RunReader(tmp_path / "off").scalar_names("rl"))


def test_a_watch_that_touched_the_samples_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        shard_step.ShardStep,
        "see_untrained",
        lambda self: (
            [one.advantages.reverse() for group in SAMPLES[-1].values() for one in group] and shard_step.Seen()
        ),
    )
    SAMPLES: list[shard_step.Samples] = []
    make = shard_step.ShardStep.make_samples
    monkeypatch.setattr(
        shard_step.ShardStep, "make_samples", lambda self, learner: SAMPLES.append(make(self, learner)) or SAMPLES[-1]
    )
    start_run(tiny_recipe(*SHORT, *ON), tmp_path / "on")
    monkeypatch.undo()
    start_run(tiny_recipe(*SHORT, *OFF), tmp_path / "off")
    assert "final model.safetensors" in differences(trained(tmp_path / "on"), trained(tmp_path / "off"))


NOW = {"watching": "control.mode=dry_run", "acting": "control.mode=act", "learning": "rl.normalise=variance"}


@pytest.mark.parametrize("way", NOW)
def test_the_next_step_waits_for_what_steers_it_alone(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, int]] = []
    sound = oversight.Oversight.observe

    def observe(self: oversight.Oversight, step: int, *rest: object) -> oversight.Observed:
        begun.append((step, self._state.rl_step))
        return sound(self, step, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(oversight.Oversight, "observe", observe)
    start_run(tiny_recipe(*SHORT, *ON, NOW[way]), tmp_path / "run")
    finished = 0 if way == "watching" else 1
    assert begun == [(step, step - finished) for step in (1, 2, 3)]


WHOLE = ["rl.updates=2", "rl.updates=3", "rl.filter_zero_signal=false", "rollout.mode=async"]


@pytest.mark.parametrize("setting", WHOLE)
def test_every_sampled_token_is_seen_once(tmp_path: Path, setting: str) -> None:
    start_run(tiny_recipe(*SHORT, *ON, setting, "run.in_process=false"), tmp_path / "run")
    scalars = {name: dict(values) for name, values in RunReader(tmp_path / "run").all_scalars("rl").items()}
    assert scalars["health/tokens"] == scalars["tokens/sampled"]
    assert len(scalars["health/tokens"]) == 3


def test_what_is_told_twice_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = shard_step.ShardStep.see_trained

    def forgetful(self, keys, samples, record, *, first):
        untold = self._untold
        seen = told(self, keys, samples, record, first=True)
        self._untold = untold
        return seen

    monkeypatch.setattr(shard_step.ShardStep, "see_trained", forgetful)
    with pytest.raises(ValueError, match="two streams have the id"):
        start_run(tiny_recipe(*SHORT, *ON, "rl.updates=3"), tmp_path / "run")


def test_worker_processes_see_the_same(tmp_path: Path) -> None:
    start_run(tiny_recipe(*SHORT, *ON), tmp_path / "one")
    start_run(tiny_recipe(*SHORT, *ON, "run.in_process=false", HOSTED), tmp_path / "two")
    assert differences(facts(tmp_path / "one"), facts(tmp_path / "two")) == []


def test_sums_of_large_shards_say_what_their_columns_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start_run(tiny_recipe(*SHORT, *ON), tmp_path / "columns")
    monkeypatch.setattr(shard_step, "MOST_AS_COLUMNS", 0)
    start_run(tiny_recipe(*SHORT, *ON), tmp_path / "sums")
    found, expected = (
        {name: dict(values) for name, values in RunReader(tmp_path / folder).all_scalars("rl").items()}
        for folder in ("sums", "columns")
    )
    names = [name for name in expected if name.startswith("health/")]
    assert len(names) > 50
    for name in names:
        assert found[name] == pytest.approx(expected[name], rel=1e-6, abs=1e-9), name


def test_resume_goes_on_exactly_and_loses_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedWatch, "findings", (2, 5))
    decision = Decision(act=Act.LEARNING_RATE, step=4, reason="r", values={"factor": 0.5})
    monkeypatch.setattr(ScriptedLadder, "script", {4: (decision,)})
    monkeypatch.setattr(oversight, "Watch", ScriptedWatch)
    monkeypatch.setattr(oversight, "Ladder", ScriptedLadder)
    start_run(tiny_recipe(*ON), tmp_path / "whole")
    folder, ask = tmp_path / "stopped", StopAt("rl", 3)
    with pytest.raises(RunStopped, match="stopped on request"):
        start_run(tiny_recipe(*ON), folder, watch=ask.watch, stop=ask.stop)
    resume_run(folder)
    assert differences(facts(folder), facts(tmp_path / "whole")) == []
    for kind in ("finding", "decision"):
        assert records(folder, kind) == records(tmp_path / "whole", kind)
    assert [step for step, _ in records(tmp_path / "whole", "finding")] == [2, 5]
    assert [step for step, _ in records(tmp_path / "whole", "decision")] == [4]


def records(folder: Path, kind: str) -> list[tuple[int, object]]:
    return [(event.step, event.data) for event in RunReader(folder).events(kind)]


def test_the_real_monitors_resume_exactly(tmp_path: Path) -> None:
    start_run(tiny_recipe(*ON), tmp_path / "whole")
    folder, ask = tmp_path / "stopped", StopAt("rl", 3)
    with pytest.raises(RunStopped, match="stopped on request"):
        start_run(tiny_recipe(*ON), folder, watch=ask.watch, stop=ask.stop)
    resume_run(folder)
    assert differences(facts(folder), facts(tmp_path / "whole")) == []


def test_a_state_that_is_not_restored_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oversight, "Watch", ScriptedWatch)
    start_run(tiny_recipe(*ON), tmp_path / "whole")
    folder, ask = tmp_path / "stopped", StopAt("rl", 3)
    with pytest.raises(RunStopped, match="stopped on request"):
        start_run(tiny_recipe(*ON), folder, watch=ask.watch, stop=ask.stop)
    monkeypatch.setattr(ScriptedWatch, "restore", classmethod(lambda cls, spec, state: cls(spec)))
    resume_run(folder)
    assert "scalar rl/4 health/steps" in differences(facts(folder), facts(tmp_path / "whole"))


@pytest.mark.parametrize("where", ["run.in_process=true", "run.in_process=false"])
def test_an_asynchronous_run_is_watched_too(tmp_path: Path, where: str) -> None:
    folder = tmp_path / "run"
    start_run(tiny_recipe(*ON, "rollout.mode=async", "rollout.max_staleness=2", where), folder)
    reader = RunReader(folder)
    assert asynchronous_problems(folder) == []
    names = reader.scalar_names("rl")
    assert "health/all/tokens" in names
    for step, seconds in reader.scalars("time/health_s", "rl"):
        found = reader.step_scalars("rl", step)
        assert 0 < found["time/health_streaming_s"] < seconds < found["time/step_s"]


def test_streams_are_kept_on_request_and_agree_with_the_store(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start_run(tiny_recipe(*SHORT, *ON, "health.keep_streams=true", "rl.updates=2"), folder)
    reader = RunReader(folder)
    files = reader.stream_files()
    assert [path.name for path in files] == [f"rl-{step:06d}.0.parquet" for step in (1, 2, 3)]
    for step, path in enumerate(files, start=1):
        rows = {row["id"]: row for row in pq.read_table(path).to_pylist()}
        stored = {row.trajectory.id: row for row in reader.trajectories("rl", step)}
        assert rows.keys() == stored.keys()
        assert len(rows) == GROUPS * GROUP_SIZE
        learned = [row for row in rows.values() if row["learner"] is not None]
        assert len(learned) == sum(row.advantage is not None for row in stored.values())
        for key, row in rows.items():
            trajectory = stored[key].trajectory
            sampled = [lp for node in trajectory.nodes if node.is_action for lp in node.logprobs]
            assert row["behaviour"] == sampled
            assert row["spans"][-1]["end"] == len(sampled) == trajectory.action_tokens
            assert row["advantage"] == stored[key].advantage
            if row["learner"] is not None:
                assert all(map(math.isfinite, row["learner"]))
                assert (row["score_norm"] is not None) == (step % 2 == 1)
                # The first half of the groups is trained at the weights that sampled it, the other half one update on.
                place = int(trajectory.group_id.rpartition("/")[2])
                gap = max(abs(a - b) for a, b in zip(row["learner"], row["behaviour"], strict=True))
                assert (gap < 1e-4) == (place % 2 == 0)
