"""Which runs the benchmark needs, and running those that are missing, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from burnish.core.hashing import content_hash
from fault_runs.cache import SUFFIX, Replay, RunSpec, read_replay
from fault_runs.catalogue import CONTROLS, FAULTS, HARD, chosen_dose, read_doses

TUNING_FROM = 100
HARD_STEPS = 3
POLL_S = 0.2
LONG_WORDS = ("evaluation.every=50", "checkpoint.every=1000")
"""Of a long control: few evaluations, which say whether it is still healthy, and nothing to go back to."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the runs have in common.

    onset: last healthy step of a fault run.  steps: last RL step of all runs, but for the controls that `control_steps`
    names (`tuning_control_steps` on the tuning half): those go on to steps of their own, since all that they are asked
    for is healthy steps.  every, tasks: held-out evaluations, the same tasks each time.  words: more overrides of the
    recipe.  rl_words: those of runs that begin from the warm start, which they do not change.  act_words: switch the
    ladder on.
    """

    data: Path
    recipe: str = "long"
    onset: int = 100
    steps: int = 200
    every: int = 10
    tasks: int = 150
    words: tuple[str, ...] = ()
    rl_words: tuple[str, ...] = ()
    act_words: tuple[str, ...] = ("control.mode=act",)
    control_steps: Mapping[str, int] = field(default_factory=dict)
    tuning_control_steps: Mapping[str, int] = field(default_factory=dict)

    @property
    def common(self) -> tuple[str, ...]:
        return (
            *self.words,
            f"evaluation.every={self.every}",
            f"evaluation.tasks={self.tasks}",
            f"evaluation.quick_tasks={self.tasks}",
            'evaluation.modes=["greedy"]',
            "evaluation.before=false",
            f"checkpoint.every={self.every}",
            "checkpoint.keep=1000",
            "stop.no_signal_groups=0",
            "health.on=true",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run and where its replay lies; `needs` must be there before."""

    spec: RunSpec
    target: Path
    needs: tuple[Job, ...] = ()

    @property
    def done(self) -> bool:
        return self.target.exists()


@dataclass(slots=True, kw_only=True)
class Planner:
    """Makes jobs; the same request gives the same file."""

    setting: Setting
    made: dict[Path, Job] = field(default_factory=dict)

    def warm(self, seed: int) -> Job:
        """The imitation that both all runs of one half start from."""
        half = TUNING_FROM if seed >= TUNING_FROM else 0
        return self._job(RunSpec(arm="warm", seed=half, recipe=self.setting.recipe, words=self.setting.common))

    def twin(self, seed: int) -> Job:
        """The healthy run of a seed."""
        setting = self.setting
        spec = RunSpec(arm="twin", seed=seed, steps=setting.steps, words=setting.rl_words)
        return self._fork(spec, self.warm(seed), "rl-000000")

    def changed(self, arm: str, kind: str, seed: int, dose: float, words: tuple[str, ...] = ()) -> Job:
        """A run that leaves its twin after the onset."""
        setting = self.setting
        steps = setting.onset + HARD_STEPS if arm == "hard" else setting.steps
        long = setting.tuning_control_steps if seed >= TUNING_FROM else setting.control_steps
        if arm == "control" and kind in long:
            steps, words = long[kind], (*words, *LONG_WORDS)
        words = (*words, *setting.act_words) if arm == "act" else words
        spec = RunSpec(arm=arm, kind=kind, seed=seed, dose=dose, onset=setting.onset, steps=steps, words=words)
        return self._fork(spec, self.twin(seed), f"rl-{setting.onset:06d}")

    def whole(self, arm: str, kind: str, seed: int, dose: float, words: tuple[str, ...] = ()) -> Job:
        """A run that is changed from its first RL step on."""
        words = (*self.setting.rl_words, *words)
        spec = RunSpec(arm=arm, kind=kind, seed=seed, dose=dose, steps=self.setting.steps, words=words)
        return self._fork(spec, self.warm(seed), "rl-000000")

    def _fork(self, spec: RunSpec, parent: Job, checkpoint: str) -> Job:
        folder = parent.target.with_suffix("")
        return self._job(replace(spec, parent=str(folder), checkpoint=checkpoint), (parent,))

    def _job(self, spec: RunSpec, needs: tuple[Job, ...] = ()) -> Job:
        half = "tuning" if spec.seed >= TUNING_FROM else "reported"
        key = content_hash([spec.to_json(), self.setting.recipe, *self.setting.common])[:8]
        target = self.setting.data / half / f"{spec.name}-{key}{SUFFIX}"
        return self.made.setdefault(target, Job(spec=spec, target=target, needs=needs))


