"""A run whose policy is sampled by a server that follows its weights."""

from __future__ import annotations

import copy
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from letter_runs import letters_recipe, run_letters, weights

from burnish.core.errors import ConfigError, InvariantViolation
from burnish.core.sampling import Sample, SampleRequest
from burnish.loop.conductor import resume_run, start_run
from burnish.policies.sampler import EmbeddedSampler
from burnish.store.reader import RunReader

WORDS = ("sampler.url=http://server", "run.workers=1", "rl.steps=4")


class CopyServer:
    """Holds a copy of the policy, as a server on another machine would.  stubborn: takes no weights after the first.
    positions: what it says that it can hold."""

    def __init__(self, *, stubborn: bool = False, positions: int | None = None) -> None:
        self.stubborn, self.positions = stubborn, positions
        self.followed: list[int] = []
        self.sampler: Any = None

    async def open(self) -> int | None:
        return self.positions

    async def follow(self, model: Any, version: int) -> None:
        self.followed.append(version)
        if self.sampler is None:
            self.copy = copy.deepcopy(model)
            self.sampler = EmbeddedSampler(self.copy, pad_id=0)
        elif not self.stubborn:
            self.copy.load_state_dict(model.state_dict())
        self.sampler.version = version

    async def sample(self, requests: Sequence[SampleRequest]) -> Sequence[Sample]:
        return await self.sampler.sample(requests)


def run_served(folder: Path, server: CopyServer, *words: str) -> Path:
    start_run(letters_recipe(*WORDS, *words), folder, server=server)
    return folder


def tokens(folder: Path) -> list[array[int]]:
    reader = RunReader(folder)
    rows = [row for info in reader.steps("rl") for row in reader.trajectories("rl", info.step)]
    return [node.token_ids for row in rows for node in row.trajectory.nodes]


def test_the_run_is_that_of_the_embedded_engine(tmp_path: Path) -> None:
    server = CopyServer()
    served = run_served(tmp_path / "served", server)
    own = run_letters(tmp_path / "own", "run.workers=1", "rl.steps=4")
    assert tokens(served) == tokens(own)
    assert len(tokens(served)) > 20
    assert server.followed[-1] == RunReader(served).steps("rl")[-1].policy_version
    after, expected = weights(served, "final"), weights(own, "final")
    assert all(torch.allclose(after[name], expected[name], atol=1e-4) for name in expected)


@pytest.mark.parametrize("weights_when", ["in_flight", "episode"])
def test_asynchronous_episodes_are_sampled_by_it_too(tmp_path: Path, weights_when: str) -> None:
    folder = run_served(tmp_path / "run", CopyServer(), "rollout.mode=async", f"rollout.weights={weights_when}")
    assert len(RunReader(folder).steps("rl")) == 4


def test_weights_that_do_not_arrive_are_noticed_at_the_next_update(tmp_path: Path) -> None:
    with pytest.raises(InvariantViolation, match="differ"):
        run_served(tmp_path / "run", CopyServer(stubborn=True))


def test_a_server_that_holds_too_little_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--max-model-len"):
        run_served(tmp_path / "run", CopyServer(positions=32))


def test_recipe_and_server_go_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="VllmPolicy"):
        start_run(letters_recipe(*WORDS), tmp_path / "none")
    with pytest.raises(ConfigError, match=r"sampler\.url is ''"):
        start_run(letters_recipe(), tmp_path / "extra", server=CopyServer())


def test_a_resumed_run_goes_on_with_the_server(tmp_path: Path) -> None:
    stopped: list[int] = []

    def stop() -> bool:
        stopped.append(1)
        return len(stopped) > 4

    with pytest.raises(Exception, match="stopped on request"):
        start_run(letters_recipe(*WORDS), tmp_path / "run", server=CopyServer(), stop=stop)
    resume_run(tmp_path / "run", server=CopyServer())
    whole = run_served(tmp_path / "whole", CopyServer())
    assert tokens(tmp_path / "run") == tokens(whole)
