from __future__ import annotations

import copy
import random
from array import array
from dataclasses import replace

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.algorithms.grpo import GrpoLoss
from burnish.algorithms.logprobs import token_logprobs
from burnish.algorithms.prefix_tree import TARGETS_PER_TOKEN, tree_batches
from burnish.algorithms.sft import SftLoss
from burnish.core.learning import TrainingSample
from burnish.policies.decoder import describe_decoder, plain_logits
from burnish.training import tree_attention, tree_forward
from burnish.training.failures import NonFiniteLoss
from burnish.training.gradients import flatten_gradients, zero_gradients
from burnish.training.learner import Learner
from burnish.training.lora import LoraSpec, add_lora
from burnish.training.packed import PackedWeights
from burnish.training.passes import ModelPasses, TreePasses
from burnish.training.tree_forward import TreeForward

torch.set_num_threads(1)
VOCABULARY = 61
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "pad_token_id": 3,
}
UNDERSTOOD = {
    "qwen2": lambda: transformers.Qwen2Config(**{k: v for k, v in _SHAPE.items() if k != "head_dim"}),
    "qwen3": lambda: transformers.Qwen3Config(**_SHAPE, tie_word_embeddings=True),
    "llama": lambda: transformers.LlamaConfig(**_SHAPE, attention_bias=True, mlp_bias=True),
    "mistral": lambda: transformers.MistralConfig(**_SHAPE, sliding_window=6),
    "gemma": lambda: transformers.GemmaConfig(**_SHAPE),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **_SHAPE,
        sliding_window=5,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=256),
}
OTHERS = {
    "gemma2": lambda: transformers.Gemma2Config(**_SHAPE, final_logit_softcapping=0.5, attn_implementation="eager"),
    "cohere": lambda: transformers.CohereConfig(**_SHAPE, logit_scale=0.25),
}


def build(family: str = "qwen3", dtype: torch.dtype = torch.float32, seed: int = 0) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config({**UNDERSTOOD, **OTHERS}[family]()).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def make_sample(name: str, ids: list[int], mask: list[int], advantage: float = 1.0) -> TrainingSample:
    return TrainingSample(
        trajectory_id=name,
        group_id=name.split("/", maxsplit=1)[0],
        token_ids=array("i", ids),
        loss_mask=array("b", mask),
        behaviour_logprobs=array("f", [-4.0 * m for m in mask]),
        versions=array("i", [m - 1 for m in mask]),
        advantages=array("f", [advantage * m for m in mask]),
    )


def make_groups(groups: int = 4, size: int = 4, longest: int = 90, seed: int = 0) -> list[TrainingSample]:
    """Members share the prompt and part of what follows; some are equal from end to end."""
    rng = random.Random(seed)
    samples = []
    for group in range(groups):
        trunk = [rng.randrange(VOCABULARY) for _ in range(longest)]
        mask = [0, 0, 0] + [int(rng.random() < 0.6) for _ in range(longest - 3)]
        for member in range(size):
            shared, length = rng.choice([3, 8, 20, longest]), rng.choice([12, 40, longest])
            ids = trunk[:shared] + [rng.randrange(VOCABULARY) for _ in range(longest - shared)]
            samples.append(make_sample(f"{group}/{member}", ids[:length], mask[:length], rng.uniform(-1, 1)))
    return samples


def gradient(learner: Learner, samples: list[TrainingSample], **options: int) -> torch.Tensor:
    zero_gradients(learner.model)
    learner.accumulate(samples, learner.normaliser(samples), **options)
    return flatten_gradients(learner.model)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def by_the_model(learner: Learner) -> Learner:
    other = copy.copy(learner)
    other._passes = ModelPasses(learner.model, pad_id=0)
    if learner._reference is not None:
        other._reference_passes = ModelPasses(learner._reference, pad_id=0)
    return other


@pytest.mark.parametrize("family", UNDERSTOOD)
def test_gradient_statistics_and_scores_are_those_of_the_models_own_forward(family):
    samples = make_groups()
    learner = Learner(build(family), GrpoLoss(), temperature=0.8)
    own = by_the_model(learner)
    assert isinstance(learner._passes, TreePasses)
    assert relative(gradient(learner, samples), gradient(own, samples)) < 1e-5
    for ours, theirs in zip(learner.score(samples), own.score(samples), strict=True):
        assert ours == pytest.approx(theirs, abs=2e-5)
    normaliser = learner.normaliser(samples)
    figures, expected = (one.accumulate(samples, normaliser).metrics() for one in (learner, own))
    tokens, padded = figures.pop("padded_tokens"), expected.pop("padded_tokens")
    assert tokens < 0.7 * padded
    figures.pop("micro_batches"), expected.pop("micro_batches")
    assert figures == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("family", UNDERSTOOD)
