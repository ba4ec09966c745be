"""The other side of `isolation`: runs named functions for a parent, each under a deadline that the kernel keeps."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Any

from burnish.graders.isolation import WorkerFailure
from burnish.graders.wire import grade_to_json, grader_from_reference, task_from_json, trajectory_from_json

_MAX_MEMORY_BYTES = 4 * 2**30
_MAX_DETAIL_CHARS = 500


def grade_once(grader: Mapping[str, Any], task: Mapping[str, Any], trajectory: Mapping[str, Any]) -> dict[str, Any]:
    """Make the grader that `grader` describes and let it judge one trajectory; all three are JSON as in `wire`."""
    made = grader_from_reference(grader)
    return grade_to_json(asyncio.run(made.grade(task_from_json(task), trajectory_from_json(trajectory))))


def main() -> None:
    """Answer one JSON request a line until the parent closes the pipe.

    The deadline is an alarm whose default action ends the process: it stops C code too, and holds even if the parent
    is killed.  What a function prints goes nowhere, so that it cannot forge an answer.
    """
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["timeout_s"])
        answer = _answer(request)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        answers.write(answer + b"\n")


def _answer(request: Mapping[str, Any]) -> bytes:
    module, _, name = request["function"].partition(":")
    try:
        value = getattr(importlib.import_module(module), name)(**request["arguments"])
        return json.dumps({"value": value}, allow_nan=False).encode()
    except Exception as error:  # noqa: BLE001 - the boundary of this process: the parent types it
        detail = f"{type(error).__name__}: {error}"[:_MAX_DETAIL_CHARS]
        cause = error.cause if isinstance(error, WorkerFailure) else type(error).__name__
        return json.dumps({"error": cause, "detail": detail}).encode()
