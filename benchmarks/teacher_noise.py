"""What noisy teachers do to the order of rewards: the gate against a plain sum, on the whole (FPR, FNR) x bonus grid.

    python benchmarks/teacher_noise.py [--quick] [--seeds N] [--data DIR]

A pair of responses is drawn with answers right or wrong and true grounding good or bad; the teacher sees each grounding
through its error rates, whatever the answer. Printed for each bonus, pooled over the grid: how often a right answer
outranks a wrong one, and the largest distance between the mean gap inside right answers and bonus * (1 - FPR - FNR);
last the share of advantage variance in all-wrong groups of 8 that comes from teacher error. Bar: the gate keeps right
above wrong in every cell, the sum does not from a bonus of 1 on, the gap is within 4 standard errors, its sign is right
in every cell with FPR + FNR <= .9, and teacher error moves no all-wrong group of the gate. --seeds is the number of
repetitions pooled (5 by default); --data is accepted and unused. Takes some seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from typing import Any

import numpy as np

from burnish.graders.gated import GateSpec, gated_reward

GRID = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
BONUSES = (0.25, 0.5, 1.0, 2.0)
GROUP = 8


def rewards(bonus: float, *, gated: bool) -> np.ndarray:
    """Reward by [right][teacher says good], from the library's own formula for the gate."""
    spec = GateSpec(bonus=bonus, w_format=0.0)
    if gated:
        return np.array(
            [[gated_reward(a, 0.0, {"spatial": (s, 1.0)}, spec)[0] for s in (0.0, 1.0)] for a in (0.0, 1.0)]
        )
    return np.array([[a + bonus * s for s in (0.0, 1.0)] for a in (0.0, 1.0)])


def seen(good: np.ndarray, fpr: float, fnr: float, rng: np.random.Generator) -> np.ndarray:
    """What the teacher says of true grounding."""
    return np.where(good, rng.random(good.shape) >= fnr, rng.random(good.shape) < fpr).astype(int)


def cell(fpr: float, fnr: float, bonus: float, n: int, rng: np.random.Generator) -> dict[str, float]:
    """One cell of the grid, both ways of combining on the same draws."""
    good = rng.random((4, n)) < 0.5
    says = seen(good, fpr, fnr, rng)
    inside = seen(np.array([[True], [False]]).repeat(n, axis=1), fpr, fnr, rng)
    groups_good = rng.random((n // GROUP, GROUP)) < 0.5
    groups = seen(groups_good, fpr, fnr, rng)
    figures: dict[str, float] = {}
    for name, is_gated in (("gated", True), ("additive", False)):
        table = rewards(bonus, gated=is_gated)
        figures[f"{name}_order"] = float((table[1][says[0]] > table[0][says[1]]).mean())
        gap = table[1][inside[0]] - table[1][inside[1]]
        figures[f"{name}_gap"] = float(gap.mean())
        figures[f"{name}_gap_error"] = float(gap.std() / math.sqrt(n))
        noisy, clean = table[0][groups], table[0][groups_good.astype(int)]
        noise = (noisy - noisy.mean(1, keepdims=True)) - (clean - clean.mean(1, keepdims=True))
        total = float((noise**2).mean() + ((clean - clean.mean(1, keepdims=True)) ** 2).mean())
        figures[f"{name}_wrong_noise"] = float((noise**2).mean()) / total if total > 0 else 0.0
    return figures


def main() -> int:
    """Simulate, print, and say whether the bar holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data")
    options = parser.parse_args()
    n, seeds = (2_000, 1) if options.quick else (20_000, options.seeds)
    rng = np.random.default_rng(list(range(seeds)))
    table: dict[str, dict[str, Any]] = {}
    print(
        f"{'bonus':>6}{'gated order':>13}{'sum order':>11}{'worst gap z':>12}{'wrong signs':>12}"
        f"{'noise: gate':>13}{'sum':>8}"
    )
    for bonus in BONUSES:
        cells = {(a, b): cell(a, b, bonus, n * seeds, rng) for a, b in itertools.product(GRID, GRID)}
        worst_z = max(
            abs(f["gated_gap"] - bonus * (1 - a - b)) / max(f["gated_gap_error"], 1e-12)
            for (a, b), f in cells.items()
            if f["gated_gap_error"] > 0
        )
        signs = sum(f["gated_gap"] <= 0 for (a, b), f in cells.items() if a + b <= 0.9 + 1e-9)
        row = {
            "gated_order": min(f["gated_order"] for f in cells.values()),
            "additive_order": max(f["additive_order"] for f in cells.values()),
            "worst_gap_z": worst_z,
            "wrong_signs": signs,
            "gated_wrong_noise": max(f["gated_wrong_noise"] for f in cells.values()),
            "additive_wrong_noise": max(f["additive_wrong_noise"] for f in cells.values()),
        }
        table[str(bonus)] = row
        print(
            f"{bonus:>6g}{row['gated_order']:>13.3f}{row['additive_order']:>11.3f}{worst_z:>12.2f}{signs:>12d}"
            f"{row['gated_wrong_noise']:>13.3f}{row['additive_wrong_noise']:>8.3f}"
        )
    good = all(r["gated_order"] == 1.0 and r["worst_gap_z"] < 4 and r["wrong_signs"] == 0 for r in table.values())
    good = good and all(r["gated_wrong_noise"] == 0.0 for r in table.values())
    good = good and all(table[str(bonus)]["additive_order"] < 1.0 for bonus in BONUSES if bonus >= 1)
    holds = None if options.quick else good
    print("order: least over the grid for the gate, largest for the sum")
    print("noise: largest share of advantage variance in all-wrong groups")
    print(json.dumps({"bonus": table, "grid": GRID, "n": n * seeds, "holds": holds}))
    return 0 if holds in (None, True) else 1


if __name__ == "__main__":
    sys.exit(main())
