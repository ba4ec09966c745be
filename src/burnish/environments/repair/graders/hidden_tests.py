"""Hidden unit tests, run on the agent's source files in a world that the agent never saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from burnish.core.grade import Grade, unanswered
from burnish.core.sandbox import Rung, Sandbox
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.environments.repair.grading import Defences, judge
from burnish.environments.repair.repository import load_repository, repository_names
from burnish.environments.repair.rooms import shared_sandbox
from burnish.sandbox.ladder import SandboxSpec

_NAMED = 20


@dataclass(frozen=True, kw_only=True)
class HiddenTestsGrader:
    """1 where every hidden test of the repository passes, those of the bug and those that passed before.

    rung, unsafe: as of the environment.  sandbox: one that is open already.  clean_world, values_outside, nonce:
    see `grading.Defences`.
    """

    rung: str = ""
    unsafe: bool = False
    clean_world: bool = True
    values_outside: bool = True
    nonce: bool = True
    sandbox: Sandbox | None = None
    name = "tests"
    version = "1"

    async def grade(self, task: Task, trajectory: Trajectory) -> Grade:
        """The verdict.  Raises SandboxError where the sandbox failed."""
        if undone := unanswered(trajectory.outcome):
            return self._verdict(undone[0], cause=undone[1])
        name, bug = str(task.reference.get("repository", "")), str(task.reference.get("bug", ""))
        if name not in repository_names() or bug not in load_repository(name).bugs:
            return self._verdict(None, cause="task_cannot_be_judged", evidence={"reference": sorted(task.reference)})
        state = trajectory.final_state
        if "files" not in state:
            return self._verdict(None, cause="no_state_reported", evidence={"keys": sorted(state)})
        if not state["files"] and not state.get("removed"):
            return self._verdict(0.0, evidence={"problem": "nothing was changed"})
        return await self._judged(name, bug, task, state)

    async def _judged(self, name: str, bug: str, task: Task, state: Mapping[str, Any]) -> Grade:
        repository = load_repository(name)
        spec = SandboxSpec(rung=Rung(self.rung) if self.rung else None, unsafe=self.unsafe)
        sandbox = self.sandbox or await shared_sandbox(spec)
        defences = Defences(clean_world=self.clean_world, values_outside=self.values_outside, nonce=self.nonce)
        verdict = await judge(sandbox, repository, repository.bugs[bug], state, defences, reference=task.reference)
        evidence: dict[str, Any] = {"tests": verdict.n_tests, "rung": verdict.rung}
        if verdict.failed:
            evidence |= {"failed": list(verdict.failed[:_NAMED]), "n_failed": len(verdict.failed)}
        if verdict.forged:
            evidence["problem"] = "rows of results that this run did not ask for"
        if verdict.killed_for:
            evidence["killed_for"] = verdict.killed_for
        return self._verdict(float(not verdict.failed), evidence=evidence)

    def _verdict(self, score: float | None, *, cause: str = "", evidence: Mapping[str, Any] | None = None) -> Grade:
        return Grade(grader=self.name, version=self.version, score=score, cause=cause, evidence=evidence or {})
