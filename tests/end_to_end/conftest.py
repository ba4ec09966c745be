"""Finished runs that the tests of this folder look at; whoever changes one copies it first."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory) -> Path:
    """SFT and 5 RL steps of all weights, in two shards."""
    from letter_runs import run_letters

    return run_letters(tmp_path_factory.mktemp("runs") / "plain")


@pytest.fixture(scope="session")
def rich_run(tmp_path_factory) -> Path:
    """As above, with two updates on each batch and a KL term."""
    from letter_runs import run_letters

    return run_letters(tmp_path_factory.mktemp("runs") / "rich", "rl.updates=2", "rl.kl_weight=0.1")


@pytest.fixture(scope="session")
def sft_model(plain_run: Path, tmp_path_factory) -> Path:
    """The policy after SFT as a Hugging Face folder."""
    from burnish.loop.standalone import export_run

    folder = tmp_path_factory.mktemp("models") / "sft"
    export_run(plain_run, folder, "sft-000020")
    return folder


@pytest.fixture(scope="session")
def lora_run(sft_model: Path, tmp_path_factory) -> Path:
    """RL with adapters on the policy after SFT, and a KL term."""
    from letter_runs import run_letters

    words = (f"model.path={sft_model}", "model.lora.rank=4", "warm_start.steps=0", "rl.lr=1e-2", "rl.kl_weight=0.05")
    return run_letters(tmp_path_factory.mktemp("runs") / "lora", *words)


@pytest.fixture
def copied(tmp_path):
    """A function that copies a run, so that it can be changed."""

    def _copied(run: Path) -> Path:
        return Path(shutil.copytree(run, tmp_path / "runs" / run.name))

    return _copied
