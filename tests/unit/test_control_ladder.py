from __future__ import annotations

import itertools
import random

import pytest
from ladders import CHECKPOINTS, Drive, acts, alarm

from burnish.control.ladder import Ladder
from burnish.control.rollback import CheckpointMark
from burnish.control.rungs import ROUTES
from burnish.control.spec import LADDER, LadderSpec
from burnish.core.finding import Act


def test_a_healthy_run_is_left_alone():
    drive = Drive()
    assert drive.run(1000) == []
    assert drive.ladder.is_well
    assert drive.ladder.engaged == {}


def test_low_scalars_without_a_finding_move_nothing():
    drive = Drive(kl_weight=0.0)
    assert drive.run(100, ess=0.05, variance=0.0, health__entropy=0.01, health__post_tool_share=0.9) == []


@pytest.mark.parametrize("kind", ["a kind of tomorrow", ""])
def test_unknown_kinds_and_warnings_are_left_to_people(kind):
    drive = Drive()
    assert drive.run(30, alarm(kind), every_step=True) == []
    assert drive.run(30, alarm("tail_growth", severity="warning"), every_step=True) == []
    assert drive.run(1, alarm("tail_growth")) != []


def test_dry_run_is_the_default_and_says_what_it_would_have_done():
    dry, real = Drive(), Drive(dry_run=False)
    [would], [did] = dry.step(alarm("tail_growth")), real.step(alarm("tail_growth"))
    assert LadderSpec().dry_run
    assert (would.dry_run, did.dry_run) == (True, False)
    assert would.reason == f"would have: {did.reason}"
    assert (would.act, would.values) == (did.act, did.values)


def test_tail_masking_takes_the_offending_slice_and_a_budget_relative_to_its_baseline():
    drive = Drive()
    [decision] = drive.step(alarm("tail_growth", slice_name="post_tool"))
    assert decision.act is Act.MASK_TAIL
    assert decision.values == {"slice": "post_tool", "moment_cap": pytest.approx(0.002)}
    assert decision.findings == ("monitor of tail_growth",)
    [elsewhere] = Drive().step(alarm("tail_growth", slice_name="text"))
    assert elsewhere.values["moment_cap"] == 0.04


def test_a_tail_is_masked_until_it_is_back_in_its_band():
    drive = Drive()
    drive.step(alarm("tail_growth", slice_name="post_tool"))
    wide = {"health__post_tool__log_ratio_behaviour_p95": 0.2}
    assert drive.run(60, **wide) == []
    assert acts(drive.run(6)) == [("mask_tail", True)]


def test_learning_rate_follows_the_square_root_of_ess():
    drive = Drive()
    factors = [d.values["factor"] for d in drive.run(25, alarm("ess_drop"), ess=0.25)]
    assert factors[-1] == pytest.approx(0.5, abs=0.05)
    assert all(later < earlier for earlier, later in itertools.pairwise(factors))
    released = drive.run(40)
    assert acts(released)[-1] == ("learning_rate", True)
    assert all(d.values["factor"] >= factors[-1] for d in released)


def test_learning_rate_needs_a_low_ess_unless_the_update_itself_is_too_large():
    assert Drive().run(8, alarm("ess_drop"), every_step=True) == []
    [halved] = Drive().step(alarm("learning_rate"))
    assert halved.values == {"factor": 0.5}


def test_a_learning_rate_that_stays_too_large_is_halved_down_to_a_floor():
    drive = Drive(learning_rate_floor=0.1)
    factors = [d.values["factor"] for d in drive.run(60, alarm("learning_rate"), every_step=True)]
    assert factors[:3] == [0.5, 0.25, 0.125]
    assert min(factors) == 0.1


def test_a_reward_that_leaves_its_verifiable_graders_is_left_for_them():
    apart = {"reward__agreement": -0.2}
    drive = Drive()
    assert drive.step(alarm("reward_jump"), reward__agreement=0.2) == (), "the running mean is still above half of .9"
    decisions = drive.run(5, alarm("reward_jump"), every_step=True, **apart)
    assert acts(decisions) == [("verified_reward", False)]
    assert decisions[0].values["agreement"] < 0.45
    assert drive.run(60, **apart) == [], "as long as it lasts"
    assert acts(drive.run(20)) == [("verified_reward", True)]


def test_a_reward_that_never_agreed_or_still_does_opens_nothing():
    fine = Drive(kl_weight=None)
    assert fine.run(30, alarm("reward_jump"), every_step=True, reward__agreement=0.6) == []
    never = Drive(warm_up=0, baseline_steps=5, kl_weight=None)
    assert never.run(40, reward__agreement=-0.1) == []
    assert never.run(30, alarm("reward_jump"), every_step=True, reward__agreement=-0.9) == []


