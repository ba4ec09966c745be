"""Fingerprints of a model's weights."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_PERIOD = 65521
_CHUNK = 32 * _PERIOD
"""A multiple of the period: the same factors serve every chunk."""
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weight_checksum(model: Any) -> str:
    """16 hex digits over the bits of every parameter, adapters included, alike on every device.

    Each tensor is reduced where it lies to two integers modulo 2**64: the sum of its words, and the sum of its words
    times their index modulo a prime; these are hashed with name, shape and type.  A change of a single weight
    always changes the first sum; weights that change places change the second, unless a multiple of 65521 apart.
    """
    digest = hashlib.blake2b(digest_size=8)
    with torch.no_grad():
        sums = [(name, parameter, _word_sums(parameter)) for name, parameter in model.named_parameters()]
        for name, parameter, words in sums:
            digest.update(f"{name}|{tuple(parameter.shape)}|{parameter.dtype}|{words.tolist()}".encode())
    return digest.hexdigest()


def _word_sums(parameter: torch.Tensor) -> torch.Tensor | npt.NDArray[np.int64]:
    words = parameter.detach().contiguous().view(_INTEGERS[parameter.element_size()]).reshape(-1)
    return sums_here(words.numpy()) if words.device.type == "cpu" else sums_there(words)


def sums_here(words: npt.NDArray[np.signedinteger]) -> npt.NDArray[np.int64]:
    """The two sums, [2], period by period: what one of them needs stays in a core's own cache."""
    total = np.zeros(2, dtype=np.int64)
    for start in range(0, len(words), _PERIOD):
        part = words[start : start + _PERIOD].astype(np.int64)
        total += [part.sum(), np.dot(part, _PERIOD_FACTORS[: len(part)])]
    return total


_PERIOD_FACTORS = np.arange(1, _PERIOD + 1, dtype=np.int64)


def sums_there(words: torch.Tensor) -> torch.Tensor:
    """The same on any device, by few operations."""
    total = torch.zeros(2, dtype=torch.int64, device=words.device)
    for start in range(0, len(words), _CHUNK):
        part = words[start : start + _CHUNK].to(torch.int64)
        total += torch.stack([part.sum(), (part * _factors(words.device)[: len(part)]).sum()])
    return total


@cache
def _factors(device: torch.device) -> torch.Tensor:
    """Index modulo the period, plus 1, of the words of a chunk: 16 MiB, kept since every update needs it again."""
    return torch.arange(_CHUNK, device=device).remainder_(_PERIOD).add_(1)


def quick_sums(model: Any) -> list[float]:
    """One float32 sum for each parameter: changes with any optimizer step, and costs one read of the weights."""
    with torch.no_grad():
        values: list[float] = torch.stack([p.detach().sum(dtype=torch.float32) for p in model.parameters()]).tolist()
    return values