def test_in_double_precision_the_gradient_is_that_of_the_plain_formula(family):
    model, samples = build(family, torch.float64), make_groups()
    learner = Learner(model, SftLoss())
    decoder = describe_decoder(model)
    total = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        ids = torch.tensor(sample.token_ids.tolist())
        columns = torch.tensor([t for t, m in enumerate(sample.loss_mask) if m])
        logprobs = plain_logits(decoder, ids[None])[0].log_softmax(-1)[columns - 1, ids[columns]]
        total = total - (torch.tensor(sample.advantages.tolist(), dtype=torch.float64)[columns] * logprobs).sum()
    (total / learner.normaliser(samples)).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    zero_gradients(model)
    learner.accumulate(samples, learner.normaliser(samples))
    embedding = model.get_input_embeddings()
    for (name, parameter), wanted in zip(model.named_parameters(), expected, strict=True):
        found, wanted = parameter.grad.clone(), wanted.clone()
        if parameter is embedding.weight and embedding.padding_idx is not None:
            # as an input the padding id has no gradient in transformers, and one in the plain formula
            found[embedding.padding_idx], wanted[embedding.padding_idx] = 0.0, 0.0
        assert float((found - wanted).norm()) < 1e-10 * (float(wanted.norm()) + 1.0), name


@pytest.mark.parametrize("family", OTHERS)
def test_families_without_a_description_go_through_their_own_forward(family):
    assert isinstance(Learner(build(family), GrpoLoss())._passes, ModelPasses)


@pytest.mark.parametrize("why", ["bfloat16", "dropout", "adapters", "hook", "reference"])
def test_what_the_tree_does_not_cover_goes_through_the_models_own_forward(why):
    model, options = build("qwen3"), {}
    if why == "bfloat16":
        model = model.bfloat16()
    if why == "dropout":
        options["dropout"] = True
    if why == "adapters":
        model = add_lora(model, LoraSpec(rank=2), seed=0)
    if why == "hook":
        model.model.layers[1].mlp.register_forward_hook(lambda _m, _i, output: 2.0 * output)
    if why == "reference":
        options["reference"] = build("gemma2")
    assert isinstance(Learner(model, GrpoLoss(), **options)._passes, ModelPasses)
    assert isinstance(Learner(build("qwen3"), GrpoLoss())._passes, TreePasses)


@pytest.mark.parametrize("fault", ["mask", "gradient", "epsilon", "scale", "window"])
def test_a_wrong_formula_is_noticed_before_it_is_used(fault, monkeypatch):
    model = build("mistral")
    decoder = describe_decoder(model)
    if fault == "mask":
        monkeypatch.setattr(
            tree_attention.Bucket, "mask", lambda b, _w, dtype: b.columns_RQ[:, None, :, None, None].to(dtype) * 0
        )
    elif fault == "gradient":
        right = PackedWeights.gradients
        monkeypatch.setattr(
            PackedWeights, "gradients", lambda self, p: [g * (1.01 if g.ndim == 1 else 1.0) for g in right(self, p)]
        )
    else:
        changed = {
            "epsilon": {"mlp_norm": replace(decoder.layers[1].mlp_norm, eps=0.1)},
            "scale": {"scale": 1.02 * decoder.layers[1].scale},
            "window": {"window": 7},
        }[fault]
        layers = (decoder.layers[0], replace(decoder.layers[1], **changed), *decoder.layers[2:])
        monkeypatch.setattr(tree_forward, "describe_decoder", lambda _model: replace(decoder, layers=layers))
    assert TreeForward.of(model) is None
    monkeypatch.undo()
    assert TreeForward.of(model) is not None


