"""A watch and a ladder that do what a test says, in place of the real ones: what they decide is not what is tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from burnish.control.outcome import OutcomeContrast
from burnish.control.rollback import CheckpointMark
from burnish.control.spec import LadderSpec
from burnish.core.finding import Decision, Finding
from burnish.health.sums import HealthSums
from burnish.health.watch import Observation, WatchSpec


class ScriptedWatch:
    """Counts steps and trained trajectories, and finds something in the steps of `findings`."""

    findings: tuple[int, ...] = ()

    def __init__(self, spec: WatchSpec) -> None:
        self.steps = 0
        self.trained = 0.0

    def step(self, step: int, sums: HealthSums, extra: Mapping[str, float] | None = None) -> Observation:
        self.steps += 1
        rows = sums.trajectories
        self.trained += sum(row.trained for row in rows)
        scalars = {
            "health/steps": float(self.steps),
            "health/trained_total": self.trained,
            "health/rows": float(len(rows)),
            "health/square": sum(row.square or 0.0 for row in rows),
        }
        found = [
            Finding(monitor="scripted", step=step, summary=f"found in step {step}", onset_step=step - 1)
            for wanted in self.findings
            if wanted == step
        ]
        return Observation(scalars=scalars, findings=tuple(found))

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "trained": self.trained}

    @classmethod
    def restore(cls, spec: WatchSpec, state: Mapping[str, Any]) -> ScriptedWatch:
        watch = cls(spec)
        watch.steps, watch.trained = state["steps"], state["trained"]
        return watch


class ScriptedLadder:
    """Decides what `script` says for the n-th call, once; remembers only how often it was called."""

    script: ClassVar[Mapping[int, Sequence[Decision]]] = {}
    heard: ClassVar[list[tuple[int, OutcomeContrast, tuple[CheckpointMark, ...], int]]] = []
    is_well = True

    def __init__(self, spec: LadderSpec) -> None:
        self.spec = spec
        self.calls = 0

    def decide(
        self,
        step: int,
        scalars: Mapping[str, float],
        findings: Sequence[Finding],
        outcome: OutcomeContrast,
        *,
        checkpoints: Sequence[CheckpointMark] = (),
        reservoir_groups: int = 0,
    ) -> tuple[Decision, ...]:
        self.calls += 1
        self.heard.append((step, outcome, tuple(checkpoints), reservoir_groups))
        return tuple(self.script.get(self.calls, ()))

    def state(self) -> dict[str, Any]:
        return {"calls": self.calls}

    @classmethod
    def restore(cls, spec: LadderSpec, state: Mapping[str, Any]) -> ScriptedLadder:
        ladder = cls(spec)
        ladder.calls = state["calls"]
        return ladder
