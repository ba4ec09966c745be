"""The grader graph: order, gates, aggregators, schedules, its file; the house rules with their controls."""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.core.errors import ConfigError
from burnish.core.grade import SKIPPED_BY_GATE, Grade
from burnish.core.outcome import Ending, Outcome, Owner
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.graders.aggregate import (
    LexicographicGate,
    NormalisedSum,
    RelativeRank,
    ShareOfBest,
    WeightedSum,
    advantage_streams,
)
from burnish.graders.boundary import SKIPPED_UNGRADED, grade_trajectories
from burnish.graders.function import FunctionGrader
from burnish.graders.graph import AggregatorKind, GraderGraph, aggregator_at, for_evaluation, graph_from, load_graph
from burnish.graders.graph_files import GraphFiles
from burnish.graders.node import GraderNode, WeightSchedule, as_nodes
from burnish.graders.rules import ExactGrader
from burnish.graders.staged import StagedWeights
from burnish.testing.grader import answered

TASK = Task(prompt="2 + 2?", reference={"answer": "4"})


def node(name: str, value: Any, **fields: Any) -> GraderNode:
    """A node whose score is `value`, or what `value(answer)` says or raises."""

    def judge(task: Task, trajectory: Trajectory) -> float:
        return float(value(trajectory.answer) if callable(value) else value)

    return GraderNode(name=name, grader=FunctionGrader(judge), **fields)


def raising(answer: str) -> float:
    raise ValueError(answer)


def graded(nodes: list[GraderNode], *answers: str, outcome: Outcome | None = None) -> list[dict[str, Grade]]:
    cases = [answered(TASK, text, **({"outcome": outcome} if outcome else {})) for text in answers]
    rows = asyncio.run(grade_trajectories([TASK] * len(cases), cases, GraderGraph.of(nodes).graders, timeout_s=5))
    return [{grade.grader: grade for grade in row} for row in rows]


def member(**scores: float | str | None) -> list[Grade]:
    """Grades by grader; a text is the cause of a missing score."""
    return [
        Grade(grader=name, version="1", score=None, cause=value)
        if isinstance(value, str)
        else Grade(grader=name, version="1", score=value)
        for name, value in scores.items()
    ]


# -- order and gates ---------------------------------------------------------------------------------------------------


def test_independent_nodes_run_side_by_side_and_dependent_ones_in_order() -> None:
    spans: dict[str, tuple[float, float]] = {}

    def slow(name: str, *requires: str) -> GraderNode:
        async def judge(task: Task, trajectory: Trajectory) -> float:
            started_s = time.perf_counter()
            await asyncio.sleep(0.1)
            spans[name] = (started_s, time.perf_counter())
            return 1.0

        return GraderNode(name=name, grader=FunctionGrader(judge), requires=requires)

    row = graded([slow("last", "a", "b"), slow("a"), slow("b")], "4")[0]
    assert list(row) == ["last", "a", "b"], "grades keep the order in which the nodes were given"
    assert spans["a"][0] < spans["b"][1]
    assert spans["b"][0] < spans["a"][1]
    assert spans["last"][0] >= max(spans["a"][1], spans["b"][1])


def test_at_most_so_many_grades_of_a_node_at_a_time() -> None:
    running = [0, 0]

    async def judge(task: Task, trajectory: Trajectory) -> float:
        running[0] += 1
        running[1] = max(running)
        await asyncio.sleep(0.01)
        running[0] -= 1
        return 1.0

    graded([GraderNode(grader=FunctionGrader(judge), parallel=2)], *"abcdef")
    assert running == [0, 2]


