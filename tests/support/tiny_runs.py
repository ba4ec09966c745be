"""Whole runs that take seconds: their recipe, and what two runs must have in common to be the same run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import psutil

from burnish.loop.conductor import resume_run, start_run
from burnish.loop.config import Recipe
from burnish.loop.progress import Progress
from burnish.loop.recipes import apply_overrides, validate
from burnish.store.reader import RunReader
from burnish.store.rows import StoredTrajectory

__all__ = ["resume_run", "start_run"]

SUPPORT = Path(__file__).parent
SLEEPY, FAULTY = SUPPORT / "sleepy_env.py", SUPPORT / "faulty_env.py"

SFT_STEPS, RL_STEPS, GROUPS, GROUP_SIZE = 28, 6, 6, 4
BASE: dict[str, Any] = {
    "run": {"workers": 2, "in_process": True, "seed": 3},
    "environment": {"name": str(SLEEPY)},
    "model": {
        "tiny": {
            "hidden_size": 32,
            "layers": 1,
            "heads": 2,
            "intermediate_size": 64,
            "vocab_size": 320,
            "max_positions": 256,
        }
    },
    "limits": {"max_turns": 4, "max_turn_tokens": 8, "max_context_tokens": 200},
    "warm_start": {"steps": SFT_STEPS, "traces": 96, "batch_size": 16, "lr": 2e-2, "warmup_steps": 4},
    "rl": {"steps": RL_STEPS, "groups": GROUPS, "group_size": GROUP_SIZE, "lr": 1e-3},
    "evaluation": {"every": 3, "quick_tasks": 4, "tasks": 8},
    # Neither a multiple nor a divisor of the ten steps after which SFT commits its scalars.
    "checkpoint": {"every": 2, "every_sft": 12},
    "checks": {"every": 3},
}
"""26 tasks, 6 groups a step: step 5 goes over into the second epoch."""


HOSTED, UNHOSTED = "environment.isolation=process", "environment.isolation=none"


def in_its_place(overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides, and that episodes of the plain world live in the process that asks for them: hosts are a fifth of
    a tiny run's time, and a test says that they change nothing.  Another world has what is usual."""
    return tuple(overrides) if any(word.startswith("environment.") for word in overrides) else (UNHOSTED, *overrides)


def tiny_recipe(*overrides: str) -> Recipe:
    """The recipe above with `section.key=value` overrides."""
    return validate(apply_overrides(BASE, in_its_place(overrides)), source="test")


def command_words(*overrides: str) -> list[str]:
    """The recipe above as `section.key=value` words, for the command line."""

    def words(data: Mapping[str, Any], prefix: str) -> list[str]:
        found: list[str] = []
        for key, value in data.items():
            found += (
                words(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}={json.dumps(value)}"]
            )
        return found

    return [*words(BASE, ""), *in_its_place(overrides)]


