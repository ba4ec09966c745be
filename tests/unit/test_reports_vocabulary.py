"""Texts of tokens come from the vocabulary file alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic_run import encode, tokenizer_json

from burnish.reports.vocabulary import TokenTexts, read_vocabulary


def test_byte_level_tokens_are_spelled_back_and_joined_give_the_text() -> None:
    texts = read_vocabulary(tokenizer_json())
    text = '<|im_start|>user\nWhat is the status? {"name"<|im_end|>'
    assert "".join(texts[token] for token in encode(text)) == text


def test_a_part_of_a_character_is_shown_as_its_byte() -> None:
    texts = read_vocabulary(tokenizer_json())
    assert [texts[token] for token in encode("é")] == ["\\xc3", "\\xa9"]


def test_a_byte_level_pre_tokenizer_is_enough_to_know_the_spelling() -> None:
    data = {
        "model": {"vocab": {"Ġa": 0}},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}]},
    }
    assert read_vocabulary(data) == {0: " a"}


def test_sentence_pieces_and_unigram_lists() -> None:
    assert read_vocabulary({"model": {"vocab": {"▁the": 4, "<0xE2>": 5}}}) == {4: " the", 5: "<0xE2>"}
    assert read_vocabulary({"model": {"vocab": [["<unk>", 0.0], ["▁a", -1.5]]}}) == {0: "<unk>", 1: " a"}


def test_real_tokenizers_agree(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|end|>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["Where is order 12? <|end|>\n\tZoë 🙂"] * 3, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode("Where is order 34?\n<|end|>").ids
    texts = TokenTexts(tmp_path).texts(ids)
    assert "".join(texts[token] for token in ids) == "Where is order 34?\n<|end|>"


def test_a_missing_file_is_read_when_it_comes(tmp_path: Path) -> None:
    tokens = TokenTexts(tmp_path)
    assert tokens.texts([0]) == {}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    assert tokens.texts([0, 999_999]) == {0: "<|endoftext|>"}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"model": {}}', '{"model": {"vocab": 3}}', '{"model": {"vocab": [1]}}']
)
def test_a_broken_file_gives_no_texts(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    assert TokenTexts(tmp_path).texts([0, 1]) == {}
