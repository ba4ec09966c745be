from __future__ import annotations

import copy
import random
from array import array
from dataclasses import dataclass

import pytest
import torch
import transformers

from burnish.algorithms.grpo import GrpoLoss
from burnish.algorithms.loss import LossInputs, LossOutput
from burnish.algorithms.sft import SftLoss
from burnish.core.errors import ConfigError, RunStopped
from burnish.core.learning import TrainingSample
from burnish.training.failures import NonFiniteLoss
from burnish.training.forward import SelectedLogits
from burnish.training.gradients import flatten_gradients, gradient_size, zero_gradients
from burnish.training.learner import Learner
from burnish.training.lora import LoraSpec, add_lora
from burnish.training.norms import FusedNorms
from burnish.training.passes import ModelPasses

torch.set_num_threads(1)
VOCABULARY = 61

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "qwen3": lambda: transformers.Qwen3Config(**_SHAPE, tie_word_embeddings=True),
    "llama": lambda: transformers.LlamaConfig(**_SHAPE),
    "mistral": lambda: transformers.MistralConfig(**_SHAPE, sliding_window=6),
    "gemma": lambda: transformers.GemmaConfig(**_SHAPE),
    "gemma2": lambda: transformers.Gemma2Config(**_SHAPE, final_logit_softcapping=0.5, attn_implementation="eager"),
    "cohere": lambda: transformers.CohereConfig(**_SHAPE, logit_scale=0.25),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}


def build(family: str = "qwen3", dtype: torch.dtype = torch.float32, seed: int = 0) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]()).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_samples(count: int = 9, seed: int = 0, vocabulary: int = VOCABULARY) -> list[TrainingSample]:
    rng = random.Random(seed)
    samples = []
    for index in range(count):
        length = rng.randint(6, 20)
        mask = [0, 0, 0] + [int(rng.random() < 0.7) for _ in range(length - 3)]
        samples.append(
            TrainingSample(
                trajectory_id=f"rl/000001/{index // 3:04}/{index % 3:02}",
                group_id=str(index // 3),
                token_ids=array("i", [rng.randrange(vocabulary) for _ in mask]),
                loss_mask=array("b", mask),
                behaviour_logprobs=array("f", [-rng.uniform(3.0, 5.0) * m for m in mask]),
                versions=array("i", [m - 1 for m in mask]),
                advantages=array("f", [rng.uniform(-1, 1) * m for m in mask]),
            )
        )
    return samples


def plain_logprobs(model: torch.nn.Module, sample: TrainingSample, temperature: float = 1.0) -> torch.Tensor:
    """The specification: one sample at a time, no padding, full logits."""
    ids = torch.tensor(sample.token_ids.tolist()).unsqueeze(0)
    logits = model(input_ids=ids, use_cache=False).logits[0].float() / temperature
    columns = torch.tensor([t for t, m in enumerate(sample.loss_mask) if m])
    return torch.log_softmax(logits[columns - 1], -1)[torch.arange(len(columns)), ids[0, columns]]


def gradient(learner: Learner, samples, normaliser=None, **options) -> torch.Tensor:
    zero_gradients(learner.model)
    learner.accumulate(samples, normaliser or learner.normaliser(samples), **options)
    return flatten_gradients(learner.model)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("family", CONFIGS)
def test_gradient_and_scores_are_those_of_the_plain_computation(family):
    model, samples = build(family).eval(), make_samples()
    learner = Learner(model, SftLoss(), temperature=0.8, max_micro_batch_tokens=40, pad_id=5)
    actual = gradient(learner, samples)
    scores = learner.score(samples)

    zero_gradients(model)
    plain = [plain_logprobs(model, sample, 0.8) for sample in samples]
    weights = [torch.tensor([a for a, m in zip(s.advantages, s.loss_mask, strict=True) if m]) for s in samples]
    total = sum((w * p).sum() for w, p in zip(weights, plain, strict=True))
    (-total / sum(map(len, plain))).backward()

    assert relative(actual, flatten_gradients(model)) < 2e-5
    for sample, values, score in zip(samples, plain, scores, strict=True):
        assert len(score) == sample.length
        trained = [value for value, m in zip(score, sample.loss_mask, strict=True) if m]
        assert trained == pytest.approx(values.tolist(), abs=1e-5)
        assert all(value == 0.0 for value, m in zip(score, sample.loss_mask, strict=True) if not m)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_head_runs_on_chosen_positions_for_every_family(family):
    model = build(family)
    logits = SelectedLogits(model)
    rows = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _m, _i, out: rows.append(out[..., 0].numel()))
    logits(torch.zeros(2, 8, dtype=torch.int64), torch.tensor([1, 9]))
    hook.remove()
    assert logits.frugal
    assert rows == [2]


