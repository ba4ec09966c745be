"""What the learner computed at each trained token, kept for whoever watches it: health reads it, no loss does."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from burnish.algorithms.logprobs import TokenScores
from burnish.algorithms.packing import MicroBatch
from burnish.core.learning import TrainingSample


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleScores:
    """The N trained tokens of one sample under the weights before the update, in order; array('f') of N each.

    logprobs, reference, entropy: nats.  score_norm: 1 - 2 p + sum_v p_v^2.  None where it was not computed.

    Example: a sample with loss mask [0, 0, 1, 1] has logprobs of 2 values.
    """

    logprobs: array[float]
    entropy: array[float]
    score_norm: array[float] | None
    reference: array[float] | None


class TokenRecord:
    """Filled by `Learner.accumulate(samples, ..., record=record)`; then `record.of(place)` for a place in `samples`.

    score_norm: also the squared norms of the scores, which cost one more pass over every chunk of the softmax.
    Nothing that is trained depends on a record.
    """

    def __init__(self, *, score_norm: bool = False) -> None:
        self.score_norm = score_norm
        self._starts: NDArray[np.int64] = np.zeros(1, dtype=np.int64)
        self._streams: dict[str, NDArray[np.float32]] = {}

    def begin(self, samples: Sequence[TrainingSample]) -> None:
        """Forget everything and make room for these samples; a batch that is cut anew begins anew."""
        self._starts = np.cumsum([0, *(sample.trained_tokens for sample in samples)])
        self._streams = {}

    def add(self, batch: MicroBatch, scores: TokenScores, reference_N: Tensor | None) -> None:
        """Take in one micro-batch."""
        places = np.concatenate([np.arange(self._starts[i], self._starts[i + 1]) for i in batch.sample_indices_B])
        found = {
            "logprobs": scores.logprobs_N,
            "entropy": scores.entropy_N,
            "score_norm": scores.score_norm_N,
            "reference": reference_N,
        }
        for name, values_N in found.items():
            if values_N is None:
                continue
            if name not in self._streams:
                self._streams[name] = np.zeros(int(self._starts[-1]), dtype=np.float32)
            self._streams[name][places] = values_N.detach().float().cpu().numpy()

    def of(self, place: int) -> SampleScores:
        """The scores of one sample; all zero tokens where nothing of it is trained."""
        part = slice(int(self._starts[place]), int(self._starts[place + 1]))
        streams = {name: array("f", values[part].tobytes()) for name, values in self._streams.items()}
        empty = array("f", bytes(4 * (part.stop - part.start)))
        return SampleScores(
            logprobs=streams.get("logprobs", empty),
            entropy=streams.get("entropy", empty),
            score_norm=streams.get("score_norm"),
            reference=streams.get("reference"),
        )