def test_the_check_leaves_the_model_as_it_was():
    model = build().train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = torch.random.get_rng_state()
    assert TreeForward.of(model) is not None
    assert model.training
    assert all(bool((parameter.grad == 1).all()) for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_gradient_does_not_depend_on_the_cut_and_equal_input_gives_equal_bits():
    samples = make_groups(6)
    learner = Learner(build(), GrpoLoss(aggregation="sequence"), max_micro_batch_tokens=1 << 20)
    whole = gradient(learner, samples)
    assert torch.equal(
        whole, gradient(Learner(build(), GrpoLoss(aggregation="sequence"), max_micro_batch_tokens=1 << 20), samples)
    )
    for tokens in (1, 64, 300):
        assert relative(gradient(learner, samples, max_micro_batch_tokens=tokens), whole) < 2e-6
    assert relative(gradient(learner, samples[::-1], max_micro_batch_tokens=100), whole) < 2e-6


def test_long_rows_compute_their_attention_again_for_the_same_gradient(monkeypatch):
    samples = make_groups(1, 3, longest=250)
    learner = Learner(build("mistral"), SftLoss())
    kept = gradient(learner, samples)
    monkeypatch.setattr(tree_attention, "KEPT_SCORES", 0)
    assert torch.equal(gradient(learner, samples), kept)


def test_weights_that_are_rebound_or_changed_in_place_are_seen():
    samples, model = make_groups(), build()
    learner = Learner(model, SftLoss())
    before = learner.score(samples)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
        model.model.norm.weight.data = model.model.norm.weight.data * 1.1
    after = learner.score(samples)
    assert before != after
    assert after[0] == pytest.approx(by_the_model(learner).score(samples)[0], abs=2e-5)


def test_gradients_add_up_over_calls_and_frozen_parameters_get_none():
    samples, model = make_groups(), build("llama")
    model.model.embed_tokens.weight.requires_grad_(False)
    model.model.layers[0].self_attn.k_proj.weight.requires_grad_(False)
    learner = Learner(model, SftLoss())
    assert isinstance(learner._passes, TreePasses)
    once = gradient(learner, samples)
    learner.accumulate(samples, learner.normaliser(samples))
    assert relative(flatten_gradients(model), 2 * once) < 1e-6
    assert model.model.embed_tokens.weight.grad is None
    assert model.model.layers[0].self_attn.k_proj.weight.grad is None


def test_the_reference_goes_over_the_tree_too():
    samples, reference = make_groups(), build(seed=1).requires_grad_(False)
    learner = Learner(build(), GrpoLoss(kl_weight=0.3), reference=reference)
    assert isinstance(learner._reference_passes, TreePasses)
    assert relative(gradient(learner, samples), gradient(by_the_model(learner), samples)) < 1e-5


def test_a_gradient_that_is_not_finite_names_the_micro_batch():
    samples, model = make_groups(2), build()
    learner = Learner(model, SftLoss(), max_micro_batch_tokens=1)
    samples[3] = replace(
        samples[3], advantages=array("f", [float("inf") * m if m else 0.0 for m in samples[3].loss_mask])
    )
    with pytest.raises(NonFiniteLoss) as caught:
        learner.accumulate(samples, 10.0)
    assert caught.value.trajectory_ids == (samples[3].trajectory_id,)
    assert all(parameter.grad is None for parameter in model.parameters())


ids_and_masks = st.lists(
    st.lists(st.tuples(st.integers(0, 1), st.booleans()), max_size=9).map(lambda tail: [(0, False), *tail]), max_size=12
)


@settings(deadline=None)
@given(ids_and_masks, st.integers(1, 40))
def test_every_trained_token_points_at_the_node_of_its_context(rows, max_tokens):
    samples = [make_sample(str(n), [i for i, _ in row], [int(m) for _, m in row]) for n, row in enumerate(rows)]
    seen = []
    for batch in tree_batches(samples, max_tokens=max_tokens):
        tree, ids_U = batch.tree, batch.token_ids_BT[0].tolist()
        context: dict[int, tuple[int, ...]] = {}
        for nodes, shared, inputs in zip(tree.nodes_RT.tolist(), tree.shared_R, tree.inputs_R, strict=True):
            for column, node in enumerate(nodes[:inputs]):
                assert (node in context) == (column < shared)
                context.setdefault(node, tuple(ids_U[one] for one in nodes[: column + 1]))
                assert context[node] == tuple(ids_U[one] for one in nodes[: column + 1])
                assert tree.columns_U[node] == column
        assert sorted(context) == list(range(len(ids_U)))
        assert len(set(context.values())) == len(ids_U)
        assert batch.rows == 1 or len(ids_U) <= max_tokens
        assert batch.rows == 1 or len(batch.positions_N) <= TARGETS_PER_TOKEN * max_tokens
        tokens = [(index, t) for index in batch.sample_indices_B for t, m in enumerate(samples[index].loss_mask) if m]
        for (index, column), node, target in zip(
            tokens, batch.positions_N.tolist(), batch.target_ids_N.tolist(), strict=True
        ):
            assert context[node] == tuple(samples[index].token_ids[:column])
            assert target == samples[index].token_ids[column]
        seen += tokens
    assert sorted(seen) == [(n, t) for n, s in enumerate(samples) for t, m in enumerate(s.loss_mask) if m]


def test_the_tree_refuses_what_nothing_predicts():
    with pytest.raises(ValueError, match="bad"):
        tree_batches([make_sample("bad", [1, 2], [1, 1])], max_tokens=8)
    with pytest.raises(ValueError, match="max_tokens"):
        tree_batches([], max_tokens=0)
    assert tree_batches([make_sample("none", [1, 2], [0, 0])], max_tokens=8) == []


def test_tokens_that_share_a_row_of_logits_have_the_gradient_of_rows_of_their_own():
    generator = torch.Generator().manual_seed(0)
    logits_MV = torch.randn(5, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    rows_N, targets_N = torch.tensor([0, 3, 3, 1, 3, 4]), torch.tensor([1, 2, 2, 0, 10, 5])
    direction_N = torch.randn(6, generator=generator, dtype=torch.float64)
    results = []
    for logits, rows in ((logits_MV, rows_N), (logits_MV[rows_N], None)):
        values, entropy, _ = token_logprobs(logits, targets_N, temperature=0.7, rows_N=rows)
        results.append((values, entropy, torch.autograd.grad((values * direction_N).sum(), logits_MV)[0]))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
