"""How per-token losses become one number, independent of how a batch is cut into micro-batches.

Each token t of sequence i gets the weight w_t, and the loss is sum(w_t * l_t) / Z with the normaliser Z of the *whole*
batch:

- "token": w = 1, Z = trained tokens.  DAPO, arXiv 2503.14476, section 3.3.
- "sequence": w = 1 / tokens of sequence i, Z = sequences.  GRPO, arXiv 2402.03300, equation 3.
- "constant": w = 1 / L, Z = sequences, with a fixed length L.  Dr. GRPO, arXiv 2503.20783, section 3.2.

A sequence is one training sample with at least one trained token.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor

from burnish.core.learning import TrainingSample


class Aggregation(StrEnum):
    """Which tokens weigh how much."""

    TOKEN = "token"
    SEQUENCE = "sequence"
    CONSTANT = "constant"

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"aggregation is one of {', '.join(cls)}, got {value!r}")


def token_weights(aggregation: Aggregation, sequence_tokens_N: Tensor, constant_tokens: int) -> Tensor:
    """The weight of each of N tokens; `sequence_tokens_N` holds the trained tokens of the sequence each belongs to.

    >>> token_weights(Aggregation.SEQUENCE, torch.tensor([2.0, 2.0, 1.0]), 0).tolist()
    [0.5, 0.5, 1.0]
    """
    match aggregation:
        case Aggregation.TOKEN:
            return torch.ones_like(sequence_tokens_N)
        case Aggregation.SEQUENCE:
            return sequence_tokens_N.reciprocal()
        case Aggregation.CONSTANT:
            return torch.full_like(sequence_tokens_N, 1.0 / constant_tokens)


def batch_normaliser(aggregation: Aggregation, samples: Sequence[TrainingSample]) -> float:
    """Z of a batch, at least 0; the normalisers of the shards of a batch add up to that of the batch."""
    counts = [sample.trained_tokens for sample in samples]
    if aggregation is Aggregation.TOKEN:
        return float(sum(counts))
    return float(sum(count > 0 for count in counts))
