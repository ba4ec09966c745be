"""Building, loading and planning memory for policies; every refusal says what is wrong and what to do."""

from __future__ import annotations

import json
import shutil
from array import array
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import BertConfig, BertLMHeadModel, PreTrainedTokenizerFast, T5Config

from burnish.core.errors import ConfigError
from burnish.core.sampling import SampleRequest, SamplingParams
from burnish.policies.build import FAMILIES, TinySpec, build_tiny
from burnish.policies.checksum import weight_checksum
from burnish.policies.load import load_config, load_policy, pick_device, pick_dtype
from burnish.policies.memory import MemoryNeeds, available_bytes, memory_plan
from burnish.policies.sampler import EmbeddedSampler

CPU = torch.device("cpu")
TINY = TinySpec(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=48, max_positions=64)


def words(count: int = 40, pad: str | None = "<pad>") -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<end>": 1} | {f"w{index}": index for index in range(2, count)}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="w2"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token=pad)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "good"
    tokenizer = words()
    build_tiny(tokenizer, TINY, seed=3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


# -- building -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_seed_names_the_weights(family: str) -> None:
    spec = replace(TINY, family=family)
    state = torch.random.get_rng_state()
    first, again, other = (build_tiny(words(), spec, seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert weight_checksum(first) == weight_checksum(again) != weight_checksum(other)
    config = first.config
    assert (config.vocab_size, config.eos_token_id, config.pad_token_id) == (40, 1, 0)
    assert not first.training
    assert first(input_ids=torch.tensor([[3, 4, 5]])).logits.shape == (1, 3, 40)


def test_the_usual_tiny_model_has_half_a_million_parameters() -> None:
    model = build_tiny(words(512), TinySpec(), seed=0)
    assert 0.45e6 < sum(parameter.numel() for parameter in model.parameters()) < 0.52e6


def test_gemma_mixes_local_and_global_layers() -> None:
    config = build_tiny(words(), replace(TINY, family="gemma", sliding_window=8), seed=0).config
    assert config.layer_types == ["sliding_attention", "full_attention"]
    assert config.sliding_window == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "qwen"}, "did you mean 'qwen3'"),
        ({"hidden_size": 30}, "try 32"),
        ({"kv_heads": 3}, "multiple of kv_heads"),
        ({"layers": 0}, "at least 1"),
        ({"sliding_window": 8}, "not possible for family 'qwen3'"),
    ],
)
def test_impossible_shapes_are_refused(changes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **changes)


# -- loading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(FAMILIES))
def test_what_was_saved_is_loaded_and_samples(family: str, tmp_path) -> None:
    tokenizer = words()
    model = build_tiny(tokenizer, replace(TINY, family=family), seed=5)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = load_policy(tmp_path)
    assert (policy.device, policy.dtype, policy.notices) == (CPU, torch.float32, ())
    assert weight_checksum(policy.model) == weight_checksum(model)
    request = SampleRequest(
        key="a",
        prompt_ids=array("i", policy.tokenizer("w3")["input_ids"]),
        params=SamplingParams(),
        max_tokens=4,
        seed=0,
        stop_ids=(),
    )
    assert len(EmbeddedSampler(policy.model, pad_id=0).sample_now([request])[0].token_ids) == 4


def test_precision_and_missing_padding_are_said(tmp_path) -> None:
    tokenizer = words(pad=None)
    build_tiny(tokenizer, TINY, seed=0).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = load_policy(tmp_path, dtype="bfloat16", device="cpu")
    assert policy.dtype is next(policy.model.parameters()).dtype is torch.bfloat16
    assert policy.tokenizer.pad_token == "<end>"
    assert "no padding token" in policy.notices[0]


def test_a_model_that_is_nowhere(tmp_path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        load_policy(tmp_path / "absent")
    with pytest.raises(ConfigError, match="was not fetched before"):
        load_policy("nobody/nothing-at-all", offline=True)
    with pytest.raises(ConfigError, match=r"holds no config\.json \(found: nothing\)"):
        load_policy(tmp_path)
    (tmp_path / "weights.bin").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        load_policy(tmp_path / "weights.bin")


def test_a_hub_that_does_not_answer(monkeypatch) -> None:
    def unreachable(*args, **kwargs):
        raise OSError("We couldn't connect to 'https://huggingface.co'")

    monkeypatch.setattr("burnish.policies.load.AutoConfig.from_pretrained", unreachable)
    with pytest.raises(ConfigError, match=r"could not be fetched .*couldn't connect.*give a local path"):
        load_policy("nobody/nothing-at-all")


def test_a_broken_config(copy) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json in .* cannot be used"):
        load_policy(copy)


def test_missing_and_broken_weights(copy) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_policy(copy)
    weights.unlink()
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_policy(copy)


def test_weights_are_never_made_up(copy) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"weights of .* are missing"):
        load_policy(copy)