class PositionDependentHead(torch.nn.Module):
    """A model that adds to its logits something that depends on the place: selection would give it the wrong place."""

    def __init__(self, inner: transformers.PreTrainedModel) -> None:
        super().__init__()
        self.inner = inner

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.inner.get_output_embeddings()

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> object:
        output = self.inner(input_ids=input_ids, use_cache=use_cache)
        output.logits = output.logits + torch.arange(output.logits.shape[1])[None, :, None].float().sin() * 0.1
        output.logits[..., 0] *= 2.0
        return output


@pytest.mark.parametrize("break_it", ["position", "no head"])
def test_models_that_do_not_bear_selection_fall_back_to_full_logits(break_it):
    model = PositionDependentHead(build())
    if break_it == "no head":
        model.get_output_embeddings = lambda: None
    logits = SelectedLogits(model)
    ids = torch.randint(0, VOCABULARY, (2, 8))
    positions = torch.tensor([1, 9, 15])
    assert not logits.frugal
    torch.testing.assert_close(logits(ids, positions), model(ids, use_cache=False).logits.flatten(0, 1)[positions])


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_gradient_does_not_depend_on_the_micro_batches(aggregation):
    samples = make_samples(20)
    learner = Learner(build(), GrpoLoss(aggregation=aggregation), max_micro_batch_tokens=1 << 20)
    whole = gradient(learner, samples)
    for tokens in (1, 30, 64, 200):
        assert relative(gradient(learner, samples, max_micro_batch_tokens=tokens), whole) < 1e-6
    shuffled = random.Random(1).sample(samples, len(samples))
    assert relative(gradient(learner, shuffled, max_micro_batch_tokens=64), whole) < 1e-6


def test_gradients_of_shards_add_up_to_that_of_the_batch():
    samples = make_samples(12)
    learner = Learner(build(), GrpoLoss())
    normaliser = learner.normaliser(samples)
    assert normaliser == learner.normaliser(samples[:5]) + learner.normaliser(samples[5:])
    shards = gradient(learner, samples[:5], normaliser) + gradient(learner, samples[5:], normaliser)
    assert relative(shards, gradient(learner, samples)) < 1e-6


@dataclass(frozen=True)
class LocalMean:
    """A broken loss: it normalises by its own micro-batch."""

    needs_reference: bool = False

    def normaliser(self, samples) -> float:
        return SftLoss().normaliser(samples)

    def __call__(self, inputs: LossInputs) -> LossOutput:
        output = SftLoss()(inputs)
        local = output.loss * inputs.normaliser / inputs.logprobs_N.numel()
        return LossOutput(loss=local, statistics=output.statistics)


def test_a_loss_that_normalises_per_micro_batch_is_caught():
    samples = make_samples(20)
    learner = Learner(build(), LocalMean(), max_micro_batch_tokens=1 << 20)
    whole = gradient(learner, samples)
    assert relative(gradient(learner, samples, max_micro_batch_tokens=64), whole) > 1e-2


