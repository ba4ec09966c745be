"""A vLLM server on this machine's CPU for tests that need a real one; `make test-vllm` runs them.

Without BURNISH_VLLM in the environment nothing here is collected.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vllm_server import Served

collect_ignore_glob = [] if os.environ.get("BURNISH_VLLM") else ["test_*.py"]

_FIGURES: list[str] = []


@pytest.fixture(scope="session")
def note() -> Callable[[str], None]:
    """Takes a measured figure for the end of the report."""
    return _FIGURES.append


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _FIGURES:
        terminalreporter.section("measured against vLLM")
        for line in _FIGURES:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, note: Callable[[str], None]) -> Iterator[Served]:
    """The tiny policy, served in float32 as the learner computes."""
    from vllm_policy import tiny_policy
    from vllm_server import serving

    from burnish.integrations.vllm_weights import server_folder

    folder = tmp_path_factory.mktemp("vllm")
    policy = tiny_policy()
    server_folder(policy.model, policy.tokenizer, folder / "model", stop_ids=policy.renderer.stop_ids)
    with serving(folder / "model", folder / "server.log", "--dtype", "float32", "--max-logprobs", "64") as served:
        note(f"server ready after {served.start_s:.0f} s")
        yield served