def test_a_tokenizer_that_is_missing_or_of_another_model(copy) -> None:
    words(60).save_pretrained(copy)
    with pytest.raises(ConfigError, match="60 tokens and the model only 40"):
        load_policy(copy)
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer of .* cannot be loaded"):
        load_policy(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        load_policy(copy)


def test_models_that_are_not_causal(tmp_path) -> None:
    T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, vocab_size=40).save_pretrained(tmp_path / "t5")
    with pytest.raises(ConfigError, match="'t5' model, which is not a causal"):
        load_config(str(tmp_path / "t5"))
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertLMHeadModel(config).save_pretrained(tmp_path / "bert")
    words().save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match="see what follows it"):
        load_policy(tmp_path / "bert")


def test_devices_and_types_that_do_not_go_together() -> None:
    assert pick_device("cpu") == CPU
    assert pick_dtype("auto", CPU) is torch.float32
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        pick_device("gpu")
    with pytest.raises(ConfigError, match="'meta' is not supported"):
        pick_device("meta")
    with pytest.raises(ConfigError, match="CUDA devices"):
        pick_device("cuda:99")
    with pytest.raises(ConfigError, match="did you mean 'bfloat16'"):
        pick_dtype("bfloat", CPU)
    with pytest.raises(ConfigError, match="float16 is not supported on the CPU"):
        pick_dtype("float16", CPU)


# -- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_plan_counts_weights_and_cache_exactly(family: str) -> None:
    tokenizer = words()
    model = build_tiny(tokenizer, replace(TINY, family=family), seed=0)
    needs = MemoryNeeds(rows=4, context_tokens=10, micro_batch_tokens=100)
    plan = memory_plan(model.config, needs, device=CPU, dtype=torch.float32, available=10**9)
    assert plan.parameters == plan.trainable == sum(parameter.numel() for parameter in model.parameters())
    assert plan.weights == plan.gradients == plan.optimizer // 2 == 4 * plan.parameters
    cache = model(input_ids=torch.zeros(4, 10, dtype=torch.long), use_cache=True).past_key_values
    assert plan.kv_cache == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert plan.fits
    assert plan.activations > 0


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_the_plan_counts_adapters_as_peft_does(family: str) -> None:
    from peft import LoraConfig, get_peft_model

    model = build_tiny(words(), replace(TINY, family=family), seed=0)
    needs = MemoryNeeds(rows=1, context_tokens=1, micro_batch_tokens=1, lora_rank=4)
    plan = memory_plan(model.config, needs, device=CPU, dtype=torch.float32, available=1)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert plan.trainable == adapted.get_nb_trainable_parameters()[0]
    assert not plan.fits


def test_the_plan_grows_with_what_is_asked() -> None:
    config = build_tiny(words(), TINY, seed=0).config

    def total(**changes) -> int:
        needs = MemoryNeeds(**({"rows": 8, "context_tokens": 64, "micro_batch_tokens": 512} | changes))
        return memory_plan(config, needs, device=CPU, dtype=torch.float32, available=0).total

    base = total()
    assert total(micro_batch_tokens=0) < total(lora_rank=2) < base
    assert min(total(rows=9), total(context_tokens=65), total(reference=True), total(processes=2)) > base
    with pytest.raises(ConfigError, match="at least 1"):
        total(rows=0)


def test_the_plan_reads_well_and_touches_no_memory() -> None:
    config = FAMILIES["llama"](
        TinySpec(family="llama", hidden_size=4096, layers=32, heads=32, kv_heads=8, intermediate_size=14336),
        {"vocab_size": 128_000, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
    )
    plan = memory_plan(
        config,
        MemoryNeeds(rows=32, context_tokens=2048, micro_batch_tokens=8192),
        device=CPU,
        dtype=torch.bfloat16,
        available=24 * 2**30,
    )
    assert 7e9 < plan.parameters < 8e9
    text = "\n".join(plan.lines())
    assert "does NOT fit" in text
    assert "24.00 GiB" in text
    assert max(map(len, plan.lines())) <= 80
    assert available_bytes(CPU) > 0
