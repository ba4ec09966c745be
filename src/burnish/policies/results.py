"""Samples from what the engine noted of a row."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from burnish.core.kept import KeptSets
from burnish.core.sampling import Finish, Sample


@dataclass(slots=True, kw_only=True)
class SamplerCounts:
    """Running totals of one sampler; `SamplerCounts(generated_tokens=3840, busy_s=0.3)` is 12 800 tokens/s.

    prompt_tokens: of all requests.  prefilled_tokens: those of them that went through the model; the rest were shared
    within a group or still held from the turn before.  decoded_rows / decode_steps: live rows in a mean step.
    """

    requests: int = 0
    prompt_tokens: int = 0
    prefilled_tokens: int = 0
    generated_tokens: int = 0
    decode_steps: int = 0
    decoded_rows: int = 0
    busy_s: float = 0.0


class KeptLog:
    """The kept sets of one row, token by token; an empty one stands for the whole vocabulary."""

    __slots__ = ("sets",)

    def __init__(self) -> None:
        self.sets: list[npt.NDArray[np.int32]] = []

    def append(self, ids: npt.NDArray[np.int32]) -> None:
        """The set of the next token."""
        self.sets.append(ids)

    def value(self) -> KeptSets | None:
        """None where nothing was cut."""
        counts = array("i", [len(ids) for ids in self.sets])
        if not any(counts):
            return None
        joined = array("i")
        joined.frombytes(np.concatenate(self.sets).astype(np.int32).tobytes())
        return KeptSets(counts=counts, ids=joined)


def sample_of(
    ids: npt.NDArray[np.int64],
    logprobs: npt.NDArray[np.float32],
    versions: Sequence[int],
    kept: KeptLog,
    finish: Finish,
) -> Sample:
    """The action of T `ids` with its log-probabilities and versions."""
    token_ids, values = array("i"), array("f")
    token_ids.frombytes(ids.astype(np.int32).tobytes())
    values.frombytes(logprobs.tobytes())
    return Sample(token_ids=token_ids, logprobs=values, versions=array("i", versions), kept=kept.value(), finish=finish)
