from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.control.reservoir import Candidate, Reservoir, ReservoirSpec


def group(name, step=0, progress=(1.0, 0.75, 0.0), source=""):
    """A group whose first member succeeded where its progress is 1."""
    return [
        Candidate(
            trajectory_id=f"{name}/{index}",
            group_id=name,
            step=step,
            source=source,
            reward=float(share == 1.0),
            success=share == 1.0,
            progress=share,
        )
        for index, share in enumerate(progress)
    ]


def test_a_near_miss_is_kept_with_its_success_and_without_hard_negatives():
    reservoir = Reservoir(ReservoirSpec())
    assert reservoir.offer(group("g")) == ""
    [kept] = reservoir.draw(3, step=1)
    assert kept.near_miss_ids == ("g/1",)
    assert kept.success_ids == ("g/0",)


@pytest.mark.parametrize(
    ("progress", "why"),
    [
        ((1.0, 0.1, 0.0), "hard negatives"),
        ((0.75, 0.75), "equal"),
        ((1.0, 1.0), "equal"),
    ],
)
def test_what_is_no_near_miss_stays_outside(progress, why):
    reservoir = Reservoir(ReservoirSpec(near=0.5))
    assert why in reservoir.offer(group("g", progress=progress))
    assert reservoir.available(0) == 0


def test_near_misses_without_any_success_are_failures_alone():
    members = [
        Candidate(trajectory_id=name, group_id="g", step=0, reward=reward, progress=0.75)
        for name, reward in (("a", 0.0), ("b", 0.1))
    ]
    reservoir = Reservoir(ReservoirSpec())
    assert "no success" in reservoir.offer(members)
    winner = Candidate(trajectory_id="c", group_id="g", step=0, reward=1.0, success=True)
    assert reservoir.offer([*members, winner]) == ""


def test_unknown_progress_is_not_near():
    members = [
        Candidate(trajectory_id="a", group_id="g", step=0, reward=1.0, success=True),
        Candidate(trajectory_id="b", group_id="g", step=0, reward=0.0),
    ]
    assert "hard negatives" in Reservoir(ReservoirSpec()).offer(members)


def test_groups_age_are_used_up_and_come_back_in_turn():
    reservoir = Reservoir(ReservoirSpec(max_age_steps=10, max_uses=1))
    for name, source in (("a", "x"), ("b", "x"), ("c", "y")):
        reservoir.offer(group(name, step=5, source=source))
    assert {kept.source for kept in reservoir.draw(2, step=8)} == {"x", "y"}
    assert reservoir.available(8) == 1
    assert reservoir.available(16) == 0
    assert reservoir.available(4) == 0


def test_quarantined_groups_and_those_of_an_undone_future_go():
    reservoir = Reservoir(ReservoirSpec())
    for step, name in enumerate(("a", "b", "c")):
        reservoir.offer(group(name, step=step))
    reservoir.forget(["a", "unknown"])
    reservoir.forget_after(1)
    assert [kept.group_id for kept in reservoir.draw(9, step=3)] == ["b"]


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 8))
def test_the_capacity_holds_the_newest(steps, capacity):
    reservoir = Reservoir(ReservoirSpec(capacity=capacity, max_age_steps=100))
    for index, step in enumerate(steps):
        reservoir.offer(group(f"g{index}", step=step))
    kept = [row["step"] for row in reservoir.state()]
    assert sorted(kept) == sorted(steps)[-capacity:]


def test_state_goes_through_json_exactly():
    spec = ReservoirSpec(max_uses=2)
    reservoir = Reservoir(spec)
    for step, name in enumerate("abcdef"):
        reservoir.offer(group(name, step=step, source=name if name < "d" else "rest"))
    reservoir.draw(2, step=6)
    stored = json.loads(json.dumps(reservoir.state()))
    assert stored == reservoir.state()
    again = Reservoir.restore(spec, stored)
    for _ in range(5):
        assert again.draw(2, step=7) == reservoir.draw(2, step=7)


def test_a_smaller_reservoir_keeps_the_newest():
    reservoir = Reservoir(ReservoirSpec())
    for step, name in enumerate("abc"):
        reservoir.offer(group(name, step=step))
    smaller = Reservoir.restore(ReservoirSpec(capacity=2), reservoir.state())
    assert [row["group_id"] for row in smaller.state()] == ["b", "c"]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="near-miss"):
        ReservoirSpec(near=0.0)
    with pytest.raises(ValueError, match="whole"):
        Reservoir(ReservoirSpec()).offer([*group("a"), *group("b")])
    with pytest.raises(ValueError, match="whole"):
        Reservoir(ReservoirSpec()).offer([])