def wanted_jobs(planner: Planner, seeds: Sequence[int], kinds: Sequence[str], act_seeds: Sequence[int]) -> list[Job]:
    """Twins, faults at their doses, controls and hard faults of these seeds; acting runs of the repairable ones."""
    doses = read_doses()
    jobs = []
    for seed in seeds:
        jobs += [planner.warm(seed), planner.twin(seed)]
        for arm, catalogue in (("fault", FAULTS), ("control", CONTROLS), ("hard", HARD)):
            hard_enough = arm != "hard" or seed in seeds[:2]
            for kind in catalogue:
                if kind in kinds and hard_enough:
                    jobs.append(planner.changed(arm, kind, seed, chosen_dose(kind, doses)))
        if seed in act_seeds:
            jobs += [
                planner.changed("act", kind, seed, chosen_dose(kind, doses))
                for kind, fault in FAULTS.items()
                if kind in kinds and fault.repairable
            ]
            jobs.append(planner.changed("act", "", seed, 0.0))
    return list(dict.fromkeys(jobs))


def run_jobs(jobs: Sequence[Job], workers: int, say: Say) -> list[Job]:
    """Run what is missing, parents first, at most `workers` at a time; returns those that failed."""
    waiting = [job for job in _with_needs(jobs) if not job.done]
    running: dict[subprocess.Popen[bytes], tuple[Job, float]] = {}
    failed: list[Job] = []
    total, started_s = len(waiting), time.monotonic()
    while waiting or running:
        for job in [job for job in waiting if any(need in failed for need in job.needs)]:
            waiting.remove(job)
            failed.append(job)
        for job in [job for job in waiting if all(need.done for need in job.needs)][: workers - len(running)]:
            waiting.remove(job)
            running[_start(job)] = (job, time.monotonic())
        for process in [process for process in running if process.poll() is not None]:
            job, since_s = running.pop(process)
            if not job.done:
                failed.append(job)
            left = len(waiting) + len(running)
            rate_s = (time.monotonic() - started_s) / max(1, total - left)
            how = "ok" if job.done else f"FAILED, see {job.target.with_suffix('.log')}"
            say(
                f"{job.spec.name}: {how}, {time.monotonic() - since_s:.0f} s; {left} left, {left * rate_s / 60:.0f} min"
            )
        time.sleep(POLL_S)
    return failed


def replays(jobs: Sequence[Job]) -> list[Replay]:
    """Those that are there."""
    return [read_replay(job.target) for job in jobs if job.done]


def _with_needs(jobs: Sequence[Job]) -> list[Job]:
    ordered: dict[Path, Job] = {}

    def add(job: Job) -> None:
        for need in job.needs:
            add(need)
        ordered.setdefault(job.target, job)

    for job in jobs:
        add(job)
    return list(ordered.values())


def _start(job: Job) -> subprocess.Popen[bytes]:
    job.target.parent.mkdir(parents=True, exist_ok=True)
    order = job.target.with_suffix(".json")
    order.write_text(job.spec.to_json(), encoding="utf-8")
    here = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    with job.target.with_suffix(".log").open("wb") as log:
        command = [sys.executable, "-m", "fault_runs.one", str(order), str(job.target)]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
