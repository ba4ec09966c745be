"""What the learner records of its tokens: right, aligned, and without any effect on what is trained."""

from __future__ import annotations

import copy
import random
from array import array

import pytest
import torch
import transformers
from tiny_models import SPECS, VOCABULARY, make_model

from burnish.algorithms.grpo import GrpoLoss
from burnish.algorithms.logprobs import token_logprobs
from burnish.algorithms.sft import SftLoss
from burnish.core.learning import TrainingSample
from burnish.training.gradients import flatten_gradients, zero_gradients
from burnish.training.learner import Learner
from burnish.training.passes import ModelPasses, TreePasses
from burnish.training.token_record import TokenRecord

torch.set_num_threads(1)


def build(family: str = "qwen3") -> torch.nn.Module:
    """ "gemma2" is a model that only its own forward pass computes."""
    if family != "gemma2":
        return make_model(SPECS[family])
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.Gemma2Config(
        **shape, num_key_value_heads=2, head_dim=8, intermediate_size=48, attn_implementation="eager"
    )
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)


def make_samples(count: int = 9) -> list[TrainingSample]:
    rng, samples = random.Random(0), []
    for index in range(count):
        mask = [0, 0, 0] + [int(rng.random() < 0.7) for _ in range(rng.randint(3, 17))]
        samples.append(
            TrainingSample(
                trajectory_id=f"rl/000001/{index // 3:04}/{index % 3:02}",
                group_id=str(index // 3),
                token_ids=array("i", [rng.randrange(VOCABULARY) for _ in mask]),
                loss_mask=array("b", mask),
                behaviour_logprobs=array("f", [-rng.uniform(3.0, 5.0) * m for m in mask]),
                versions=array("i", [m - 1 for m in mask]),
                advantages=array("f", [rng.uniform(-1, 1) * m for m in mask]),
            )
        )
    return samples


def gradient(learner: Learner, samples: list[TrainingSample], **options) -> torch.Tensor:
    zero_gradients(learner.model)
    learner.accumulate(samples, learner.normaliser(samples), **options)
    return flatten_gradients(learner.model)


def plain_scores(model: torch.nn.Module, sample: TrainingSample, temperature: float) -> dict[str, list[float]]:
    """The specification: full softmax, one sample at a time."""
    ids = torch.tensor(sample.token_ids.tolist()).unsqueeze(0)
    columns = torch.tensor([t for t, m in enumerate(sample.loss_mask) if m])
    logits = model(input_ids=ids, use_cache=False).logits[0, columns - 1].double() / temperature
    p = torch.softmax(logits, -1)
    chosen = p[torch.arange(len(columns)), ids[0, columns]]
    return {
        "logprobs": chosen.log().tolist(),
        "entropy": torch.distributions.Categorical(logits=logits).entropy().tolist(),
        "score_norm": (1 - 2 * chosen + p.square().sum(-1)).tolist(),
    }


def learner_of(family: str, **options) -> tuple[Learner, list[TrainingSample]]:
    return Learner(build(family).eval(), GrpoLoss(), temperature=0.8, pad_id=5, **options), make_samples()


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma2"])
@pytest.mark.parametrize("budget", [40, 4096])
def test_a_record_holds_the_scores_of_every_trained_token(family: str, budget: int):
    learner, samples = learner_of(family, max_micro_batch_tokens=budget)
    record = TokenRecord(score_norm=True)
    learner.accumulate(samples, learner.normaliser(samples), record=record)
    for place, sample in enumerate(samples):
        part, expected = record.part(place), plain_scores(learner.model, sample, 0.8)
        assert part.stop - part.start == sample.trained_tokens
        for name, values in expected.items():
            assert record.streams[name][part].tolist() == pytest.approx(values, abs=2e-5), name
    assert record.streams.keys() == {"logprobs", "entropy", "score_norm"}


def test_both_kinds_of_passes_were_tried():
    kinds = {family: type(learner_of(family)[0]._passes) for family in ("qwen3", "gemma2")}
    assert kinds == {"qwen3": TreePasses, "gemma2": ModelPasses}


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
@pytest.mark.parametrize("score_norm", [False, True])
def test_a_record_changes_no_bit_of_the_gradient(family: str, score_norm: bool):
    learner, samples = learner_of(family, max_micro_batch_tokens=40)
    without = gradient(learner, samples)
    assert torch.equal(without, gradient(learner, samples, record=TokenRecord(score_norm=score_norm)))


def test_without_the_softmax_statistics_there_is_no_score_norm():
    learner, samples = learner_of("qwen3")
    record = TokenRecord()
    learner.accumulate(samples, learner.normaliser(samples), record=record)
    assert record.streams.keys() == {"logprobs", "entropy"}
    assert len(record.streams["entropy"]) == sum(sample.trained_tokens for sample in samples)


def test_a_split_for_memory_begins_the_record_anew(monkeypatch: pytest.MonkeyPatch):
    learner, samples = learner_of("qwen3", max_micro_batch_tokens=4096)
    whole = TokenRecord(score_norm=True)
    learner.accumulate(samples, learner.normaliser(samples), record=whole)
    step, calls = Learner._step, []

    def tight(self, batch, given):
        calls.append(batch.padded_tokens)
        if batch.padded_tokens > 40:
            step(self, batch, given)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, batch, given)

    monkeypatch.setattr(Learner, "_step", tight)
    split = TokenRecord(score_norm=True)
    zero_gradients(learner.model)
    learner.accumulate(samples, learner.normaliser(samples), record=split)
    assert learner.memory_splits > 0
    assert len(calls) > 2
    for name in ("logprobs", "score_norm"):
        assert split.streams[name].tolist() == pytest.approx(whole.streams[name].tolist(), abs=1e-5)