def test_a_closed_gate_skips_all_that_hangs_on_it_and_nothing_else() -> None:
    ran: list[str] = []

    def seen(answer: str) -> float:
        ran.append(answer)
        return 1.0

    nodes = [
        node("format", lambda answer: float(answer != "bad"), gate=1.0),
        node("answer", seen, requires=("format",)),
        node("style", 1.0, requires=("answer",)),
        node("length", 0.5),
    ]
    good, bad = graded(nodes, "4", "bad")
    assert [grade.score for grade in good.values()] == [1.0, 1.0, 1.0, 0.5]
    assert ran == ["4"]
    for name in ("answer", "style"):
        assert (bad[name].score, bad[name].cause) == (None, "skipped:gate")
        assert bad[name].is_skipped
        assert bad[name].evidence == {"gate": "format", "score": 0.0, "opens_at": 1.0}
    assert (bad["format"].score, bad["length"].score) == (0.0, 0.5)


def test_a_gate_that_fails_is_neither_open_nor_closed() -> None:
    nodes = [node("gate", raising, gate=1.0), node("answer", 1.0, requires=("gate",))]
    row = graded(nodes, "4")[0]
    assert row["gate"].cause == "grader_error:ValueError"
    assert row["answer"].cause == SKIPPED_UNGRADED
    assert not row["answer"].is_skipped
    assert WeightedSum({"gate": 0.0, "answer": 1.0}).rewards([list(row.values())]) == [None], "failed is not zero"


def test_a_closed_gate_says_more_than_an_unknown_one() -> None:
    nodes = [
        node("closed", 0.0, gate=0.5),
        node("unknown", raising, gate=0.5),
        node("answer", 1.0, requires=("unknown", "closed")),
    ]
    assert graded(nodes, "4")[0]["answer"].cause == SKIPPED_BY_GATE


def test_what_may_not_carry_reward_is_excluded_at_every_node() -> None:
    outcome = Outcome(ending=Ending.ERROR, owner=Owner.ENVIRONMENT, cause="crash")
    nodes = [node("gate", 0.0, gate=1.0), node("answer", 1.0, requires=("gate",))]
    row = graded(nodes, "4", outcome=outcome)[0]
    assert {grade.cause for grade in row.values()} == {"excluded:error:environment"}


def test_a_node_has_its_own_timeout_and_a_slow_one_delays_no_other() -> None:
    async def waits(task: Task, trajectory: Trajectory) -> float:
        await asyncio.sleep(60)
        return 1.0

    nodes = [GraderNode(name="slow", grader=FunctionGrader(waits), timeout_s=0.05), node("quick", 1.0)]
    row = graded(nodes, "4")[0]
    assert (row["slow"].score, row["slow"].cause) == (None, "grader_timeout")
    assert row["quick"].score == 1.0


