"""The update size of a trajectory without a backward pass, against the norm of its true gradient.

    python benchmarks/update_size.py [--quick] [--seeds N] [--data DIR]

For each seed: a tiny model after a short warm start in the mixed shop (tasks of one to six tool calls), one batch of
RL, sampled and scored by that model.  True: the norm of the gradient of all weights, from one backward pass for each
trajectory.  Without a backward pass, both from `burnish.health`: "softmax", |A| sqrt(sum_t w_t^2 W_t) with the squared
score norms W of the softmax; "bound", the same with (1 - p)^2 for W, for steps that have no softmax statistics.

|A| is on both sides, and would make any two sizes agree: here every advantage is 1, over all trajectories and within
thirds of length.

Bar, set before the first run: Spearman's correlation, median over seeds, at least 0.8 over all and at least 0.6 in
each third of length, for both forms.  Takes three minutes on two cores; runs are kept under --data (default:
runs/update_size) and used again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from scipy.stats import pearsonr, spearmanr

from burnish.algorithms.grpo import GrpoLoss
from burnish.health.slices import SliceNames
from burnish.health.sums import HealthSums
from burnish.loop.conductor import start_run
from burnish.loop.recipes import load_recipe
from burnish.loop.standalone import stored_policy
from burnish.rollout.samples import training_samples
from burnish.rollout.streams import ControlTokens, Judgement, LearnerStreams, token_columns
from burnish.stats.concentration import gini, length_exponent, top_share
from burnish.store.reader import RunReader
from burnish.store.rows import StoredTrajectory
from burnish.training.gradients import flatten_gradients, zero_gradients
from burnish.training.learner import Learner
from burnish.training.token_record import TokenRecord

ALL_BAR, THIRD_BAR = 0.8, 0.6
FORMS = ("softmax", "bound")
THIRDS = ("short", "middle", "long")
WORDS = ("rl.steps=1", "rl.updates=1", "evaluation.every=100", "evaluation.tasks=1", "evaluation.quick_tasks=1")
FULL = (*WORDS, "rl.groups=32", "warm_start.steps=300", "warm_start.traces=3000")
QUICK = (*WORDS, "rl.groups=4", "warm_start.steps=30", "warm_start.traces=300")
Floats = npt.NDArray[np.float64]
console = Console(width=80)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """B trajectories of one batch: sampled tokens, and the size of each one's update by each way to tell it."""

    lengths: Floats
    true: Floats
    forms: Mapping[str, Floats]


def true_norms(learner: Learner, rows: Sequence[StoredTrajectory]) -> Floats:
    """Norm of each trajectory's own gradient, in the loss's units for a normaliser of 1."""
    found = []
    for row in rows:
        zero_gradients(learner.model)
        learner.accumulate(training_samples(row.trajectory, 1.0), 1.0)
        found.append(float(flatten_gradients(learner.model).norm()))
    zero_gradients(learner.model)
    return np.array(found)


def update_sizes(learner: Learner, rows: Sequence[StoredTrajectory], version: int) -> dict[str, Floats]:
    """`update_size` of each trajectory with the squared score norms of the softmax, and without them."""
    record = TokenRecord(score_norm=True)
    samples = [sample for row in rows for sample in training_samples(row.trajectory, 1.0)]
    learner.accumulate(samples, 1.0, record=record)
    zero_gradients(learner.model)
    found = {}
    for form, norms in zip(FORMS, (record.streams["score_norm"], None), strict=True):
        columns = token_columns(
            [row.trajectory for row in rows],
            [Judgement(advantage=1.0) for row in rows],
            step=1,
            version=version,
            control=ControlTokens([]),
            learner=LearnerStreams(logprobs=record.streams["logprobs"], score_norm=norms),
        )
        table = HealthSums.of(columns, SliceNames()).table
        at = dict(zip(table.texts["id"], table.column("update_size"), strict=True))
        found[form] = np.array([at[row.trajectory.id] for row in rows])
    return found