def test_the_reference_is_recorded_too():
    model = build().eval()
    reference = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    learner = Learner(model, GrpoLoss(kl_weight=0.1), reference=reference, max_micro_batch_tokens=40)
    samples, record = make_samples(), TokenRecord()
    learner.accumulate(samples, learner.normaliser(samples), record=record)
    for place, sample in enumerate(samples):
        expected = plain_scores(reference, sample, 1.0)["logprobs"]
        assert record.streams["reference"][record.part(place)].tolist() == pytest.approx(expected, abs=2e-5)


def test_a_sample_without_trained_tokens_has_an_empty_record():
    learner, samples = Learner(build().eval(), SftLoss()), make_samples(2)
    nothing = TrainingSample(
        trajectory_id="n",
        group_id="n",
        token_ids=array("i", [1, 2]),
        loss_mask=array("b", [0, 0]),
        behaviour_logprobs=array("f", [0.0, 0.0]),
        versions=array("i", [-1, -1]),
        advantages=array("f", [0.0, 0.0]),
    )
    record = TokenRecord()
    learner.accumulate([samples[0], nothing, samples[1]], 9.0, record=record)
    first, second = samples[0].trained_tokens, samples[1].trained_tokens
    assert [record.part(place) for place in range(3)] == [
        slice(0, first),
        slice(first, first),
        slice(first, first + second),
    ]
    assert len(record.streams["logprobs"]) == first + second


def test_score_norms_of_certain_and_uniform_tokens():
    """Nothing to gain where the policy is certain; (1 - 1/V) squared and V - 1 times 1/V^2 where it is not."""
    logits = torch.stack([torch.zeros(VOCABULARY), torch.eye(VOCABULARY)[3] * 200.0])
    scores = token_logprobs(logits, torch.tensor([7, 3]), temperature=1.0, score_norm=True)
    assert scores.score_norm_N is not None
    assert scores.score_norm_N.tolist() == pytest.approx([1.0 - 1.0 / VOCABULARY, 0.0], abs=1e-5)
    assert not scores.score_norm_N.requires_grad


def test_the_score_norm_is_that_of_the_gradient_of_the_logits():
    logits = torch.randn(5, 11, requires_grad=True)
    scores = token_logprobs(logits, torch.arange(5), temperature=1.0, score_norm=True)
    scores.logprobs_N.sum().backward()
    assert logits.grad.square().sum(-1).tolist() == pytest.approx(scores.score_norm_N.tolist(), abs=1e-5)


def test_the_gradient_is_of_the_right_size():
    """Guards the helper: a record must not leave gradients of its own behind."""
    learner, samples = learner_of("qwen3")
    zero_gradients(learner.model)
    learner.accumulate(samples, learner.normaliser(samples), record=TokenRecord(score_norm=True))
    assert float(flatten_gradients(learner.model).norm()) > 0
