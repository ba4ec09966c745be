r"""A small tokenizer trained on a domain: about 500 entries, about 30 tokens for a short tool-use trace.

The text is first cut into pieces, and no token crosses a cut:

1. the header of a turn (`user\n`);
2. scaffolding of a tool call or of JSON: `{"name":"get_order","arguments":{"order_id":"` is one piece, so are
   `","count":` and `"}}`; the cut at the quote keeps argument values out of it;
3. up to two digits, from the left: `312` is `31` and `2`.  Two-digit numbers are then one token, which a tiny model
   copies far better than two, and no number needs a token that is rare;
4. words with the space before them (a space before a digit stands alone: `12` has the same tokens everywhere);
5. any other character alone.

Because values are pieces of their own, a new combination of known words, names and numbers never needs a token that
training did not contain.  Phrases of several words are deliberately not merged: they would swallow the values in them.

The pieces that save most tokens are put into the vocabulary whole (BPE with `ignore_merges`, as Llama 3 does), without
the dozens of intermediate entries that merging up to a long piece would take.  A rest of the vocabulary goes to
ordinary merges for words not seen, and all 256 bytes are in it, so any text comes back exactly.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from burnish.core.errors import ConfigError
from burnish.core.text import clean_text
from burnish.policies.marks import IMAGE_TOKEN
from burnish.policies.template import DEFAULT_END, ROLE_HEADERS, TEMPLATE, TURN_START

PAD_TOKEN = "<|endoftext|>"
MARK_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
SPECIAL_TOKENS = (PAD_TOKEN, TURN_START, DEFAULT_END)

_KEY = r'"[A-Za-z_]\w{0,63}":'
_PIECES = "|".join(
    (
        r"\A(?:system|user|assistant|tool)\n",
        rf'\{{"name":"[A-Za-z_]\w{{0,63}}","arguments":\{{(?:{_KEY}"?)?',
        rf'["\[\]{{}},:]{{0,8}}{_KEY}(?:"(?!{_KEY[1:]}))?',
        r'["\[\]{},:]{1,8}',
        r"\p{N}{1,2}",
        r" ?[\p{L}\p{M}_]+",
        r"\s",
        r".",
    )
)
_MERGE_SHARE = 8
"""One eighth of the free entries is for merges."""


def train_tokenizer(texts: Iterable[str], *, vocab_size: int = 512, images: bool = False) -> PreTrainedTokenizerFast:
    """Train a tokenizer on a domain; deterministic in the texts, whatever their order.

    texts: what the policy will read and write, best as whole conversations by `conversation_text`.
    vocab_size: upper bound on the entries; at least 9 marks + 256 bytes + 4 headers + 1.  images: one more entry, the
    placeholder of an image's tokens.

    End of turn and `eos_token` is <|im_end|>, `pad_token` is <|endoftext|>, there is no beginning-of-sequence token.
    It carries our chat template.  Raises ConfigError for a vocabulary that is too small.

    >>> tokenizer = train_tokenizer(["<|im_start|>user\\nHow many pears?<|im_end|>"] * 2, vocab_size=300)
    >>> tokenizer.tokenize("<|im_start|>user\\nHow many 12?")
    ['<|im_start|>', 'userĊ', 'How', 'Ġmany', 'Ġ', '1', '2', '?']
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    marks = (*SPECIAL_TOKENS, *MARK_TOKENS)
    free = vocab_size - len(marks) - len(alphabet) - len(ROLE_HEADERS)
    if free < 1:
        raise ConfigError(f"a vocabulary of {vocab_size} is too small; the least is {vocab_size - free + 1}")
    counts = _count_pieces(texts)
    whole = _choose_pieces(counts, free - free // _MERGE_SHARE)
    fixed = [*marks, *alphabet, *(_spell(header) for header in ROLE_HEADERS), *whole]
    vocabulary = {entry: index for index, entry in enumerate(fixed)}
    merges = []
    for left, right in _learn_merges(counts, set(whole), alphabet):
        if left + right not in vocabulary:
            if len(vocabulary) >= vocab_size:
                break
            vocabulary[left + right] = len(vocabulary)
        merges.append((left, right))
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence([_splitter(), _byte_level()])
    backend.decoder = decoders.ByteLevel()
    tokenizer = _wrap(backend)
    if images:
        tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    return tokenizer


def _wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARK_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=DEFAULT_END,
        pad_token=PAD_TOKEN,
        additional_special_tokens=[TURN_START],
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _splitter() -> Any:
    return pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")


def _byte_level() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False)


def _spell(piece: str) -> str:
    """A piece in the printable stand-ins for bytes that byte-level vocabularies use."""
    return "".join(part for part, _ in _byte_level().pre_tokenize_str(piece))


def _count_pieces(texts: Iterable[str]) -> Counter[str]:
    """How often each piece occurs, in byte-level spelling."""
    between_marks = re.compile("|".join(re.escape(mark) for mark in (*SPECIAL_TOKENS, *MARK_TOKENS)))
    segments = Counter(segment for text in texts for segment in between_marks.split(clean_text(text)) if segment)
    splitter = _splitter()
    plain: Counter[str] = Counter()
    for segment, count in segments.items():
        for piece, _ in splitter.pre_tokenize_str(segment):
            plain[piece] += count
    return Counter({_spell(piece): count for piece, count in plain.items()})


def _choose_pieces(counts: Counter[str], room: int) -> list[str]:
    """The pieces that save most tokens against bytes; one that occurs once saves nothing worth an entry."""
    headers = {_spell(header) for header in ROLE_HEADERS}
    useful = [piece for piece, count in counts.items() if len(piece) > 1 and count > 1 and piece not in headers]
    useful.sort(key=lambda piece: (-counts[piece] * (len(piece) - 1), piece))
    return useful[:room]


def _learn_merges(counts: Counter[str], whole: set[str], alphabet: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges: pieces without an entry of their own count in full, the others once."""
    rest = {piece: 1 if piece in whole else count for piece, count in sorted(counts.items())}
    learner = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 4 * len(rest),
        initial_alphabet=list(alphabet),
        min_frequency=2,
        show_progress=False,
        max_token_length=16,
    )
    learner.train_from_iterator((piece for piece, count in rest.items() for _ in range(count)), trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    return [(left, right) for left, right in pairs]
