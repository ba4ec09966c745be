"""Importance correction: a detached weight for tokens that another policy drew than the one the gradient is taken at.

With d_t = log(proximal(y_t) / behaviour(y_t)), where the learner itself (detached) stands for the proximal policy if
there is none, and the raw weight w of a token or of its sequence:

- "token_truncate":     w_t = min(exp(d_t), cap).  Truncated importance sampling: Ionides (2008); for the gap between
                        the sampling engine and the learner, Yao et al., "Your Efficient RL Framework Secretly Brings
                        You Off-Policy RL Training" (2025), there with cap 2.
- "token_mask":         w_t = exp(d_t) inside [floor, cap], else 0.  IcePop (Ring-1T), arXiv 2510.18855, with
                        [0.5, 5].
- "sequence_truncate":  w_t = min(exp(sum_t d_t), cap) for all tokens of the sequence.  VCPO, arXiv 2602.17616, cap 8.
- "sequence_mask":      w_t = exp(sum_t d_t) inside [floor, cap], else 0, for all tokens of the sequence.  Masked
                        importance sampling, Liu, Li et al., "When Speed Kills Stability" (2025); TRL's default, cap
                        3.

The sequence's weight is the product over its trained tokens, not their geometric mean: the product is the weight that
makes the expectation right.  Its spread grows with length (with independent d_t of deviation s over n tokens the
effective sample size is about exp(-n s^2)), so it suits short sequences or a small mismatch.  A sequence is one
training sample.

Truncation keeps every token and is biased where it cuts; a mask drops what lies outside, so it also ends the
influence of tokens that cannot be trusted at all.  The normaliser of the loss stays that of all trained tokens: a
masked token adds 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from burnish.algorithms.ratios import bounded_exp, sequence_sums


class CorrectionKind(StrEnum):
    """What happens to the importance weight of a token."""

    NONE = "none"
    TOKEN_TRUNCATE = "token_truncate"
    TOKEN_MASK = "token_mask"
    SEQUENCE_TRUNCATE = "sequence_truncate"
    SEQUENCE_MASK = "sequence_mask"

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"correction is one of {', '.join(cls)}, got {value!r}")

    @property
    def masks(self) -> bool:
        """Whether what lies outside the bounds leaves the loss."""
        return self in (CorrectionKind.TOKEN_MASK, CorrectionKind.SEQUENCE_MASK)

    @property
    def by_sequence(self) -> bool:
        """Whether all tokens of a sequence share one weight."""
        return self in (CorrectionKind.SEQUENCE_TRUNCATE, CorrectionKind.SEQUENCE_MASK)


DEFAULT_BOUNDS: Mapping[CorrectionKind, tuple[float, float]] = {
    CorrectionKind.NONE: (0.0, math.inf),
    CorrectionKind.TOKEN_TRUNCATE: (0.0, 2.0),
    CorrectionKind.TOKEN_MASK: (0.5, 5.0),
    CorrectionKind.SEQUENCE_TRUNCATE: (0.0, 8.0),
    CorrectionKind.SEQUENCE_MASK: (0.0, 3.0),
}
"""(floor, cap) of each kind: those of the sources in the module's text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """weights_N: detached, what multiplies the loss of each token.  above_N, below_N: bool, whether the raw weight lay
    outside the bounds.  kept_N: bool, False where the token leaves the loss.

    Example: cap 2 and raw weights [0.5, 4] truncate to weights [0.5, 2], above [False, True], kept [True, True].
    """

    weights_N: Tensor
    above_N: Tensor
    below_N: Tensor
    kept_N: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """`Correction(kind="token_truncate", cap=2.0)`

    cap and floor: None takes that of the source (`DEFAULT_BOUNDS`).  Raises ValueError for an unknown kind, a cap that
    is not above 0, a floor that is not in [0, cap), and a floor without a mask.
    """

    kind: CorrectionKind = CorrectionKind.NONE
    cap: float | None = None
    floor: float | None = None

    def __post_init__(self) -> None:
        kind = CorrectionKind(self.kind)
        object.__setattr__(self, "kind", kind)
        if self.cap is not None and not self.cap > 0:
            raise ValueError(f"correction_cap is above 0, got {self.cap}")
        if self.floor is not None and not kind.masks:
            raise ValueError(f"correction_floor is for masks, and correction is {kind}; leave it out")
        floor, cap = self.bounds
        if not 0 <= floor < cap:
            raise ValueError(f"correction_floor lies in [0, correction_cap), got floor {floor} and cap {cap}")

    @property
    def bounds(self) -> tuple[float, float]:
        """(floor, cap) in force."""
        floor, cap = DEFAULT_BOUNDS[self.kind]
        return (floor if self.floor is None else self.floor, cap if self.cap is None else self.cap)

    def weights(self, log_ratio_N: Tensor, sequence_N: Tensor, sequences: int) -> Weights:
        """The weights of N tokens with log-ratios proximal/behaviour; `sequence_N` says which sequence each belongs to.

        A NaN stays one, so that it is found where the loss is checked.

        >>> log_ratio_N, one = torch.tensor([4.0, 0.5]).log(), torch.tensor([0, 0])
        >>> Correction(kind="token_mask", floor=0.4, cap=3.0).weights(log_ratio_N, one, 1).weights_N.tolist()
        [0.0, 0.5]
        >>> Correction(kind="sequence_mask", cap=3.0).weights(log_ratio_N, one, 1).weights_N.tolist()
        [2.0, 2.0]
        """
        log_N = log_ratio_N.detach().double()
        if self.kind.by_sequence:
            log_N = sequence_sums(log_N, sequence_N, sequences)[sequence_N]
        floor, cap = self.bounds
        raw_N = bounded_exp(log_N)
        above_N, below_N = raw_N > cap, raw_N < floor
        outside_N = above_N | below_N
        if self.kind.masks:
            weights_N, kept_N = raw_N.masked_fill(outside_N, 0.0), ~outside_N
        else:
            weights_N, kept_N = raw_N.clamp(max=cap), torch.ones_like(outside_N)
        weights_N = weights_N.to(log_ratio_N.dtype)
        return Weights(weights_N=weights_N, above_N=above_N, below_N=below_N, kept_N=kept_N)
