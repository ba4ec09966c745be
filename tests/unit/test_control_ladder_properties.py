"""Whatever is found, in whatever order: a ladder's state is exact, and one rung at a time has one hand on each knob."""

from __future__ import annotations

import itertools
import json
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from ladders import CHECKPOINTS, ESS, HEALTHY, alarm

from burnish.control.ladder import Ladder
from burnish.control.outcome import OutcomeContrast
from burnish.control.rungs import ROUTES
from burnish.control.spec import LadderSpec
from burnish.core.finding import Act

kinds = st.sampled_from([kind for kind in ROUTES if kind != "non_finite"])
findings = st.lists(
    st.builds(
        alarm,
        kinds,
        onset=st.integers(-1, 30),
        slice_name=st.sampled_from(["", "post_tool", "text", "tool:search"]),
    ),
    max_size=3,
)
steps = st.lists(
    st.fixed_dictionaries(
        {
            "findings": findings,
            "ess": st.sampled_from([0.1, 0.45, 0.7, 1.0]),
            "tail": st.sampled_from([0.05, 0.3]),
            "share": st.sampled_from([0.3, 0.6]),
            "agreement": st.sampled_from([0.9, -0.5]),
            "drift": st.sampled_from([0.02, 0.3]),
            "variance": st.sampled_from([None, 0.01, 0.2]),
            "heldout": st.sampled_from([None, 0.6, 0.1]),
            "reservoir": st.integers(0, 5),
        }
    ),
    min_size=10,
    max_size=60,
)
SPEC = LadderSpec(
    baseline_steps=3,
    cooldown_steps=3,
    active_steps=6,
    memory_steps=20,
    release_steps=2,
    kl_weight=0.0,
    sources={"easy": 1.0, "noisy": 2.0},
    rollback_hold_steps=8,
)


def feed(ladder, rows, start=0):
    decided = []
    for index, row in enumerate(rows, start):
        scalars = {
            **HEALTHY,
            ESS: row["ess"],
            "health/post_tool/log_ratio_behaviour_p95": row["tail"],
            "health/post_tool_share": row["share"],
            "reward/agreement": row["agreement"],
            "health/all/k3_reference": row["drift"],
            "health/source:noisy/ess_token_raw": row["ess"] * 0.9,
        }
        outcome = OutcomeContrast(
            reward_variance=row["variance"], heldout_success=row["heldout"], heldout_episodes=1000
        )
        decided.append(
            ladder.decide(
                index, scalars, row["findings"], outcome, checkpoints=CHECKPOINTS, reservoir_groups=row["reservoir"]
            )
        )
    return decided


@settings(max_examples=60, deadline=None)
@given(steps, st.integers(0, 60))
def test_state_goes_through_json_exactly_at_any_step(rows, cut):
    cut = min(cut, len(rows))
    whole, first = Ladder(SPEC), Ladder(SPEC)
    expected = feed(whole, rows)
    begun = feed(first, rows[:cut])
    stored = json.loads(json.dumps(first.state()))
    assert stored == first.state()
    second = Ladder.restore(SPEC, stored)
    assert second.state() == stored
    assert begun + feed(second, rows[cut:], cut) == expected
    assert second.state() == whole.state()


def eventful(seed):
    """300 steps in which every rung engages: all kinds of alarm, good times and bad, held-out success up and down."""
    rng = random.Random(seed)
    known = sorted(set(ROUTES) - {"non_finite"})
    rows = []
    for step in range(300):
        bad = step % 60 > 15
        rows.append(
            {
                "findings": [
                    alarm(rng.choice(known), onset=max(step - 20, 0), slice_name=rng.choice(["", "post_tool"]))
                    for _ in range(rng.randrange(3) if bad else 0)
                ],
                "ess": rng.choice([0.1, 0.3]) if bad else 1.0,
                "tail": 0.3 if bad else 0.05,
                "share": 0.6 if bad else 0.3,
                "agreement": -0.5 if bad else 0.9,
                "drift": 0.3 if bad else 0.02,
                "variance": 0.01 if bad else 0.2,
                "heldout": None if step % 5 else 0.1 if step % 60 > 45 or step > 240 else 0.6,
                "reservoir": rng.randrange(1, 5),
            }
        )
    return rows


def test_a_ladder_that_is_restored_after_every_step_decides_the_same():
    rows = eventful(100)
    expected = feed(Ladder(SPEC), rows)
    decisions, ladder = [], Ladder(SPEC)
    for step, row in enumerate(rows):
        decisions += feed(ladder, [row], step)
        ladder = Ladder.restore(SPEC, json.loads(json.dumps(ladder.state())))
    assert decisions == expected
    flat = [decision for step in expected for decision in step]
    assert {decision.act for decision in flat} == set(Act)
    assert {decision.act for decision in flat if decision.release} == set(Act) - {Act.ROLLBACK, Act.STOP}


@settings(max_examples=60, deadline=None)
@given(steps)
def test_the_order_of_findings_does_not_matter(rows):
    turned = [{**row, "findings": row["findings"][::-1]} for row in rows]
    assert feed(Ladder(SPEC), rows) == feed(Ladder(SPEC), turned)


@settings(max_examples=100, deadline=None)
@given(steps)
def test_one_rung_at_a_time_and_one_hand_on_each_knob(rows):
    held, engaged_at, hold_until, ceiling = {}, [], -1, 1.0
    for step, decisions in enumerate(feed(Ladder(SPEC), rows)):
        json.dumps([dict(decision.values) for decision in decisions])
        new = [d for d in decisions if not d.release and held.get(d.act) != "ladder"]
        engaged = [d for d in new if d.act is not Act.STOP]
        assert len(engaged) <= 1
        for decision in decisions:
            if decision.release:
                assert decision.act in held
                going_back = any(d.act is Act.ROLLBACK for d in decisions)
                assert decision.act is not Act.LEARNING_RATE or step >= hold_until or going_back
                del held[decision.act]
            elif decision.act is Act.ROLLBACK:
                assert set(held) <= {Act.LEARNING_RATE}
                assert decision.values["checkpoint_step"] < decision.values["onset_step"]
                held[Act.LEARNING_RATE] = "rollback"
                hold_until = step + SPEC.rollback_hold_steps
                ceiling = decision.values["knobs"]["learning_rate"]
            elif decision.act is not Act.STOP:
                if decision.act is Act.LEARNING_RATE and step < hold_until:
                    assert decision.values["factor"] <= max(ceiling, SPEC.learning_rate_floor)
                held[decision.act] = "ladder"
        engaged_at += [step] * bool(engaged)
    assert all(later - earlier >= SPEC.cooldown_steps for earlier, later in itertools.pairwise(engaged_at))
