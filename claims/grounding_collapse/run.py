"""Grounding collapses under outcome rewards where the wording gives answers away, and not behind a gate: see claim.md.

python claims/grounding_collapse/run.py [--quick] [--seeds N] [--data DIR] [--workers N]

Five runs for each seed, one warm start and four arms of RL from it; runs that are there already are read.
"""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import Reading, run_claim
from scene_runs.made import QUICK, QUICK_RL, RL, burnish, warm
from scipy.stats import t as student_t

from burnish.core.grade import Grade
from burnish.core.hashing import derive_seed
from burnish.core.sampling import SamplingParams
from burnish.core.task import Task
from burnish.environments.scenes.causal import counterfactual
from burnish.evaluation.ablation import image_ablation
from burnish.graders.evidence.parse import parse
from burnish.graders.grounding.causal import Probe, causal_score
from burnish.graders.grounding.graders import response_of
from burnish.graders.grounding.spec import GroundingSpec
from burnish.graders.rules import normalised
from burnish.loop.grading import open_world
from burnish.loop.standalone import Subject, run_subject
from burnish.loop.worlds import World
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.runner import run_episodes
from burnish.store.reader import RunReader
from burnish.store.rows import StoredTrajectory

HERE = Path(__file__).resolve().parent
REWARDS = ("outcome", "gated")
SHORTCUTS = {"plain": 0.0, "shortcuts": 0.9}
ARMS = tuple((reward, words) for words in SHORTCUTS for reward in REWARDS)
PROBED = 300
ABLATED = 300
WITHIN = 0.02
LAST_STEPS = 10
Figures = dict[str, float]


def arm(reward: str, words: str, seed: int, data: Path, more: Sequence[str] = ()) -> Path:
    """RL from the warm start of a seed.  more: settings in place of `RL`."""
    folder = data / "runs" / f"{words}-{reward}-{seed}"
    keys = [f"graders.file={HERE / reward}.toml", *(more or RL)]
    keys.append(f"environment.options.shortcuts={SHORTCUTS[words]}")
    return burnish(["fork", str(folder.with_name(f"warm-{seed}")), *keys], folder)


# -- what is read --------------------------------------------------------------------------------------------------


def is_citing(task: Task, response: str) -> bool:
    """Whether a response points at anything at all."""
    return bool(parse(response, GroundingSpec.of(task).parsing).points)


def scores(rows: Sequence[StoredTrajectory], tasks: Mapping[str, Task]) -> Figures:
    """Accuracy, grounding and citing of stored episodes; an episode without a score of evidence counts 0."""
    right, grounding, given, cited = [], [], [], []
    for row in rows:
        by_name = {grade.grader: grade for grade in row.grades}
        right.append(_score(by_name["answer"]))
        grounding.append(_score(by_name["spatial"]))
        cited.append(is_citing(tasks[row.trajectory.task_id], response_of(row.trajectory)))
        if cited[-1]:
            given.append(grounding[-1])
    return {
        "accuracy": statistics.fmean(right),
        "grounding": statistics.fmean(grounding),
        "citing": statistics.fmean(cited),
        "grounding_given_cited": statistics.fmean(given) if given else math.nan,
        "n": float(len(rows)),
    }


def _score(grade: Grade) -> float:
    return grade.score or 0.0


def figures_of(folder: Path, label: str) -> Figures:
    """Held-out figures of a run's end, its training reward, and the causal score of its policy."""
    kept = folder / "figures.json"
    if kept.exists():
        found: Figures = json.loads(kept.read_text(encoding="utf-8"))
        return found
    reader, subject = RunReader(folder), run_subject(folder)
    world = open_world(subject.recipe)
    tasks = world.tasks("heldout")
    stored = dict(zip([row.label for row in reader.evaluations()], reader.steps("eval"), strict=True))
    rows = reader.trajectories("eval", stored[label].step)
    figures = scores(rows, {task.id: task for task in tasks})
    steps = [info.step for info in reader.steps("rl")][-LAST_STEPS:]
    if steps:
        trained = [row for step in steps for row in reader.trajectories("rl", step)]
        answers = [_score(grade) for row in trained for grade in row.grades if grade.grader == "answer"]
        figures["training_accuracy"] = statistics.fmean(answers)
    figures |= causal(subject, world, tasks[:PROBED])
    if label == "after_sft":
        figures |= blinded(subject, world)
    kept.write_text(json.dumps(figures), encoding="utf-8")
    return figures


def causal(subject: Subject, world: World, tasks: Sequence[Task]) -> Figures:
    """Greedy answers to tasks and to their changed versions."""
    triples = []
    for task in tasks:
        changed = counterfactual(task, Random(derive_seed("causal", task.id)))
        if changed is not None:
            triples.append((task, changed.target, changed.control))
    said = answers(subject, world, [task for triple in triples for task in triple])
    probes = [
        Probe(
            original=said[at],
            target=said[at + 1],
            target_truth=str(target.reference["answer"]),
            control=said[at + 2],
            was_right=normalised(said[at]) == normalised(str(task.reference["answer"])),
        )
        for at, (task, target, _) in zip(range(0, len(said), 3), triples, strict=True)
    ]
    found = causal_score(probes)
    return {
        "causal": found.score,
        "followed": found.followed,
        "disturbed": found.disturbed,
        "causal_n": float(found.n),
    }


