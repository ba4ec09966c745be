"""The learner off policy: kept sets, versions, proximal scores, decisions over the whole batch."""

from __future__ import annotations

import math
import random
from array import array
from dataclasses import replace

import pytest
import torch
import transformers

from burnish.algorithms.correction import CorrectionKind
from burnish.algorithms.grpo import GrpoLoss
from burnish.algorithms.m2po import M2poLoss
from burnish.algorithms.registry import make_loss
from burnish.core.errors import InvariantViolation
from burnish.core.kept import KeptSets
from burnish.core.learning import TrainingSample
from burnish.training.gradients import flatten_gradients, zero_gradients
from burnish.training.learner import Learner

torch.set_num_threads(1)
VOCABULARY = 61
LOSSES = ("grpo", "gspo", "cispo", "m2po")


def build(seed: int = 0, spread: float = 0.15) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    config = transformers.Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return model


def kept_ids(logits: torch.Tensor, top_k: int, top_p: float) -> list[int]:
    """The smallest set of likeliest ids that holds top_p of the probability, of the top_k; all where nothing is cut."""
    probabilities, order = torch.softmax(logits, -1).sort(descending=True)
    count = min(top_k or VOCABULARY, int((probabilities.cumsum(0) < top_p).sum()) + 1 if top_p < 1 else VOCABULARY)
    return order[:count].tolist()


@torch.no_grad()
def draw(model, temperature: float, top_k: int, top_p: float, count: int = 12, seed: int = 0) -> list[TrainingSample]:
    """The plainest sampler there is: the whole context again for every token."""
    rng, samples = random.Random(seed), []
    model.eval()
    for index in range(count):
        ids = [rng.randrange(VOCABULARY) for _ in range(3)]
        mask, logprobs, counts, kept = [0] * 3, [0.0] * 3, [0] * 3, []
        for _ in range(rng.randint(3, 12)):
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double() / temperature
            allowed = kept_ids(logits, top_k, top_p)
            chances = torch.softmax(logits[allowed], -1)
            place = rng.choices(range(len(allowed)), chances.tolist())[0]
            ids.append(allowed[place])
            mask.append(1)
            logprobs.append(math.log(chances[place]))
            counts.append(len(allowed) if len(allowed) < VOCABULARY else 0)
            kept.extend(allowed if len(allowed) < VOCABULARY else [])
        samples.append(
            TrainingSample(
                trajectory_id=f"rl/000001/0000/{index:02}",
                group_id="0",
                token_ids=array("i", ids),
                loss_mask=array("b", mask),
                behaviour_logprobs=array("f", logprobs),
                versions=array("i", [m - 1 for m in mask]),
                advantages=array("f", [rng.uniform(-1, 1) * m for m in mask]),
                kept=KeptSets(counts=array("i", counts), ids=array("i", kept)) if kept else None,
            )
        )
    return samples


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 0, 0.8), (1.3, 12, 1.0), (0.8, 20, 0.9)]
)
def test_a_step_that_moves_nothing_has_ratio_one(temperature, top_k, top_p):
    model = build()
    samples = draw(model, temperature, top_k, top_p)
    learner = Learner(model, GrpoLoss(), temperature=temperature, max_micro_batch_tokens=40)
    figures = learner.accumulate(samples, learner.normaliser(samples), version=0).metrics()
    assert figures["ratio_behaviour_mean"] == pytest.approx(1.0, abs=1e-6)
    assert figures["log_ratio_behaviour_abs_nats_max"] < 2e-5
    assert figures["staleness_max"] == 0.0
    score = learner.score(samples)
    for sample, values in zip(samples, score, strict=True):
        assert values.tolist() == pytest.approx(sample.behaviour_logprobs.tolist(), abs=2e-5)


@pytest.mark.parametrize(("top_k", "top_p", "at_most"), [(0, 0.8, 0.86), (12, 1.0, 0.9)])
def test_without_kept_sets_the_ratio_departs_from_one(top_k, top_p, at_most):
    """The negative control: the mean ratio falls to the probability that the cut left, with equal weights."""
    model = build()
    samples = [replace(sample, kept=None) for sample in draw(model, 1.0, top_k, top_p)]
    learner = Learner(model, GrpoLoss())
    figures = learner.accumulate(samples, learner.normaliser(samples)).metrics()
    assert 0.3 < figures["ratio_behaviour_mean"] < at_most
    assert figures["log_ratio_behaviour_abs_nats_max"] > 0.05


