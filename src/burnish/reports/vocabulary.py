"""The text of single tokens, read from the tokenizer that a run saved, without loading a tokenizer library."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class TokenTexts:
    r"""Texts of token ids by a run's `model/tokenizer.json`; empty where there is none that can be read.

    Byte-level vocabularies are spelled back into text, a lone part of a character as `\xe2`; "▁" becomes a space.  The
    file is read on first use, and again on the next one where it was not there yet (a run that is just starting).
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "tokenizer.json"
        self._texts: Mapping[int, str] | None = None

    def texts(self, ids: Iterable[int]) -> dict[int, str]:
        """Text by id; ids that the vocabulary lacks are left out."""
        known = self._known()
        return {token: known[token] for token in sorted(set(ids)) if token in known}

    def _known(self) -> Mapping[int, str]:
        if self._texts is None:
            try:
                data = json.loads(self._path.read_bytes())
                self._texts = read_vocabulary(data)
            except FileNotFoundError:
                return {}
            except (OSError, ValueError, TypeError, KeyError, AttributeError):
                self._texts = {}
        return self._texts


def read_vocabulary(tokenizer: Mapping[str, Any]) -> dict[int, str]:
    r"""Text by id of a parsed `tokenizer.json` (BPE, WordPiece, WordLevel or Unigram).

    Raises KeyError, TypeError or AttributeError where it is not one.

    >>> read_vocabulary({"model": {"vocab": {"Ġmany": 0, "âĤ¬": 1, "â": 2}}, "decoder": {"type": "ByteLevel"}})
    {0: ' many', 1: '€', 2: '\\xe2'}
    """
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, Mapping):
        spelled = {int(index): str(token) for token, index in vocabulary.items()}
    else:
        spelled = {index: str(entry[0]) for index, entry in enumerate(vocabulary)}
    kinds = set(_types(tokenizer.get("decoder"))) | set(_types(tokenizer.get("pre_tokenizer")))
    plain = _from_bytes if "ByteLevel" in kinds else _from_pieces
    texts = {index: plain(token) for index, token in spelled.items()}
    texts.update({int(entry["id"]): str(entry["content"]) for entry in tokenizer.get("added_tokens") or ()})
    return texts


def _types(part: Any) -> Iterable[str]:
    """The type of a part and of the parts that it is a sequence of."""
    if not isinstance(part, Mapping):
        return
    yield str(part.get("type", ""))
    for key in ("decoders", "pretokenizers"):
        for child in part.get(key) or ():
            yield from _types(child)


def _byte_spelling() -> dict[str, int]:
    """The printable characters that stand for bytes in byte-level vocabularies (GPT-2, Radford et al. 2019): printable
    Latin-1 characters stand for themselves, the others for 256 and up in order."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + index): byte for index, byte in enumerate(rest)}


_BYTES = _byte_spelling()


def _from_bytes(token: str) -> str:
    if any(character not in _BYTES for character in token):
        return token
    return bytes(_BYTES[character] for character in token).decode("utf-8", "backslashreplace")


def _from_pieces(token: str) -> str:
    return token.replace("▁", " ")
