"""Calibration, position bias and drift: right figures, right maps, and alarms at the stated rate."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.core.errors import ConfigError
from burnish.core.judge import Criterion
from burnish.graders.judge_calibration import (
    Curve,
    Judgement,
    Mapped,
    accuracy,
    calibrate,
    calibration_from_json,
    fit_curve,
    load_calibration,
    position_bias,
)
from burnish.graders.judge_drift import DriftBaseline, check_drift, least_cases, load_baseline, sign_flip_p
from burnish.graders.rubric_criteria import Judging, Rubric, RubricCriterion
from burnish.graders.rubric_labelled import LabelledCase, judge_labelled, load_labelled, values_of
from burnish.testing.fakes import ScriptedJudge

RUBRIC = Rubric(
    name="r",
    criteria=tuple(RubricCriterion(criterion=Criterion(id=f"c{i}", text=f"It has {i}.", levels=1)) for i in range(4)),
    judging=Judging(batch_size=4),
)


def said(value: float | None, label: float | None, **changes: object) -> Judgement:
    return Judgement(**{"case": "c", "judge": "j", "criterion": "a", "value": value, "label": label} | changes)  # type: ignore[arg-type]


def test_balanced_accuracy_is_not_moved_by_how_many_are_met() -> None:
    rows = [said(1.0, 1.0)] * 90 + [said(0.0, 1.0)] * 10 + [said(1.0, 0.0)] * 5 + [said(0.0, 0.0)] * 5
    found = accuracy([*rows, said(None, 1.0), said(1.0, None)])
    assert found.balanced == pytest.approx((0.9 + 0.5) / 2)
    assert (found.n, found.missing) == (110, 1)
    assert found.sensitivity is not None
    assert found.sensitivity.low < 0.9 < found.sensitivity.high
    assert accuracy([said(1.0, 1.0)]).balanced is None
    assert accuracy([]).to_json()["balanced_accuracy"] is None


def test_a_graded_value_gets_a_cut_that_is_tried_on_other_examples() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    values = np.clip(0.15 * labels + 0.1 + rng.normal(0, 0.02, 200), 0, 1)  # all far below one half
    rows = [said(float(v), float(y)) for v, y in zip(values, labels, strict=True)]
    found = accuracy(rows)
    assert found.balanced == pytest.approx(0.5)
    assert found.threshold == pytest.approx(0.175, abs=0.03)
    assert found.threshold_accuracy == pytest.approx(1.0, abs=0.02)
    noise = [said(float(v), float(y)) for v, y in zip(rng.random(200), labels, strict=True)]
    assert accuracy(noise).threshold_accuracy == pytest.approx(0.5, abs=0.12)
    assert accuracy([said(1.0, 1.0), said(0.0, 0.0)] * 50).threshold is None


graded = st.lists(st.tuples(st.integers(0, 8).map(lambda n: n / 8), st.floats(0, 1)), min_size=20, max_size=60)


@given(graded, st.sampled_from(Mapped))
def test_maps_stay_in_bounds_and_keep_the_order(pairs: list[tuple[float, float]], how: Mapped) -> None:
    curve = fit_curve(pairs, how)
    if curve is None:
        return
    mapped = [curve.apply(x / 50) for x in range(51)]
    assert all(0.0 <= y <= 1.0 for y in mapped)
    assert mapped == sorted(mapped)


def test_the_isotonic_map_brings_values_nearer_to_the_labels() -> None:
    rng = np.random.default_rng(3)
    truth = rng.random(400)
    values = np.round(truth**3, 2)  # a judge that is far too strict
    labels = (rng.random(400) < truth).astype(float)
    curve = fit_curve(list(zip(values.tolist(), labels.tolist(), strict=True)), Mapped.ISOTONIC)
    assert curve is not None
    fresh = rng.random(400)
    raw = np.abs(np.round(fresh**3, 2) - fresh).mean()
    mapped = np.abs(np.array([curve.apply(v) for v in np.round(fresh**3, 2)]) - fresh).mean()
    assert mapped < 0.5 * raw
    assert fit_curve([(0.5, 1.0)] * 19, Mapped.ISOTONIC) is None
    assert fit_curve([(1.0, 1.0), (0.0, 0.0)] * 20, Mapped.ISOTONIC) is None


def test_a_calibration_survives_its_file(tmp_path: Path) -> None:
    rows = [said(v / 10, float(v > 3)) for v in range(10) for _ in range(4)]
    found = calibrate(rows, "abc", Mapped.THRESHOLD)
    assert found.apply("j", "a", 0.3) == 0.0
    assert found.apply("j", "a", 0.4) == 1.0
    assert found.apply("j", "b", 0.3) == 0.3
    assert calibration_from_json(json.loads(json.dumps(found.to_json()))) == found
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"calibration": found.to_json()}))
    assert load_calibration(path) == found
    for bad in ("[]", "{", '{"rubric": "x", "curves": {"j": {"a": {"x": [1, 0], "y": [0, 1]}}}}'):
        path.write_text(bad)
        with pytest.raises(ConfigError):
            load_calibration(path)
    with pytest.raises(ConfigError, match="rising x"):
        Curve(x=(0.0, 0.0), y=(0.0, 1.0))


# -- position ------------------------------------------------------------------------------------------------------


def cases(n: int) -> list[LabelledCase]:
    return [LabelledCase(id=str(i), answer=f"case {i} of many", labels={"c0": 1.0, "c1": 0.0}) for i in range(n)]


def test_position_bias_is_found_and_not_invented() -> None:
    class Tired(ScriptedJudge):
        """Finds only the first two of a batch."""

        def says(self, request: object) -> str:
            seen = [item.id for item in request.criteria if item.id not in request.controls]  # type: ignore[attr-defined]
            self._script = lambda criterion, text: int(seen.index(criterion.id) < 2)
            return super().says(request)  # type: ignore[arg-type]

    rng = np.random.default_rng(0)
    tired = asyncio.run(judge_labelled(RUBRIC, [Tired()], cases(10), orders=3))
    assert len(tired) == 10 * 3 * 4
    found = position_bias(tired, rng)
    assert found is not None
    assert found.p_value < 0.01
    assert found.slope < -0.2
    steady = ScriptedJudge(lambda criterion, text: hash((criterion.id, len(text))) % 2)
    even = position_bias(asyncio.run(judge_labelled(RUBRIC, [steady], cases(10), orders=3)), rng)
    assert even is not None
    assert (even.slope, even.p_value) == (0.0, 1.0)
    assert position_bias(tired[:4], rng) is None


def test_position_bias_has_its_error_rate() -> None:
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(200):
        rows = [
            said(float(rng.integers(0, 2)), None, case=str(c), position=int(p))
            for c in range(12)
            for p in rng.permutation(6)[:2]
        ]
        found = position_bias(rows, rng)
        alarms += found is not None and found.p_value <= 0.05
    assert 2 <= alarms <= 22  # Binomial(200, .05) is outside with probability 2e-4


# -- drift ---------------------------------------------------------------------------------------------------------


def passes(rng: np.random.Generator, n: int, flip: float, shift: float = 0.0) -> dict[str, dict[str, float]]:
    """A noisy judge of n texts with 6 criteria: truth alternates; a verdict flips with a chance, or is lifted."""
    found = {}
    for i in range(n):
        off = rng.random() < flip  # verdicts on one text hang together
        row = {}
        for j in range(6):
            value = float((i + j) % 2 != (off and rng.random() < 0.5))
            row[f"c{j}"] = 1.0 if rng.random() < shift else value
        found[str(i)] = row
    return found


@pytest.mark.parametrize("n", [12, 24])
def test_an_unchanged_judge_raises_alarms_at_most_at_the_stated_rate(n: int) -> None:
    rng = np.random.default_rng(n)
    rate, tries = 0.1, 300
    alarms = 0
    for _ in range(tries):
        baseline = DriftBaseline(judge="j", reported="", first=passes(rng, n, 0.4), second=passes(rng, n, 0.4))
        alarms += check_drift(baseline, passes(rng, n, 0.4), false_alarm_rate=rate, rng=rng).alarm
    assert alarms <= 48  # Binomial(300, .1) is above with probability 5e-4


def test_a_lifted_level_and_more_flips_are_found() -> None:
    rng = np.random.default_rng(0)
    baseline = DriftBaseline(judge="j", reported="v1", first=passes(rng, 24, 0.1), second=passes(rng, 24, 0.1))
    lifted = check_drift(baseline, passes(rng, 24, 0.1, shift=0.4))
    assert lifted.alarm
    assert lifted.level > 0.1
    assert "level" in lifted.reasons[0]
    shaken = {c: {k: 1.0 - v if k in ("c0", "c1") else v for k, v in row.items()} for c, row in baseline.second.items()}
    found = check_drift(baseline, shaken)
    assert found.alarm
    assert found.level == pytest.approx(0.0, abs=0.05)
    assert found.changed > found.usual
    same = check_drift(baseline, baseline.second)
    assert not same.alarm
    assert same.false_alarm_rate == 0.01
    assert (same.cases, same.cells, same.missing) == (24, 144, 0)


def test_another_version_is_an_alarm_by_itself_and_gaps_are_counted() -> None:
    rng = np.random.default_rng(0)
    one = passes(rng, 12, 0.0)
    baseline = DriftBaseline(judge="j", reported="v1", first=one, second=one)
    assert check_drift(baseline, one, reported="v2").reasons == ("v2 answers, and the baseline is of v1",)
    gappy = {case: {k: v for k, v in row.items() if k != "c0"} for case, row in one.items()}
    assert check_drift(baseline, gappy).missing == 12
    with pytest.raises(ConfigError, match="at least 9 texts"):
        check_drift(baseline, {"1": one["1"]})
    with pytest.raises(ConfigError, match="false alarm rate"):
        check_drift(baseline, one, false_alarm_rate=0.0)


def test_least_cases_can_reach_the_rate_and_fewer_cannot() -> None:
    rng = np.random.default_rng(0)
    for rate in (0.1, 0.01, 0.001):
        n = least_cases(rate)
        assert sign_flip_p(np.ones(n), rng, two_sided=True) <= rate / 2
        assert sign_flip_p(np.ones(n - 1), rng, two_sided=True) > rate / 2
    assert sign_flip_p(np.zeros(20), rng, two_sided=True) == 1.0
    assert sign_flip_p(np.ones(40), rng, two_sided=False) < 1e-3


@settings(max_examples=30)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=10))
def test_sign_flip_p_values_are_probabilities(values: list[float]) -> None:
    for two_sided in (True, False):
        p = sign_flip_p(np.array(values), np.random.default_rng(0), two_sided=two_sided)
        assert 0.0 < p <= 1.0


def test_a_baseline_survives_its_file(tmp_path: Path) -> None:
    found = asyncio.run(judge_labelled(RUBRIC, [ScriptedJudge()], cases(3)))
    values = values_of(found, "scripted")
    assert values["0"] == {f"c{i}": 1.0 for i in range(4)}
    baseline = DriftBaseline(judge="scripted-1", reported="", first=values, second=values)
    baseline.save(tmp_path / "b.json")
    assert load_baseline(tmp_path / "b.json") == baseline
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(ConfigError, match="no drift baseline"):
        load_baseline(tmp_path / "b.json")


# -- labelled examples ---------------------------------------------------------------------------------------------


def test_labels_are_checked_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    path.write_text('{"id": "a", "answer": "x", "labels": {"c0": 1}}\n\n{"answer": "y"}\n')
    found = load_labelled(path, RUBRIC)
    assert [(case.id, case.labels) for case in found] == [("a", {"c0": 1.0}), ("3", {})]
    for text, message in (
        ('{"answer": "x", "labels": {"zz": 1}}', "line 1: the rubric has no criterion 'zz'"),
        ('{"answer": "x", "labels": {"c0": 2}}', r"whole number 0\.\.1"),
        ('{"answer": "x", "labels": {"c0": true}}', "whole number"),
        ('{"answer": 5}', "answer is a text"),
        ("[1]", "line 1"),
        ('{"id": 1, "answer": "x"}\n{"id": 1, "answer": "x"}', "stands twice"),
        ("", "no examples"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_labelled(path, RUBRIC)


def test_what_a_judge_fails_at_is_a_judgement_without_a_value() -> None:
    judge = ScriptedJudge(raw=["no"] * 99)
    found = asyncio.run(judge_labelled(RUBRIC, [judge], cases(2)))
    assert {row.value for row in found} == {None}
    assert {row.cause for row in found} == {"judge:malformed"}
    assert accuracy(found).missing == 4