def measured(folder: Path) -> Sizes:
    """The first batch of a run, under the weights that sampled it."""
    recipe, policy, _ = stored_policy(folder, "rl-000000")
    rows = [row for row in RunReader(folder).trajectories("rl", 1) if row.reward is not None]
    learner = Learner(policy.model, GrpoLoss(), temperature=recipe.rl.temperature, pad_id=policy.pad_id)
    forms = update_sizes(learner, rows, rows[0].policy_version)
    return Sizes(
        lengths=np.array([row.trajectory.action_tokens for row in rows], dtype=np.float64),
        true=true_norms(learner, rows),
        forms=forms,
    )


def compared(sizes: Sizes) -> dict[str, float]:
    """Correlations of each form with the true norm, concentration and growth with length by every way to tell it."""
    cuts = np.quantile(sizes.lengths, [1 / 3, 2 / 3])
    third = np.searchsorted(cuts, sizes.lengths)
    found = {
        "trajectories": float(len(third)),
        "longest_over_shortest": float(sizes.lengths.max() / sizes.lengths.min()),
    }
    for form, size in sizes.forms.items():
        found[f"spearman/{form}/all"] = float(spearmanr(size, sizes.true).statistic)
        found[f"pearson/{form}/all"] = float(pearsonr(size, sizes.true).statistic)
        found[f"pearson_of_logarithms/{form}/all"] = float(pearsonr(np.log(size), np.log(sizes.true)).statistic)
        for index, name in enumerate(THIRDS):
            inside = third == index
            if inside.sum() >= 8:
                found[f"spearman/{form}/{name}"] = float(spearmanr(size[inside], sizes.true[inside]).statistic)
    for name, size in {"true": sizes.true, **sizes.forms}.items():
        found[f"gini/{name}"], found[f"top5/{name}"] = gini(size), top_share(size)
        fit = length_exponent(size, sizes.lengths, np.zeros(len(size), dtype=np.int64))
        if fit is not None:
            found[f"length_exponent/{name}"] = fit.exponent
    return found


def of_seeds(data: Path, seeds: Sequence[int], *, quick: bool) -> list[dict[str, float]]:
    found = []
    for seed in seeds:
        folder = data / f"seed-{seed}"
        if not (folder / "checkpoints" / "final").exists():
            start_run(load_recipe("long", [*(QUICK if quick else FULL), f"run.seed={seed}", "run.workers=1"]), folder)
        found.append(compared(measured(folder)))
    return found


def spread(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {
        name: {"median": statistics.median(values), "low": min(values), "high": max(values)}
        for name in names
        for values in [[row[name] for row in rows]]
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one small batch, no verdict")
    parser.add_argument("--seeds", type=int, default=None, help="default 5, quick 1")
    parser.add_argument("--data", type=Path, default=None, help="where the runs are kept")
    asked = parser.parse_args()
    seeds = range(asked.seeds or (1 if asked.quick else 5))
    data = asked.data or Path("runs/update_size_quick" if asked.quick else "runs/update_size")
    found = spread(of_seeds(data, seeds, quick=asked.quick))
    table = Table(title=f"update size, {len(seeds)} seeds", title_justify="left", width=78)
    for name in ("", "median", "low", "high"):
        table.add_column(name, justify="right" if name else "left")
    for name, row in found.items():
        table.add_row(name, *(f"{row[key]:.3f}" for key in ("median", "low", "high")))
    console.print(table)
    within = [found.get(f"spearman/{form}/{third}", {}).get("median", -1.0) for form in FORMS for third in THIRDS]
    over_all = [found[f"spearman/{form}/all"]["median"] for form in FORMS]
    holds = None if asked.quick else min(over_all) >= ALL_BAR and min(within) >= THIRD_BAR
    print(json.dumps({"figures": found, "seeds": len(seeds), "holds": holds}))
    return 0 if holds is not False else 1


if __name__ == "__main__":
    sys.exit(main())
