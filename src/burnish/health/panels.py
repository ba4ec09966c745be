"""Panels of an agent's run, computed from the rows of a step's trajectories.

None of them looks at log-ratios: groups without signal, lengths, tools, outcomes, how reward agrees with graded
progress, success by horizon and source, and whether output still depends on input.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import numpy.typing as npt

from burnish.health.reference import Reference
from burnish.health.slices import HORIZON_FROM, SliceNames
from burnish.health.sums import HealthSums
from burnish.health.table import TrajectoryTable

MIN_TRAJECTORIES = 8
DONE, HALF = 0.999, 0.5
"""Progress from which an episode got all the way, and from which a success counts as earned or a grade as a success."""

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
            found[f"health/{name}_mean"] = float(known.mean())
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
    reward = table.column("reward")
    code = {name: i for i, name in enumerate(dict.fromkeys(table.texts["group_id"]))}
    group = np.array([code[name] for name in table.texts["group_id"]], dtype=np.int64)
    known = np.isfinite(reward)
    n = np.bincount(group[known], minlength=len(code))
    if not (n >= 2).any():
        return {}
    low, high = np.full(len(code), np.inf), np.full(len(code), -np.inf)
    np.minimum.at(low, group[known], reward[known])
    np.maximum.at(high, group[known], reward[known])
    mean = np.bincount(group[known], reward[known], minlength=len(code)) / np.maximum(n, 1)
    square = np.bincount(group[known], (reward[known] - mean[group[known]]) ** 2, minlength=len(code))
    several = n >= 2
    deviation = np.sqrt(square[several] / (n[several] - 1))
    return {
        "health/zero_signal_share": float((low == high)[several].mean()),
        "health/outcome_contrast": float(deviation.mean()),
    }


def _lengths(table: TrajectoryTable) -> dict[str, float]:
    length = table.column("length")
    found = {
        "health/length_mean": float(length.mean()),
        "health/length_p95": float(np.quantile(length, 0.95)),
        "health/turns_mean": float(table.column("turns").mean()),
    }
    success = table.column("success")
    for name, chosen in (("success", success >= HALF), ("failure", success < HALF)):
        if chosen.sum() >= MIN_TRAJECTORIES:
            found[f"health/length_of_{name}"] = float(length[chosen].mean())
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
    if both.sum() >= MIN_TRAJECTORIES and reward[both].std() > 0 and progress[both].std() > 0:
        found["health/reward_progress_correlation"] = float(np.corrcoef(reward[both], progress[both])[0, 1])
    return found


def _credit(table: TrajectoryTable) -> dict[str, float]:
    """Do advantages point where rewards do?  Their correlation, with rewards centred within groups; 1 or close to it
    whatever the normalisation, below where signs are turned round, members mixed up or groups without signal used."""
    reward, advantage = table.column("reward"), table.column("advantage")
    known = np.isfinite(reward) & np.isfinite(advantage) & (advantage != 0)
    if known.sum() < MIN_TRAJECTORIES:
        return {}
    ids, group = np.unique(np.array(table.texts["group_id"], dtype=object)[known].astype(str), return_inverse=True)
    chosen = reward[known]
    centred = chosen - (np.bincount(group, chosen, len(ids)) / np.bincount(group, minlength=len(ids)))[group]
    size = float(np.sqrt((centred**2).sum() * (advantage[known] ** 2).sum()))
    return {"health/advantage_agreement": float((centred * advantage[known]).sum()) / size} if size > 0 else {}


def _by_source(table: TrajectoryTable, names: SliceNames, reference: Reference | None) -> dict[str, float]:
    """Reward and success by known source; success as it would be under the reference's mixture of sources."""
    found: dict[str, float] = {}
    source = np.array(table.texts["source"], dtype=object)
    weighted = weights = 0.0
    for name in names.sources:
        member = source == name
        found[f"health/source:{name}/share"] = float(member.mean())
        for figure, values in (("reward", table.column("reward")), ("success", table.column("success"))):
            known = values[member & np.isfinite(values)]
            if len(known) < MIN_TRAJECTORIES:
                continue
            found[f"health/source:{name}/{figure}_mean"] = float(known.mean())
            if figure == "reward":
                found[f"health/source:{name}/reward_sd"] = float(known.std(ddof=1))
            elif reference is not None and math.isfinite(share := reference.mean(f"health/source:{name}/share")):
                weighted, weights = weighted + share * float(known.mean()), weights + share
    if weights > 0:
        found["health/success_same_mixture"] = weighted / weights
    return found


def _by_horizon(table: TrajectoryTable) -> dict[str, float]:
    """Success by number of turns."""
    names = [name for name in SliceNames().names if name.startswith("horizon:")]
    success = table.column("success")
    at = np.maximum(np.searchsorted(np.array(HORIZON_FROM), table.column("turns"), side="right") - 1, 0)
    chosen = [(name, success[(at == i) & np.isfinite(success)]) for i, name in enumerate(names)]
    return {f"health/{name}/success": float(v.mean()) for name, v in chosen if len(v) >= MIN_TRAJECTORIES}
