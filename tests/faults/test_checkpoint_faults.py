from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from burnish.core.errors import CheckpointError
from burnish.training import checkpoint as module
from burnish.training.checkpoint import list_checkpoints, load_checkpoint, load_latest, save_checkpoint, verify

torch.set_num_threads(1)


def save(directory: Path, name: str, value: float = 1.0, size: int = 50) -> None:
    save_checkpoint(
        directory,
        name,
        model_state={"w": torch.full((size,), value)},
        optimizer_state={"m": torch.full((size,), -value)},
        rng={"python": [1, 2]},
        state={"value": value},
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_found_and_the_checkpoint_before_is_used(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("flip")
    save(directory, "old", 1.0)
    save(directory, "new", 2.0)
    path = data.draw(st.sampled_from(sorted((directory / "new").iterdir())))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)

    loaded = load_latest(directory)
    assert loaded.state["value"] == 1.0
    assert loaded.model_state["w"].tolist() == [1.0] * 50
    assert loaded.set_aside == ("corrupt_new",)
    save(directory, "new", 3.0)
    assert load_latest(directory).state["value"] == 3.0
    assert (directory / "corrupt_new").is_dir()


@pytest.mark.parametrize("damage", ["truncated", "missing", "extra", "manifest missing", "empty folder"])
def test_other_damage_is_found_too(tmp_path, damage):
    save(tmp_path, "old", 1.0)
    save(tmp_path, "new", 2.0)
    file = tmp_path / "new" / "model.safetensors"
    if damage == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    elif damage == "missing":
        file.unlink()
    elif damage == "extra":
        (tmp_path / "new" / "stray").write_text("x")
    elif damage == "manifest missing":
        (tmp_path / "new" / "manifest.json").unlink()
    else:
        for path in (tmp_path / "new").iterdir():
            path.unlink()
    assert load_latest(tmp_path, repair=False).set_aside == ("new",)
    assert (tmp_path / "new").is_dir()
    with pytest.raises(CheckpointError, match="corrupt"):
        load_checkpoint(tmp_path, "new", repair=False)
    with pytest.raises(CheckpointError, match="set aside as corrupt_new"):
        load_checkpoint(tmp_path, "new")
    assert load_latest(tmp_path).state["value"] == 1.0


def test_the_hash_check_is_what_finds_a_flipped_bit(tmp_path, monkeypatch):
    """Without it the wrong number loads silently: the format itself does not notice."""
    save(tmp_path, "a", 1.0)
    file = tmp_path / "a" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    assert "hash of model.safetensors" in verify(tmp_path / "a")
    monkeypatch.setattr(module, "verify", lambda path: "")
    assert load_latest(tmp_path).model_state["w"][-1] != 1.0


def test_several_bad_ones_get_names_of_their_own_and_none_left_is_an_error(tmp_path):
    for value in (1.0, 2.0):
        save(tmp_path, "a", value)
        (tmp_path / "a" / "state.json").write_text("{}")
        with pytest.raises(CheckpointError, match="no usable"):
            load_latest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corrupt_a", "corrupt_a_2"]


def test_a_half_written_folder_is_ignored_and_removed(tmp_path):
    save(tmp_path, "a", 1.0)
    (tmp_path / ".tmp_b").mkdir()
    (tmp_path / ".tmp_b" / "model.safetensors").write_bytes(b"half")
    assert [ref.name for ref in list_checkpoints(tmp_path)] == ["a"]
    assert load_latest(tmp_path).state["value"] == 1.0
    assert not (tmp_path / ".tmp_b").exists()


def test_a_kill_between_the_renames_of_a_replacement_loses_nothing(tmp_path):
    save(tmp_path, "a", 1.0)
    (tmp_path / "a").rename(tmp_path / ".replaced_a")
    assert load_latest(tmp_path, repair=False).state["value"] == 1.0
    assert load_checkpoint(tmp_path, "a").state["value"] == 1.0
    (tmp_path / ".replaced_a").mkdir()
    assert load_latest(tmp_path).ref.name == "a"
    assert not (tmp_path / ".replaced_a").exists()


_SAVER = """
    import sys, torch
    from pathlib import Path
    from burnish.training.checkpoint import save_checkpoint
    torch.set_num_threads(1)
    directory, count = Path(sys.argv[1]), int(sys.argv[2])
    while True:
        count += 1
        name = f"step_{count % 3}"
        w = torch.full((20_000,), float(count))
        tensors = {"model_state": {"w": w}, "optimizer_state": {"m": -w}}
        save_checkpoint(directory, name, **tensors, rng={}, state={"count": count})
        print(count, flush=True)
"""


def test_killed_at_random_moments_the_last_acknowledged_checkpoint_is_there(tmp_path):
    rng, count, kills = random.Random(0), 0, 3
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_SAVER), str(tmp_path), str(count)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        acknowledged = int(process.stdout.readline())
        time.sleep(rng.uniform(0.0, 0.15))
        process.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
        process.wait()
        loaded = load_latest(tmp_path)
        count = loaded.state["count"]
        assert acknowledged <= count <= acknowledged + 1
        assert loaded.model_state["w"].tolist() == [float(count)] * 20_000
        assert loaded.optimizer_state["m"][0] == -count
        assert loaded.set_aside == ()


def full_disk(tmp_path: Path) -> Path:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs to mount a small tmpfs")
    return disk


def test_a_full_disk_is_a_clear_error_and_keeps_what_was_saved(tmp_path):
    disk = full_disk(tmp_path)
    try:
        save(disk, "a", 1.0)
        with pytest.raises(CheckpointError, match=r"could not be saved.*[Nn]o space"):
            save(disk, "b", 2.0, size=200_000)
        assert [path.name for path in disk.iterdir()] == ["a"]
        assert load_latest(disk).state["value"] == 1.0
        save(disk, "b", 2.0)
        assert load_latest(disk).state["value"] == 2.0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("fails", ["fsync", "rename"])
def test_an_error_while_writing_keeps_what_was_saved(tmp_path, monkeypatch, fails):
    save(tmp_path, "a", 1.0)

    def refuse(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if fails == "fsync" else (Path, "rename")), refuse)
        with pytest.raises(CheckpointError, match="free disk space"):
            save(tmp_path, "b", 2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert load_latest(tmp_path).state["value"] == 1.0


def test_state_that_is_not_json_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path / "new", "a", float("nan"))
    assert not (tmp_path / "new").exists()
