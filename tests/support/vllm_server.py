"""Starting and stopping a real vLLM server on this machine's CPU."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
START_S = 240.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running server: its address, the folder that it was started with, seconds that this took."""

    url: str
    folder: Path
    start_s: float


@contextmanager
def serving(folder: Path, log: Path, *options: str) -> Iterator[Served]:
    """Start a server on a model folder and stop it at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["sh", "tools/vllm.sh", "serve", str(folder), str(port), "--max-model-len", "512", *options]
    started = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(words, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        while not _healthy(url):
            if process.poll() is not None or time.perf_counter() - started > START_S:
                pytest.fail(f"the server did not start; the end of its log:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)
        yield Served(url=url, folder=folder, start_s=time.perf_counter() - started)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2.0).status_code == 200
    except httpx.TransportError:
        return False
