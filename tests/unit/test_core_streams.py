"""Columns and streams are two forms of the same thing."""

from __future__ import annotations

import pickle
from array import array
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_streams import make_step

from burnish.core.streams import ActionSpan, TokenColumns


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), cut=st.integers(0, 12), lacking=st.sets(st.integers(0, 11), max_size=11))
def test_split_and_joined_give_back_what_went_in(seed: int, cut: int, lacking: set[int]) -> None:
    streams = make_step(seed, 12)
    for at in lacking:
        streams[at] = replace(streams[at], learner=None, entropy=None, advantage=None)
    whole = TokenColumns.of(streams)
    assert whole.split() == tuple(streams)
    parts = [TokenColumns.of(streams[:cut]), TokenColumns.of(streams[cut:])]
    assert TokenColumns.joined(parts) == whole
    assert pickle.loads(pickle.dumps(whole)) == whole


def test_a_stream_that_is_lost_on_the_way_would_be_noticed() -> None:
    streams = make_step(0, 4)
    columns = TokenColumns.of(streams)
    fewer = {name: column for name, column in columns.streams.items() if name != "reference"}
    assert replace(columns, streams=fewer).split() != tuple(streams)


def test_nothing_is_a_value_too() -> None:
    assert TokenColumns.joined([]) == TokenColumns.of([])
    assert TokenColumns.of([]).split() == ()
    assert TokenColumns.of([]).tokens == 0


def test_columns_that_do_not_fit_are_refused() -> None:
    columns = TokenColumns.of(make_step(0, 4))
    with pytest.raises(ValueError, match="do not make up 4 trajectories"):
        replace(columns, span_lengths=array("i", [n + 1 for n in array("i", columns.span_lengths)]).tobytes())
    short = columns.streams["behaviour"][:-4]
    with pytest.raises(ValueError, match="'behaviour' must hold 4 bytes a token"):
        replace(columns, streams={**columns.streams, "behaviour": short})


def test_bits_of_a_span() -> None:
    span = ActionSpan(start=1, end=3, turn=2, tool="search", after_tool=True, after_image=True)
    assert ActionSpan.of(start=1, end=3, turn=2, tool="search", bits=span.bits) == span
    assert {ActionSpan(start=0, end=1, turn=0, **{name: True}).bits for name in FLAGS} == {1, 2, 4, 8}


FLAGS = ("after_tool", "after_error", "after_image", "after_compaction")
