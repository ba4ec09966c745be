"""How much a trajectory weighs, given the noise of where it comes from and its length.

A trajectory adds the sum of its L token gradients to the update.  If each of them carries noise sigma_source and they
are independent, the sum has variance sigma_source^2 * L: a few long trajectories of a noisy source make up the update.

- "variance": w_i = 1 / (sigma_source * L_i^e).  "Engineering and algorithmic interventions for multimodal post-training
  at Microsoft scale" (2026), intervention III, with e = 1/2 and sigma unexplained.  Here sigma is a running estimate,
  shrunk towards that of all sources, and e is fitted: independent tokens give 1/2, fully correlated ones 1.  Since it
  reweighs by length, it changes which objective is climbed.
- "vl": w_i proportional to L_i^-a.  VL Norm, arXiv 2509.07558; among weights that add up to the same total this has the
  least variance if that of a trajectory grows as L^a, and it stays unbiased: a = 1 for CountDown, 0.75 for math there.

Weights are scaled to mean 1 over the batch, so that neither acts as a learning rate.  They multiply the advantages,
with aggregation "token" or "constant"; "sequence" already divides by L.  Where sigma is kept by skill rather than by
source, pass skills: the published rule groups by ability, not by modality.

Sizes are norms of trajectory gradients or anything proportional to them, such as the score-norm proxy of health:

    log sigma_s^2 = (n_s log m_s + k log m) / (n_s + k),  m_s, m = decayed means of (x_i / L_i^e)^2 of a source, of all
    e             = (sum_s Sxy_s + k' e_0) / (sum_s Sxx_s + k'),  of log x on log L within each source, held in [0, 1]

Logarithms are shrunk, because sources differ by factors: a few parts of a loud mean would swamp a quiet source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class VarianceSpec:
    """`VarianceSpec(exponent=None)`

    exponent: of length, in [0, 1]; None fits it.  exponent_prior: where the fit starts (e_0); exponent_prior_weight:
    k', in squared log units (a batch of 100 with lengths over one decade has about 40).  shrinkage: k, in trajectories.
    decay in (0, 1): weight of the past after each batch; 0.95 is a memory of about 20 batches.
    """

    exponent: float | None = None
    exponent_prior: float = 0.5
    exponent_prior_weight: float = 10.0
    shrinkage: float = 32.0
    decay: float = 0.95

    def __post_init__(self) -> None:
        for name, value in (("exponent", self.exponent), ("exponent_prior", self.exponent_prior)):
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} lies in [0, 1], got {value}")
        if not (self.exponent_prior_weight > 0.0 and self.shrinkage > 0.0):
            raise ValueError(
                "exponent_prior_weight and shrinkage are above 0, "
                f"got {self.exponent_prior_weight} and {self.shrinkage}"
            )
        if not 0.0 < self.decay < 1.0:
            raise ValueError(f"decay lies in (0, 1), got {self.decay}")


@dataclass(slots=True, kw_only=True)
class _SourceSums:
    """Decayed sums over the trajectories of one source: n, and of l = log L, x = log size."""

    n: float = 0.0
    sum_l: float = 0.0
    sum_x: float = 0.0
    sum_ll: float = 0.0
    sum_lx: float = 0.0
    scaled: float = 0.0
    """Of (size / L^e)^2, with the exponent of the time."""


class VarianceNormaliser:
    """Weights 1 / (sigma_source * L^e), learnt from the sizes seen so far; `observe` after each batch.

    >>> normaliser = VarianceNormaliser(VarianceSpec(exponent=0.5))
    >>> normaliser.weights(["a", "a"], [100, 400])
    [1.3333333333333333, 0.6666666666666666]
    """

    def __init__(self, spec: VarianceSpec) -> None:
        self.spec = spec
        self._sums: dict[str, _SourceSums] = {}

    @property
    def exponent(self) -> float:
        """e, given or fitted so far."""
        if self.spec.exponent is not None:
            return self.spec.exponent
        above = self.spec.exponent_prior_weight * self.spec.exponent_prior
        below = self.spec.exponent_prior_weight
        for sums in self._sums.values():
            if sums.n > 0.0:
                above += sums.sum_lx - sums.sum_l * sums.sum_x / sums.n
                below += max(sums.sum_ll - sums.sum_l**2 / sums.n, 0.0)
        return min(max(above / below, 0.0), 1.0)

    def sigma(self, source: str) -> float:
        """Noise of a source, in the unit of the sizes; that of all sources where it is new, 1 before any batch."""
        n = math.fsum(sums.n for sums in self._sums.values())
        scaled = math.fsum(sums.scaled for sums in self._sums.values())
        if not (n > 0.0 and scaled > 0.0):
            return 1.0
        pooled = math.log(scaled / n)
        own = self._sums.get(source)
        if own is None or not own.scaled > 0.0:
            return math.exp(pooled / 2.0)
        shrunk = own.n * math.log(own.scaled / own.n) + self.spec.shrinkage * pooled
        return math.exp(shrunk / (own.n + self.spec.shrinkage) / 2.0)

    def weights(self, sources_B: Sequence[str], lengths_B: Sequence[int]) -> list[float]:
        """The weight of each of B trajectories, with mean 1.  lengths_B: trained tokens, at least 1 each."""
        _check_lengths(lengths_B)
        exponent = self.exponent
        sigmas = {source: self.sigma(source) for source in set(sources_B)}
        return _mean_one(
            [1.0 / (sigmas[source] * length**exponent) for source, length in zip(sources_B, lengths_B, strict=True)]
        )

    def observe(self, sources_B: Sequence[str], lengths_B: Sequence[int], sizes_B: Sequence[float]) -> None:
        """Learn from a batch.  sizes_B: before the weights, at least 0; those of 0 (no advantage) say nothing.

        Raises ValueError for a size that is negative or not finite.
        """
        _check_lengths(lengths_B)
        for size in sizes_B:
            if not (math.isfinite(size) and size >= 0.0):
                raise ValueError(f"a size is finite and at least 0, got {size}; leave out what was not trained")
        exponent = self.exponent
        for sums in self._sums.values():
            for name in ("n", "sum_l", "sum_x", "sum_ll", "sum_lx", "scaled"):
                setattr(sums, name, getattr(sums, name) * self.spec.decay)
        for source, length, size in zip(sources_B, lengths_B, sizes_B, strict=True):
            if size > 0.0:
                _add(self._sums.setdefault(source, _SourceSums()), length, size, exponent)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on exactly, JSON-able."""
        return {source: asdict(sums) for source, sums in self._sums.items()}

    @classmethod
    def restore(cls, spec: VarianceSpec, state: Mapping[str, Mapping[str, float]]) -> VarianceNormaliser:
        """The normaliser that `state` was taken from."""
        normaliser = cls(spec)
        normaliser._sums = {str(source): _SourceSums(**sums) for source, sums in state.items()}
        return normaliser


