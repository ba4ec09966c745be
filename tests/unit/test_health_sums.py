"""Sums of a fixed size: equal to counting by hand, the same whatever the shards, the same keys everywhere."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_streams import floats, make_step

from burnish.core.streams import ActionSpan, TokenStream
from burnish.health.reduction import MOMENTS, RATIOS, RAW
from burnish.health.slices import SliceNames
from burnish.health.sums import HealthSums
from burnish.stats.histogram import CODES, codes

NAMES = SliceNames(tools=("search", "lookup"), sources=("shop", "forms"), skills=("s",))


def in_slice(name: str, stream: TokenStream, span: ActionSpan, token: int) -> bool:
    """The definition of a slice, one token at a time."""
    kind, _, label = name.partition(":")
    if not label:
        return {
            "all": True,
            "text": not span.after_tool,
            "post_tool": span.after_tool,
            "post_tool_first": span.tool != "",
            "post_tool_later": span.after_tool and span.tool == "",
            "post_tool_error": span.after_error,
            "control": bool(stream.control and stream.control[token]),
            "after_image": span.after_image,
            "after_compaction": span.after_compaction,
        }[name]
    if kind == "tool":
        return span.tool == label or (label == "other" and span.tool not in ("", *NAMES.tools))
    if kind == "source":
        return stream.source == label or (label == "other" and stream.source not in NAMES.sources)
    value = {
        "turn": span.turn,
        "horizon": stream.turns,
        "staleness": stream.staleness[token] if stream.staleness else -1,
        "length": stream.length,
    }[kind]
    low, _, high = label.rstrip("+").partition("-")
    return int(low) <= value <= (math.inf if label.endswith("+") else int(high or low))


def by_hand(streams: list[TokenStream]) -> tuple[np.ndarray, np.ndarray]:
    """Histograms and squares of learner/behaviour, one token after another."""
    names = NAMES.names
    counts, squares = np.zeros((len(names), 3, CODES), dtype=np.int64), np.zeros((len(names), 3))
    for stream in streams:
        assert stream.learner is not None
        d = np.array(stream.learner, dtype=np.float32) - np.array(stream.behaviour, dtype=np.float32)
        sign = int(np.sign(stream.advantage or 0.0)) + 1
        for span in stream.spans:
            for token in range(span.start, span.end):
                for at, name in enumerate(names):
                    if in_slice(name, stream, span, token):
                        counts[at, sign, codes(d[token : token + 1])[0]] += 1
                        squares[at, sign] += float(d[token]) ** 2
    return counts, squares


def test_sums_are_what_counting_by_hand_gives() -> None:
    streams = make_step(0, 24)
    sums = HealthSums.of(streams, NAMES)
    counts, squares = by_hand(streams)
    np.testing.assert_array_equal(sums.histograms[0], counts)
    np.testing.assert_allclose(sums.moments[0, :, :, MOMENTS.index("d2")], squares, rtol=1e-5)
    np.testing.assert_array_equal(sums.tokens[:, 0], counts.sum(axis=(1, 2)))
    assert not sums.histograms[1].any()  # no proximal policy
    np.testing.assert_array_equal(sums.histograms[2], sums.histograms[0])  # the reference drew these tokens


def test_counting_equal_tokens_first_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = make_step(2, 24)
    one_by_one = HealthSums.of(streams, NAMES)
    monkeypatch.setattr("burnish.health.reduction.FEW_TOKENS", 0)
    assert HealthSums.of(streams, NAMES).to_bytes() == one_by_one.to_bytes()


def test_a_wrong_slice_would_be_noticed() -> None:
    streams = make_step(0, 8)
    moved = [
        replace(s, spans=tuple(replace(span, after_tool=not span.after_tool) for span in s.spans)) for s in streams
    ]
    assert (HealthSums.of(moved, NAMES).histograms[0] != by_hand(streams)[0]).any()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), cuts=st.lists(st.integers(0, 20), min_size=1, max_size=3), flip=st.booleans())
def test_any_split_into_shards_in_any_order_gives_the_same(seed: int, cuts: list[int], flip: bool) -> None:
    streams = make_step(seed, 20)
    whole = HealthSums.of(streams, NAMES)
    bounds = [0, *sorted(cuts), 20]
    parts = [HealthSums.of(streams[a:b], NAMES) for a, b in pairwise(bounds)]
    parts = parts[::-1] if flip else parts
    nested = HealthSums.merge([parts[0], HealthSums.merge(parts[1:])])
    for merged in (HealthSums.merge(parts), nested):
        for name in ("histograms", "tokens", "nonfinite", "largest"):
            np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))
        for name in ("moments", "entropy"):
            np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-6, atol=1e-9)
        assert merged.table.texts == whole.table.texts
        np.testing.assert_allclose(merged.table.numbers, whole.table.numbers, rtol=1e-6)


def test_bytes_come_back_and_keys_do_not_depend_on_what_is_there() -> None:
    sums = HealthSums.of(make_step(1), NAMES)
    again = HealthSums.from_bytes(sums.to_bytes())
    assert again.to_bytes() == sums.to_bytes()
    assert again.trajectories == sums.trajectories
    empty = HealthSums.of([], NAMES)
    assert empty.histograms.shape == sums.histograms.shape
    assert HealthSums.merge([empty, sums]).to_bytes() == sums.to_bytes()
    assert len(HealthSums.from_bytes(empty.to_bytes()).trajectories) == 0
    with pytest.raises(ValueError, match="cut off"):
        HealthSums.from_bytes(sums.to_bytes()[:-8])
    with pytest.raises(ValueError, match="equal slice names"):
        HealthSums.merge([sums, HealthSums.of([], SliceNames())])


def test_figures_of_a_trajectory() -> None:
    stream = TokenStream(
        id="a",
        group_id="g",
        step=1,
        behaviour=floats(np.log([0.5, 0.5, 0.5])),
        learner=floats(np.log([0.5, 0.5, 1.0])),
        score_norm=floats(np.array([1.0, 1.0, 0.25])),
        spans=(ActionSpan(start=0, end=2, turn=0), ActionSpan(start=2, end=3, turn=1, tool="search", after_tool=True)),
        advantage=-2.0,
    )
    [row] = HealthSums.of([stream], NAMES).trajectories
    assert row.s_behaviour == pytest.approx(math.log(2), rel=1e-6)
    assert row.square == row.post_tool_square == pytest.approx(math.log(2) ** 2, rel=1e-5)
    assert row.update_size == pytest.approx(2 * math.sqrt(1 + 1 + 4 * 0.25), rel=1e-6)
    assert (row.length, row.turns, row.post_tool_tokens, row.trained) == (3, 2, 1, True)
    assert (row.s_reference, row.staleness, row.reward) == (None, None, None)
    [bound] = HealthSums.of([replace(stream, score_norm=None)], NAMES).trajectories
    assert bound.update_size == pytest.approx(2 * math.sqrt(0.25 + 0.25), rel=1e-6)  # (1 - p)^2, no softmax


def test_a_trajectory_that_was_not_trained_adds_tokens_and_no_ratio() -> None:
    streams = make_step(3, 16)
    left_out = [replace(stream, learner=None, advantage=None) for stream in streams[:8]]
    sums = HealthSums.of([*left_out, *streams[8:]], NAMES)
    alone = HealthSums.of(streams[8:], NAMES)
    np.testing.assert_array_equal(sums.histograms, alone.histograms)
    np.testing.assert_allclose(sums.moments, alone.moments)
    assert sums.tokens[0, 0] == sum(stream.length for stream in streams)
    assert [row.trained for row in sums.trajectories[:8]] == [False] * 8
    assert all(row.s_behaviour is None for row in sums.trajectories[:8])


def test_what_is_not_finite_is_counted_first_and_then_left_out() -> None:
    streams = make_step(4, 8)
    spoilt = np.array(streams[0].learner, dtype=np.float32)
    spoilt[:2] = [np.nan, -np.inf]
    streams[0] = replace(streams[0], learner=floats(spoilt), reward=math.inf)
    streams[1] = replace(streams[1], advantage=math.nan)
    sums = HealthSums.of(streams, NAMES)
    assert dict(zip(RAW, sums.nonfinite.tolist(), strict=True)) == {
        **dict.fromkeys(RAW, 0),
        "learner": 2,
        "advantage": 1,
        "reward": 1,
    }
    assert [row.nonfinite for row in sums.trajectories[:3]] == [3, 1, 0]
    assert np.isfinite(sums.moments).all()
    for position, _ in enumerate(RATIOS[:1]):
        assert sums.moments[position, 0, :, 0].sum() == sums.histograms[position, 0].sum() - 2


def test_log_ratios_beyond_twenty_are_clamped_and_counted() -> None:
    streams = make_step(5, 8)
    far = np.array(streams[0].learner, dtype=np.float32)
    far[0] = -1e30
    sums = HealthSums.of([replace(streams[0], learner=floats(far)), *streams[1:]], NAMES)
    assert sums.moments[0, 0, :, MOMENTS.index("clamped")].sum() == 1
    assert np.isfinite(sums.moments).all()


def test_twins_are_refused() -> None:
    streams = make_step(6, 4)
    with pytest.raises(ValueError, match="two streams have the id"):
        HealthSums.of([*streams, streams[0]], NAMES)
    one = HealthSums.of(streams, NAMES)
    with pytest.raises(ValueError, match="twice"):
        HealthSums.merge([one, one])
    with pytest.raises(ValueError, match="distinct names"):
        SliceNames(tools=("a", "a"))
    with pytest.raises(ValueError, match="bytes a token"):
        HealthSums.of([replace(streams[0], learner=np.zeros(streams[0].length))], NAMES)  # type: ignore[arg-type]
