"""Text to ids and back for any tokenizer, with content that cannot forge control tokens.

Two noncharacters carry meaning inside a text on its way to ids: BREAK says "tokenise what stands on either side
separately" and cuts strings in content that would otherwise become control tokens; ACTION_END marks where an action
ends in a rendered conversation.  Content that holds these characters itself is escaped and comes out unchanged.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from burnish.core.errors import ConfigError
from burnish.core.text import clean_text

BREAK = "\ufdd0"
ACTION_END = "\ufdd1"
_ESCAPE = "\ufdd2"
_ESCAPED = {BREAK: _ESCAPE + "0", ACTION_END: _ESCAPE + "1", _ESCAPE: _ESCAPE + "2"}
_UNESCAPED = {escaped: plain for plain, escaped in _ESCAPED.items()}
_UNESCAPE = re.compile(f"{_ESCAPE}[012]")

_KNOWN_MARKS = (
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>", "<think>", "</think>",
)  # fmt: skip
_CACHED_TEXTS = 4096
_CACHED_CHARS = 4096


def control_tokens(tokenizer: Any, template: str) -> tuple[str, ...]:
    """Strings that become one token with a meaning: special tokens, and added tokens that the template writes."""
    special = set(tokenizer.all_special_tokens)
    special |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    added = set(tokenizer.get_added_vocab())
    used = {token for token in added if token in template or token in _KNOWN_MARKS}
    return tuple(sorted(token for token in special | used if token.strip() and len(token) > 1))


class TextGuard:
    """Cuts control tokens out of content.  Strings in `allowed` stay (the policy's own thinking and call markers)."""

    def __init__(self, tokens: Iterable[str], allowed: Iterable[str] = ()) -> None:
        kept = set(allowed)
        marks = sorted((token for token in tokens if token not in kept), key=len, reverse=True)
        self.marks = re.compile("|".join(map(re.escape, marks)) or "(?!)")
        self._risky = re.compile("|".join([*map(re.escape, marks), f"[{BREAK}{ACTION_END}{_ESCAPE}]"]))

    def __call__(self, text: str) -> str:
        """The text with every control token cut after its first character; lone surrogates are replaced.

        >>> TextGuard(["<|end|>"])("a<|end|>") == "a<" + BREAK + "|end|>"
        True
        """
        text = clean_text(text)
        if not self._risky.search(text):
            return text
        pieces, start = [], 0
        while found := self._risky.search(text, start):
            # Only one character is consumed, so that a token starting inside the one just cut is found too.
            first = found.start()
            pieces.append(text[start:first])
            pieces.append(_ESCAPED.get(text[first]) or text[first] + BREAK)
            start = first + 1
        pieces.append(text[start:])
        return "".join(pieces)


class TokenCodec:
    """Ids of trusted text (control tokens recognised, BREAK obeyed) and text of sampled ids.

    `end` is the end-of-turn token; `end_id` its id.  Raises ConfigError where it is not one token.
    """

    def __init__(self, tokenizer: Any, end: str) -> None:
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        ids = self._ids(end)
        if len(ids) != 1:
            raise ConfigError(
                f"the end-of-turn token {end!r} is {len(ids)} tokens, not one; set the tokenizer's eos_token to a "
                "token of its vocabulary"
            )
        self.end = end
        self.end_id = ids[0]
        self._anchors = [(text, self._ids(text)) for text in ("\n", "a")]
        newline = self._anchors[0][1]
        self._is_plain = all(self._ids("\n" + text) == newline + self._ids(text) for text in ("a", "<", "|"))
        self._newline_text = self._text(newline)
        self._cache: dict[str, array[int]] = {}

    def encode(self, text: str) -> array[int]:
        """Ids of a text that opens a conversation."""
        first, *rest = text.split(BREAK)
        ids = self._ids(_unescape(first))
        for piece in rest:
            ids = ids + self._continued_ids(_unescape(piece))
        return array("i", ids)

    def encode_after_end(self, text: str) -> array[int]:
        """Ids of a text that follows the end-of-turn token, as if the whole had been tokenised at once."""
        cached = self._cache.get(text)
        if cached is None:
            ids = self.encode(self.end + text)
            cached = ids[1:] if ids[:1] == array("i", [self.end_id]) else self.encode(text)
            if len(text) <= _CACHED_CHARS:
                if len(self._cache) >= _CACHED_TEXTS:
                    self._cache.clear()
                self._cache[text] = cached
        return cached[:]

    def encode_action(self, text: str) -> array[int]:
        """Ids of a text that follows the header of a turn; `decode` gives the same text back."""
        ids: list[int] = []
        for piece in text.split(BREAK):
            ids = ids + self._continued_ids(_unescape(piece))
        return array("i", ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of sampled ids, special tokens spelled out; invalid UTF-8 becomes U+FFFD."""
        if self._is_plain:
            return self._text(list(token_ids))
        # SentencePiece decoders strip the space that starts a text; behind a newline it stays.
        return self._text([*self._anchors[0][1], *token_ids])[len(self._newline_text) :]

    def _ids(self, text: str) -> list[int]:
        if self._backend is None:
            return list(self._tokenizer.encode(text, add_special_tokens=False))
        # Other callers of the tokenizer can leave truncation or padding switched on; both would corrupt a prompt.
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def _text(self, token_ids: list[int]) -> str:
        if self._backend is None:
            return str(self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        return str(self._backend.decode(token_ids, skip_special_tokens=False))

    def _continued_ids(self, text: str) -> list[int]:
        """Ids of text in the middle of a conversation.  SentencePiece adds a space to the start of a text; a character
        before it keeps that away from the content."""
        if self._is_plain or not text:
            return self._ids(text)
        for anchor, anchor_ids in self._anchors:
            ids = self._ids(anchor + text)
            if ids[: len(anchor_ids)] == anchor_ids:
                return ids[len(anchor_ids) :]
        return self._ids(text)


def _unescape(text: str) -> str:
    return _UNESCAPE.sub(lambda match: _UNESCAPED[match.group()], text) if _ESCAPE in text else text
