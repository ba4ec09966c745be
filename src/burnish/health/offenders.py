"""Which trajectories a Finding is about: those that contribute most to what it measures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from burnish.health.table import TrajectoryTable

MOST = 8
"""Trajectories that a Finding names."""


def offenders(table: TrajectoryTable, rank: str, slice_name: str = "") -> tuple[str, ...]:
    """Ids of up to 8 trajectories with the largest positive score, of one source where the slice is a source.

    rank: a column of the table; "a-b", a difference of two; "reward_surprise", distance of the reward from the mean
    of its source; "excluded", whether the outcome is an error that is not the model's.
    """
    score = np.nan_to_num(_score(table, rank), nan=0.0, posinf=0.0, neginf=0.0)
    if slice_name.startswith("source:"):
        score = np.where(np.array(table.texts["source"], dtype=object) == slice_name.removeprefix("source:"), score, 0)
    order = np.argsort(-score, kind="stable")[:MOST]
    return tuple(table.texts["id"][i] for i in order if score[i] > 0)


def _score(table: TrajectoryTable, rank: str) -> npt.NDArray[np.float64]:
    if rank == "excluded":
        outcomes = table.texts["outcome"]
        return np.array([o.startswith("error") and o != "error:model" for o in outcomes], dtype=np.float64)
    if rank == "reward_surprise":
        reward = table.column("reward")
        source = np.array(table.texts["source"], dtype=object)
        score = np.full(len(reward), np.nan)
        for name in set(table.texts["source"]):
            member = (source == name) & np.isfinite(reward)
            if member.any():
                score[member] = np.abs(reward[member] - reward[member].mean())
        return score
    if "-" in rank:
        left, right = rank.split("-")
        return table.column(left) - table.column(right)
    return table.column(rank)
