"""Modules that several tests share stand in tests/support and are imported by their plain names."""

from __future__ import annotations

import gc
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# What is imported while tests are collected all stays: looking through it for garbage takes a fifth of that time.
gc.disable()

sys.path.insert(0, str(Path(__file__).parent / "support"))

# a command line that runs when it is imported
collect_ignore = ["support/fake_docker.py"]

if TYPE_CHECKING:
    from nursery import Nursery


@pytest.fixture(scope="session", autouse=True)
def heap() -> Iterator[None]:
    """Each run collects garbage when it starts; all that tests import would be a tenth of a small run's time."""
    from burnish.loop.heap import settled_heap

    gc.enable()
    with settled_heap():
        yield


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """A program that forks main processes of runs, for tests that kill them."""
    from nursery import Nursery

    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, uninterrupted, with both of its shards in this process."""
    from tiny_runs import start_run, tiny_recipe

    folder = tmp_path_factory.mktemp("finished") / "run"
    start_run(tiny_recipe(), folder)
    return folder


@pytest.fixture(scope="session")
def reference(finished_run: Path) -> dict[str, Any]:
    """The facts of the uninterrupted run."""
    from tiny_runs import facts

    return facts(finished_run)


@pytest.fixture(scope="session")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, stopped on request after RL step 3, one step after a checkpoint that was due."""
    from tiny_runs import StopAt, start_run, tiny_recipe

    from burnish.core.errors import RunStopped

    folder = tmp_path_factory.mktemp("stopped") / "run"
    ask = StopAt("rl", 3)
    with pytest.raises(RunStopped, match="stopped on request"):
        start_run(tiny_recipe(), folder, watch=ask.watch, stop=ask.stop)
    return folder


@pytest.fixture
def stopped(stopped_run: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes copies of the stopped run, to be resumed."""
    count = iter(range(100))

    def copy() -> Path:
        return Path(shutil.copytree(stopped_run, tmp_path / f"stopped-{next(count)}"))

    return copy
