"""Gini and ESS of the update before and after variance correction: see claim.md.

python claims/variance_correction/run.py [--quick] [--seeds N] [--data DIR] [--workers N]
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import Reading, Replay, arms_of, effective_share, planner_of, run_claim

from burnish.algorithms.normalisers import VarianceNormaliser, VarianceSpec
from burnish.stats.concentration import gini
from burnish.stats.intervals import Estimate, mean_interval

NOISE = 4.0
WORDS = ("rl.scale=none", "health.softmax_every=1")
ONE_SOURCE = ("environment.options.sources={ counter = 0.8, phone = 0.1, mail = 0.1 }",)
ARMS = {
    "before": ("noisy_source", WORDS),
    "after": ("corrected", WORDS),
    "before, shifted": ("noisy_source", (*WORDS, *ONE_SOURCE)),
    "after, shifted": ("corrected", (*WORDS, *ONE_SOURCE)),
}
LEAST_GINI, LESS_GINI, MORE_ESS = 0.5, 0.20, 2.0


def figures_of(replay: Replay, onset: int) -> dict[str, float]:
    """Medians over the steps after the onset, and success at the end."""
    ginis, shares = [], []
    for item in replay.steps:
        rows = item.sums().trajectories if item.step > onset else ()
        sizes = [row.update_size for row in rows if row.update_size]
        if sizes:
            ginis.append(gini(np.array(sizes)))
            shares.append(effective_share(sizes))
    success = replay.evaluations[-1].success if replay.evaluations else 0.0
    return {"gini": statistics.median(ginis), "ess": statistics.median(shares), "success": success}


def reading(arms: dict[str, list[dict[str, float]]]) -> Reading:
    """The figures, and the verdict that the criterion gives; seeds in the same order in each arm."""

    def paired(values: list[float]) -> Estimate:
        return mean_interval(values)

    def each(arm: str, key: str) -> list[float]:
        return [row[key] for row in arms[arm]]

    less = paired([a - b for a, b in zip(each("after", "gini"), each("before", "gini"), strict=True)])
    more = paired([a - b for a, b in zip(each("after", "ess"), each("before", "ess"), strict=True)])
    shifts = {
        name: [abs(a - b) for a, b in zip(each(f"{name}, shifted", "gini"), each(name, "gini"), strict=True)]
        for name in ("before", "after")
    }
    steadier = paired([a - b for a, b in zip(shifts["after"], shifts["before"], strict=True)])
    medians = {f"{key} {arm}": statistics.median(each(arm, key)) for key in ("gini", "ess", "success") for arm in arms}
    clear = less.high < 0 and more.low > 0
    size = clear and less.mean <= -LESS_GINI and medians["ess after"] >= MORE_ESS * medians["ess before"]
    robust = steadier.high < 0
    verdict = "reproduced" if size and robust else "mixed" if size or robust or clear else "not reproduced"
    figures: dict[str, Any] = medians | {
        "gini_difference": [less.mean, less.low, less.high],
        "ess_difference": [more.mean, more.low, more.high],
        "shift_difference": [steadier.mean, steadier.low, steadier.high],
    }
    return Reading(
        figures=figures,
        verdict=verdict if medians["gini before"] >= LEAST_GINI else "not testable here",
        rows=[(key, f"{value:.3f}") for key, value in medians.items()],
    )


def quick() -> Reading:
    """Sizes as the sheet's section 4 (15) simulates them: lengths 100 to 2,000, two sources with noise 1 : 16."""
    arms: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(3):
        for shifted, share in (("", 0.5), (", shifted", 0.8)):
            rng = np.random.default_rng(seed)
            normaliser, before, after = VarianceNormaliser(VarianceSpec()), [], []
            for _ in range(20):
                lengths = np.exp(rng.uniform(np.log(100), np.log(2000), 128)).astype(int).tolist()
                sources = ["quiet" if value < share else "loud" for value in rng.random(128)]
                noise = np.array([1.0 if source == "quiet" else 16.0 for source in sources])
                sizes = np.abs(rng.normal(size=128)) * noise * np.sqrt(lengths)
                before.append(sizes)
                after.append(sizes * np.array(normaliser.weights(sources, lengths)))
                normaliser.observe(sources, lengths, sizes.tolist())
            for arm, batches in (("before", before), ("after", after)):
                row = {
                    "gini": statistics.median(map(gini, batches)),
                    "ess": statistics.median(map(effective_share, batches)),
                    "success": 0.0,
                }
                arms[arm + shifted].append(row)
    found = reading(arms)
    return Reading(figures=found.figures, rows=found.rows)


def full(options: Any) -> Reading:
    planner = planner_of(options)
    arms = {}
    for name, (kind, words) in ARMS.items():
        jobs = [planner.changed("claim", kind, seed, NOISE, words) for seed in range(options.seeds)]
        arms[name] = [figures_of(replay, options.onset) for replay in arms_of(options, jobs)]
    return reading(arms)


if __name__ == "__main__":
    sys.exit(run_claim("variance_correction", __doc__, quick, full))