@pytest.mark.parametrize("pad_id", [0, 7, VOCABULARY - 1])
def test_the_pad_id_has_no_influence(pad_id):
    samples = make_samples()
    learner = Learner(build(), GrpoLoss(), pad_id=pad_id)
    assert torch.equal(gradient(learner, samples), gradient(Learner(build(), GrpoLoss(), pad_id=3), samples))


def test_equal_input_gives_equal_bits():
    samples = make_samples(20)
    first = Learner(build(), GrpoLoss(), max_micro_batch_tokens=64)
    second = Learner(build(), GrpoLoss(), max_micro_batch_tokens=64)
    assert torch.equal(gradient(first, samples), gradient(second, samples))
    assert first.accumulate(samples, 10.0) == second.accumulate(samples, 10.0)
    assert first.score(samples) == second.score(samples)


def test_ratio_is_one_on_fresh_samples():
    samples = make_samples()
    learner = Learner(build("gpt2"), GrpoLoss(), temperature=0.7)
    fresh = [
        TrainingSample(
            trajectory_id=s.trajectory_id,
            group_id=s.group_id,
            token_ids=s.token_ids,
            loss_mask=s.loss_mask,
            behaviour_logprobs=score,
            versions=s.versions,
            advantages=s.advantages,
        )
        for s, score in zip(samples, learner.score(samples), strict=True)
    ]
    figures = learner.accumulate(fresh, learner.normaliser(fresh), max_micro_batch_tokens=40).metrics()
    assert figures["log_ratio_behaviour_abs_nats_max"] < 1e-5
    dropped = Learner(learner.model, GrpoLoss(), temperature=0.7, dropout=True)
    assert dropped.accumulate(fresh, 1.0).metrics()["log_ratio_behaviour_abs_nats_max"] > 1e-3


