"""Labelled runs: reading them, fitting without a task, scoring with intervals, and the trivial baselines."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from burnish.diagnosis.calibration import lifts, worths
from burnish.diagnosis.constraint import Log
from burnish.diagnosis.diagnose import Diagnosis, Engine, Model
from burnish.diagnosis.difference import Difference
from burnish.diagnosis.formats.agentrx import labels_of
from burnish.diagnosis.hypotheses import Hypothesis
from burnish.diagnosis.localise import PRIOR, SPREAD, Example, Weights, fit, none_features, rank
from burnish.diagnosis.policy import load_policy
from burnish.diagnosis.reading import BadRecord, read_records
from burnish.diagnosis.record import Label, Record
from burnish.diagnosis.taxonomy import Category, Fault
from burnish.diagnosis.view import View
from burnish.stats.intervals import wilson

WITHIN = (0, 1, 3, 5)
ACCUSED_IN_TRAINING = 0.05
"""Share of the passing training runs that may be accused; the threshold is set there."""
POLICY = Path(__file__).resolve().parents[2] / "src/burnish/diagnosis/policies/retail.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A record that `engine` has looked at with and without its reference; nothing is weighed yet."""

    engine: Engine
    record: Record
    view: View
    log: Log
    found: Mapping[bool, Difference]

    @property
    def root(self) -> Label | None:
        """The root cause."""
        return self.record.root

    def weighed(self, model: Model, reference: bool) -> Diagnosis:
        """The diagnosis by these weights, with the outcome hidden."""
        engine = replace(self.engine, model=model)
        return engine.weigh(self.view, self.log, self.found[reference], failed=False)