def test_the_kl_servo_needs_a_reference_and_stays_under_its_cap():
    assert Drive(kl_weight=None).run(8, alarm("kl_drift"), every_step=True) == []
    drive = Drive(kl_weight=0.0, kl_weight_cap=0.1)
    decisions = drive.run(60, alarm("kl_drift", onset=4), every_step=True, health__all__k3_reference=0.3)
    weights = [d.values["weight"] for d in decisions if d.act is Act.KL_WEIGHT]
    assert weights[0] < 0.02 < 0.09 < weights[-1] <= 0.1


def test_the_kl_servo_holds_the_drift_where_it_stood_and_lets_go():
    drive = Drive(kl_weight=0.0)
    drive.step(alarm("kl_drift", onset=3), health__all__k3_reference=0.3)
    later = drive.run(60)
    assert acts(later)[-1] == ("kl_weight", True)


def test_an_entropy_below_its_floor_raises_the_kl_weight_and_one_above_does_not():
    low = Drive(kl_weight=0.0).run(10, alarm("entropy_low"), health__entropy=0.2)
    high = Drive(kl_weight=0.0).run(10, alarm("entropy_low"), health__entropy=0.9)
    assert low[-1].values["weight"] > 2 * low[0].values["weight"] * 0.9
    assert all(d.values["weight"] <= 0.01 for d in high)


def test_a_growing_share_alone_is_learning_to_use_tools():
    share = {"health__post_tool_share": 0.6}
    assert Drive().run(8, alarm("post_tool_share", onset=3), every_step=True, **share) == []
    drive = Drive(rungs=(Act.POST_TOOL_CAP,))
    text = alarm("tail_growth", slice_name="text")
    assert drive.run(8, alarm("post_tool_share", onset=3), text, every_step=True, **share) == []
    tail = alarm("tail_growth", slice_name="tool:search")
    [decision] = drive.step(alarm("post_tool_share", onset=3), tail, **share)
    assert decision.act is Act.POST_TOOL_CAP
    assert decision.values == {"share": 0.3}


SOURCES = {"easy": 1.0, "noisy": 1.0}


def shares_of(decisions):
    assert {decision.act for decision in decisions} == {Act.CURRICULUM}
    return [decision.values["probabilities"]["noisy"] for decision in decisions]


def test_the_curriculum_draws_less_from_the_source_whose_samples_count_less():
    low = {"health__source_COLON_noisy__ess_token_raw": 0.3}
    shares = shares_of(Drive(sources=SOURCES).run(20, alarm("source_noise"), every_step=True, **low))
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx(0.25, abs=0.03)
    assert Drive(sources=SOURCES).step(alarm("source_noise")) == ()
    assert Drive().step(alarm("source_noise"), **low) == ()


def test_a_source_whose_rewards_turned_noisy_is_drawn_less_though_its_ess_is_fine():
    noisy = {"health__source_COLON_noisy__reward_sd": 0.8}
    shares = shares_of(Drive(sources=SOURCES).run(20, alarm("source_noise"), every_step=True, **noisy))
    assert shares[-1] == pytest.approx(1 / 3, abs=0.03)


def test_sources_that_are_equally_noisy_are_not_played_off_against_each_other():
    """A source has but a few groups in a step: its spread there says little, and the knob must not follow it."""
    drive, random_ = Drive(sources=SOURCES), random.Random(0)
    drawn = []
    for _ in range(60):
        spreads = {f"health__source_COLON_{name}__reward_sd": random_.choice([0.4, 1.6]) for name in SOURCES}
        drawn += drive.step(alarm("source_noise"), **spreads)
    shares = shares_of(drawn)
    assert 0.25 < min(shares) < max(shares) < 0.75, "single steps alone swing between .2 and .8"
    assert len(shares) < 30


def near_miss_drive():
    drive = Drive(rungs=(Act.NEAR_MISSES,), groups_per_step=20)
    for _ in range(4):
        drive.step(ess=0.1, variance=0.01)
    return drive


def test_near_misses_need_low_ess_and_low_contrast_and_a_reservoir():
    bad = {"ess": 0.1, "variance": 0.01, "reservoir": 9}
    [decision] = near_miss_drive().step(alarm("ess_drop"), **bad)
    assert decision.act is Act.NEAR_MISSES
    assert decision.values == {"count": 3}
    assert near_miss_drive().step(alarm("ess_drop"), **{**bad, "reservoir": 0}) == ()
    for missing in ({"ess": 1.0}, {"variance": 0.2}):
        drive = Drive(rungs=(Act.NEAR_MISSES,))
        assert drive.run(20, alarm("ess_drop"), every_step=True, **{**bad, **missing}) == []