def test_one_grader_serves_several_nodes_under_their_names() -> None:
    row = graded([GraderNode(name="a", grader=ExactGrader()), GraderNode(name="b", grader=ExactGrader())], "4")[0]
    assert list(row) == ["a", "b"]


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([node("a", 1.0), node("a", 1.0)], "two graders are named 'a'"),
        ([node("answer", 1.0), node("style", 1.0, requires=("anwser",))], "did you mean 'answer'"),
        ([node("a", 1.0, requires=("b",)), node("b", 1.0, requires=("a",))], "in a ring: a, b"),
        ([node("a", 1.0, requires=("a",))], "in a ring"),
    ],
)
def test_what_is_no_graph_is_refused(nodes: list[GraderNode], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        as_nodes(nodes)


@pytest.mark.parametrize("fields", [{"gate": 0.0}, {"gate": 1.5}, {"timeout_s": 0.0}, {"cost_s": -1.0}])
def test_nodes_declare_what_makes_sense(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="grader a"):
        node("a", 1.0, **fields)


# -- aggregators -------------------------------------------------------------------------------------------------------


def test_exclusion_is_no_escape_a_closed_gate_counts_as_nothing_earned() -> None:
    group = [member(gate=0.0, answer=SKIPPED_BY_GATE), member(gate=1.0, answer=0.0), member(gate=1.0, answer=1.0)]
    weights = {"gate": 0.1, "answer": 1.0}
    assert WeightedSum(weights).rewards(group) == [0.0, 0.1, 1.1]
    assert RelativeRank(weights).rewards(group)[0] == min(r for r in RelativeRank(weights).rewards(group) if r)
    # The negative control: any other cause without a score does leave the member out.
    group[0] = member(gate=0.0, answer="grader_error:OSError")
    for kind in (WeightedSum, NormalisedSum, RelativeRank):
        assert [reward is None for reward in kind(weights).rewards(group)] == [True, False, False]


def test_who_is_left_out_does_not_move_the_others() -> None:
    group = [member(a=0.2, b=1.0), member(a=0.4, b=0.0)]
    lost = member(a=1.0, b="grader_timeout")
    weights = {"a": 1.0, "b": 0.5}
    for kind in (WeightedSum, NormalisedSum, RelativeRank):
        assert kind(weights).rewards([*group, lost])[:2] == kind(weights).rewards(group)


def test_normalising_keeps_a_wide_grader_from_drowning_a_narrow_one() -> None:
    group = [member(wide=1.0, narrow=0.50), member(wide=0.0, narrow=0.52)]
    weights = {"wide": 1.0, "narrow": 1.0}
    plain = WeightedSum(weights).rewards(group)
    equal = NormalisedSum(weights).rewards(group)
    assert plain[0] is not None
    assert plain[1] is not None
    assert plain[0] - plain[1] > 0.9, "the control: in a plain sum the narrow one has no say"
    assert equal == pytest.approx([0.0, 0.0])
    assert NormalisedSum(weights).rewards([member(wide=1.0, narrow=1.0)] * 3) == [0.0] * 3


def test_ranks_find_an_order_where_nobody_passes() -> None:
    group = [member(tests=0.01), member(tests=0.02), member(tests=0.02), member(tests=0.0)]
    assert RelativeRank({"tests": 1.0}).rewards(group) == pytest.approx([1 / 3, 5 / 6, 5 / 6, 0.0])


def test_a_lexicographic_reward_puts_tiers_before_scores() -> None:
    end = LexicographicGate([("tests", 1.0), ("style", 0.5)], {"tests": 1.0, "style": 0.2})
    rows = [
        member(tests=0.99, style=1.0),
        member(tests=1.0, style=0.0),
        member(tests=1.0, style=0.6),
        member(tests=0.5, style="grader_timeout"),
        member(tests="grader_timeout", style=1.0),
    ]
    assert end.rewards(rows) == pytest.approx([0.99, 1.0, 1.2, 0.5, None])


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=2, max_size=6))
@settings(max_examples=60, deadline=None)
def test_more_tiers_passed_is_never_less(scores: list[tuple[float, float, float]]) -> None:
    tiers = [("a", 0.5), ("b", 0.7), ("c", 1.0)]
    rewards = LexicographicGate(tiers).rewards([member(a=a, b=b, c=c) for a, b, c in scores])

    def passed(row: tuple[float, ...]) -> int:
        count = 0
        for score, (_, at) in zip(row, tiers, strict=True):
            if score < at:
                break
            count += 1
        return count

    for one, first in zip(scores, rewards, strict=True):
        for other, second in zip(scores, rewards, strict=True):
            if passed(one) > passed(other):
                assert (first or 0.0) > (second or 0.0)


SCORES = st.one_of(st.floats(0, 1), st.just(SKIPPED_BY_GATE), st.just("grader_timeout"))


