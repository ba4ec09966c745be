from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.algorithms.correction import DEFAULT_BOUNDS, Correction, CorrectionKind
from burnish.algorithms.ratios import LOG_RATIO_LIMIT_NATS

torch.set_num_threads(1)


def weights(kind, ratios, sequences=None, **bounds):
    sequences = sequences or [0] * len(ratios)
    logs = torch.tensor(ratios, dtype=torch.float64).log()
    return Correction(kind=kind, **bounds).weights(logs, torch.tensor(sequences), max(sequences) + 1)


@pytest.mark.parametrize(
    ("kind", "bounds", "expected", "kept"),
    [
        ("token_truncate", {}, [2.0, 0.25, 1.0, 2.0], [1, 1, 1, 1]),
        ("token_truncate", {"cap": 3.0}, [3.0, 0.25, 1.0, 2.5], [1, 1, 1, 1]),
        ("token_mask", {}, [4.0, 0.0, 1.0, 2.5], [1, 0, 1, 1]),
        ("token_mask", {"cap": 3.0, "floor": 0.1}, [0.0, 0.25, 1.0, 2.5], [0, 1, 1, 1]),
        # Products: 4 * 0.25 = 1 and 1 * 2.5 = 2.5.
        ("sequence_truncate", {"cap": 2.0}, [1.0, 1.0, 2.0, 2.0], [1, 1, 1, 1]),
        ("sequence_mask", {"cap": 2.0}, [1.0, 1.0, 0.0, 0.0], [1, 1, 0, 0]),
        ("sequence_mask", {"cap": 3.0, "floor": 1.5}, [0.0, 0.0, 2.5, 2.5], [0, 0, 1, 1]),
    ],
)
def test_by_hand(kind, bounds, expected, kept):
    given = weights(kind, [4.0, 0.25, 1.0, 2.5], [0, 0, 1, 1], **bounds)
    assert given.weights_N.tolist() == pytest.approx(expected)
    assert given.kept_N.tolist() == [bool(k) for k in kept]


def test_which_side_a_weight_lay_is_kept():
    given = weights("token_mask", [9.0, 0.1, 1.0])
    assert given.above_N.tolist() == [True, False, False]
    assert given.below_N.tolist() == [False, True, False]


@settings(deadline=None)
@given(
    st.sampled_from([kind for kind in CorrectionKind if kind is not CorrectionKind.NONE]),
    st.lists(st.floats(-60, 60), min_size=1, max_size=12),
)
def test_weights_stay_within_the_bounds_and_the_order_of_sequences_does_not_matter(kind, logs):
    log_N = torch.tensor(logs, dtype=torch.float64)
    sequence_N = torch.arange(len(logs)) % 3
    correction = Correction(kind=kind)
    floor, cap = DEFAULT_BOUNDS[kind]
    result = correction.weights(log_N, sequence_N, 3)
    inside = (result.weights_N >= floor - 1e-9) & (result.weights_N <= cap + 1e-9)
    assert bool((inside | ~result.kept_N).all())
    assert bool((result.weights_N[~result.kept_N] == 0).all())
    relabelled = correction.weights(log_N, 2 - sequence_N, 3)
    torch.testing.assert_close(relabelled.weights_N, result.weights_N)


def test_on_policy_every_weight_is_one():
    for kind in CorrectionKind:
        assert weights(kind, [1.0, 1.0, 1.0], [0, 0, 1]).weights_N.tolist() == [1.0, 1.0, 1.0]


def test_weights_are_detached_and_finite_however_far_the_policies_are_apart():
    log_N = torch.tensor([1000.0, -1000.0], requires_grad=True)
    for kind in CorrectionKind:
        result = Correction(kind=kind, cap=1e12).weights(log_N, torch.tensor([0, 1]), 2)
        assert not result.weights_N.requires_grad
        assert bool(torch.isfinite(result.weights_N).all())
        assert result.weights_N.max().item() <= math.exp(LOG_RATIO_LIMIT_NATS) * 1.001


@pytest.mark.parametrize("kind", list(CorrectionKind))
def test_a_nan_is_never_masked_away(kind):
    assert math.isnan(weights(kind, [float("nan"), 1.0]).weights_N[0].item())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "tokens"}, "correction is one of none, token_truncate"),
        ({"kind": "token_mask", "cap": 0.0}, "correction_cap is above 0"),
        ({"kind": "token_mask", "cap": float("nan")}, "correction_cap"),
        ({"kind": "token_mask", "cap": 0.4}, "floor 0.5 and cap 0.4"),
        ({"kind": "token_truncate", "floor": 0.5}, "for masks"),
        ({"kind": "sequence_mask", "floor": -1.0}, "correction_floor lies in"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Correction(**options)