def test_near_misses_are_let_go_when_both_have_recovered():
    drive = near_miss_drive()
    drive.step(alarm("ess_drop"), ess=0.1, variance=0.01, reservoir=9)
    assert acts(drive.run(60, reservoir=9)) == [("near_misses", True)]


def test_near_misses_that_restore_ess_but_not_outcomes_are_withdrawn():
    drive = near_miss_drive()
    drive.step(alarm("ess_drop"), ess=0.1, variance=0.01, reservoir=9)
    decisions = drive.run(40, ess=1.0, variance=0.01, reservoir=9)
    assert acts(decisions) == [("near_misses", True)]
    assert "outcomes did not" in decisions[0].reason
    assert drive.run(40, alarm("ess_drop"), every_step=True, ess=0.1, variance=0.01, reservoir=9) == []


def test_an_empty_reservoir_ends_the_injection():
    drive = near_miss_drive()
    drive.step(alarm("ess_drop"), ess=0.1, variance=0.01, reservoir=2)
    [decision] = drive.step(ess=0.1, variance=0.01, reservoir=0)
    assert decision.release
    assert "empty" in decision.reason


def damage(drive, steps, *findings, **fields):
    """A run whose held-out success has fallen from 0.6 to 0.2."""
    return drive.run(steps, *findings, every_step=True, heldout=0.2, checkpoints=CHECKPOINTS, **fields)


def test_rollback_goes_to_what_was_verified_before_the_onset_with_knobs_changed():
    drive = Drive(warm_up=0, dry_run=False)
    assert drive.run(70, heldout=0.6) == []
    bad = alarm("exclusion_rate", onset=45, trajectory_ids=("t",), evidence={"group_ids": ["g"]})
    [decision] = damage(drive, 2, bad)
    assert decision.act is Act.ROLLBACK
    assert decision.values == {
        "checkpoint": "000040",
        "checkpoint_step": 40,
        "onset_step": 45,
        "group_ids": ["g"],
        "trajectory_ids": ["t"],
        "knobs": {"learning_rate": 0.25},
    }
    assert acts(drive.run(60, heldout=0.6)) == [("learning_rate", True)]


@pytest.mark.parametrize(
    "closed",
    ["no damage", "no onset", "nothing verified", "not allowed"],
)
def test_rollback_stays_closed(closed):
    drive = Drive(warm_up=0, rungs=() if closed == "not allowed" else (Act.ROLLBACK,))
    drive.run(70, heldout=0.6)
    bad = alarm("exclusion_rate", onset=-1 if closed == "no onset" else 45)
    unverified = [CheckpointMark(name=mark.name, step=mark.step, verified=False) for mark in CHECKPOINTS]
    marks = unverified if closed == "nothing verified" else CHECKPOINTS
    heldout = 0.6 if closed == "no damage" else 0.2
    assert drive.run(20, bad, every_step=True, heldout=heldout, checkpoints=marks) == []


def test_a_gentler_rung_gets_one_cooldown_before_a_rollback():
    drive = Drive(warm_up=0)
    drive.run(70, heldout=0.6)
    decisions = damage(drive, 5, alarm("learning_rate", onset=45))
    assert acts(decisions) == [("learning_rate", False), ("learning_rate", True), ("rollback", False)]
    assert [decision.step for decision in decisions] == [70, 74, 74]


def test_rollbacks_are_bounded_never_go_to_the_same_place_twice_and_end_in_a_stop():
    drive = Drive(warm_up=0, max_rollbacks=2, rollback_hold_steps=10)
    drive.run(70, heldout=0.6)
    decisions = damage(drive, 60, alarm("exclusion_rate", onset=45))
    rollbacks = [d for d in decisions if d.act is Act.ROLLBACK]
    assert [d.values["checkpoint"] for d in rollbacks] == ["000040", "000020"]
    assert [d.values["knobs"]["learning_rate"] for d in rollbacks] == [0.25, 0.0625]
    stops = [d for d in decisions if d.act is Act.STOP]
    assert len(stops) == 1
    assert stops[0].values == {"checkpoint": True}
    assert stops[0].step > rollbacks[-1].step


