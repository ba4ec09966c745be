"""Paired comparison: what pairs, what is refused, and that pairing is worth it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.core.errors import ConfigError
from burnish.evaluation.compare import compare, compare_stored
from burnish.evaluation.heldout import EvalResult, Mode, TaskScore, success_rate, to_row


def result(scores: Sequence[Sequence[float | None]], *, label: str = "a", seed: int = 0) -> EvalResult:
    tasks = tuple(
        TaskScore(
            task_id=f"t{i}",
            task_hash=f"h{i}",
            scores=tuple(values),
            seeds=tuple(1000 * seed + 10 * i + j for j in range(len(values))),
        )
        for i, values in enumerate(scores)
    )
    return EvalResult(
        label=label,
        split="heldout",
        mode=Mode.GREEDY,
        tasks=tasks,
        rate=success_rate(tasks),
        mean_score=0.0,
        outcomes={},
        excluded=0,
    )


def test_difference_counts_and_direction() -> None:
    a = result([[0.0]] * 6 + [[1.0]] * 4, label="sft")
    b = result([[1.0]] * 5 + [[0.0]] + [[1.0]] * 3 + [[0.0]], label="rl")
    comparison = compare(a, b)
    assert (comparison.a, comparison.b) == ("sft", "rl")
    assert (comparison.wins, comparison.losses, comparison.ties) == (5, 1, 4)
    assert comparison.a_rate == 0.4
    assert comparison.b_rate == 0.8
    assert comparison.difference == pytest.approx(0.4)
    assert comparison.low < 0.4 < comparison.high
    assert (comparison.n_tasks, comparison.n_pairs, comparison.dropped) == (10, 10, 0)
    assert comparison.same_seeds
    assert compare(a, b, names=("x", "y")).b == "y"


def test_equal_sides_are_not_different() -> None:
    a = result([[1.0], [0.0]] * 20)
    comparison = compare(a, a)
    assert comparison.difference == 0.0
    assert comparison.p_value == 1.0
    assert not comparison.is_different
    assert compare(a, result([[1.0]] * 40)).is_different


def test_pairing_sees_what_unpaired_intervals_hide() -> None:
    """Half of the tasks are out of reach; B solves a fifth more of all."""
    a = result([[float(i % 2)] for i in range(100)])
    b = result([[float(i % 2 or i % 5 == 0)] for i in range(100)])
    assert a.rate.high > b.rate.low
    assert compare(a, b).is_different


def test_an_excluded_episode_takes_its_partner_along() -> None:
    a = result([[1.0, 0.0], [None, None], [1.0, 1.0]])
    b = result([[None, 0.0], [1.0, 1.0], [1.0, 1.0]])
    comparison = compare(a, b)
    assert comparison.dropped == 1
    assert comparison.n_pairs == 3
    assert (comparison.a_rate, comparison.b_rate) == (0.5, 0.5)


def test_different_seeds_pair_by_task() -> None:
    comparison = compare(result([[1.0, 0.0], [0.0, 0.0]]), result([[1.0], [1.0]], seed=7))
    assert not comparison.same_seeds
    assert comparison.difference == 0.75


def test_other_tasks_are_refused_and_named() -> None:
    a, b = result([[1.0]] * 3, label="left"), result([[1.0]] * 2, label="right")
    with pytest.raises(ConfigError, match=r"1 only in left \(t2\)"):
        compare(a, b)
    with pytest.raises(ConfigError, match=r"1 only in left \(t2\)"):
        compare(b, a)
    changed = replace(a, tasks=(replace(a.tasks[0], task_hash="other"), *a.tasks[1:]))
    with pytest.raises(ConfigError, match=r"1 of the same id but with other content \(t0\)"):
        compare(a, changed)
    with pytest.raises(ConfigError, match=r"8 only in left \(t2, t3, t4, t5, t6, ...\)"):
        compare(result([[1.0]] * 10, label="left"), b)


def test_other_modes_and_empty_pairs_are_refused() -> None:
    a = result([[1.0]])
    with pytest.raises(ConfigError, match="same split and mode"):
        compare(a, replace(a, mode=Mode.SAMPLED))
    with pytest.raises(ConfigError, match="all were excluded"):
        compare(a, result([[None]]))


def test_stored_runs_are_compared_by_their_largest_last_evaluation() -> None:
    early = to_row(result([[0.0]] * 10, label="after_sft"), phase="sft", step=9)
    late = to_row(result([[1.0]] * 10, label="after_rl"), phase="rl", step=9)
    quick = to_row(result([[0.0]] * 3, label="quick"), phase="rl", step=9)
    sampled = to_row(replace(result([[0.0]] * 10), mode=Mode.SAMPLED), phase="rl", step=9)
    [comparison] = compare_stored([early, late, quick], [early, sampled, quick], names=("x", "y"))
    assert (comparison.a_rate, comparison.b_rate, comparison.n_tasks) == (1.0, 0.0, 10)
    assert (comparison.a, comparison.mode) == ("x", Mode.GREEDY)
    with pytest.raises(ConfigError, match=r"x \(heldout greedy\) and y \(heldout sampled\) have no evaluation"):
        compare_stored([early], [sampled], names=("x", "y"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=2, max_size=30))
def test_swapping_the_sides_mirrors_the_result(pairs: list[tuple[float, float]]) -> None:
    a, b = result([[x] for x, _ in pairs]), result([[y] for _, y in pairs])
    one, other = compare(a, b), compare(b, a)
    assert one.difference == -other.difference
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert (one.wins, one.losses, one.ties) == (other.losses, other.wins, other.ties)
    assert one.difference == pytest.approx(float(np.mean([y - x for x, y in pairs])))