def answers(subject: Subject, world: World, tasks: Sequence[Task]) -> list[str]:
    """Greedy answers."""
    plans = [
        EpisodePlan(id=f"probe/{index:05d}", group_id=f"probe/{index:05d}", task=task, sample_index=0, seed=0)
        for index, task in enumerate(tasks)
    ]
    done = asyncio.run(
        run_episodes(
            plans,
            make_environment=world.make,
            renderer=subject.renderer,
            sampler=subject.sampler,
            params=SamplingParams(temperature=0.0),
            limits=world.limits,
        )
    )
    return [trajectory.answer for trajectory in done]


def blinded(subject: Subject, world: World) -> Figures:
    """Whether the warm start looks: right answers with and without pixels, and from the wording alone."""
    found = asyncio.run(
        image_ablation(
            world,
            world.tasks("heldout")[:ABLATED],
            world.tasks("train"),
            sampler=subject.sampler,
            renderer=subject.renderer,
        )
    )
    return {"seen": found.seen, "blind": found.blind, "text_only": found.text_only}


# -- the verdict ---------------------------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and paired 95% interval (Student t); the interval of a single value is without bounds."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    reach = float(student_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - reach, mean + reach


def gains(found: Sequence[Mapping[str, Figures]], words: str, name: str) -> list[float]:
    """Gated less outcome-only, by seed."""
    return [row[f"{words}-gated"][name] - row[f"{words}-outcome"][name] for row in found]


def reading(found: Sequence[Mapping[str, Figures]]) -> Reading:
    """The figures, and the verdict that the criterion gives.  found: by seed, "warm" and each arm."""
    compared = {
        words: {name: interval(gains(found, words, name)) for name in ("grounding", "accuracy", "causal")}
        for words in SHORTCUTS
    }
    lost = interval([row["shortcuts-outcome"]["grounding"] - row["warm"]["grounding"] for row in found])
    rises = compared["shortcuts"]["grounding"][1] > 0
    keeps = compared["shortcuts"]["accuracy"][0] >= -WITHIN
    falls = lost[2] < 0
    if rises and keeps and falls:
        verdict = "reproduced"
    elif not (rises and keeps) and not falls:
        verdict = "not reproduced"
    else:
        verdict = "mixed"
    rows = [(name, _told(found, name)) for name in found[0]]
    for words, by_name in compared.items():
        rows += [(f"{words}: gated - outcome, {name}", _spread(value)) for name, value in by_name.items()]
    rows.append(("shortcuts, outcome - warm start, grounding", _spread(lost)))
    figures = {"arms": list(found), "gated_less_outcome": compared, "outcome_less_warm": lost}
    return Reading(figures=figures, verdict=verdict, rows=rows)


def _told(found: Sequence[Mapping[str, Figures]], name: str) -> str:
    keys = ("accuracy", "grounding", "citing", "grounding_given_cited", "causal")
    mean = {key: statistics.fmean(row[name][key] for row in found) for key in keys}
    return (
        f"acc {mean['accuracy']:.3f} F1 {mean['grounding']:.3f} cites {mean['citing']:.3f} "
        f"F1|c {mean['grounding_given_cited']:.3f} causal {mean['causal']:+.2f}"
    )


def _spread(value: tuple[float, float, float]) -> str:
    return f"{value[0]:+.3f} [{value[1]:+.3f}, {value[2]:+.3f}]"


def of_seed(seed: int, data: Path) -> dict[str, Figures]:
    """All runs of a seed."""
    found = {"warm": figures_of(warm(seed, data), "after_sft")}
    for reward, words in ARMS:
        found[f"{words}-{reward}"] = figures_of(arm(reward, words, seed, data), "after_rl")
    return found


def quick() -> Reading:
    """A warm start of five steps and one step of one arm, read as if it were all four; they decide nothing."""
    with tempfile.TemporaryDirectory() as folder:
        start = figures_of(warm(0, Path(folder), QUICK), "after_sft")
        one = figures_of(arm("gated", "shortcuts", 0, Path(folder), QUICK_RL), "after_rl")
    found = reading([{"warm": start, **{f"{words}-{reward}": one for reward, words in ARMS}}])
    return Reading(figures=found.figures, rows=found.rows)


def full(options: Any) -> Reading:
    data = options.data.resolve() / "grounding_collapse"
    with ThreadPoolExecutor(options.workers) as pool:
        found = list(pool.map(lambda seed: of_seed(seed, data), range(options.seeds)))
    return reading(found)


if __name__ == "__main__":
    sys.exit(run_claim("grounding_collapse", __doc__, quick, full))