def test_reference_model_and_switched_off_adapters_agree():
    samples, base = make_samples(), build()
    frozen = copy.deepcopy(base)
    model = add_lora(base, LoraSpec(rank=2), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    loss = GrpoLoss(kl_weight=0.5)
    of_itself = Learner(model, loss, reference=model)
    of_frozen = Learner(model, loss, reference=frozen)
    assert relative(gradient(of_itself, samples), gradient(of_frozen, samples)) < 1e-6
    figures = of_itself.accumulate(samples, 1.0).metrics()
    assert figures["kl_reference_nats_mean"] > 1e-3
    assert len(flatten_gradients(model)) == gradient_size(model) < sum(p.numel() for p in frozen.parameters()) / 2


def test_wiring_mistakes_are_refused():
    model = build()
    with pytest.raises(ConfigError, match="reference"):
        Learner(model, GrpoLoss(kl_weight=0.1))
    with pytest.raises(ConfigError, match="own reference"):
        Learner(model, GrpoLoss(kl_weight=0.1), reference=model)
    with pytest.raises(ConfigError, match="trainable"):
        Learner(model.requires_grad_(False), GrpoLoss())
    with pytest.raises(ValueError, match="normaliser"):
        Learner(build(), GrpoLoss()).accumulate(make_samples(), 0.0)


def test_nothing_to_train_changes_nothing():
    learner = Learner(build(), GrpoLoss())
    assert learner.accumulate([], 0.0).metrics() == {"micro_batches": 0.0, "padded_tokens": 0.0}
    assert not flatten_gradients(learner.model).any()


@pytest.mark.parametrize("held", [False, True])
def test_a_nan_names_its_trajectory_and_leaves_the_gradients_alone(held):
    samples = make_samples()
    learner = Learner(build(), GrpoLoss(), max_micro_batch_tokens=64)
    if held:
        learner.accumulate(samples, 3.0)
    before = flatten_gradients(learner.model)
    column = list(samples[4].loss_mask).index(1)
    samples[4].behaviour_logprobs[column] = float("nan")
    with pytest.raises(NonFiniteLoss, match=samples[4].trajectory_id) as caught:
        learner.accumulate(samples, 3.0)
    assert caught.value.trajectory_ids == (samples[4].trajectory_id,)
    assert caught.value.cause == "nonfinite_loss"
    assert torch.equal(flatten_gradients(learner.model), before)


def test_an_infinite_gradient_of_a_finite_loss_is_caught():
    learner = Learner(build(), GrpoLoss())
    learner.model.model.norm.weight.register_hook(lambda g: g * float("inf"))
    with pytest.raises(NonFiniteLoss, match="gradient"):
        learner.accumulate(make_samples(), 3.0)
    assert not flatten_gradients(learner.model).any()


class ScarceMemory(GrpoLoss):
    """Fails in the backward pass, half-way through, for more than `limit` tokens, as a full memory would."""

    limit = 10
    message = "CUDA out of memory. Tried to allocate 20.00 MiB"

    def __call__(self, inputs: LossInputs) -> LossOutput:
        output = GrpoLoss.__call__(self, inputs)
        if inputs.logprobs_N.numel() > self.limit:
            inputs.logprobs_N.register_hook(self.fail)
        return output

    def fail(self, gradient: torch.Tensor) -> None:
        raise RuntimeError(self.message)


@pytest.mark.parametrize("held", [False, True])
def test_out_of_memory_halves_the_micro_batch_and_gives_the_same_gradient(held):
    samples = make_samples(20)
    plain, scarce = Learner(build(), GrpoLoss()), Learner(build(), ScarceMemory())
    scarce.loss.__class__.limit = 30
    for learner in (plain, scarce):
        for _ in range(1 + held):
            learner.accumulate(samples, 10.0)
    assert scarce.memory_splits > 0
    assert scarce.max_micro_batch_tokens < plain.max_micro_batch_tokens
    assert relative(flatten_gradients(scarce.model), flatten_gradients(plain.model)) < 1e-6
    splits = scarce.memory_splits
    scarce.accumulate(samples, 10.0)
    assert scarce.memory_splits == splits


def test_out_of_memory_with_one_sample_stops_the_run_with_advice():
    learner = Learner(build(), ScarceMemory())
    learner.loss.__class__.limit = 0
    with pytest.raises(RunStopped, match="single sample") as caught:
        learner.accumulate(make_samples(), 10.0)
    assert caught.value.cause == "out_of_memory"
    assert not flatten_gradients(learner.model).any()


def test_other_runtime_errors_are_not_taken_for_memory(monkeypatch):
    monkeypatch.setattr(ScarceMemory, "message", "shape mismatch")
    monkeypatch.setattr(ScarceMemory, "limit", 0)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        Learner(build(), ScarceMemory()).accumulate(make_samples(), 10.0)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma", "gemma2"])
def test_fused_norms_give_the_same_gradient_and_leave_the_model_as_it_was(family):
    samples, model = make_samples(), build(family)
    learner = Learner(model, GrpoLoss())
    learner._passes = ModelPasses(model, pad_id=0)
    fused = gradient(learner, samples)
    assert len(FusedNorms(model)) > 3
    assert not any("forward" in module.__dict__ for module in model.modules())
    learner._passes._norms = FusedNorms(torch.nn.Module())
    assert relative(fused, gradient(learner, samples)) < 5e-6


def test_a_norm_that_computes_something_else_is_left_alone():
    model = build()
    forward = type(model.model.norm).forward
    odd = type("OddRMSNorm", (torch.nn.Module,), {"forward": lambda self, x: 1.001 * forward(self, x)})()
    odd.weight, odd.variance_epsilon = model.model.norm.weight, model.model.norm.variance_epsilon
    count = len(FusedNorms(model))
    model.model.norm = odd
    assert len(FusedNorms(model)) == count - 1
    assert len(FusedNorms(build(dtype=torch.bfloat16))) == 0


def test_bfloat16_models_train_too():
    learner = Learner(build(dtype=torch.bfloat16), GrpoLoss())
    assert isinstance(learner._passes, ModelPasses)
    assert torch.isfinite(gradient(learner, make_samples())).all()
