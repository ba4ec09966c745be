"""Scalars of a step: formulas, minimum counts, panels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from token_streams import make_step, normal

from burnish.core.streams import TokenStream
from burnish.health.panels import input_independence
from burnish.health.reference import Reference
from burnish.health.signals import signals
from burnish.health.slices import SliceNames
from burnish.health.sums import HealthSums

NAMES = SliceNames(tools=("search", "lookup"), sources=("shop", "forms"))


def figures(streams: list[TokenStream], reference: Reference | None = None) -> dict[str, float]:
    return signals(HealthSums.of(streams, NAMES), reference)


def log_ratios(streams: list[TokenStream]) -> np.ndarray:
    return np.concatenate([np.array(s.learner) - np.array(s.behaviour) for s in streams])


def test_token_figures_follow_their_formulas() -> None:
    streams = make_step(0, 256, draw=normal(0.3))
    d, found = log_ratios(streams), figures(streams)
    w = np.exp(d)
    assert found["health/all/m2_behaviour"] == pytest.approx((d**2).mean(), rel=1e-5)
    assert found["health/all/k3_behaviour"] == pytest.approx((w - 1 - d).mean(), rel=1e-4)
    assert found["health/all/chi2_behaviour"] == pytest.approx((w**2).mean() - 1, rel=1e-4)
    assert found["health/all/ess_token_raw"] == pytest.approx(w.mean() ** 2 / (w**2).mean(), rel=1e-5)
    assert found["health/all/log_ratio_behaviour_p95"] == pytest.approx(np.quantile(np.abs(d), 0.95), rel=0.08)
    assert found["health/all/log_ratio_behaviour_max"] == pytest.approx(np.abs(d).max(), rel=1e-5)


def test_sequence_ess_is_raw_clipped_and_relative() -> None:
    streams = [s for s in make_step(1, 128, draw=normal(0.3)) if s.advantage is not None]
    s = np.array([np.sum(np.array(one.learner) - np.array(one.behaviour)) for one in streams])
    w = np.exp(s)
    found = figures(streams)
    raw = w.sum() ** 2 / (len(w) * (w**2).sum())
    assert found["health/ess_sequence_raw"] == pytest.approx(raw, rel=1e-4)
    assert found["health/ess_sequence_clipped"] > raw
    early = figures(make_step(2, 128, draw=normal(0.01)))
    reference = Reference.of([(HealthSums.of(make_step(2, 128, draw=normal(0.01)), NAMES), early)])
    relative = figures(streams, reference)["health/ess_sequence_normalised"]
    assert relative == pytest.approx(raw / early["health/ess_sequence_raw"], rel=1e-4)


def test_only_the_slice_that_grew_shows_it() -> None:
    early = HealthSums.of(make_step(3, 128), NAMES)
    reference = Reference().extended(early, signals(early))
    found = figures(make_step(4, 128, draw=normal(0.05, 0.4)), reference)
    assert found["health/post_tool/log_ratio_behaviour_w1"] > 0.5
    assert found["health/text/log_ratio_behaviour_w1"] < 0.1
    assert found["health/post_tool/log_ratio_behaviour_p95"] > 4 * found["health/text/log_ratio_behaviour_p95"]


def test_tails_are_split_by_side_and_by_sign_of_the_advantage() -> None:
    streams = make_step(5, 256, draw=normal(0.05))
    lower = [
        replace(s, learner=type(s.behaviour)("f", [x - 0.5 for x in s.learner or ()])) if (s.advantage or 0) < 0 else s
        for s in streams
    ]
    found = figures(lower)
    assert found["health/all/log_ratio_behaviour_left_p95_negative"] > 0.5
    assert found["health/all/log_ratio_behaviour_left_p95_positive"] < 0.2
    assert "health/all/log_ratio_behaviour_right_p95_negative" not in found  # nothing left on that side


def test_a_slice_below_the_minimum_has_no_verdict() -> None:
    found = figures(make_step(6, 4))
    assert found["health/post_tool_error/tokens"] < 64
    assert "health/post_tool_error/log_ratio_behaviour_p95" not in found
    assert "health/ess_sequence_raw" not in found
    assert "health/gini_update" not in found
    assert all(math.isfinite(value) for value in figures(make_step(7, 256)).values())


def test_concentration_sees_one_loud_source() -> None:
    streams = make_step(8, 256)
    loud = [replace(s, advantage=16 * (s.advantage or 0.0)) if s.source == "shop" else s for s in streams]
    usual, found = figures(streams), figures(loud)
    assert found["health/gini_update"] > usual["health/gini_update"] + 0.15
    assert found["health/source:shop/update_share"] > 0.8
    assert found["health/length_exponent"] == pytest.approx(0.5, abs=0.15)


def test_panels_by_hand() -> None:
    streams = make_step(9, 16)
    rewards = [1.0] * 8 + [0.0, 1.0] * 4
    streams = [
        replace(s, reward=r, success=r, progress=1.0 - r, tool_calls=2, tool_errors=1, retries=1, outcome=o)
        for s, r, o in zip(
            streams, rewards, ["truncated:turns"] * 4 + ["error:grader"] * 2 + ["completed"] * 10, strict=True
        )
    ]
    found = figures(streams)
    assert found["health/zero_signal_share"] == 0.5
    assert found["health/outcome_contrast"] == pytest.approx(np.std([0, 1] * 4, ddof=1) / 2)
    assert found["health/tool_error_rate"] == found["health/retry_rate"] == 0.5
    assert found["health/truncated_share"] == 0.25
    assert found["health/excluded_share"] == 0.125
    assert found["health/failed_despite_progress"] == 0.25
    assert found["health/succeeded_without_progress"] == 0.75
    assert found["health/reward_progress_correlation"] == pytest.approx(-1.0)
    trained = [s for s in streams if s.advantage is not None]
    after = sum(span.end - span.start for s in trained for span in s.spans if span.after_tool)
    assert found["health/post_tool_share"] == pytest.approx(after / sum(s.length for s in trained))


def test_advantages_that_point_away_from_rewards_are_seen() -> None:
    def agreement(sign: float) -> float:
        streams = [replace(s, advantage=sign * ((s.reward or 0.0) - 0.5)) for s in make_step(8, 128)]
        return figures(streams)["health/advantage_agreement"]

    assert agreement(1.0) > 0.8
    assert agreement(-1.0) == pytest.approx(-agreement(1.0))


def test_output_that_ignores_its_input_is_at_chance() -> None:
    own = np.arange(32) % 8
    scores = np.random.default_rng(0).normal(size=(32, 8))
    assert abs(input_independence(scores, own)["health/input_dependence"]) < 0.2
    scores[np.arange(32), own] += 10
    assert input_independence(scores, own)["health/input_dependence"] == 1.0
    assert input_independence(np.ones((32, 8)), own)["health/input_dependence"] == pytest.approx(0.0)
    scores[0, 0] = np.nan
    assert input_independence(scores, own) == {}


def test_a_reference_goes_through_json() -> None:
    sums = HealthSums.of(make_step(10), NAMES)
    reference = Reference().extended(sums, signals(sums))
    again = Reference.from_dict(reference.to_dict())
    assert again.to_dict() == reference.to_dict()
    assert signals(sums, again) == signals(sums, reference)
