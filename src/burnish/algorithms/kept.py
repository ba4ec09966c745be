"""Kept sets as tensors: what top-k and top-p left of the vocabulary at each of N trained tokens.

A token that was drawn from a truncated distribution has the log-probability z_y - logsumexp(z_v, v in its kept set).
The learner must renormalise over the *same* set: its own top-k or top-p would be another set as soon as the weights
differ, and over the whole vocabulary the ratio learner/behaviour is below 1 even where the weights are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptTokens:
    """Ragged sets: counts_N, int64, ids kept at each token (0: the whole vocabulary); ids_K, int64, K = sum(counts_N),
    the sets one after another.

    Example: counts_N [0, 2], ids_K [4, 9]: the first token was drawn from the whole vocabulary, the second from {4, 9}.
    """

    counts_N: Tensor
    ids_K: Tensor

    def to(self, device: torch.device) -> KeptTokens:
        """The same on `device`."""
        return KeptTokens(counts_N=self.counts_N.to(device), ids_K=self.ids_K.to(device))

    def allowed(self, vocabulary: int) -> Tensor:
        """Which of `vocabulary` ids could be drawn, bool [N, V].

        >>> KeptTokens(counts_N=torch.tensor([0, 1]), ids_K=torch.tensor([2])).allowed(3).tolist()
        [[True, True, True], [False, False, True]]
        """
        allowed_NV = (self.counts_N == 0).unsqueeze(-1).repeat(1, vocabulary)
        rows_K = torch.arange(len(self.counts_N), device=self.counts_N.device).repeat_interleave(self.counts_N)
        allowed_NV[rows_K, self.ids_K] = True
        return allowed_NV
