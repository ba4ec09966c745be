"""Panels of an agent's run, computed from the rows of a step's trajectories.

None of them looks at log-ratios: groups without signal, lengths, tools, outcomes, how reward agrees with graded
progress, success by horizon and source, and whether output still depends on input.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from burnish.health.reference import Reference
from burnish.health.slices import HORIZON_FROM, SliceNames
from burnish.health.sums import HealthSums
from burnish.health.table import TrajectoryTable
from burnish.stats.summary import quantile

MIN_TRAJECTORIES = 8
DONE, HALF = 0.999, 0.5
"""Progress from which an episode got all the way, and from which a success counts as earned or a grade as a success."""

HORIZONS = [name for name in SliceNames().names if name.startswith("horizon:")]

Floats = npt.NDArray[np.float64]


def panels(sums: HealthSums, reference: Reference | None = None) -> dict[str, float]:
    """All panels of a step; empty for fewer than 8 trajectories."""
    table = sums.table
    if len(table) < MIN_TRAJECTORIES:
        return {}
    found = {
        **_groups(table),
        **_lengths(table),
        **_tools(table),
        **_outcomes(table),
        **_agreement(table),
        **_credit(table),
    }
    found.update(_by_source(table, sums.names, reference))
    found.update(_by_horizon(table))
    for name in ("reward", "success", "progress", "staleness"):
        values = table.column(name)
        known = values[np.isfinite(values)]
        if len(known) >= MIN_TRAJECTORIES:
            found[f"health/{name}_mean"] = _mean(known)
    return found


def input_independence(scores: Floats, own: npt.NDArray[np.int64]) -> dict[str, float]:
    """Does output still depend on input?  Retrieval of the true prompt (RAGEN-2, arXiv 2604.06268).

    scores: [n, m], log-probability of output i under prompt j, for n outputs and m different prompts.  own: [n], the
    prompt that output i was sampled under.  Gives the share of outputs that are likeliest under their own prompt (ties
    share), and that share on the scale of chance 0 and certainty 1.  Empty for fewer than 8 outputs or 2 prompts, or
    where a score is not finite.

    >>> found = input_independence(np.eye(8), np.arange(8))
    >>> found["health/input_retrieval"], found["health/input_dependence"]
    (1.0, 1.0)
    """
    n, m = scores.shape
    if n < MIN_TRAJECTORIES or m < 2 or not np.isfinite(scores).all():
        return {}
    best = scores >= scores.max(axis=1, keepdims=True)
    hit = float((best[np.arange(n), own] / best.sum(axis=1)).mean())
    return {"health/input_retrieval": hit, "health/input_dependence": (hit - 1 / m) / (1 - 1 / m)}


def _groups(table: TrajectoryTable) -> dict[str, float]:
    """Groups with two or more rewards: those without any difference, and the mean spread within."""
    code, group = table.codes("group_id")
    known = np.isfinite(table.column("reward"))
    reward, group = table.column("reward")[known], group[known]
    n = np.bincount(group, minlength=len(code))
    several = n >= 2
    if not several.any():
        return {}
    low, high = np.full(len(code), np.inf), np.full(len(code), -np.inf)
    np.minimum.at(low, group, reward)
    np.maximum.at(high, group, reward)
    mean = np.bincount(group, reward, minlength=len(code)) / np.maximum(n, 1)
    square = np.bincount(group, (reward - mean[group]) ** 2, minlength=len(code))
    deviation = np.sqrt(square[several] / (n[several] - 1))
    return {
        "health/zero_signal_share": _mean((low == high)[several]),
        "health/outcome_contrast": _mean(deviation),
    }


def _mean(values: npt.NDArray[Any]) -> float:
    """Of at least one value; half the time of numpy's own."""
    return float(values.sum()) / len(values)


def _lengths(table: TrajectoryTable) -> dict[str, float]:
    length = table.column("length")
    found = {
        "health/length_mean": _mean(length),
        "health/length_p95": quantile(length, 0.95),
        "health/turns_mean": _mean(table.column("turns")),
    }
    success = table.column("success")
    for name, chosen in (("success", success >= HALF), ("failure", success < HALF)):
        if chosen.sum() >= MIN_TRAJECTORIES:
            found[f"health/length_of_{name}"] = _mean(length[chosen])
    return found


def _tools(table: TrajectoryTable) -> dict[str, float]:
    calls = float(table.column("tool_calls").sum())
    found = {"health/tool_calls_mean": calls / len(table)}
    if calls >= MIN_TRAJECTORIES:
        found["health/tool_error_rate"] = float(table.column("tool_errors").sum()) / calls
        found["health/retry_rate"] = float(table.column("retries").sum()) / calls
    return found


