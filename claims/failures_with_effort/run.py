"""Failures that come with effort: left out of the group, or counted as 0; see claim.md.

python claims/failures_with_effort/run.py [--quick] [--seeds N] [--data DIR] [--workers N]

One warm start and five short RL runs for each seed; runs that are there already are read.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import Reading, run_claim
from scene_runs.made import burnish

from burnish.stats.intervals import mean_interval
from burnish.store.reader import RunReader
from burnish.store.rows import Fate

HERE = Path(__file__).resolve().parent
WITHIN, LOWER = 0.05, 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """An arm starts so many episodes for a task that about 8 of them keep a reward, and may take so many steps."""

    group_size: int
    steps: int


ARMS = {
    "fault_free": Arm(group_size=8, steps=60),
    "masked": Arm(group_size=20, steps=84),
    "zero": Arm(group_size=8, steps=60),
    "masked_independent": Arm(group_size=16, steps=68),
    "zero_independent": Arm(group_size=8, steps=60),
}
REFERENCE = "fault_free"
QUICK_START = ("warm_start.steps=5", "warm_start.traces=64", "evaluation.tasks=8")
QUICK_ARM = ("rl.steps=2", "rl.groups=4", "evaluation.every=2", "evaluation.quick_tasks=8", "evaluation.tasks=8")

Figures = dict[str, float]
"""success: held-out, sampled, at the first evaluation by which the arm had trained on as many trajectories as the
fault-free one; looked: share of the training episodes of the 4 steps before that did the full job; step, trained."""


def warm_start(seed: int, data: Path, words: tuple[str, ...] = ()) -> Path:
    """What all arms of a seed start from."""
    environment = f"environment.name={HERE / 'effort.py'}:Shelves"
    graders = f"graders.file={HERE / REFERENCE}.toml"
    return burnish(
        ["train", str(HERE / "recipe.toml"), environment, graders, f"run.seed={seed}", *words], data / f"warm-{seed}"
    )


def train(name: str, start: Path, seed: int, words: tuple[str, ...] = ()) -> Path:
    """An arm's run of RL from the warm start of its seed."""
    arm = ARMS[name]
    keys = [f"graders.file={HERE / name}.toml", f"rl.steps={arm.steps}", f"rl.group_size={arm.group_size}", *words]
    return burnish(["fork", str(start), *keys], start.parent / f"{name}-{seed}")


def trained_by_step(reader: RunReader) -> dict[int, int]:
    """Trajectories trained on up to and with each step."""
    total, found = 0, {}
    for info in reader.steps("rl"):
        total += sum(row.fate is Fate.TRAINED for row in reader.trajectories("rl", info.step))
        found[info.step] = total
    return found


def figures_of(folder: Path, enough: int) -> Figures:
    """What the arm had come to when it had trained on `enough` trajectories; 0: at its end."""
    reader = RunReader(folder)
    trained = trained_by_step(reader)
    wanted = enough or max(trained.values())
    by_step = {row.step: row.mean for row in reader.evaluations() if row.phase == "rl" and row.split == "heldout"}
    steps = [step for step in sorted(by_step) if trained.get(step, 0) >= wanted]
    if not steps:
        raise SystemExit(f"{folder} trained on {max(trained.values())} trajectories, fewer than {wanted}; more steps")
    step = steps[0]
    rows = [row for at in range(max(1, step - 3), step + 1) for row in reader.trajectories("rl", at)]
    looked = statistics.fmean(any(grade.evidence.get("looked") for grade in row.grades) for row in rows)
    return {"success": by_step[step], "looked": looked, "step": step, "trained": trained[step]}


def reading(arms: dict[str, list[Figures]]) -> Reading:
    """The figures, the paired differences to the fault-free runs, and the verdict that the criterion gives."""
    rows, gaps = [], {}
    for name, found in arms.items():
        success = " ".join(f"{one['success']:.3f}" for one in found)
        looked = statistics.fmean(one["looked"] for one in found)
        rows.append((f"{name}: success; looked", f"{success}; {looked:.2f}"))
    for name, found in arms.items():
        if name != REFERENCE:
            pairs = zip(found, arms[REFERENCE], strict=True)
            gap = mean_interval([one["success"] - other["success"] for one, other in pairs])
            gaps[name] = {"mean": gap.mean, "low": gap.low, "high": gap.high}
            rows.append((f"{name} - {REFERENCE}", f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"))
    masked, zero = gaps["masked"]["mean"], gaps["zero"]["mean"]
    if abs(masked) <= WITHIN and zero <= -LOWER:
        verdict = "reproduced"
    elif masked < -LOWER or zero > -WITHIN:
        verdict = "not reproduced"
    else:
        verdict = "mixed"
    return Reading(figures={"arms": arms, "gaps": gaps}, verdict=verdict, rows=rows)


def quick() -> Reading:
    """Two small steps of the masked arm, read as if they were all of them; they decide nothing."""
    with tempfile.TemporaryDirectory() as folder:
        start = warm_start(0, Path(folder), QUICK_START)
        found = figures_of(train("masked", start, 0, QUICK_ARM), 0)
    read = reading({name: [found, found] for name in ARMS})
    return Reading(figures=read.figures, rows=read.rows)


def full(options: Any) -> Reading:
    data = options.data / "failures_with_effort"
    seeds = range(options.seeds)
    with ThreadPoolExecutor(options.workers) as pool:
        starts = list(pool.map(lambda seed: warm_start(seed, data), seeds))
        jobs = [(name, seed) for name in ARMS for seed in seeds]
        made = pool.map(lambda job: train(job[0], starts[job[1]], job[1]), jobs)
        folders = dict(zip(jobs, made, strict=True))
    enough = {seed: int(figures_of(folders[REFERENCE, seed], 0)["trained"]) for seed in seeds}
    return reading({name: [figures_of(folders[name, seed], enough[seed]) for seed in seeds] for name in ARMS})


if __name__ == "__main__":
    sys.exit(run_claim("failures_with_effort", __doc__, quick, full))