@given(st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_streams_add_up_to_the_advantage(rows: list[tuple[float | str, float | str]]) -> None:
    group = [member(a=a, b=b) for a, b in rows]
    weights = {"a": 1.0, "b": -0.3}
    ends = [WeightedSum(weights), NormalisedSum(weights), RelativeRank(weights)]
    for end in (*ends, LexicographicGate([("b", 0.5), ("a", 1.0)])):
        rewards = end.rewards(group)
        known = [reward for reward in rewards if reward is not None]
        streams = advantage_streams(end, group)
        for index, reward in enumerate(rewards):
            parts = [stream[index] for stream in streams.values()]
            if reward is None:
                assert all(part is None for part in parts)
            else:
                advantage = reward - math.fsum(known) / len(known)
                assert sum(part or 0.0 for part in parts) == pytest.approx(advantage, abs=1e-9)
        assert all(math.isfinite(reward) for reward in known)


def test_evaluations_are_on_a_scale_of_their_own() -> None:
    graph = GraderGraph.of([node("a", 1.0), node("b", 1.0)], AggregatorKind.RELATIVE_RANK)
    end = for_evaluation(graph.aggregator)
    assert isinstance(end, ShareOfBest)
    assert end.rewards([member(a=1.0, b=1.0), member(a=1.0, b=0.0)]) == [1.0, 0.5]
    assert graph.aggregator.rewards([member(a=1.0, b=1.0)] * 2) == [1.0, 1.0], (
        "in training ranks compete: ties are even"
    )
    order = GraderGraph.of([node("a", 1.0), node("b", 1.0)], AggregatorKind.LEXICOGRAPHIC, order=["a", "b"])
    assert for_evaluation(order.aggregator).rewards([member(a=1.0, b=1.0), member(a=0.5, b=1.0)]) == [1.0, 0.25]
    plain = WeightedSum()
    assert for_evaluation(plain) is plain
    assert aggregator_at(plain, 0.5) is plain


# -- schedules ---------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1))
def test_a_ramp_is_what_staged_objectives_are(share: float) -> None:
    staged = StagedWeights(weights={"tests": 1.0, "taste": 0.5}, preference=("taste",), start=0.3, end=0.6)
    ramp = WeightSchedule(((0.3, 0.0), (0.6, 0.5)))
    assert ramp.at(share) == pytest.approx(staged.at(share)["taste"], abs=1e-12)


def test_weights_change_over_training_and_one_of_zero_asks_for_no_grade() -> None:
    graph = GraderGraph.of([node("tests", 1.0), node("taste", 1.0, weight=WeightSchedule(((0.3, 0.0), (0.6, 0.5))))])
    group = [member(tests=1.0, taste=1.0), member(tests=1.0, taste="grader_timeout")]
    assert aggregator_at(graph.aggregator, 0.1).rewards(group) == [1.0, 1.0]
    assert aggregator_at(graph.aggregator, 0.9).rewards(group) == [1.5, None]
    assert graph.aggregator.rewards(group) == [1.5, None]


def test_a_jump_and_its_sides() -> None:
    jump = WeightSchedule(((0.5, 1.0), (0.5, 0.0)))
    assert [jump.at(share) for share in (-1.0, 0.49, 0.5, 2.0)] == [1.0, 1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="share"):
        jump.at(math.nan)
    for points in ((), ((0.5, 1.0), (0.1, 1.0)), ((2.0, 1.0),), ((0.0, math.inf),)):
        with pytest.raises(ConfigError):
            WeightSchedule(points)


# -- the file ----------------------------------------------------------------------------------------------------------

GRAPH = """
[aggregator]
kind = "lexicographic"
order = ["answer", "short"]
passed_at = { short = 0.5 }

[graders.format]
use = "mine.py:Format"
options = { most = 9 }
gate = 1.0
weight = 0.0

[graders.answer]
use = "numeric"
options = { tolerance = 0.5 }
requires = ["format"]
timeout_s = 2.0
cost_s = 0.1

[graders.short]
use = "mine.py:short"
weight = [[0.0, 0.0], [0.5, 1.0]]
isolate = true
timeout_s = 20.0
"""

MINE = """
from dataclasses import dataclass
from burnish.core.grade import Grade

@dataclass(frozen=True)
class Format:
    most: int = 3
    name: str = "format"
    version: str = "7"
    async def grade(self, task, trajectory):
        return Grade(grader="format", version="7", score=float(len(trajectory.answer) <= self.most))

def short(task, trajectory):
    return 1 / len(trajectory.answer)
"""


def test_a_graph_is_data_and_python(tmp_path: Path) -> None:
    (tmp_path / "graders.toml").write_text(GRAPH)
    (tmp_path / "mine.py").write_text(MINE)
    graph = load_graph(tmp_path / "graders.toml")
    cases = [answered(TASK, text) for text in ("4.2", "something long")]
    rows = asyncio.run(grade_trajectories([TASK, TASK], cases, graph.graders, timeout_s=20))
    scores = [{grade.grader: grade.score for grade in row} for row in rows]
    assert scores[0] == {"format": 1.0, "answer": 1.0, "short": pytest.approx(1 / 3)}
    assert scores[1] == {"format": 0.0, "answer": None, "short": pytest.approx(1 / 14)}
    assert rows[0][0].version == "7"
    assert graph.aggregator.rewards(rows) == pytest.approx([1 + 1 / 3, 0.0])
    assert aggregator_at(graph.aggregator, 0.0).rewards(rows) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "graders"),
        ({"graders": {"a": {"use": "exakt"}}}, "graders.a: unknown grader 'exakt'; did you mean 'exact'"),
        ({"graders": {"a": {"use": "exact", "wieght": 1}}}, "unknown key graders.a.wieght; did you mean 'weight'"),
        ({"graders": {"a": {"use": "exact", "weight": "x"}}}, "graders.a.weight"),
        ({"graders": {"a": {"use": "exact", "weight": 0.0}}}, "every weight is 0"),
        ({"graders": {"a": {"use": "numeric", "options": {"tolerence": 1}}}}, "did you mean 'tolerance'"),
        ({"graders": {"a": {"use": "no.such:thing"}}}, "module no.such cannot be imported"),
        ({"graders": {"a": {"use": "nofile.py:thing"}}}, "there is no Python file"),
        ({"graders": {"a": {"use": "burnish.graders.rules:ExactGradr"}}}, "did you mean 'ExactGrader'"),
        ({"graders": {"a": {"use": "calls"}}}, "needs a sandbox handed in"),
        ({"graders": {"a": {"use": "calls", "options": {"sandbox": 1}}}}, "no option 'sandbox'"),
        ({"graders": {"a": {"use": "exact"}}, "aggregator": {"kind": "lexicographic"}}, "needs order"),
        ({"graders": {"a": {"use": "exact"}}, "aggregator": {"order": ["a"]}}, "belong to the lexicographic"),
        ({"graders": {"a": {"use": "exact"}}, "aggregator": {"kind": "sum"}}, "aggregator.kind"),
        ({"graders": {"a": {"use": "exact"}}, "aggregator": {"kind": "lexicographic", "order": ["b"]}}, "'b'"),
        ({"graders": {"a": {"use": "wer", "options": {"unit": "x"}}}}, "unit is word or character"),
        ({"graders": {"a": {"use": "math", "options": {"timeout_s": 0}}}}, "timeout_s"),
    ],
)
def test_mistakes_in_a_file_are_named(data: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        graph_from(data)
    assert said in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("[graders")
    for path in (bad, tmp_path / "missing.toml"):
        with pytest.raises(ConfigError, match=path.name):
            load_graph(path)
    (tmp_path / "broken.py").write_text("1 / 0")
    bad.write_text('[graders.a]\nuse = "broken.py:x"')
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        load_graph(bad)


def test_kept_texts_go_before_what_lies_there(tmp_path: Path) -> None:
    """Two files of one name in different folders stay apart; what is not kept is read where it lies."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "r.toml").write_text(f"{folder} on disk", encoding="utf-8")
    with GraphFiles(tmp_path, {"a/r.toml": "a kept", "b/r.toml": "b kept"}) as files:
        places = [Path(files.placed(name)) for name in ("a/r.toml", "b/r.toml")]
        assert [place.read_text() for place in places] == ["a kept", "b kept"]
        assert {place.name for place in places} == {"r.toml"}
        assert files.read == {"a/r.toml": "a kept", "b/r.toml": "b kept"}
    assert not any(place.exists() for place in places)
    plain = GraphFiles(tmp_path)
    assert plain.placed("a/r.toml") == str(tmp_path / "a" / "r.toml")
    assert plain.read == {"a/r.toml": "a on disk"}
    assert plain.placed("c.toml") == str(tmp_path / "c.toml")
    assert "c.toml" not in plain.read
