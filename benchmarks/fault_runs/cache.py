"""What is kept of a run, so that detectors can be run again without it: one file, a few kilobytes a step."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from burnish.health.sums import HealthSums

SUFFIX = ".steps"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One run of the benchmark.

    arm: "warm", "twin", "fault", "control", "hard" (a fault that an invariant should catch) or "act" (a fault with the
    ladder on).  kind: name in the catalogue, "" for none.  onset: last step before anything changes.  steps: last RL
    step.  words: overrides of the recipe.  parent: folder that it is forked from, "" for a warm start.  checkpoint: of
    the parent.

    `RunSpec(arm="fault", kind="stale", seed=0, dose=16.0, onset=100, steps=200)`
    """

    arm: str
    kind: str = ""
    seed: int = 0
    dose: float = 0.0
    onset: int = 0
    steps: int = 0
    recipe: str = ""
    words: tuple[str, ...] = ()
    parent: str = ""
    checkpoint: str = ""

    @property
    def name(self) -> str:
        """Such as "fault-stale-16-seed0"."""
        parts = [self.arm, self.kind, f"{self.dose:g}" if self.kind else "", f"seed{self.seed}"]
        return "-".join(part for part in parts if part)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> RunSpec:
        data = json.loads(text)
        return RunSpec(**{**data, "words": tuple(data["words"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class StepData:
    """One step.  packed: `HealthSums.to_bytes()`, compressed, since they are mostly zeros.  plain: see `plain_scalars`.
    stored: the step's scalars in the run.
    """

    step: int
    packed: bytes
    plain: Mapping[str, float]
    stored: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def of(step: int, sums: HealthSums, plain: Mapping[str, float]) -> StepData:
        """From what health made of a step."""
        return StepData(step=step, packed=zlib.compress(sums.to_bytes(), 6), plain=plain)

    def sums(self) -> HealthSums:
        """What health made of the step."""
        return HealthSums.from_bytes(zlib.decompress(self.packed))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Held-out success in [0, 1] after `step`, over `n` tasks.  label: "quick", or "end" for the last, larger one."""

    step: int
    success: float
    n: int
    label: str = "quick"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A whole run.  names: `SliceNames.to_dict()`.  ended: "finished", or why it stopped before its last step.
    seconds: of its process."""

    spec: RunSpec
    names: Mapping[str, Any]
    steps: Sequence[StepData]
    evaluations: Sequence[Evaluation]
    ended: str = "finished"
    seconds: float = 0.0

    @property
    def last(self) -> int:
        """The last step there is; the onset where there is none."""
        return self.steps[-1].step if self.steps else self.spec.onset

    def success_at_end(self) -> float:
        """Of the larger evaluation at the end, or the last quick one; 0 where the run died before any."""
        return self.evaluations[-1].success if self.evaluations else 0.0

    def after(self, twin: Replay) -> Replay:
        """This run with the steps and evaluations of `twin` up to the onset in front: what one process would have
        seen."""
        onset = self.spec.onset
        return Replay(
            spec=self.spec,
            names=self.names,
            steps=[*(s for s in twin.steps if s.step <= onset), *(s for s in self.steps if s.step > onset)],
            evaluations=[*(e for e in twin.evaluations if e.step <= onset), *self.evaluations],
            ended=self.ended,
            seconds=self.seconds,
        )


def write_replay(replay: Replay, path: Path) -> None:
    """Write all or nothing."""
    head = {
        "spec": asdict(replay.spec),
        "names": dict(replay.names),
        "evaluations": [asdict(item) for item in replay.evaluations],
        "ended": replay.ended,
        "seconds": replay.seconds,
        "steps": [{"step": s.step, "plain": dict(s.plain), "stored": dict(s.stored)} for s in replay.steps],
    }
    partial = path.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w") as archive:
        archive.writestr("run.json", json.dumps(head))
        for item in replay.steps:
            archive.writestr(f"sums/{item.step:06d}", item.packed)
    partial.replace(path)


def read_replay(path: Path) -> Replay:
    """Back from `write_replay`."""
    with zipfile.ZipFile(path) as archive:
        head = json.loads(archive.read("run.json"))
        steps = [StepData(packed=archive.read(f"sums/{item['step']:06d}"), **item) for item in head["steps"]]
    spec = RunSpec(**{**head["spec"], "words": tuple(head["spec"]["words"])})
    return Replay(
        spec=spec,
        names=head["names"],
        steps=steps,
        evaluations=[Evaluation(**item) for item in head["evaluations"]],
        ended=head["ended"],
        seconds=head["seconds"],
    )
