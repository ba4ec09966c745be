"""From sums to the scalars of a step.  docs/health.md lists every name with its formula.

A figure that rests on too little is left out rather than given: fewer than 64 tokens of a slice, or fewer than 8
trajectories.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import chain, compress

import numpy as np
import numpy.typing as npt

from burnish.health.panels import panels
from burnish.health.reduction import MOMENTS, RATIOS
from burnish.health.reference import Reference
from burnish.health.slices import LENGTH_FROM, PRINCIPAL, SliceNames
from burnish.health.sums import HealthSums
from burnish.stats.concentration import concentration, length_exponent, lognormal_departure
from burnish.stats.ess import ess_share, ess_share_of_sums
from burnish.stats.histogram import MAGNITUDES, distances, magnitudes, quantiles, tail_indices

MIN_TOKENS = 64
MIN_TRAJECTORIES = 8
SEQUENCE_CAP = 8.0
"""Cap of the clipped sequence weights (VCPO, arXiv 2602.17616)."""

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p999": 0.999}
TAILS = ("left_p95_negative", "left_p95_positive", "right_p95_negative", "right_p95_positive")
FULL = (*QUANTILES, "tail_index", "max", "clamped_share")
MOMENT_FIGURES = ("m2", "k3", "chi2")
DISTANCES = ("ks", "w1")

LENGTHS = SliceNames().names[-len(LENGTH_FROM) :]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def signals(sums: HealthSums, reference: Reference | None = None) -> dict[str, float]:
    """Every scalar of the step by name; a slice or a panel below its minimum count has none.

    reference: adds what is relative to it (normalised ESS, distances, entropy over its warm-up value).

    >>> signals(HealthSums.of([], SliceNames()))["health/trajectories"]
    0.0
    """
    found = {"health/trajectories": float(len(sums.table)), "health/tokens": float(sums.tokens[0, 0])}
    for position, ratio in enumerate(RATIOS):
        if sums.moments[position, 0, :, 0].sum() > 0:
            found.update(_ratio(sums, position, ratio, reference))
    found.update(_slices(sums, reference))
    found.update(_sequences(sums, reference))
    found.update(_updates(sums))
    found.update(panels(sums, reference))
    return found


@lru_cache(maxsize=256)
def _names(figure: str, slices: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"health/{name}/{figure}" for name in slices)


class _Figures:
    """Figures of slices, taken in one by one and looked at all at once."""

    def __init__(self) -> None:
        self._names: list[tuple[str, ...]] = []
        self._values: list[Floats] = []
        self._enough: list[Bools] = []

    def add(self, figure: str, slices: tuple[str, ...], values: Floats, enough: Bools) -> None:
        """One figure of some slices; enough: those that rest on enough."""
        self._names.append(_names(figure, slices))
        self._values.append(values)
        self._enough.append(enough)

    def known(self) -> dict[str, float]:
        """By name, those of the slices that have enough, and a number."""
        values = np.concatenate(self._values)
        known = np.concatenate(self._enough) & np.isfinite(values)
        return dict(compress(zip(chain(*self._names), values.tolist(), strict=True), known.tolist()))


def _ratio(sums: HealthSums, position: int, ratio: str, reference: Reference | None) -> dict[str, float]:
    """Figures of the tokens for one ratio: all of them for the principal slices, three for the others."""
    found = _Figures()
    names, main = sums.names.names, len(PRINCIPAL)
    others = names[main:]
    size = magnitudes(sums.histograms[position].sum(axis=1))
    sides = _sides(sums.histograms[position, :main])
    moments = sums.moments[position].sum(axis=1)
    n = moments[:, MOMENTS.index("tokens")]
    enough = n >= MIN_TOKENS
    quantile = quantiles(np.concatenate([size, sides.reshape(-1, MAGNITUDES)]), list(QUANTILES.values()))
    for figure, values in zip(QUANTILES, quantile.T, strict=True):
        found.add(f"log_ratio_{ratio}_{figure}", PRINCIPAL, values[:main], enough[:main])
        if figure == "p95":
            found.add(f"log_ratio_{ratio}_p95", others, values[main : len(names)], enough[main:])
            counted = sides[..., :-1].sum(axis=-1) >= MIN_TOKENS
            for tail, p95, has in zip(TAILS, values[len(names) :].reshape(len(TAILS), main), counted, strict=True):
                found.add(f"log_ratio_{ratio}_{tail}", PRINCIPAL, p95, has)
    figures = {
        "tail_index": tail_indices(size[:main]),
        "max": sums.largest[position, :main].max(axis=1),
        "clamped_share": moments[:main, MOMENTS.index("clamped")] / np.maximum(n[:main], 1),
    }
    for figure, values in figures.items():
        found.add(f"log_ratio_{ratio}_{figure}", PRINCIPAL, values, enough[:main])
    for figure, values in _moment_figures(moments).items():
        suffix = f"_{ratio}" if figure in MOMENT_FIGURES or ratio != "behaviour" else ""
        found.add(figure + suffix, PRINCIPAL, values[:main], enough[:main])
        if figure in ("m2", "ess_token_raw"):
            found.add(figure + suffix, others, values[main:], enough[main:])
    if reference is not None and reference.counts[position].any():
        usable = enough[:main] & (reference.counts[position].sum(axis=-1) >= MIN_TOKENS)
        for figure, values in zip(DISTANCES, distances(size[:main], reference.counts[position]), strict=True):
            found.add(f"log_ratio_{ratio}_{figure}", PRINCIPAL, values, usable)
    return found.known()


def _moment_figures(moments: Floats) -> dict[str, Floats]:
    """[S] each, from [S, 8] sums."""
    n, d, d2, w, w2, clipped, clipped2, _ = moments.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "m2": d2 / n,
            # rounding leaves about 1e-16 of either sign where the ratio is 1
            "k3": np.maximum(w / n - 1 - d / n, 0.0),
            "chi2": w2 / n - 1,
            "ess_token_raw": ess_share_of_sums(n, w, w2),
            "ess_token_clipped": ess_share_of_sums(n, clipped, clipped2),
        }


def _sides(histogram: Ints) -> Ints:
    """Counts of |d| [4, P, 100] for each of `TAILS`: d < 0 and d > 0, of tokens of negative and positive advantage."""
    left, right = histogram[..., MAGNITUDES:], histogram[..., :MAGNITUDES]
    sides = np.stack([left[:, 0], left[:, 2], right[:, 0], right[:, 2]])
    sides[..., 0] = 0  # an unchanged token is on neither side
    return sides


def _slices(sums: HealthSums, reference: Reference | None) -> dict[str, float]:
    """Counts and entropy by slice, and the post-tool share."""
    names, figures = sums.names.names, _Figures()
    figures.add("tokens", names, sums.tokens[:, 0].astype(np.float64), sums.tokens[:, 0] >= 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = sums.entropy[:, 0] / sums.entropy[:, 1]
    figures.add("entropy", names, entropy, sums.entropy[:, 1] >= MIN_TOKENS)
    found = figures.known()
    if "health/all/entropy" in found:
        found["health/entropy"] = found["health/all/entropy"]
    if reference is not None:
        for name in PRINCIPAL:
            early = reference.mean(f"health/{name}/entropy")
            if f"health/{name}/entropy" in found and early > 0:
                found[f"health/{name}/entropy_over_reference"] = found[f"health/{name}/entropy"] / early
    trained = 1 if sums.tokens[0, 1] > 0 else 0
    if sums.tokens[0, trained] >= MIN_TOKENS:
        post_tool = sums.tokens[PRINCIPAL.index("post_tool"), trained]
        found["health/post_tool_share"] = float(post_tool / sums.tokens[0, trained])
        at = _mixture(sums.names)
        shares = sums.tokens[at, trained] / sums.tokens[0, trained]
        found.update(zip(_names("token_share", tuple(names[i] for i in at)), shares.tolist(), strict=True))
    return found


@lru_cache(maxsize=8)
def _mixture(names: SliceNames) -> list[int]:
    """The slices whose share of the tokens is told: those that follow a result of each tool, and of each source."""
    return [i for i, name in enumerate(names.names) if name.startswith(("tool:", "source:"))]


def _sequences(sums: HealthSums, reference: Reference | None) -> dict[str, float]:
    """ESS over trajectories: raw, clipped, normalised to the reference, and per token."""
    found: dict[str, float] = {}
    trained, lengths = sums.table.column("trained") > 0, sums.table.column("length")
    for ratio in RATIOS:
        s = sums.table.column(f"s_{ratio}")
        used = trained & np.isfinite(s)
        if used.sum() < MIN_TRAJECTORIES:
            continue
        suffix = "" if ratio == "behaviour" else f"_{ratio}"
        raw = ess_share(s[used])
        found[f"health/ess_sequence_raw{suffix}"] = raw
        found[f"health/ess_sequence_clipped{suffix}"] = ess_share(s[used], cap=SEQUENCE_CAP)
        # independent tokens of log-ratio sd s give ESS exp(-n s^2): this is s^2, which does not fall with length
        found[f"health/ess_sequence_variance_per_token{suffix}"] = max(0.0, -math.log(raw)) / float(
            lengths[used].mean()
        )
        early = reference.mean(f"health/ess_sequence_raw{suffix}") if reference is not None else math.nan
        if early > 0:
            found[f"health/ess_sequence_normalised{suffix}"] = raw / early
    token, early = "health/all/ess_token_raw", math.nan
    moments = sums.moments[0, 0].sum(axis=0)
    if reference is not None and moments[0] >= MIN_TOKENS and (early := reference.mean(token)) > 0:
        found["health/ess_token_normalised"] = float(moments[3] ** 2 / (moments[0] * moments[4])) / early
    return found


def _updates(sums: HealthSums) -> dict[str, float]:
    """Concentration of the update sizes over trajectories: together, by source, skill and length."""
    table = sums.table
    size, length = table.column("update_size"), table.column("length")
    with np.errstate(invalid="ignore"):
        used = (table.column("trained") > 0) & (size > 0) & np.isfinite(size)
    found: dict[str, float] = {}
    if used.sum() < MIN_TRAJECTORIES:
        return found
    found.update(_concentration("health", size[used]))
    found["health/update_departure"] = lognormal_departure(size[used], found["health/gini_update"])
    source = table.codes("source")[1]
    fit = length_exponent(size[used] / np.abs(table.column("advantage")[used]), length[used], source[used])
    if fit is not None:
        found["health/length_exponent"], found["health/length_exponent_se"] = fit.exponent, fit.standard_error
    total = float(size[used].sum())
    for name, member in _classes(sums, length):
        chosen = size[used & member]
        if len(chosen) >= MIN_TRAJECTORIES:
            part = float(chosen.sum())
            found.update(_concentration(f"health/{name}", chosen))
            found[f"health/{name}/update_share"] = part / total
            found[f"health/{name}/update_size_mean"] = part / len(chosen) / (total / float(used.sum()))
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _concentration(prefix: str, sizes: Floats) -> dict[str, float]:
    found = concentration(sizes, (0.05, 0.01))
    return {
        f"{prefix}/gini_update": found.gini,
        f"{prefix}/top5_update": found.top_shares[0],
        f"{prefix}/top1_update": found.top_shares[1],
    }


def _classes(sums: HealthSums, length: Floats) -> list[tuple[str, Bools]]:
    """Trajectories by known source, known skill and range of length."""
    found = [(f"source:{name}", sums.table.having("source", name)) for name in sums.names.sources]
    found += [(f"skill:{name}", sums.table.having("skill", name)) for name in sums.names.skills]
    return found + _length_classes(length)


def _length_classes(length: Floats) -> list[tuple[str, Bools]]:
    """The ranges of length in which there is any trajectory."""
    at = np.searchsorted(np.array(LENGTH_FROM), length, side="right") - 1
    counts = np.bincount(at, minlength=len(LENGTH_FROM)).tolist()
    return [(name, at == i) for i, (name, n) in enumerate(zip(LENGTHS, counts, strict=True)) if n]