def test_a_learning_rate_that_a_rollback_holds_goes_down_and_never_up():
    """A fault that goes on after the way back asks for less than half the rate before the hold ends."""
    drive = Drive(warm_up=0, rollback_hold_steps=30, rollback_learning_rate=0.5)
    drive.run(70, heldout=0.6)
    assert acts(damage(drive, 2, alarm("exclusion_rate", onset=45))) == [("rollback", False)]
    held = drive.run(8, alarm("learning_rate"), every_step=True, heldout=0.6)
    assert [d.values["factor"] for d in held] == [0.25, 0.125]
    assert drive.run(20, heldout=0.6) == [], "well long since, but the hold is not over"
    after = drive.run(12, heldout=0.6)
    assert acts(after) == [("learning_rate", False), ("learning_rate", True)]
    assert after[0].values == {"factor": 0.25}, "what the rung asks for by itself"


def test_a_hold_that_nobody_goes_below_ends_at_the_recipes_rate():
    drive = Drive(warm_up=0, rollback_hold_steps=30)
    drive.run(70, heldout=0.6)
    damage(drive, 2, alarm("exclusion_rate", onset=45))
    assert acts(drive.run(40, heldout=0.6)) == [("learning_rate", True)]


def test_ess_from_before_a_rollback_opens_nothing_after_it():
    drive = Drive(warm_up=0, rungs=(Act.ROLLBACK, Act.NEAR_MISSES))
    drive.run(70, heldout=0.6)
    bad = {"ess": 0.1, "variance": 0.01, "reservoir": 9}
    assert drive.run(5, **bad) == []
    assert acts(damage(drive, 2, alarm("exclusion_rate", onset=45), **bad)) == [("rollback", False)]
    fine = drive.run(8, alarm("zero_signal"), every_step=True, variance=0.01, reservoir=9, heldout=0.6)
    assert fine == []


def test_non_finite_stops_at_once_and_once():
    drive = Drive()
    decisions = drive.run(30, alarm("non_finite"), every_step=True)
    assert acts(decisions) == [("stop", False)]
    assert decisions[0].values == {"checkpoint": False}
    assert Drive(rungs=tuple(set(LADDER) - {Act.STOP})).run(30, alarm("non_finite"), every_step=True) == []


def test_stop_needs_confirmation():
    drive = Drive(warm_up=0, max_rollbacks=0)
    drive.run(70, heldout=0.6)
    bad = alarm("exclusion_rate", onset=45)
    assert damage(drive, 2, bad) == []
    assert acts(damage(drive, 1, bad)) == [("stop", False)]
    alone = Drive(warm_up=0, max_rollbacks=0)
    alone.run(70, heldout=0.6)
    assert damage(alone, 30) == []


def test_the_next_rung_is_taken_only_where_the_condition_persists():
    tail = alarm("tail_growth", slice_name="post_tool", monitor="post_tool/log_ratio_behaviour_p95")
    wide = {"health__post_tool__log_ratio_behaviour_p95": 0.2}
    cured, still = Drive(), Drive()
    assert acts(cured.run(10, tail, ess=0.3)) == [("mask_tail", False)]
    assert acts(still.run(10, tail, ess=0.3, **wide))[:2] == [("mask_tail", False), ("learning_rate", False)]


def test_a_rung_that_had_to_come_back_stays_longer():
    def time_to_release(drive):
        steps = 0
        while not any(decision.release for decision in drive.step()):
            steps += 1
        return steps

    drive, waits = Drive(), []
    for _ in range(3):
        drive.run(5)
        drive.step(alarm("tail_growth"))
        waits.append(time_to_release(drive))
    assert waits[0] < waits[1] < waits[2]


def test_a_wobbling_ess_does_not_make_the_learning_rate_flutter():
    drive, releases = Drive(), 0
    for index in range(300):
        findings = [alarm("ess_drop")] if index % 40 == 0 else []
        releases += sum(d.release for d in drive.step(*findings, ess=0.3 if index % 2 else 0.9))
    assert releases == 0


def test_the_state_of_another_version_is_refused():
    ladder = Ladder(LadderSpec())
    with pytest.raises(ValueError, match="version"):
        Ladder.restore(LadderSpec(), {**ladder.state(), "version": 0})


def test_every_route_climbs():
    for kind, route in ROUTES.items():
        assert [LADDER.index(act) for act in route] == sorted(LADDER.index(act) for act in route), kind
        assert route[-1] is Act.STOP


@pytest.mark.parametrize(
    "options",
    [
        {"cooldown_steps": 0},
        {"ess_low": 0.8, "ess_recovered": 0.8},
        {"agreement_low": 0.8},
        {"kl_weight": 0.5, "kl_weight_cap": 0.2},
        {"kl_weight": -1.0},
        {"near_miss_share": 0.0},
        {"moment_cap": 0.0},
        {"max_rollbacks": -1},
        {"sources": {"a": 0.0}},
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options)) if "sources" not in options else "share"):
        LadderSpec(**options)
