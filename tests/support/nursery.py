"""Main processes of runs, to be killed: imports are paid once, then a process is forked for each attempt.

As a program it reads one JSON command a line and answers with the attempt's process id, its progress and its end:

    {"folder": "...", "recipe": "...", "fault": ""}        "pid 123", "sft 4 ", ..., "end 0"

Without a recipe the run is resumed.  A run that ends early says "error KIND: message" and ends with status 3.
`Nursery` is the other side.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil


class Attempt:
    """One process that works on a run; `lines` are what it said, `end` its exit status (negative: the signal)."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid
        self.lines: list[str] = []
        self.end: int | None = None

    def wait_for(self, start: str) -> bool:
        """Read its progress up to a line that starts with `start`; False where it ended before."""
        while self.end is None:
            line = self._nursery.read()
            if line.startswith("end "):
                self.end = int(line.split()[1])
            else:
                self.lines.append(line)
                if start and line.startswith(start):
                    return True
        return False

    def kill(self) -> None:
        """SIGKILL the main process, and nothing else."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait_for("")


class Nursery:
    """The program of this file, running."""

    def __init__(self) -> None:
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.read() == "ready"

    def read(self) -> str:
        """The next line it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the nursery has died"
        return line.rstrip("\n")

    def attempt(self, folder: Path, recipe: str = "", fault: str = "") -> Attempt:
        """Start (with a recipe as JSON) or resume the run in `folder`; `fault` is a key of `FAULTS`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"folder": str(folder), "recipe": recipe, "fault": fault}) + "\n")
        self._process.stdin.flush()
        word, pid = self.read().split()
        assert word == "pid"
        return Attempt(self, int(pid))

    def close(self) -> None:
        """End the program, and an attempt that a failed test has left behind."""
        for process in psutil.Process(self._process.pid).children(recursive=True):
            process.kill()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=20)
        self._process.stdout.close()


def _say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def _work(command: dict[str, Any]) -> None:
    from burnish.core.errors import BurnishError
    from burnish.loop.conductor import resume_run, start_run
    from burnish.loop.config import Recipe
    from burnish.loop.progress import Progress

    def watch(progress: Progress) -> None:
        _say(f"{progress.phase} {progress.step} {progress.message}")

    folder = Path(command["folder"])
    FAULTS[command["fault"]]()
    try:
        if command["recipe"]:
            start_run(Recipe.model_validate_json(command["recipe"]), folder, watch=watch)
        else:
            resume_run(folder, watch=watch)
    except BurnishError as error:
        _say(f"error {type(error).__name__}: {' '.join(str(error).split())}")
        os._exit(3)


def _unshare_weights() -> None:
    """Workers keep the weights that they started with."""
    from burnish.loop.shared import SharedWeights

    attach = SharedWeights.attach

    def attach_and_copy(self: SharedWeights, model: Any) -> None:
        attach(self, model)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()

    SharedWeights.attach = attach_and_copy  # type: ignore[method-assign]


FAULTS = {"": lambda: None, "unshared weights": _unshare_weights}


def _main() -> None:
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401 - what the attempts will need

    from burnish.loop import conductor, fork_server  # noqa: F401

    # Each attempt would start a server of its own; the tests of the command line and of the server do.
    fork_server.context = lambda: multiprocessing.get_context("fork")  # type: ignore[assignment]
    _say("ready")
    for line in sys.stdin:
        command = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _say(f"pid {os.getpid()}")
            try:
                _work(command)
            except BaseException:  # noqa: BLE001 - a forked process must never return into its parent's code
                import traceback

                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        _say(f"end {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    _main()
