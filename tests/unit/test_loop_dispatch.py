"""Pacing: what may be started, what a step takes, and that nothing is used twice, lost or older than the bound."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.loop.dispatch import Dispatcher, staleness_steps


def fill(dispatcher: Dispatcher, task: int = 0) -> list[int]:
    return [dispatcher.start(task).number for _ in range(dispatcher.room())]


def test_bound_zero_is_the_synchronous_loop() -> None:
    dispatcher = Dispatcher(groups=3, steps=2, shards=2, max_staleness=0)
    for step in range(2):
        numbers = fill(dispatcher)
        assert numbers == list(range(3 * step, 3 * step + 3))
        for number in reversed(numbers):
            assert not dispatcher.ready
            dispatcher.finish(number)
        assert [place.number for place in dispatcher.take()] == numbers
        assert dispatcher.room() == 0, "the next step's groups wait for its weights"
        dispatcher.advance(waited=True)
    assert (dispatcher.room(), dispatcher.pending) == (0, [])


def test_groups_are_dealt_like_cards_where_they_finish_alike() -> None:
    dispatcher = Dispatcher(groups=6, steps=1, shards=3, max_staleness=0)
    assert [dispatcher.start(0).shard for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_a_step_waits_for_what_would_be_too_old_for_the_next() -> None:
    dispatcher = Dispatcher(groups=2, steps=9, shards=1, max_staleness=1)
    slow, *rest = fill(dispatcher)
    for number in rest:
        dispatcher.finish(number)
    assert dispatcher.ready, "the slow group still has a step to go"
    dispatcher.take()
    dispatcher.advance()
    for number in fill(dispatcher):
        dispatcher.finish(number)
    assert not dispatcher.ready
    assert [place.number for place in dispatcher.oldest_running()] == [slow]
    dispatcher.finish(slow)
    assert slow in [place.number for place in dispatcher.take()]


def test_the_pipeline_deepens_only_for_a_learner_that_waits() -> None:
    dispatcher = Dispatcher(groups=2, steps=99, shards=1, max_staleness=8)
    depths = []
    for waited in [True, True, False, False, False, False]:
        for number in fill(dispatcher):
            dispatcher.finish(number)
        dispatcher.take()
        dispatcher.advance(waited=waited)
        depths.append(dispatcher.depth)
    assert depths == [3, 4, 3, 2, 2, 2]


def test_starting_without_room_is_an_error() -> None:
    dispatcher = Dispatcher(groups=1, steps=1, shards=1, max_staleness=0)
    dispatcher.start(0)
    with pytest.raises(ValueError, match="ask room"):
        dispatcher.start(0)
    with pytest.raises(ValueError, match="0 of 1 groups"):
        dispatcher.take()


@settings(max_examples=200, deadline=None)
@given(
    groups=st.integers(1, 4),
    steps=st.integers(1, 8),
    shards=st.integers(1, 3),
    bound=st.integers(0, 4),
    data=st.data(),
)
def test_every_group_is_used_once_and_in_time(
    groups: int, steps: int, shards: int, bound: int, data: st.DataObject
) -> None:
    """Whatever order groups finish in, and whoever is lost, given up or too stale on the way."""
    dispatcher = Dispatcher(groups=groups, steps=steps, shards=shards, max_staleness=bound)
    taken: list[int] = []
    gone: set[int] = set()
    started = 0
    while dispatcher.step < steps:
        started += len(fill(dispatcher, started))
        assert started - len(gone) <= (dispatcher.step + 1 + bound) * groups, "pacing"
        if dispatcher.ready:
            places = dispatcher.take()
            assert all(dispatcher.step - place.step <= bound for place in places)
            taken += [place.number for place in places]
            dispatcher.advance(waited=data.draw(st.booleans()))
            continue
        running = sorted(dispatcher.running)
        assert running, "nothing is ready and nothing is running: the run would hang"
        what = data.draw(st.sampled_from(["finish"] * 6 + ["lose", "give up", "stale"]))
        if what == "lose":
            shard = data.draw(st.integers(0, shards - 1))
            for number in [n for n in running if dispatcher.running[n].shard == shard]:
                dispatcher.restart(number)
        elif what == "give up" and len(gone) < 5:
            number = data.draw(st.sampled_from(running))
            assert [place.number for place in dispatcher.give_up([number])] == [number]
            gone.add(number)
        elif what == "stale" and dispatcher.finished and len(gone) < 5:
            number = data.draw(st.sampled_from(sorted(dispatcher.finished)))
            dispatcher.discard(number)
            gone.add(number)
        else:
            dispatcher.finish(data.draw(st.sampled_from(running)))
    assert dispatcher.pending == []
    assert len(taken) == len(set(taken)) == steps * groups
    assert set(taken) | gone == set(range(started)), "dispatched = used + given up"


def test_a_saved_run_starts_the_same_groups_again() -> None:
    before = Dispatcher(groups=2, steps=4, shards=1, max_staleness=1)
    fill(before, task=7)
    before.finish(1)
    after = Dispatcher(groups=2, steps=4, shards=2, max_staleness=1, next_number=before.next_number)
    adopted = after.adopt(before.pending)
    assert [(place.number, place.task) for place in adopted] == before.pending
    assert after.room() == 0


def test_staleness_counts_steps_not_versions() -> None:
    assert staleness_steps([6, 7], 8, updates=2) == 1
    assert staleness_steps([5], 8, updates=2) == 2
