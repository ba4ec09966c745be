"""The domain tokenizer: short traces, digits apart, values never glued to scaffolding, exact round trips."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from burnish.core.errors import ConfigError
from burnish.core.message import Message, ToolCall
from burnish.policies.template import TEMPLATE, conversation_text
from burnish.policies.tokenizer import MARK_TOKENS, SPECIAL_TOKENS, train_tokenizer

NAMES = ("Anna", "Ben", "Carla", "Dmitri", "Elena", "Farid", "Grace", "Hugo")
PRODUCTS = ("pear", "apple", "plum", "fig", "kiwi", "lemon", "melon", "grape")


def conversation(product: str, name: str, count: int) -> list[Message]:
    call = ToolCall(id="call_0", name="get_stock", arguments={"product": product, "customer": name})
    return [
        Message.user(f"How many {product} boxes did {name} buy in order {count}?"),
        Message.assistant("", (call,)),
        Message.tool(json.dumps({"product": product, "count": count}, separators=(",", ":")), call=call),
        Message.assistant(str(count)),
    ]


def corpus(seed: int, skip: tuple[str, str] = ("", "")) -> list[str]:
    rng = Random(seed)
    pairs = [(rng.choice(PRODUCTS), rng.choice(NAMES)) for _ in range(600)]
    return [conversation_text(conversation(*pair, rng.randrange(1000))) for pair in pairs if pair != skip]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(corpus(0, skip=("melon", "Grace")), vocab_size=512)


def test_a_short_trace_takes_few_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    text = conversation_text(conversation("pear", "Anna", 42))
    assert len(tokenizer(text)["input_ids"]) <= 45
    assert len(tokenizer) <= 512
    assert tokenizer.tokenize('<tool_call>{"name":"get_stock","arguments":{"product":"pear"}}</tool_call>') == [
        "<tool_call>", '{"name":"get_stock","arguments":{"product":"', "pear", '"}}', "</tool_call>",
    ]  # fmt: skip


def test_held_out_combinations_use_only_tokens_of_training(tokenizer: PreTrainedTokenizerFast) -> None:
    seen = {token for text in corpus(0, skip=("melon", "Grace")) for token in tokenizer(text)["input_ids"]}
    held_out = tokenizer(conversation_text(conversation("melon", "Grace", 907)))["input_ids"]
    assert set(held_out) <= seen


def test_gluing_values_would_show_in_that_test(tokenizer: PreTrainedTokenizerFast) -> None:
    """Negative control: were a value part of a scaffolding token, a held-out value would fall apart into bytes."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    split = state["pre_tokenizer"]["pretokenizers"][0]
    split["pattern"]["Regex"] = r"\{.*?\}\}|" + split["pattern"]["Regex"]
    glued = PreTrainedTokenizerFast(tokenizer_object=type(tokenizer.backend_tokenizer).from_str(json.dumps(state)))
    seen = {token for text in corpus(0, skip=("melon", "Grace")) for token in tokenizer(text)["input_ids"]}
    assert not set(glued(conversation_text(conversation("melon", "Grace", 907)))["input_ids"]) <= seen


def test_numbers_are_read_two_digits_at_a_time(tokenizer: PreTrainedTokenizerFast) -> None:
    pieces = tokenizer.tokenize("1042 in 1042")
    number, between = pieces[: (len(pieces) - 2) // 2], ["Ġin", "Ġ"]
    assert pieces == [*number, *between, *number]
    assert "".join(number) == "1042"
    assert all(len(piece) <= 2 for piece in number)
    pieces = [token for token in tokenizer.get_vocab() if any(digit in token for digit in "0123456789")]
    assert all(token.isdigit() and len(token) <= 2 for token in pieces)


def test_training_does_not_depend_on_order() -> None:
    texts = corpus(1)
    first = train_tokenizer(texts, vocab_size=400).backend_tokenizer.to_str()
    Random(0).shuffle(texts)
    assert train_tokenizer(iter(texts), vocab_size=400).backend_tokenizer.to_str() == first


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=60) | st.text(' \n"{}[]:,0a_<|', max_size=40))
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_no_token_crosses_a_mark(tokenizer: PreTrainedTokenizerFast) -> None:
    marks = (*SPECIAL_TOKENS, *MARK_TOKENS)
    vocabulary = tokenizer.get_vocab()
    assert all(token in marks or not any(mark in token for mark in marks) for token in vocabulary)
    ids = tokenizer("a<|im_end|>b")["input_ids"]
    assert ids[1] == tokenizer.eos_token_id == vocabulary["<|im_end|>"]
    assert tokenizer.pad_token_id == vocabulary["<|endoftext|>"] != tokenizer.eos_token_id


def test_a_vocabulary_that_is_too_small_is_refused() -> None:
    with pytest.raises(ConfigError, match="the least is 270"):
        train_tokenizer(["a"], vocab_size=100)
    assert len(train_tokenizer(["hello hello"], vocab_size=270)) <= 270


def test_a_tokenizer_without_texts_still_reads_everything() -> None:
    bare = train_tokenizer([])
    assert bare.decode(bare("Grüße 😀")["input_ids"]) == "Grüße 😀"


@pytest.mark.parametrize("model_type", ["", "qwen3", "llama", "mistral", "gemma", "gpt2"])
def test_it_loads_elsewhere(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, model_type: str) -> None:
    tokenizer.save_pretrained(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = conversation_text(conversation("fig", "Hugo", 31)) + " Grüße  \n"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.chat_template == TEMPLATE
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