def _outcomes(table: TrajectoryTable) -> dict[str, float]:
    """Shares of the trajectories that say how they ended."""
    outcomes = Counter(table.texts["outcome"])
    known = len(table) - outcomes[""]
    if known < MIN_TRAJECTORIES:
        return {}
    truncated = sum(n for outcome, n in outcomes.items() if outcome.startswith("truncated"))
    errors = sum(n for outcome, n in outcomes.items() if outcome.startswith("error"))
    return {
        "health/truncated_share": truncated / known,
        "health/model_error_share": outcomes["error:model"] / known,
        "health/excluded_share": (errors - outcomes["error:model"]) / known,
    }


def _agreement(table: TrajectoryTable) -> dict[str, float]:
    """Does what is rewarded agree with how far the episode got?"""
    success, progress, reward = (table.column(name) for name in ("success", "progress", "reward"))
    found: dict[str, float] = {}
    judged = np.isfinite(success) & np.isfinite(progress)
    if judged.sum() >= MIN_TRAJECTORIES:
        failed, won = judged & (progress >= DONE) & (success < HALF), judged & (progress < HALF) & (success >= HALF)
        found["health/failed_despite_progress"] = float(failed.sum() / judged.sum())
        found["health/succeeded_without_progress"] = float(won.sum() / judged.sum())
    both = np.isfinite(reward) & np.isfinite(progress)
    if both.sum() >= MIN_TRAJECTORIES:
        x, y = (values[both] - _mean(values[both]) for values in (reward, progress))
        size = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
        if size > 0:
            found["health/reward_progress_correlation"] = max(-1.0, min(1.0, float((x * y).sum()) / size))
    return found


def _credit(table: TrajectoryTable) -> dict[str, float]:
    """Do advantages point where rewards do?  Their correlation, with rewards centred within groups; 1 or close to it
    whatever the normalisation, below where signs are turned round, members mixed up or groups without signal used."""
    reward, advantage = table.column("reward"), table.column("advantage")
    known = np.isfinite(reward) & np.isfinite(advantage) & (advantage != 0)
    if known.sum() < MIN_TRAJECTORIES:
        return {}
    chosen, group = reward[known], table.codes("group_id")[1][known]
    centred = chosen - (np.bincount(group, chosen) / np.maximum(np.bincount(group), 1))[group]
    size = float(np.sqrt((centred**2).sum() * (advantage[known] ** 2).sum()))
    return {"health/advantage_agreement": float((centred * advantage[known]).sum()) / size} if size > 0 else {}


def _by_source(table: TrajectoryTable, names: SliceNames, reference: Reference | None) -> dict[str, float]:
    """Reward and success by known source; success as it would be under the reference's mixture of sources."""
    found: dict[str, float] = {}
    code, source = table.codes("source")
    share = np.bincount(source, minlength=len(code)) / len(table)
    reward, success = (_moments(table.column(name), source, len(code)) for name in ("reward", "success"))
    weighted = weights = 0.0
    for name in names.sources:
        at = code.get(name)
        found[f"health/source:{name}/share"] = 0.0 if at is None else float(share[at])
        if at is not None and reward[0][at] >= MIN_TRAJECTORIES:
            found[f"health/source:{name}/reward_mean"] = float(reward[1][at])
            found[f"health/source:{name}/reward_sd"] = float(reward[2][at])
        if at is not None and success[0][at] >= MIN_TRAJECTORIES:
            mean = float(success[1][at])
            found[f"health/source:{name}/success_mean"] = mean
            usual = math.nan if reference is None else reference.mean(f"health/source:{name}/share")
            if math.isfinite(usual):
                weighted, weights = weighted + usual * mean, weights + usual
    if weights > 0:
        found["health/success_same_mixture"] = weighted / weights
    return found


def _moments(values: Floats, of: npt.NDArray[np.int64], classes: int) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """Count, mean and standard deviation of the finite values of each class; of: [B], the class of each."""
    known = np.isfinite(values)
    chosen, at = values[known], of[known]
    n = np.bincount(at, minlength=classes)
    mean = np.bincount(at, chosen, minlength=classes) / np.maximum(n, 1)
    square = np.bincount(at, (chosen - mean[at]) ** 2, minlength=classes)
    return n, mean, np.sqrt(square / np.maximum(n - 1, 1))


def _by_horizon(table: TrajectoryTable) -> dict[str, float]:
    """Success by number of turns."""
    at = np.maximum(np.searchsorted(np.array(HORIZON_FROM), table.column("turns"), side="right") - 1, 0)
    n, mean, _ = _moments(table.column("success"), at, len(HORIZON_FROM))
    known = zip(HORIZONS, n.tolist(), mean.tolist(), strict=True)
    return {f"health/{name}/success": value for name, count, value in known if count >= MIN_TRAJECTORIES}
