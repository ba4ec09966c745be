"""Replaying stored steps: the same to the last bit, and not where anything was changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from burnish.core.errors import CheckpointError, StoreError
from burnish.loop import replay
from burnish.loop.replay import replay_step
from burnish.store.layout import RunLayout
from burnish.store.reader import RunReader
from burnish.training.checkpoint import load_checkpoint, save_checkpoint


def quietly(text: str) -> None:
    pass


@pytest.mark.parametrize("step", [1, 2, 4, 5])
def test_a_step_of_two_shards_replays_to_the_last_bit(plain_run: Path, step: int) -> None:
    said: list[str] = []
    found = replay_step(plain_run, step, said.append)
    assert (found.same, found.bit_equal) == (True, True)
    assert found.checkpoint == f"rl-{(step - 1) // 2 * 2:06d}"
    assert found.replayed_steps == len(said) == step - int(found.checkpoint[-6:])
    assert found.stored_loss != 0.0
    assert found.stored_loss == RunReader(plain_run).step_scalars("rl", step)["loss"]


@pytest.mark.parametrize("name", ["rich_run", "lora_run"])
def test_updates_reference_and_adapters_replay_too(request, name: str) -> None:
    run = request.getfixturevalue(name)
    for step in (1, 4):
        found = replay_step(run, step, quietly)
        assert found.bit_equal, found
        assert found.stored_loss != 0.0


def test_a_replay_changes_nothing(plain_run: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        files = [path for path in plain_run.rglob("*") if path.is_file() and "-shm" not in path.name]
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}

    before = state()
    replay_step(plain_run, 3, quietly)
    assert state() == before


# -- negative controls ----------------------------------------------------------------------------------------------


def test_a_changed_advantage_is_seen(plain_run: Path, monkeypatch) -> None:
    honest = RunReader.trajectories

    def tampered(self, phase, step, **options):
        from dataclasses import replace

        rows = honest(self, phase, step, **options)
        index = next(n for n, row in enumerate(rows) if row.advantage)
        rows[index] = replace(rows[index], advantage=rows[index].advantage * 1.001)
        return rows

    monkeypatch.setattr(RunReader, "trajectories", tampered)
    found = replay_step(plain_run, 3, quietly)
    assert (found.same, found.bit_equal) == (False, False)


def test_a_changed_weight_is_seen(plain_run: Path, copied) -> None:
    run = copied(plain_run)
    checkpoints = RunLayout(run).checkpoints
    loaded = load_checkpoint(checkpoints, "rl-000002")
    name = max(loaded.model_state, key=lambda key: loaded.model_state[key].numel())
    state = {key: tensor.clone() for key, tensor in loaded.model_state.items()}
    state[name].view(-1)[: state[name].numel() // 2] *= 1.01
    save_checkpoint(
        checkpoints,
        "rl-000002",
        model_state=state,
        optimizer_state=loaded.optimizer_state,
        rng=loaded.rng,
        state=loaded.state,
    )
    found = replay_step(run, 3, quietly)
    assert (found.same, found.bit_equal) == (False, False)
    assert replay_step(run, 2, quietly).bit_equal


def test_another_reference_is_seen(rich_run: Path, monkeypatch) -> None:
    honest = replay.load_checkpoint

    def tampered(directory, name, **options):
        loaded = honest(directory, name, **options)
        if name == "rl-000000":
            for tensor in loaded.model_state.values():
                tensor.mul_(1.05)
        return loaded

    monkeypatch.setattr(replay, "load_checkpoint", tampered)
    assert not replay_step(rich_run, 4, quietly).same


def test_a_flipped_byte_in_the_store_is_an_error(plain_run: Path, copied) -> None:
    run = copied(plain_run)
    [segment] = [info.segment for info in RunReader(run).steps("rl") if info.step == 3]
    path = RunLayout(run).segment(segment)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="not as it was written"):
        replay_step(run, 3, quietly)


def test_a_flipped_byte_in_the_checkpoint_is_an_error(plain_run: Path, copied) -> None:
    run = copied(plain_run)
    path = RunLayout(run).checkpoints / "rl-000002" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="rl-000002 is corrupt"):
        replay_step(run, 3, quietly)


@pytest.mark.parametrize("step", [0, 6, 99])
def test_a_step_that_was_never_taken_is_an_error(plain_run: Path, step: int) -> None:
    with pytest.raises(StoreError, match=f"has no RL step {step}; it has 1-5"):
        replay_step(plain_run, step, quietly)


def test_without_a_checkpoint_before_it_a_step_cannot_be_replayed(plain_run: Path, copied) -> None:
    import shutil

    run = copied(plain_run)
    shutil.rmtree(RunLayout(run).checkpoints / "rl-000000")
    with pytest.raises(CheckpointError, match="no RL checkpoint before step 2"):
        replay_step(run, 2, quietly)
    assert replay_step(run, 3, quietly).bit_equal
    assert torch.get_num_threads() == 1
