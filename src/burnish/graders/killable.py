"""Rules that hand an answer to somebody else's code, in a process that can be killed."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from burnish.core.errors import ConfigError
from burnish.core.grade import Grade
from burnish.core.hashing import content_hash
from burnish.core.task import Task
from burnish.core.text import clean_text
from burnish.core.trajectory import Trajectory
from burnish.graders.isolation import START_TIMEOUT_S, Workers
from burnish.graders.rules import RuleGrader

WORKERS = 2
"""Processes of one grader at most; each starts when it is needed."""

REMEMBERED = 4096
"""Verdicts that one grader keeps: members of a group often answer alike."""


class Verdicts:
    """The latest verdicts by what was judged; failures are not among them."""

    def __init__(self, size: int = REMEMBERED) -> None:
        self._size = size
        self._found: OrderedDict[str, Mapping[str, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> Mapping[str, Any] | None:
        """A verdict, or None where there is none any more."""
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def put(self, key: str, found: Mapping[str, Any]) -> None:
        """Keep a verdict; the one that was not asked for longest makes room."""
        with self._lock:
            self._found[key] = found
            if len(self._found) > self._size:
                self._found.popitem(last=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KillableRule(RuleGrader):
    """Base of such rules: `function` is run with the `arguments` of a case, under `timeout_s`.

    The function ("module:name") returns {"score": ..., "cause": ..., "evidence": {...}}, all JSON-able; score None says
    that the task is to blame.  Where it gives nothing in time, WorkerFailure is raised for the boundary to arbitrate.
    """

    timeout_s: float = 5.0
    keeps_deadline = True
    function = ""
    preload = ""
    _workers: Workers = field(init=False, repr=False)
    _verdicts: Verdicts = field(init=False, repr=False, default_factory=Verdicts)

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s of grader {self.name} is above 0, got {self.timeout_s!r}")
        object.__setattr__(self, "_workers", Workers(self.preload, WORKERS))

    def arguments(self, task: Task, text: str) -> Mapping[str, Any] | None:
        """What the function is given, JSON-able; None where the task lacks what this rule needs."""
        raise NotImplementedError

    async def grade(self, task: Task, trajectory: Trajectory) -> Grade:
        """Judged in another process, without stalling this one."""
        early = self.unjudged(trajectory)
        if early is not None:
            return early
        return await asyncio.get_running_loop().run_in_executor(self._workers.threads, self.judge, task, trajectory)

    def decide(self, task: Task, text: str) -> Grade:
        arguments = self.arguments(task, clean_text(text))
        if arguments is None:
            return self.verdict(None, cause="task_cannot_be_judged", evidence={"reference": sorted(task.reference)})
        key = content_hash(arguments)
        found = self._verdicts.get(key)
        if found is None:
            found = self._workers.call(self.function, arguments, timeout_s=self.timeout_s)
            self._verdicts.put(key, found)
        cause = found.get("cause", "") or ("task_cannot_be_judged" if found["score"] is None else "")
        return self.verdict(found["score"], cause=cause, evidence=found.get("evidence", {}))

    @property
    def arbitration_s(self) -> float:
        """What a fresh process may take: it imports the library before it judges."""
        return START_TIMEOUT_S

    def close(self) -> None:
        """End the worker processes."""
        self._workers.close()


def require(name: str, package: str) -> None:
    """Raises ConfigError that says how to install an optional library, where it is missing; imports nothing."""
    if importlib.util.find_spec(name) is None:
        raise ConfigError(f"this grader needs {package}: pip install 'burnish[graders]'")


def verdict(score: float | None, cause: str = "", **evidence: Any) -> dict[str, Any]:
    """What the function of a killable rule returns.

    >>> verdict(0.0, "no_query", rows=3)
    {'score': 0.0, 'cause': 'no_query', 'evidence': {'rows': 3}}
    """
    return {"score": score, "cause": cause, "evidence": evidence}


def fenced(text: str, *languages: str) -> str:
    """The last fenced block of one of the languages (or of none), else the whole text.

    >>> fenced("Here:\\n```sql\\nSELECT 1\\n```\\ndone", "sql")
    'SELECT 1'
    """
    blocks: list[str] = []
    lines: list[str] | None = None
    for line in text.splitlines():
        mark = line.strip()
        if lines is not None and mark == "```":
            blocks.append("\n".join(lines))
            lines = None
        elif lines is not None:
            lines.append(line)
        elif mark.startswith("```") and mark[3:].strip().lower() in ("", *languages):
            lines = []
    return (blocks[-1] if blocks else text).strip()
