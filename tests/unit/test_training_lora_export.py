from __future__ import annotations

import copy

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from burnish.core.errors import ConfigError, StoreError
from burnish.training.export import export_folder
from burnish.training.gradients import gradient_size, trainable_parameters
from burnish.training.lora import LoraSpec, add_lora, merged_state

torch.set_num_threads(1)
IDS = torch.arange(12).view(2, 6)

_SHAPE = {
    "vocab_size": 16,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
FAMILIES = {
    "qwen3": lambda: transformers.Qwen3Config(**_SHAPE, tie_word_embeddings=True),
    "llama": lambda: transformers.LlamaConfig(**_SHAPE, tie_word_embeddings=False),
    "mistral": lambda: transformers.MistralConfig(**_SHAPE),
    "gemma": lambda: transformers.GemmaConfig(**_SHAPE),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=16, n_embd=16, n_layer=2, n_head=2, n_positions=32),
}


def build(family: str = "qwen3") -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()


def trained_lora(family: str = "qwen3") -> torch.nn.Module:
    model = add_lora(build(family), LoraSpec(rank=3), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=generator)
    return model.eval()


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = {word: index for index, word in enumerate(["<pad>", "<end>", "a", "b", "c"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")
    made.chat_template = "{% for m in messages %}{{ m.content }}<end>{% endfor %}"
    return made


def test_an_adapter_at_first_changes_nothing_and_only_it_is_trainable():
    plain = build()
    expected = plain(IDS).logits
    state = torch.get_rng_state()
    model = add_lora(plain, LoraSpec(rank=4), seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model(IDS).logits, expected)
    assert all("lora_" in name for name in trainable_parameters(model))
    # q, k, v, o (16 -> 16, 8, 8, 16 and back) and the three of the MLP, rank 4, 2 layers
    assert gradient_size(model) == 2 * 4 * ((16 + 16) + (16 + 8) + (16 + 8) + (16 + 16) + 3 * (16 + 24))


def test_the_seed_decides_the_adapter():
    first, same, other = (add_lora(build(), LoraSpec(), seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_targets_that_bind_nothing_are_refused_with_what_there_is():
    with pytest.raises(ConfigError, match=r"bind no module.*q_proj"):
        add_lora(build(), LoraSpec(targets=("query",)), seed=0)
    some = add_lora(build(), LoraSpec(targets=("q_proj",)), seed=0)
    assert all(".q_proj." in name for name in trainable_parameters(some))
    with pytest.raises(ValueError, match="rank"):
        LoraSpec(rank=0)
    with pytest.raises(ValueError, match="dropout"):
        LoraSpec(dropout=1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_equals_peft_and_leaves_the_model_alone(family):
    model = trained_lora(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = merged_state(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    reference = copy.deepcopy(model).merge_and_unload()
    assert set(merged) == {name for name, _ in reference.named_parameters()}
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(merged[name], parameter.detach(), rtol=1e-6, atol=1e-6)


def test_merging_without_adapters_gives_the_weights():
    model = build()
    assert set(merged_state(model)) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_folder_scores_the_same_elsewhere(tmp_path, family, lora):
    model = trained_lora(family) if lora else build(family)
    expected = model(IDS).logits
    out = export_folder(model, tokenizer(), tmp_path / "deep" / "out", stop_ids=(1,))
    assert torch.equal(model(IDS).logits, expected)
    elsewhere = transformers.AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(elsewhere(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    again = transformers.AutoTokenizer.from_pretrained(out)
    assert again.apply_chat_template([{"role": "user", "content": "a b"}], tokenize=False) == "a b<end>"
    generation = transformers.GenerationConfig.from_pretrained(out)
    assert generation.eos_token_id == [1]
    assert generation.pad_token_id == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]
    assert any(path.suffix == ".safetensors" for path in out.iterdir())


def test_a_folder_in_use_is_not_touched(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ConfigError, match="not an empty folder"):
        export_folder(build(), tokenizer(), tmp_path)
    with pytest.raises(ConfigError, match="not an empty folder"):
        export_folder(build(), tokenizer(), tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    export_folder(build(), tokenizer(), tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()


def test_a_full_disk_leaves_no_half_export(tmp_path, monkeypatch):
    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    broken = tokenizer()
    monkeypatch.setattr(type(broken), "save_pretrained", refuse)
    with pytest.raises(StoreError, match="No space left"):
        export_folder(build(), broken, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