def vl_weights(lengths_B: Sequence[int], a: float = 1.0) -> list[float]:
    """L^-a with mean 1 over B trajectories: the unbiased weights of least variance if variance grows as L^a.

    lengths_B: trained tokens, at least 1 each.  Raises ValueError for an `a` outside of [0, 1] and for no tokens.

    >>> vl_weights([100, 300])
    [1.5, 0.5]
    """
    if not 0.0 <= a <= 1.0:
        raise ValueError(f"a lies in [0, 1], got {a}")
    _check_lengths(lengths_B)
    return _mean_one([length**-a for length in lengths_B])


def _add(sums: _SourceSums, length: int, size: float, exponent: float) -> None:
    log_length, log_size = math.log(length), math.log(size)
    sums.n += 1.0
    sums.sum_l += log_length
    sums.sum_x += log_size
    sums.sum_ll += log_length**2
    sums.sum_lx += log_length * log_size
    sums.scaled += (size / length**exponent) ** 2


def _mean_one(weights_B: list[float]) -> list[float]:
    if not weights_B:
        return []
    mean = math.fsum(weights_B) / len(weights_B)
    return [weight / mean for weight in weights_B]


def _check_lengths(lengths_B: Sequence[int]) -> None:
    if any(length < 1 for length in lengths_B):
        raise ValueError(f"a trajectory has at least 1 trained token, got {min(lengths_B)}; leave out those without")
