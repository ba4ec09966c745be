"""Unit tests as data: what a program returns is compared out here, where it cannot reach the verdict.

The sandbox gets the program and the arguments of each call, never what is expected.  There is no result to forge: to
pass a call, a program has to come up with the value.  Patches are skipped, nothing printed is read, an exit status says
nothing, and a call without a value has failed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from burnish.core.grade import Grade
from burnish.core.sandbox import PYTHON, Sandbox, SandboxLimits
from burnish.core.task import Task
from burnish.core.text import clean_text
from burnish.core.trajectory import Trajectory
from burnish.graders.killable import fenced
from burnish.graders.rules import RuleGrader, final_text

MAX_CALLS = 1000
_RESULTS = "results.jsonl"
_DRIVER = b"""
import importlib.util, json

spec = importlib.util.spec_from_file_location("solution", "solution.py")
calls = json.load(open("calls.json", encoding="utf-8"))
with open("results.jsonl", "w", encoding="utf-8") as results:
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for index, call in enumerate(calls):
        try:
            line = json.dumps({"call": index, "value": getattr(module, call["function"])(*call["arguments"])})
        except Exception as error:
            line = json.dumps({"call": index, "raised": type(error).__name__})
        results.write(line + "\\n")
        results.flush()
"""


class CallsGrader(RuleGrader):
    """Share of the calls of `reference["calls"]` that a Python program answers rightly; all or nothing by default.

    `{"function": "add", "arguments": [1, 2], "expected": 3}`; values are compared as JSON (tuples are lists), numbers
    to nine digits.  The program is the last fenced block of the answer.  partial: score the share.  timeout_s: of all
    calls of one program, kept by the sandbox.
    """

    name = "calls"
    keeps_deadline = True
    parallel = 4

    def __init__(
        self, sandbox: Sandbox, *, partial: bool = False, limits: SandboxLimits | None = None, timeout_s: float = 10.0
    ) -> None:
        self._sandbox = sandbox
        self._is_partial = partial
        self._limits = limits or SandboxLimits(wall_s=timeout_s, cpu_s=timeout_s)

    async def grade(self, task: Task, trajectory: Trajectory) -> Grade:
        """The verdict.  Raises SandboxError where the sandbox failed."""
        early = self.unjudged(trajectory)
        if early is not None:
            return early
        calls = _calls_of(task)
        if calls is None:
            return self.verdict(None, cause="task_cannot_be_judged", evidence={"reference": sorted(task.reference)})
        program = clean_text(fenced(final_text(trajectory.answer), "python", "py"))
        asked = [{"function": call["function"], "arguments": call["arguments"]} for call in calls]
        result = await self._sandbox.run(
            [PYTHON, "driver.py"],
            files={"driver.py": _DRIVER, "solution.py": program.encode(), "calls.json": json.dumps(asked).encode()},
            limits=self._limits,
            collect=[_RESULTS],
        )
        values = returned(result.files_out.get(_RESULTS, b""))
        failed = [i for i, call in enumerate(calls) if i not in values or not same_value(call["expected"], values[i])]
        share = 1.0 - len(failed) / len(calls)
        evidence: dict[str, Any] = {"calls": len(calls), "failed": failed[:20], "rung": str(result.rung)}
        if result.killed_for is not None:
            evidence["killed_for"] = str(result.killed_for)
        return self.verdict(share if self._is_partial else float(not failed), evidence=evidence)


def _calls_of(task: Task) -> Sequence[Mapping[str, Any]] | None:
    calls = task.reference.get("calls")
    if not isinstance(calls, (list, tuple)) or not 0 < len(calls) <= MAX_CALLS:
        return None
    is_sound = all(isinstance(call, Mapping) and {"function", "arguments", "expected"} <= call.keys() for call in calls)
    return calls if is_sound else None


def returned(data: bytes) -> dict[int, Any]:
    """Values by call; whatever else the file holds is left out.

    >>> returned(b'{"call": 0, "value": 3}\\nrubbish\\\\n{"call": 1, "raised": "KeyError"}')
    {0: 3}
    """
    values: dict[int, Any] = {}
    for line in data.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("call"), int) and "value" in row:
            values.setdefault(row["call"], row["value"])
    return values


def same_value(expected: Any, value: Any) -> bool:
    """Whether two JSON values are equal; True is not 1, 1 is 1.0.

    >>> same_value([1, {"a": 0.1}], [1.0, {"a": 0.1 + 1e-12}]), same_value(1, True)
    (True, False)
    """
    if isinstance(expected, bool) or isinstance(value, bool):
        return expected is value
    if isinstance(expected, (int, float)) and isinstance(value, (int, float)):
        try:
            return expected == value or math.isclose(expected, value, rel_tol=1e-9, abs_tol=1e-12)
        except OverflowError:
            return False
    if isinstance(expected, (list, tuple)) and isinstance(value, list):
        return len(expected) == len(value) and all(map(same_value, expected, value))
    if isinstance(expected, Mapping) and isinstance(value, dict):
        return expected.keys() == value.keys() and all(same_value(expected[key], value[key]) for key in expected)
    return type(expected) is type(value) and bool(expected == value)