def test_kept_sets_of_another_token_are_refused():
    model = build()
    samples = draw(model, 1.0, 2, 1.0)
    bad = samples[3]
    other = next(i for i in range(VOCABULARY) if i not in bad.kept.ids)
    samples[3] = replace(bad, kept=replace(bad.kept, ids=array("i", [other] * len(bad.kept.ids))))
    learner = Learner(model, GrpoLoss())
    with pytest.raises(InvariantViolation, match="kept_set"):
        learner.accumulate(samples, 3.0)
    assert not flatten_gradients(model).any()


@pytest.mark.parametrize(("versions", "learner_version"), [(7, 6), (-1, 6)])
def test_a_version_that_cannot_be_is_refused(versions, learner_version):
    samples = draw(build(), 1.0, 0, 1.0, count=2)
    broken = array("i", [versions if m else -1 for m in samples[1].loss_mask])
    samples[1] = replace(samples[1], versions=broken)
    with pytest.raises(InvariantViolation, match="staleness"):
        Learner(build(), GrpoLoss()).accumulate(samples, 3.0, version=learner_version)


def gradient(learner: Learner, shards, limit: float, **options) -> torch.Tensor:
    """The sum over shards, each with the normaliser of the whole batch."""
    zero_gradients(learner.model)
    normaliser = sum(learner.normaliser(shard) for shard in shards)
    for shard in shards:
        learner.accumulate(shard, normaliser, trust_limit=limit, **options)
    return flatten_gradients(learner.model)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("correction", ["none", "token_truncate", "sequence_mask"])
@pytest.mark.parametrize("name", LOSSES)
def test_shards_and_micro_batches_change_nothing(name, correction, aggregation):
    options = {"aggregation": aggregation, "correction": correction}
    if name == "gspo":
        options["clip_high"] = options["clip_low"] = 0.2
    old, new = build(seed=0), build(seed=0, spread=0.25)
    learner = Learner(new, make_loss(name, options), max_micro_batch_tokens=1 << 20)
    samples = learner.with_proximal(draw(old, 1.0, 0, 0.9))
    limit = learner.loss.trust_limit([learner.loss.survey(samples)])
    whole = gradient(learner, [samples], limit)
    assert whole.norm() > 1e-3
    shards = [
        learner.with_proximal([replace(s, proximal_logprobs=None) for s in part]) for part in (samples[7:], samples[:7])
    ]
    of_shards = learner.loss.trust_limit([learner.loss.survey(shard) for shard in shards])
    for cut in (1, 30, 64):
        parts = gradient(learner, shards, of_shards, max_micro_batch_tokens=cut)
        assert float((parts - whole).norm() / whole.norm()) < 2e-6


def test_at_the_first_update_proximal_scores_and_the_learner_itself_are_the_same():
    old, new = build(seed=0), build(seed=0, spread=0.25)
    learner = Learner(new, make_loss("grpo", {"correction": "token_truncate"}))
    bare = draw(old, 1.0, 0, 1.0)
    scored = learner.with_proximal(bare)
    first, second = gradient(learner, [bare], math.inf), gradient(learner, [scored], math.inf)
    assert float((first - second).norm() / first.norm()) < 1e-6
    figures = learner.accumulate(scored, 1.0).metrics()
    assert figures["log_ratio_proximal_abs_nats_max"] < 1e-5 < figures["log_ratio_behaviour_abs_nats_max"]
    # After an update the trust region is around where the step began, not around the behaviour policy.
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    moved = learner.accumulate(scored, 1.0).metrics()
    assert moved["log_ratio_proximal_abs_nats_max"] > 1e-3
    assert moved["correction_weight_mean"] == figures["correction_weight_mean"]


def test_every_correction_runs_through_the_learner_with_m2po():
    old, new = build(seed=0), build(seed=0, spread=0.25)
    for correction in CorrectionKind:
        loss = M2poLoss(correction=correction, moment_cap=0.001)
        learner = Learner(new, loss)
        samples = learner.with_proximal(draw(old, 1.0, 0, 1.0))
        limit = loss.trust_limit([loss.survey(samples)])
        figures = learner.accumulate(samples, learner.normaliser(samples), version=3, trust_limit=limit).metrics()
        assert 0 < figures["masked_mean"] < 1
        assert figures["staleness_mean"] == 3.0
