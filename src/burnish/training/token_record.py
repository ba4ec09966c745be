"""What the learner computed at each trained token, kept for whoever watches it: health reads it, no loss does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from burnish.algorithms.logprobs import TokenScores
from burnish.algorithms.packing import MicroBatch
from burnish.core.learning import TrainingSample


class TokenRecord:
    """Filled by `Learner.accumulate(samples, ..., record=record)`; then `record.streams` over the trained tokens.

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

    @property
    def streams(self) -> Mapping[str, NDArray[np.float32]]:
        """float32 over the trained tokens of all samples, one after another, under the weights before the update.

        logprobs, reference, entropy: nats.  score_norm: 1 - 2 p + sum_v p_v^2.  A stream that was not computed is not
        there; where nothing is trained there is none.
        """
        return self._streams

    def part(self, place: int) -> slice:
        """Where the tokens of one sample stand, by its place in `samples`."""
        return slice(int(self._starts[place]), int(self._starts[place + 1]))
