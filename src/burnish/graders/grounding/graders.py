"""The verifier as graders: one for each component, and one for the whole reward, all from the same record.

[aggregator]
kind = "gated"

[graders.answer]
use = "grounded_answer"
[graders.format]
use = "grounded_format"
[graders.spatial]
use = "grounded_spatial"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from burnish.core.errors import TaskError
from burnish.core.grade import Grade
from burnish.core.message import Role
from burnish.core.outcome import Ending
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.graders.gated import NOT_APPLICABLE, GateSpec
from burnish.graders.grounding.result import Component, Status
from burnish.graders.grounding.verifier import Record, Verifier
from burnish.graders.rules import RuleGrader

_KEPT = 1024


class _Records:
    """The latest records: the graders of a graph ask for the same one after another."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Record] = {}

    def of(self, verifier: Verifier, task: Task, response: str) -> Record:
        key = (task.content_hash, response)
        record = self._found.pop(key, None) or verifier.verify(task, response)
        self._found[key] = record
        if len(self._found) > _KEPT:
            del self._found[next(iter(self._found))]
        return record


_SHARED = _Records()
_DEFAULT = Verifier()


def response_of(trajectory: Trajectory) -> str:
    """The policy's last turn with its thinking, which `answer` leaves out; the answer where no turn is recorded."""
    turns = [message for message in trajectory.messages if message.role is Role.ASSISTANT]
    return turns[-1].text if turns else trajectory.answer


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundedGrader(RuleGrader):
    """A component of the verifier's record as a grade; `component = "reward"` is the gated reward over its largest
    value, for use without a graph; tau, bonus and w_format are its constants.

    A component that the task does not ask for has no score and the cause "not_applicable"; one whose tool failed has
    the cause "tool_<status>".  verifier: one with detectors; default without any.
    """

    component: str = "reward"
    tau: float = 1.0
    bonus: float = 0.5
    w_format: float = 0.1
    verifier: Verifier | None = None
    name: str = field(init=False, default="grounded")
    _records: _Records = field(default_factory=_Records, repr=False, compare=False)

    def __post_init__(self) -> None:
        known = ["reward", *Component]
        if self.component not in known:
            raise ValueError(f"component is one of {', '.join(known)}, got {self.component!r}")
        name = "grounded" if self.component == "reward" else f"grounded_{self.component}"
        object.__setattr__(self, "name", name)
        _ = self.gate

    @property
    def gate(self) -> GateSpec:
        """The constants of the whole reward."""
        return GateSpec(tau=self.tau, bonus=self.bonus, w_format=self.w_format)

    def judge(self, task: Task, trajectory: Trajectory) -> Grade:
        outcome = trajectory.outcome
        if not outcome.may_carry_reward:
            return self.verdict(None, cause=f"excluded:{outcome.label}")
        records = _SHARED if self.verifier is None else self._records
        try:
            record = records.of(self.verifier or _DEFAULT, task, response_of(trajectory))
        except TaskError as error:
            return self.verdict(None, cause="task_cannot_be_judged", evidence={"problem": str(error)[:300]})
        if outcome.ending is not Ending.COMPLETED:
            asked = self.component == "reward" or record.component(Component(self.component))[0] is not None
            return self.verdict(0.0 if asked else None, cause=f"not_completed:{outcome.label}")
        return self._of(record)

    def _of(self, record: Record) -> Grade:
        evidence: Mapping[str, Any] = record.to_json()
        if self.component == "reward":
            reward = record.reward(self.gate)
            if reward is None:
                return self.verdict(None, cause="answer_not_judged", evidence=evidence)
            return self.verdict(reward / self.gate.largest(record.grounding is not None), evidence=evidence)
        score, _ = record.component(Component(self.component))
        if score is not None:
            return self.verdict(score, evidence=evidence)
        failed = [r for r in record.results if r.component == self.component and r.status is not Status.OK]
        cause = f"tool_{failed[0].status}" if failed else NOT_APPLICABLE
        return self.verdict(None, cause=cause, evidence=evidence)
