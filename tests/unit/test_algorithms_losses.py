from __future__ import annotations

import math
from array import array
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from burnish.algorithms.aggregation import Aggregation, batch_normaliser
from burnish.algorithms.grpo import GrpoLoss
from burnish.algorithms.kl import k3
from burnish.algorithms.loss import LossInputs, LossSums
from burnish.algorithms.registry import make_loss
from burnish.algorithms.sft import SftLoss
from burnish.core.errors import ConfigError
from burnish.core.learning import TrainingSample

torch.set_num_threads(1)


def inputs(ratios, advantages, lengths=None, reference=None, normaliser=1.0) -> LossInputs:
    """Tokens whose learner/behaviour ratios are given; by default all of one sequence."""
    lengths = lengths or [len(ratios)]
    behaviour = torch.full((len(ratios),), -1.0)
    return LossInputs(
        logprobs_N=(behaviour + torch.tensor(ratios).log()).requires_grad_(),
        behaviour_logprobs_N=behaviour,
        advantages_N=torch.tensor(advantages),
        sequence_N=torch.tensor([row for row, n in enumerate(lengths) for _ in range(n)]),
        sequence_tokens_N=torch.tensor([float(n) for n in lengths for _ in range(n)]),
        entropy_N=torch.full((len(ratios),), 2.0),
        sequences=len(lengths),
        normaliser=normaliser,
        reference_logprobs_N=reference,
    )


def test_sft_is_the_negative_log_likelihood():
    given = inputs([1.0, 2.0], [1.0, 1.0], normaliser=2.0)
    output = SftLoss()(given)
    assert output.loss.item() == pytest.approx(-(-1.0 + -1.0 + math.log(2)) / 2)
    assert output.statistics.metrics()["nll_nats_mean"] == pytest.approx(output.loss.item())


def test_grpo_by_hand():
    output = GrpoLoss(clip_low=0.2, clip_high=0.28)(inputs([1.0, 1.5, 1.5, 0.5, 0.5], [1.0, 1.0, -1.0, 1.0, -1.0]))
    # min(r A, clip(r) A) is 1, 1.28 (clipped high), -1.5, 0.5, -0.8 (clipped low)
    assert output.loss.item() == pytest.approx(-(1.0 + 1.28 - 1.5 + 0.5 - 0.8))
    assert output.statistics.sums["clipped_high"] == 1.0
    assert output.statistics.sums["clipped_low"] == 1.0


def test_clipped_tokens_carry_no_gradient():
    given = inputs([1.5, 1.1], [1.0, 1.0])
    GrpoLoss()(given).loss.backward()
    assert given.logprobs_N.grad is not None
    assert given.logprobs_N.grad.tolist() == pytest.approx([0.0, -1.1])


@pytest.mark.parametrize(
    ("aggregation", "expected"), [("token", 1.0 + 2 + 3), ("sequence", 1.5 + 3.0), ("constant", 6 / 4)]
)
def test_aggregations(aggregation, expected):
    given = inputs([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], lengths=[2, 1])
    loss = GrpoLoss(aggregation=aggregation, constant_tokens=4)(given).loss
    assert loss.item() == pytest.approx(-expected)


@given(st.lists(st.lists(st.booleans(), max_size=6), max_size=6), st.sampled_from(list(Aggregation)), st.integers(0, 6))
def test_normalisers_of_shards_add_up(masks, aggregation, cut):
    samples = [
        TrainingSample(
            trajectory_id="t",
            group_id="g",
            token_ids=array("i", bytes(4 * len(mask))),
            loss_mask=array("b", mask),
            behaviour_logprobs=array("f", bytes(4 * len(mask))),
            versions=array("i", bytes(4 * len(mask))),
            advantages=array("f", bytes(4 * len(mask))),
        )
        for mask in masks
    ]
    parts = batch_normaliser(aggregation, samples[:cut]) + batch_normaliser(aggregation, samples[cut:])
    assert parts == batch_normaliser(aggregation, samples)


def test_reference_term_and_its_absence():
    given = inputs([1.0, 1.0], [0.0, 0.0], reference=torch.tensor([-1.0, -2.0]))
    output = GrpoLoss(kl_weight=0.1)(given)
    assert output.loss.item() == pytest.approx(0.1 * (math.exp(-1.0) + 1.0 - 1.0))
    assert output.statistics.metrics()["kl_reference_nats_mean"] == pytest.approx(math.exp(-1.0) / 2)
    with pytest.raises(ValueError, match="reference"):
        GrpoLoss(kl_weight=0.1)(replace(given, reference_logprobs_N=None))


@given(st.floats(-30, 0), st.floats(-30, 0))
def test_k3_is_never_negative(p, q):
    assert k3(torch.tensor([p], dtype=torch.float64), torch.tensor([q], dtype=torch.float64)).item() >= 0.0


def test_k3_is_unbiased():
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.3, 0.5]).double()
    estimate = (p * k3(p.log(), q.log())).sum()
    assert estimate.item() == pytest.approx((p * (p.log() - q.log())).sum().item())


def test_raw_ratios_are_recorded_before_clipping():
    figures = GrpoLoss()(inputs([4.0, 1.0], [1.0, 1.0])).statistics.metrics()
    assert figures["ratio_behaviour_mean"] == pytest.approx(2.5)
    assert figures["log_ratio_behaviour_abs_nats_max"] == pytest.approx(math.log(4))
    assert figures["ratio_behaviour_ess_raw_token"] == pytest.approx(25 / (2 * 17))
    on_policy = GrpoLoss()(inputs([1.0, 1.0], [1.0, 1.0])).statistics.metrics()
    assert on_policy["ratio_behaviour_ess_raw_token"] == 1.0


def test_a_huge_log_ratio_stays_finite_in_the_loss():
    given = inputs([1.0], [-1.0])
    given.behaviour_logprobs_N.fill_(-200.0)
    assert torch.isfinite(GrpoLoss()(given).loss)


def test_statistics_merge_like_one_batch():
    loss = GrpoLoss()
    whole = loss(inputs([1.1, 0.9, 1.4], [1.0, -1.0, 1.0])).statistics
    parts = [loss(inputs([1.1, 0.9], [1.0, -1.0])).statistics, loss(inputs([1.4], [1.0])).statistics]
    merged = LossSums.merge(parts)
    assert merged.maxima == whole.maxima
    # One sequence of three tokens is not two sequences: what counts sequences differs.
    assert {key: merged.sums[key] for key in merged.sums if "sequence" not in key} == pytest.approx(
        {key: whole.sums[key] for key in whole.sums if "sequence" not in key}
    )
    assert LossSums.merge([]).metrics() == {}


def test_make_loss():
    assert make_loss("grpo", {"aggregation": "sequence"}) == GrpoLoss(aggregation=Aggregation.SEQUENCE)
    assert make_loss("sft") == SftLoss()
    with pytest.raises(ConfigError, match="did you mean 'grpo'"):
        make_loss("grppo")
    with pytest.raises(ConfigError, match="did you mean 'clip_high'"):
        make_loss("grpo", {"clip_hi": 0.3})
    for options in ({"clip_low": 1.0}, {"clip_high": -0.1}, {"kl_weight": -1}, {"aggregation": "mean"}):
        with pytest.raises(ConfigError, match="loss grpo"):
            make_loss("grpo", options)
    for name in ("sft", "grpo"):
        with pytest.raises(ConfigError, match="constant_tokens"):
            make_loss(name, {"constant_tokens": 0})