def facts(folder: Path) -> dict[str, Any]:
    """Everything about a finished run that must not depend on how often it was interrupted.

    Scalars that are times or rates are left out; floats are compared by their bits.
    """
    reader = RunReader(folder)
    found: dict[str, Any] = {"status": reader.status().state}
    for info in reader.steps():
        key = f"{info.phase}/{info.step}"
        found[f"step {key}"] = (info.policy_version, info.n_trajectories, info.n_tokens)
        for name, value in reader.step_scalars(info.phase, info.step).items():
            if not name.startswith(("time/", "rate/")):
                found[f"scalar {key} {name}"] = value.hex()
        for row in reader.trajectories(info.phase, info.step):
            found[f"trajectory {row.trajectory.id}"] = trajectory_facts(row)
    for row in reader.evaluations():
        found[f"evaluation {row.label} {row.split} {row.mode}"] = json.dumps(astuple(row), sort_keys=True)
    final = reader.layout.checkpoints / "final"
    for path in sorted(final.iterdir()):
        # Nothing in a run draws from the global generators, whose state is that of the process.
        if path.name not in ("manifest.json", "random.json"):
            found[f"final {path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def trajectory_facts(row: StoredTrajectory) -> tuple[Any, ...]:
    """Tokens, log-probabilities, messages and judgement of one trajectory; no wall time."""
    trajectory = row.trajectory
    nodes = [
        (node.parent, node.fork, node.token_ids.tobytes(), node.logprobs.tobytes(), node.versions.tobytes())
        for node in trajectory.nodes
    ]
    grades = [(grade.grader, grade.score, grade.cause) for grade in row.grades]
    judged = (row.fate, row.reward, row.advantage, row.policy_version, grades)
    ended = (trajectory.outcome.label, trajectory.answer, dict(trajectory.counters), trajectory.seed)
    return (nodes, trajectory.messages, judged, ended)


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Names of facts that two runs do not share; empty for the same run."""
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))


class StopAt:
    """A watcher that asks for a stop, as the first Ctrl-C does, when a phase reaches a step."""

    def __init__(self, phase: str, step: int) -> None:
        self._phase, self._step = phase, step
        self._asked = False

    def watch(self, progress: Progress) -> None:
        self._asked |= (progress.phase, progress.step) == (self._phase, self._step)

    def stop(self) -> bool:
        return self._asked


def accounting_problems(folder: Path) -> list[str]:
    """Steps in which dispatched = trained + filtered + dropped + failed does not hold, by scalars and by rows."""
    reader, problems = RunReader(folder), []
    for info in reader.steps("rl"):
        scalars = reader.step_scalars("rl", info.step)
        fates = [row.fate.value for row in reader.trajectories("rl", info.step)]
        for fate in ("trained", "filtered", "dropped", "failed"):
            if scalars[f"episodes/{fate}"] != fates.count(fate):
                problems.append(
                    f"step {info.step}: {scalars[f'episodes/{fate}']:g} {fate}, rows say {fates.count(fate)}"
                )
        parts = sum(scalars[f"episodes/{fate}"] for fate in ("trained", "filtered", "dropped", "failed"))
        if not scalars["episodes/dispatched"] == parts == len(fates):
            problems.append(f"step {info.step}: {scalars['episodes/dispatched']:g} dispatched, {parts:g} accounted for")
    return problems


def workers_of(pid: int) -> list[psutil.Process]:
    """The worker processes of a main process; neither its helpers nor the hosts of environments."""
    helpers = ("resource_tracker", "sys.path[:] = json.loads")
    server = "multiprocessing.forkserver"
    found = []
    for one in descendants(pid):
        words = " ".join(one.cmdline())
        # What the fork server has forked goes by its name.
        is_server = server in words and one.ppid() == pid
        if not is_server and not any(helper in words for helper in helpers):
            found.append(one)
    return found


def descendants(pid: int) -> list[psutil.Process]:
    """All processes below `pid`."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def alive(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; one that only waits to be reaped does not."""
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def orphans_after(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those of `processes` that still run after at most `seconds`; they are killed, so that no test leaves any."""
    end_s = time.monotonic() + seconds
    while (left := alive(processes)) and time.monotonic() < end_s:
        time.sleep(0.01)
    for process in left:
        process.kill()
    return left


def asynchronous_problems(folder: Path) -> list[str]:
    """Where dispatched = trained + filtered + dropped + failed + pending does not hold, over all steps so far, or where
    pending episodes are left at the end of a finished run."""
    reader, problems = RunReader(folder), []
    dispatched = accounted = 0.0
    scalars: dict[str, float] = {}
    for info in reader.steps("rl"):
        scalars = reader.step_scalars("rl", info.step)
        fates = [row.fate.value for row in reader.trajectories("rl", info.step)]
        dispatched += scalars["episodes/dispatched"]
        accounted += sum(scalars[f"episodes/{fate}"] for fate in ("trained", "filtered", "dropped", "failed"))
        if dispatched != accounted + scalars["episodes/pending"]:
            problems.append(f"step {info.step}: {dispatched:g} dispatched, {accounted:g} accounted for")
        for fate in ("trained", "filtered", "failed"):
            if scalars[f"episodes/{fate}"] != fates.count(fate):
                problems.append(f"step {info.step}: {scalars[f'episodes/{fate}']:g} {fate}, rows {fates.count(fate)}")
        without_rows = scalars["dropped/surplus"] + scalars["dropped/cancelled"]
        if scalars["episodes/dropped"] != fates.count("dropped") + without_rows:
            problems.append(f"step {info.step}: {scalars['episodes/dropped']:g} dropped, rows {fates.count('dropped')}")
    if scalars.get("episodes/pending"):
        problems.append(f"{scalars['episodes/pending']:g} pending at the end")
    return problems