def read_runs(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> tuple[list[Run], list[Run]]:
    """(passing, labelled failed) runs.  wanted: ids of failed runs whose content may be looked at."""
    engine = Engine(policy=load_policy(POLICY))
    labels = {
        str(row["trajectory_id"]): tuple(labels_of(row))
        for row in json.loads((folder / "tau_ground_truth.json").read_text(encoding="utf-8"))
    }
    passing = [run_of(engine, r) for r in _good(folder / "tau_dataset_full.json") if r.passed]
    failed = [
        run_of(engine, replace(r, labels=labels[r.id]))
        for r in _good(folder / "tau_dataset_failed.json")
        if r.id in labels and wanted(r.id)
    ]
    return passing, failed


def _good(path: Path) -> Iterable[Record]:
    return (record for record in read_records(path) if not isinstance(record, BadRecord))


def run_of(engine: Engine, record: Record) -> Run:
    """A record that has been looked at."""
    view, log, found = engine.look(record)
    return Run(engine=engine, record=record, view=view, log=log, found={True: found, False: Difference()})


def position_of(run: Run, index: int) -> int:
    """Position of the message that a label counts as `index`."""
    return next((n for n, item in enumerate(run.view.items) if item.index == index), -1)


def train(passing: Sequence[Run], failed: Sequence[Run], reference: bool, spread: float = SPREAD) -> Model:
    """Lifts from outcomes, weights from labels, threshold from the passing runs; all from these runs."""
    lift = lifts(worths((r.log for r in passing), (r.log for r in failed)))
    examples = [_example(r, reference, lift) for r in [*passing, *failed]]
    weights = fit(examples, prior=PRIOR, spread=spread)
    chances = sorted((1 - _p_none(e, weights) for e in examples[: len(passing)]), reverse=True)
    most = int(ACCUSED_IN_TRAINING * len(chances))
    threshold = min(0.99, chances[most] + 1e-6) if chances else 0.5
    key = (
        {"with_reference": weights, "accuse_at": threshold}
        if reference
        else {"blind": weights, "accuse_blind_at": threshold}
    )
    return Model(lifts=lift, **key)  # type: ignore[arg-type]


def cases_of(run: Run, reference: bool, lift: Mapping[str, float]) -> tuple[Hypothesis, ...]:
    """Hypotheses about a run, as the engine ranks them."""
    engine = replace(run.engine, model=Model(lifts=lift))
    return engine.cases(run.view, run.log, run.found[reference])


def _example(run: Run, reference: bool, lift: Mapping[str, float]) -> Example:
    found, root = run.found[reference], run.root
    return Example(
        hypotheses=cases_of(run, reference, lift),
        none=none_features(found.compared, found.is_clean),
        target=-1 if root is None else position_of(run, root.index),
        category=root.category if root else None,
    )


def _p_none(example: Example, weights: Weights) -> float:
    indices = list(range(1 + max((h.position for h in example.hypotheses), default=0)))
    return rank(example.hypotheses, example.none, weights, indices).p_none


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a method says of one failed run, beside the truth."""

    index: int
    category: Category | None
    owner: Fault | None
    truth: Label
    accused: bool = True
    p: float = 0.0


def answer(run: Run, model: Model, reference: bool) -> Answer:
    """The engine's answer, forced, and whether it would have accused the run with its outcome hidden."""
    return answer_of(run, run.weighed(model, reference))


def answer_of(run: Run, found: Diagnosis) -> Answer:
    """The first suspect beside the truth."""
    best = found.suspects[0]
    return Answer(
        index=best.index,
        category=best.category,
        owner=best.owner,
        truth=run.root or Label(index=-1),
        accused=found.accused,
        p=best.p / max(1e-12, 1 - found.p_none),
    )


def figures(answers: Sequence[Answer]) -> dict[str, Any]:
    """Hits and intervals over failed runs."""
    n = len(answers)
    counts = {f"within_{k}": sum(abs(a.index - a.truth.index) <= k for a in answers) for k in WITHIN}
    counts["category"] = sum(a.category is a.truth.category for a in answers)
    counts["owner"] = sum(a.owner is a.truth.owner for a in answers)
    counts["exact_and_accused"] = sum(a.index == a.truth.index and a.accused for a in answers)
    out: dict[str, Any] = {"n": n, "mae": float(np.mean([abs(a.index - a.truth.index) for a in answers]))}
    for name, count in counts.items():
        interval = wilson(count, n)
        out[name] = {"hits": count, "share": count / n, "low": interval.low, "high": interval.high}
    return out


def baselines(runs: Sequence[Run]) -> dict[str, list[Answer]]:
    """Last step, last agent step, first tool error, last write; all with the majority category and the agent."""
    majority = Counter(r.root.category for r in runs if r.root).most_common(1)[0][0]
    methods: dict[str, Callable[[Run], int]] = {
        "last step": lambda run: run.view.items[-1].index,
        "last agent step": lambda run: _last(run, lambda n: True),
        "first tool error": lambda run: next(
            (run.view.items[c.position].index for c in run.view.calls if c.is_error), _last(run, lambda n: True)
        ),
        "last write": lambda run: next(
            (run.view.items[c.position].index for c in reversed(run.view.writes) if not c.is_error),
            _last(run, lambda n: True),
        ),
    }
    return {
        name: [
            Answer(index=method(run), category=majority, owner=Fault.AGENT, truth=run.root) for run in runs if run.root
        ]
        for name, method in methods.items()
    }


def _last(run: Run, allowed: Callable[[int], bool]) -> int:
    return next(i.index for n, i in reversed(list(enumerate(run.view.items))) if i.role == "assistant" and allowed(n))


def random_step(runs: Sequence[Run], rng: random.Random, draws: int = 500) -> list[Answer]:
    """`draws` random agent steps for each run."""
    answers = []
    for run in runs:
        steps = [item.index for item in run.view.items if item.role == "assistant"]
        answers += [
            Answer(index=rng.choice(steps), category=rng.choice(list(Category)), owner=Fault.AGENT, truth=run.root)
            for _ in range(draws)
            if run.root
        ]
    return answers


Case = tuple[Run, Diagnosis]


def cases_left_out(passing: Sequence[Run], failed: Sequence[Run], reference: bool) -> list[Case]:
    """Failed runs, each with what weights say that saw no run of its task."""
    found = []
    for run in failed:
        others = [r for r in failed if r.record.task_id != run.record.task_id]
        free = [r for r in passing if r.record.task_id != run.record.task_id]
        found.append((run, run.weighed(train(free, others, reference), reference)))
    return found


def cases_held_out(passing: Sequence[Run], seen: Sequence[Run], unseen: Sequence[Run], reference: bool) -> list[Case]:
    """Runs that were not read, with what weights say that were fitted on those that were."""
    model = train(passing, seen, reference)
    return [(run, run.weighed(model, reference)) for run in unseen]


def spared_left_out(passing: Sequence[Run], failed: Sequence[Run], reference: bool) -> list[Answer]:
    """Answers of passing runs by models that saw no run of their task, in ten folds."""
    spared = []
    for fold in range(10):
        held = [r for n, r in enumerate(passing) if n % 10 == fold]
        tasks = {r.record.task_id for r in held}
        model = train(
            [r for r in passing if r.record.task_id not in tasks],
            [r for r in failed if r.record.task_id not in tasks],
            reference,
        )
        spared += [answer(r, model, reference) for r in held]
    return spared
