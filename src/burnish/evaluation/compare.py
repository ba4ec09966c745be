"""Paired comparison of two evaluations over the same tasks and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from burnish.core.errors import ConfigError
from burnish.evaluation.heldout import SUCCESS_AT, EvalResult, Mode, TaskScore, from_row
from burnish.stats.intervals import paired_difference
from burnish.store.rows import EvaluationRow

_NAMED = 5
"""How many differing tasks an error lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """B minus A over common tasks.

    `Comparison(a="sft", b="rl", split="heldout", mode=Mode.GREEDY, a_rate=0.4, b_rate=0.9, difference=0.5, low=0.38,
    high=0.62, p_value=0.0001, n_tasks=96, n_pairs=96, wins=50, losses=2, ties=44, dropped=0, same_seeds=True)`

    The rates are success shares over the paired tasks, each task weighing the same; difference = b_rate - a_rate, in
    [-1, 1], with a 95% interval over tasks (infinite for a single task) and a two-sided sign-flip p value.  n_pairs:
    episodes of A that had a partner in B.  wins: tasks where B succeeds more often.  dropped: tasks without a
    scored pair (excluded episodes).  same_seeds: whether each pair of episodes had equal seeds; where not, episodes are
    averaged by task before the difference.
    """

    a: str
    b: str
    split: str
    mode: Mode
    a_rate: float
    b_rate: float
    difference: float
    low: float
    high: float
    p_value: float
    n_tasks: int
    n_pairs: int
    wins: int
    losses: int
    ties: int
    dropped: int
    same_seeds: bool

    @property
    def is_different(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0.0 or self.high < 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _PairedTask:
    """Success shares of one task on both sides, and the number of episode pairs behind them."""

    a: float
    b: float
    n_pairs: int


def compare(a: EvalResult, b: EvalResult, *, names: tuple[str, str] | None = None, seed: int = 0) -> Comparison:
    """Compare two evaluations of the same tasks.

    names: what to call the sides (their labels by default).  seed: of the random sign flips.  Raises ConfigError where
    the tasks, the splits or the modes differ, and says which; or where no task has a scored pair.
    """
    name_a, name_b = names or (a.label, b.label)
    _check_alike(a, b, name_a, name_b)
    tasks_b = {task.task_id: task for task in b.tasks}
    same_seeds = all(task.seeds == tasks_b[task.task_id].seeds for task in a.tasks)
    paired: dict[str, _PairedTask] = {}
    for task in a.tasks:
        pair = _pair(task, tasks_b[task.task_id], by_episode=same_seeds)
        if pair is not None:
            paired[task.task_id] = pair
    if not paired:
        raise ConfigError(f"{name_a} and {name_b} have no task that was scored on both sides; all were excluded")
    return _comparison(a, (name_a, name_b), paired, same_seeds=same_seeds, seed=seed)


def _comparison(
    a: EvalResult, names: tuple[str, str], paired: Mapping[str, _PairedTask], *, same_seeds: bool, seed: int
) -> Comparison:
    rates_a = {task_id: pair.a for task_id, pair in paired.items()}
    rates_b = {task_id: pair.b for task_id, pair in paired.items()}
    difference = paired_difference(rates_b, rates_a, np.random.Generator(np.random.PCG64(seed)))
    wins = sum(pair.b > pair.a for pair in paired.values())
    losses = sum(pair.b < pair.a for pair in paired.values())
    return Comparison(
        a=names[0],
        b=names[1],
        split=a.split,
        mode=a.mode,
        a_rate=math.fsum(rates_a.values()) / len(paired),
        b_rate=math.fsum(rates_b.values()) / len(paired),
        difference=difference.mean,
        low=difference.low,
        high=difference.high,
        p_value=difference.p_value,
        n_tasks=len(paired),
        n_pairs=sum(pair.n_pairs for pair in paired.values()),
        wins=wins,
        losses=losses,
        ties=len(paired) - wins - losses,
        dropped=len(a.tasks) - len(paired),
        same_seeds=same_seeds,
    )


def _pair(a: TaskScore, b: TaskScore, *, by_episode: bool) -> _PairedTask | None:
    """The task's two success shares; None where no pair of episodes is scored.

    With equal seeds an episode whose partner was excluded goes too: else the two sides would rest on different seeds.
    """
    if by_episode:
        scored = [(x, y) for x, y in zip(a.scores, b.scores, strict=True) if x is not None and y is not None]
        if not scored:
            return None
        successes_a = [float(x >= SUCCESS_AT) for x, _ in scored]
        successes_b = [float(y >= SUCCESS_AT) for _, y in scored]
    else:
        successes_a, successes_b = list(a.successes), list(b.successes)
        if not successes_a or not successes_b:
            return None
    return _PairedTask(
        a=sum(successes_a) / len(successes_a),
        b=sum(successes_b) / len(successes_b),
        n_pairs=min(len(successes_a), len(successes_b)),
    )


def _check_alike(a: EvalResult, b: EvalResult, name_a: str, name_b: str) -> None:
    if (a.split, a.mode) != (b.split, b.mode):
        raise ConfigError(
            f"{name_a} was measured on {a.split} ({a.mode}) and {name_b} on {b.split} ({b.mode}); "
            "compare evaluations of the same split and mode"
        )
    hashes_a = {task.task_id: task.task_hash for task in a.tasks}
    hashes_b = {task.task_id: task.task_hash for task in b.tasks}
    only_a, only_b = sorted(hashes_a.keys() - hashes_b.keys()), sorted(hashes_b.keys() - hashes_a.keys())
    changed = sorted(
        task_id for task_id, digest in hashes_a.items() if task_id in hashes_b and hashes_b[task_id] != digest
    )
    reasons = [
        f"{len(ids)} {what} ({', '.join(ids[:_NAMED])}{', ...' if len(ids) > _NAMED else ''})"
        for ids, what in (
            (only_a, f"only in {name_a}"),
            (only_b, f"only in {name_b}"),
            (changed, "of the same id but with other content"),
        )
        if ids
    ]
    if reasons:
        raise ConfigError(
            f"{name_a} and {name_b} were not measured on the same tasks: {'; '.join(reasons)}. "
            "Evaluate both on one taskset with `burnish eval`, then compare"
        )


def compare_stored(
    rows_a: Sequence[EvaluationRow], rows_b: Sequence[EvaluationRow], *, names: tuple[str, str], seed: int = 0
) -> list[Comparison]:
    """Compare two runs by what they stored: one comparison for each split and mode that both have evaluated.

    Of the evaluations of one split and mode the last with the most tasks counts, since runs also take quick looks in
    between.  Raises ConfigError where the runs have nothing in common, or the tasks differ.
    """
    best_a, best_b = _best(rows_a), _best(rows_b)
    common = [key for key in best_a if key in best_b]
    if not common:
        listed = [", ".join(f"{split} {mode}" for split, mode in best) or "none" for best in (best_a, best_b)]
        raise ConfigError(
            f"{names[0]} ({listed[0]}) and {names[1]} ({listed[1]}) have no evaluation of the same split and mode; "
            "run `burnish eval` on both"
        )
    return [compare(from_row(best_a[key]), from_row(best_b[key]), names=names, seed=seed) for key in common]


def _best(rows: Sequence[EvaluationRow]) -> dict[tuple[str, str], EvaluationRow]:
    best: dict[tuple[str, str], EvaluationRow] = {}
    for row in rows:
        key = (row.split, row.mode)
        if key not in best or _episodes(row) >= _episodes(best[key]):
            best[key] = row
    return best


def _episodes(row: EvaluationRow) -> int:
    return row.n + int(row.details.get("excluded", 0))
