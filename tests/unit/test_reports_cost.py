"""Success against length, by length, and staleness: what the charts say is what the segments hold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import GROUP_SIZE, GROUPS, HELD_OUT, SyntheticRun, finished_run

from burnish.core.errors import StoreError
from burnish.reports.cost import BIN_STEPS, MAX_BINS, MAX_WINDOWS, CostReadings, Spending, cost_view, length_bins
from burnish.reports.overview import overview
from burnish.reports.series import Readings
from burnish.store.reader import RunReader
from burnish.store.rows import Fate, StoredTrajectory

STEPS = 16


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> RunReader:
    run = finished_run(tmp_path_factory.mktemp("runs") / "stale", rl_steps=STEPS, is_asynchronous=True)
    run.writer.close()
    return RunReader(run.folder)


@pytest.fixture(scope="module")
def costs(reader: RunReader) -> CostReadings:
    made = CostReadings(reader)
    made.update(0, is_asynchronous=True)
    return made


@pytest.fixture(scope="module")
def view(reader: RunReader, costs: CostReadings) -> dict[str, Any]:
    return cost_view(costs, reader.evaluations())


def scored(reader: RunReader, step: int) -> list[StoredTrajectory]:
    return [row for row in reader.trajectories("rl", step) if row.reward is not None]


def test_each_step_is_what_its_scored_episodes_sampled_and_achieved(reader: RunReader, costs: CostReadings) -> None:
    assert sorted(costs.steps) == list(range(1, STEPS + 1))
    for step, spent in costs.steps.items():
        rows = scored(reader, step)
        assert spent == Spending(
            n=len(rows),
            tokens=sum(row.trajectory.action_tokens for row in rows),
            successes=sum(row.reward == 1.0 for row in rows),
        )


def test_success_is_read_from_the_grades_since_a_token_cost_is_in_the_reward(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    run.commit_rl_step(1.0)
    folder = run.folder
    run.writer.close()
    plain = CostReadings(RunReader(folder))
    plain.update(0)
    charged = SyntheticRun(tmp_path / "charged")
    charged.commit_rl_step(1.0, charge=0.1)
    charged.writer.close()
    taken = CostReadings(RunReader(charged.folder))
    taken.update(0)
    assert max(row.reward for row in scored(RunReader(charged.folder), 1)) == pytest.approx(0.9)
    assert taken.steps[1].successes == plain.steps[1].successes > 0


def test_windows_cover_every_step_once_and_are_in_order(view: dict[str, Any], costs: CostReadings) -> None:
    training = view["tradeoff"][0]
    assert training["title"] == "training episodes"
    assert len(training["points"]) == min(MAX_WINDOWS, STEPS)
    assert sum(point["n"] for point in training["points"]) == sum(spent.n for spent in costs.steps.values())
    assert training["points"][0]["at"] == "steps 1 to 2"
    assert training["points"][-1]["at"] == f"step {STEPS}"
    tokens = [point["tokens"] for point in training["points"]]
    assert tokens[0] > tokens[-1], "answers of this run get shorter"


def test_evaluations_have_their_own_curves_with_intervals(view: dict[str, Any]) -> None:
    curves = {curve["title"]: curve["points"] for curve in view["tradeoff"][1:]}
    assert set(curves) == {"greedy", "sampled", "unseen templates, greedy"}
    assert [point["at"] for point in curves["greedy"]] == ["after SFT", "step 10", "after RL"]
    last = curves["greedy"][-1]
    assert last["n"] == HELD_OUT
    assert last["success"] == pytest.approx(11 / 12, abs=1e-5)
    assert last["interval"][0] < last["success"] <= last["interval"][1]


def test_bins_hold_the_episodes_of_the_newest_steps(view: dict[str, Any], reader: RunReader) -> None:
    bins = view["bins"]
    assert (bins["first"], bins["last"]) == (STEPS - BIN_STEPS + 1, STEPS)
    rows = [row for step in range(bins["first"], STEPS + 1) for row in scored(reader, step)]
    assert sum(one["n"] for one in bins["rows"]) == len(rows)
    assert len(bins["rows"]) <= MAX_BINS
    for one in bins["rows"]:
        inside = [row for row in rows if one["low"] <= row.trajectory.action_tokens <= one["high"]]
        assert len(inside) == one["n"]
        assert one["success"] == pytest.approx(sum(row.reward == 1.0 for row in inside) / one["n"], abs=1e-5)
        assert one["interval"][0] <= one["success"] <= one["interval"][1]


def test_bins_of_few_lengths_are_few_and_an_interval_is_never_a_point() -> None:
    made = length_bins([5, 5, 5, 9], [True, True, True, False], ["a", "a", "b", "b"])
    assert [(one["low"], one["high"], one["n"]) for one in made] == [(5, 5, 3), (9, 9, 1)]
    assert all(one["interval"][0] < one["interval"][1] for one in made)
    assert length_bins([], [], []) == []


def test_staleness_counts_every_trained_token_against_the_learner_of_its_step(
    view: dict[str, Any], reader: RunReader
) -> None:
    staleness = view["staleness"]
    assert [bucket["title"] for bucket in staleness["buckets"]][:5] == ["0", "1", "2", "3 to 4", "5 to 8"]
    for place, step in enumerate(staleness["steps"]):
        counts = dict.fromkeys(range(5), 0)
        for row in reader.trajectories("rl", step):
            if row.fate is Fate.TRAINED:
                counts[step - 1 - max(row.trajectory.nodes[1].versions)] += row.trajectory.action_tokens
        shown = [bucket["tokens"][place] for bucket in staleness["buckets"]]
        assert shown == [counts[0], counts[1], counts[2], counts[3] + counts[4], 0, 0, 0]
    assert any(bucket > 0 for bucket in staleness["buckets"][2]["tokens"])


def test_new_steps_are_read_once_and_a_resume_replaces_them(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run", is_asynchronous=True)
    for _ in range(3):
        run.commit_rl_step(0.5)
    costs = CostReadings(RunReader(run.folder))
    costs.update(0, is_asynchronous=True)
    before, bins = dict(costs.steps), costs.bins()
    run.writer.supersede_after({"rl": 2})
    run.rl_step = 2
    run.commit_rl_step(1.0)
    costs.update(0, is_asynchronous=True)
    assert costs.steps == before, "the negative control: without a new attempt steps are kept"
    assert costs.bins() == bins
    costs.update(1, is_asynchronous=True)
    assert costs.steps[3].successes == costs.steps[3].n == GROUPS * GROUP_SIZE - 1
    assert costs.steps[2] == before[2]
    assert costs.bins() != bins
    run.writer.close()


def test_a_synchronous_run_counts_no_staleness(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    run.commit_rl_step()
    run.writer.close()
    reader = RunReader(run.folder)
    assert overview(reader, Readings(reader), CostReadings(reader))["cost"]["staleness"]["steps"] == []


def test_a_missing_segment_costs_these_charts_alone(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    run.commit_rl_step()
    run.writer.close()
    next(iter(run.writer.layout.segments.glob("rl-*"))).unlink()
    reader = RunReader(run.folder)
    with pytest.raises(StoreError, match="missing"):
        CostReadings(reader).update(0)
    assert overview(reader, Readings(reader), CostReadings(reader))["cost"]["tradeoff"] == []


def test_nothing_spent_is_no_number() -> None:
    nothing = Spending(n=0, tokens=0, successes=0)
    assert math.isnan(nothing.tokens_per_episode)
    assert math.isnan(nothing.success)
    assert math.isnan(nothing.successes_per_1k_tokens)
