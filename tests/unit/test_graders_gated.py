"""The gate's properties, as the formula promises them, and the traps that it avoids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.errors import ConfigError
from burnish.core.grade import SKIPPED_BY_GATE, Grade
from burnish.graders.gated import (
    MARGIN,
    NOT_APPLICABLE,
    GatedAggregator,
    GateNodes,
    GateSpec,
    gated_reward,
    grounded_share,
)
from burnish.graders.graph import AggregatorKind, for_evaluation, graph_from

scores = st.floats(0, 1)
parts = st.dictionaries(st.sampled_from("abc"), st.tuples(st.one_of(st.none(), scores), st.floats(0.01, 5)), max_size=3)
specs = st.builds(GateSpec, tau=st.floats(0.05, 1), bonus=st.floats(0, 4), w_format=st.floats(0, 0.9))


@given(spec=specs, wrong=scores, right=scores, forms=st.tuples(scores, scores), one=parts, other=parts)
def test_a_wrong_answer_never_outranks_a_right_one(
    spec: GateSpec, wrong: float, right: float, forms: tuple[float, float], one: dict, other: dict
) -> None:
    """P1, for graded answers too, whatever the teachers say."""
    if not wrong < spec.tau <= right:
        return
    below, is_open = gated_reward(wrong, forms[0], one, spec)
    above, is_right_open = gated_reward(right, forms[1], other, spec)
    assert (is_open, is_right_open) == (False, True)
    assert below <= 1 - MARGIN + 1e-9 < above


def test_the_plain_sum_breaks_that() -> None:
    """The negative control: without the gate, evidence makes up for a wrong answer."""
    assert 0.0 + 2.0 * 1.0 > 1.0 + 2.0 * 0.0
    near_miss = 0.97 + 0.1
    assert near_miss > 1.0
    assert gated_reward(0.97, 1.0, {}, GateSpec())[0] < 1.0


@given(fpr=scores, fnr=scores, bonus=st.floats(0.1, 4))
def test_the_order_of_right_answers_survives_noise(fpr: float, fnr: float, bonus: float) -> None:
    """P2: the expected gap is bonus (1 - a - b), so its sign is right while a + b < 1."""
    spec = GateSpec(bonus=bonus)
    yes, no = (gated_reward(1.0, 1.0, {"s": (score, 1.0)}, spec)[0] for score in (1.0, 0.0))
    good, bad = (1 - fnr) * yes + fnr * no, fpr * yes + (1 - fpr) * no
    assert good - bad == pytest.approx(bonus * (1 - fpr - fnr), abs=1e-9)


@given(
    spec=specs,
    one=st.tuples(scores, scores),
    gain=st.tuples(scores, scores),
    weights=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
)
def test_more_of_anything_is_never_less(
    spec: GateSpec, one: tuple[float, float], gain: tuple[float, float], weights: tuple[float, float]
) -> None:
    """P3: with fixed weights a dominated response never wins."""
    better = [min(1.0, score + more) for score, more in zip(one, gain, strict=True)]
    low, high = (
        gated_reward(1.0, 1.0, {"a": (pair[0], weights[0]), "b": (pair[1], weights[1])}, spec)[0]
        for pair in (one, better)
    )
    assert low <= high + 1e-12


def test_weights_that_depend_on_the_response_would_break_that() -> None:
    """The counterexample that forbids per-response confidence."""
    better = grounded_share({"a": (0.9, 0.01), "b": (0.5, 1.0)})
    worse = grounded_share({"a": (0.8, 1.0), "b": (0.4, 0.01)})
    assert better == pytest.approx(0.504, abs=1e-3)
    assert worse == pytest.approx(0.796, abs=1e-3)


def row(answer: float | None, cause: str = "", **others: float | None) -> list[Grade]:
    named = {"answer": answer, **others}
    return [
        Grade(grader=name, version="1", score=score, cause="" if score is not None else cause or "tool_error")
        for name, score in named.items()
    ]


AGGREGATOR = GatedAggregator(
    {"answer": 1.0, "format": 1.0, "spatial": 1.0, "temporal": 1.0}, GateNodes(answer="answer", form="format")
)


def test_an_all_right_group_gets_a_signal_and_an_all_wrong_one_none() -> None:
    """P4, and what the gate is for."""
    right = AGGREGATOR.rewards([row(1.0, format=1.0, spatial=s, temporal=1.0) for s in (0.0, 0.5, 1.0)])
    assert np.var(right) > 0
    wrong = AGGREGATOR.rewards([row(0.0, format=1.0, spatial=s, temporal=1.0) for s in (0.0, 0.5, 1.0)])
    assert len(set(wrong)) == 1


def test_a_failed_component_is_left_out_for_the_whole_group() -> None:
    rows = [row(1.0, format=1.0, spatial=0.8, temporal=None), row(1.0, format=1.0, spatial=0.8, temporal=0.0)]
    assert AGGREGATOR.rewards(rows) == [pytest.approx(1.5), pytest.approx(1.5)]


def test_a_failed_answer_leaves_its_member_out_and_moves_nobody() -> None:
    alone = AGGREGATOR.rewards([row(1.0, format=1.0, spatial=0.8, temporal=0.2)])
    rows = [row(1.0, format=1.0, spatial=0.8, temporal=0.2), row(None, format=1.0, spatial=None, temporal=None)]
    assert AGGREGATOR.rewards(rows) == [alone[0], None]


def test_what_a_closed_gate_skipped_counts_as_nothing() -> None:
    grades = [
        Grade(grader="answer", version="1", score=1.0),
        Grade(grader="spatial", version="1", score=None, cause=SKIPPED_BY_GATE),
    ]
    assert GatedAggregator({"spatial": 1.0}, GateNodes(answer="answer")).rewards([grades]) == [1.0]


FILE = {
    "aggregator": {"kind": "gated", "answer": "answer", "form": "format", "bonus": 0.5},
    "graders": {
        "answer": {"use": "grounded_answer"},
        "format": {"use": "grounded_format"},
        "spatial": {"use": "grounded_spatial"},
        "temporal": {"use": "grounded_temporal"},
        "reasoning": {"use": "grounded_reasoning"},
    },
}


def test_it_is_an_aggregator_of_the_grader_graph() -> None:
    graph = graph_from(FILE)
    assert graph.aggregator.kind is AggregatorKind.GATED
    full = row(1.0, cause=NOT_APPLICABLE, format=1.0, spatial=1.0, temporal=None, reasoning=1.0)
    assert graph.aggregator.rewards([full]) == [pytest.approx(1.6)]
    other = row(1.0, cause=NOT_APPLICABLE, format=1.0, spatial=None, temporal=0.5, reasoning=0.5)
    assert for_evaluation(graph.aggregator).rewards([full, other]) == [1.0, pytest.approx(1.35 / 1.6)]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"answer": "anser"}, "not in the graph"),
        ({"form": "answer"}, "one grader"),
        ({"tau": 0.0}, "tau"),
        ({"w_format": 1.0}, "w_format"),
        ({"kind": "weighted_sum"}, "belongs to the gated aggregator"),
    ],
)
def test_wrong_gates_are_refused(change: dict, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        graph_from({**FILE, "aggregator": {**FILE["aggregator"], **change}})
