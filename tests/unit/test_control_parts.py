"""The parts of control that the ladder is made of."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.control.baseline import Baselines, History
from burnish.control.conditions import Conditions
from burnish.control.curriculum import source_probabilities
from burnish.control.hysteresis import Hysteresis
from burnish.control.kl_servo import KlServo
from burnish.control.outcome import OutcomeContrast, OutcomeWatch
from burnish.control.rollback import CheckpointMark, choose_checkpoint
from burnish.core.finding import Finding


def mark(step, verified=True):
    return CheckpointMark(name=f"{step:06d}", step=step, verified=verified)


def test_a_switch_needs_a_gap_and_holds():
    switch = Hysteresis(enter=0.5, leave=0.8, hold_steps=3)
    wandering = [0.49, 0.51, 0.6, 0.79, 0.81, 0.7, 0.81, 0.81]
    assert [switch.update(value) for value in wandering] == [True] * 8
    assert switch.update(0.81) is False
    with pytest.raises(ValueError, match="flutters"):
        Hysteresis(enter=0.5, leave=0.5, hold_steps=1)


def test_one_threshold_would_flutter_where_two_do_not():
    wandering = [0.49, 0.51] * 10
    naive = [value < 0.5 for value in wandering]
    switch = Hysteresis(enter=0.5, leave=0.8, hold_steps=1)
    held = [switch.update(value) for value in wandering]
    assert sum(a != b for a, b in itertools.pairwise(naive)) == 19
    assert sum(a != b for a, b in itertools.pairwise(held)) == 0


def test_an_unmeasured_value_changes_nothing():
    switch = Hysteresis(enter=0.5, leave=0.8, hold_steps=2)
    assert [switch.update(value) for value in (0.1, 0.9, None, 0.9)] == [True, True, True, False]


@given(st.floats(0.0, 1e6), st.lists(st.floats(0.0, 1e6) | st.just(math.nan), max_size=60))
def test_the_servo_never_leaves_its_range(weight, errors):
    servo = KlServo(start=0.01, cap=0.2)
    weight = min(max(weight, servo.start), servo.cap)
    for error in errors:
        after = servo.step(weight, error)
        assert servo.start <= after <= servo.cap
        assert after <= weight * servo.rate * (1 + 1e-12)
        weight = after


def test_the_servo_brings_a_drift_to_its_target_and_lets_go():
    servo, weight, drift, peak = KlServo(start=0.01, cap=0.5), 0.01, 0.4, 0.0
    for _ in range(120):
        drift *= 1.05 - 0.6 * weight
        weight = servo.step(weight, drift / 0.1)
        peak = max(peak, weight)
    assert peak > 0.1
    assert drift < 0.15
    for _ in range(120):
        weight = servo.step(weight, 0.2)
    assert servo.idle(weight, 0.2)


def test_a_servo_without_a_cap_would_run_away_where_the_penalty_does_not_help():
    capped, free = KlServo(start=0.01, cap=0.2), KlServo(start=0.01, cap=1e12)
    a = b = 0.01
    for _ in range(100):
        a, b = capped.step(a, 50.0), free.step(b, 50.0)
    assert a == 0.2
    assert b > 1e6


def test_curriculum_adds_up_and_keeps_every_source_in_sight():
    shares = source_probabilities({"a": 2.0, "b": 1.0, "c": 1.0}, {"a": 0.9, "b": 0.0}, floor=0.25)
    assert math.fsum(shares.values()) == pytest.approx(1.0)
    assert shares["b"] / shares["a"] == pytest.approx(0.125)
    assert shares["c"] / shares["a"] == pytest.approx(0.5)
    assert source_probabilities({"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 0.0}) == {"a": 0.5, "b": 0.5}
    with pytest.raises(ValueError, match="floor"):
        source_probabilities({"a": 1.0}, {}, floor=0.0)


@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(1e-3, 1e3), min_size=1),
    st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1)),
)
def test_no_source_falls_below_its_floor(base, ess):
    shares = source_probabilities(base, ess, floor=0.25)
    total = math.fsum(base.values())
    assert math.fsum(shares.values()) == pytest.approx(1.0)
    assert all(shares[source] >= 0.25 * base[source] / total * (1 - 1e-9) for source in base)


def test_baselines_freeze_so_that_a_slow_drift_is_seen():
    baselines, recent = Baselines(20), []
    for step in range(400):
        entropy = 2.0 - 1.1 * step / 400 + 0.02 * (-1) ** step
        baselines.update({"health/entropy": entropy})
        recent = [*recent, entropy][-20:]
    assert baselines.within("health/entropy", entropy) is False
    sliding = Baselines(20)
    for value in recent:
        sliding.update({"health/entropy": value})
    assert sliding.within("health/entropy", entropy) is True


def test_baselines_pass_over_what_is_not_finite_and_know_what_they_do_not_know():
    baselines = Baselines(2)
    for value in (math.nan, 1.0, math.inf, 1.0):
        baselines.update({"x": value})
    assert baselines.median("x") == 1.0
    assert baselines.within("x", 1.1) is True
    assert baselines.within("x", None) is None
    assert baselines.within("y", 1.0) is None


def test_history_forgets_steps_that_were_rolled_back():
    history = History(10)
    for step in range(6):
        history.add(step, float(step))
    history.add(3, 30.0)
    assert list(history) == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 30.0)]
    assert history.at(2) == 2.0
    assert history.at(-1) == 30.0
    assert History(3).at(5) is None


def test_contrast_is_relative_to_the_run_itself():
    watch = OutcomeWatch(baseline_steps=3, low=0.5, recovered=0.75, hold_steps=2, margin=0.05)
    for variance in (0.2, 0.22, 0.18):
        watch.update(OutcomeContrast(reward_variance=variance))
    assert not watch.contrast_is_low
    watch.update(OutcomeContrast(reward_variance=0.09))
    assert watch.contrast == pytest.approx(0.45)
    assert watch.contrast_is_low
    watch.update(OutcomeContrast())
    assert watch.contrast_is_low
    for variance in (0.16, 0.16):
        watch.update(OutcomeContrast(reward_variance=variance))
    assert not watch.contrast_is_low


def run_heldout(successes, episodes=64, margin=0.05):
    watch = OutcomeWatch(baseline_steps=1, low=0.5, recovered=0.75, hold_steps=1, margin=margin)
    for success in successes:
        watch.update(OutcomeContrast(heldout_success=success, heldout_episodes=episodes))
    return watch


def test_damage_needs_two_evaluations_in_a_row_and_counts_their_noise():
    assert not run_heldout([0.6, 0.6, 0.6, 0.3]).damaged
    assert run_heldout([0.6, 0.6, 0.6, 0.3, 0.3]).damaged
    assert not run_heldout([0.6, 0.6, 0.6, 0.3, 0.6, 0.3]).damaged
    assert not run_heldout([0.6, 0.6, 0.6, 0.3, 0.3], episodes=4).damaged


def test_one_lucky_evaluation_is_no_level():
    assert not run_heldout([0.5, 0.5, 0.5, 0.8, 0.5, 0.5, 0.5]).damaged


def test_contrast_of_groups():
    assert OutcomeContrast.of([[1.0], []]).reward_variance is None
    assert OutcomeContrast.of([[1.0, 1.0], [0.0, 0.0]]).reward_variance == 0.0


def test_a_rollback_goes_before_the_onset_and_only_to_what_was_verified():
    marks = [mark(20), mark(40), mark(60, verified=False), mark(80)]
    assert choose_checkpoint(marks, onset_step=75).step == 40
    assert choose_checkpoint(marks, onset_step=40).step == 20
    assert choose_checkpoint(marks, onset_step=40, margin_steps=0).step == 40
    assert choose_checkpoint(marks, onset_step=75, tried=["000040"]).step == 20
    assert choose_checkpoint(marks, onset_step=10) is None
    with pytest.raises(ValueError, match="onset"):
        choose_checkpoint(marks, onset_step=-1)


@given(
    st.lists(st.tuples(st.integers(0, 100), st.booleans()), max_size=12, unique_by=lambda item: item[0]),
    st.integers(0, 120),
    st.integers(0, 5),
)
def test_no_choice_is_later_than_the_onset_or_earlier_than_it_must_be(rows, onset, margin):
    marks = [mark(step, verified) for step, verified in rows]
    fit = [step for step, verified in rows if verified and step + margin <= onset]
    chosen = choose_checkpoint(marks, onset, margin_steps=margin)
    assert (chosen.step if chosen else None) == (max(fit) if fit else None)


def finding(kind="tail_growth", **fields):
    return Finding(**{"monitor": "m", "step": 5, "summary": "", "kind": kind, **fields})


def test_conditions_merge_by_kind_and_slice_and_keep_the_earliest_onset():
    conditions = Conditions()
    conditions.note([finding(onset_step=9, trajectory_ids=("a",)), finding(slice_name="text")], tick=1)
    conditions.note([finding(onset_step=4, monitor="n", evidence={"group_ids": ["g"]}), finding(onset_step=7)], tick=2)
    merged, other = conditions.since(0)
    if merged.slice_name:
        merged, other = other, merged
    assert (merged.onset_step, merged.monitors, merged.trajectory_ids) == (4, ["m", "n"], ["a"])
    assert merged.group_ids == ["g"]
    assert (other.slice_name, other.onset_step) == ("text", -1)
    assert [condition.slice_name for condition in conditions.since(2)] == [""]


def test_conditions_do_not_depend_on_the_order_of_findings():
    found = [
        finding(monitor="b"),
        finding(monitor="a", trajectory_ids=("y",)),
        finding(monitor="a", trajectory_ids=("x",)),
    ]
    states = []
    for order in (found, found[::-1]):
        conditions = Conditions()
        conditions.note(order, tick=1)
        states.append(conditions.state())
    assert states[0] == states[1]
    assert (states[0][0]["monitors"], states[0][0]["trajectory_ids"]) == (["a", "b"], ["x", "y"])


def test_warnings_open_nothing():
    conditions = Conditions()
    conditions.note([finding(severity="warning")], tick=1)
    assert conditions.since(0) == ()
    conditions.note([finding()], tick=1)
    assert len(conditions.since(0)) == 1


def test_conditions_survive_json():
    conditions, again = Conditions(), Conditions()
    conditions.note([finding(onset_step=3, trajectory_ids=("a", "b"))], tick=4)
    again.load(json.loads(json.dumps(conditions.state())))
    assert again.since(0) == conditions.since(0)
