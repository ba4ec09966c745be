"""The pass over the tokens: joined once, one count over (class of slices, bin) for each ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from burnish.core.streams import TokenColumns
from burnish.health.columns import SIGNS, Bools, Ints, Joined, Runs, cut, horizons, ints, join
from burnish.health.slices import PRINCIPAL, SliceNames
from burnish.health.table import NUMBERS, TEXTS, TrajectoryTable
from burnish.stats.histogram import CODES, MAGNITUDES, NONFINITE, codes

RATIOS = ("behaviour", "proximal", "reference")
"""What the learner is compared with."""

RAW = ("learner", "behaviour", "proximal", "reference", "entropy", "score_norm", "advantage", "reward")
MOMENTS = ("tokens", "d", "d2", "w", "w2", "clipped", "clipped2", "clamped")
"""Over finite log-ratios d: count, sums of d, d^2, w = exp(d), w^2, min(w, 2), its square, and how many |d| > 20."""

CLAMP_NATS = 20.0
"""Log-ratios beyond are held there before `exp`, and counted."""

HUGE_NATS = 1e6
"""Sums take log-ratios beyond as this much: their squares must not overflow (some trainers mask with -1e30)."""

FEW_TOKENS = 20_000
"""Up to so many tokens go to their slices one by one; of more, equal ones are counted first.  The sums are the same."""

TOKEN_CAP = 2.0
"""Cap of the clipped token weights, that of truncated importance sampling (Yao et al. 2025)."""

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reduced:
    """Sums over the tokens of a step, by ratio, slice and sign of the advantage; S slices.

    histograms: int64 [3, S, 3, 200], counts of log-ratios learner minus behaviour, proximal, reference
    (`burnish.stats.histogram`).  moments: float64 [3, S, 3, 8], the columns `MOMENTS`, over finite log-ratios.
    largest: float64 [3, S, 3], largest |log-ratio|.  tokens: int64 [S, 2], sampled tokens and those of trained
    trajectories.  entropy: float64 [S, 2], sum in nats and tokens that have one.  nonfinite: int64 [8], raw numbers
    of each input in `RAW` that are NaN or infinite.  table: a row for each trajectory.
    """

    histograms: Ints
    moments: Floats
    largest: Floats
    tokens: Ints
    entropy: Floats
    nonfinite: Ints
    table: TrajectoryTable


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """The runs of some trajectories of a batch.  tokens: bool [N], theirs, None for all.  cell: [M], class of each of
    their tokens."""

    runs: Runs
    tokens: Bools | None
    cell: Ints

    def of(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[M] of [N]."""
        return values if self.tokens is None else values[self.tokens]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Batch:
    """B trajectories of N tokens by columns.

    member: [S, C], 1 where a class of runs belongs to a slice.  shift: [F, C], what takes a (class, code) to the
    (slice, sign, code) of each family.  advantage: [B], NaN for none.  parts: those asked for so far, by the bytes of
    which trajectories they hold.
    """

    rows: int
    joined: dict[str, Joined | None]
    runs: Runs
    member: Floats
    shift: Ints
    advantage: Floats
    parts: dict[bytes, _Part] = field(default_factory=dict)

    def part(self, has: Bools) -> _Part:
        """The runs of the trajectories that `has` names."""
        key = has.tobytes()
        if key not in self.parts:
            runs, tokens = self.runs, None
            if not has.all():
                chosen = has[runs.trajectory]
                tokens, runs = np.repeat(chosen, runs.length), runs.only(chosen)
            self.parts[key] = _Part(runs=runs, tokens=tokens, cell=np.repeat(runs.cell, runs.length))
        return self.parts[key]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ratio:
    """One ratio of a batch: its part of each field of `HealthSums`, and what trajectories need of it.

    has: [B], which trajectories have both sides; all else is of their R runs and M tokens, `part`.  per_run: [8, R],
    the columns `MOMENTS` of each run.  squares: [M], squared weights exp(d), 0 for those that are not finite.
    """

    histogram: Ints
    moments: Floats
    largest: Floats
    has: Bools
    part: _Part
    per_run: Floats
    squares: Singles


def reduce_columns(given: TokenColumns, names: SliceNames) -> Reduced:
    """The sums of some trajectories; raises ValueError where two have the same id."""
    order = _in_order(given.id)
    lengths = ints(given.lengths)
    scalars = {name: np.array(getattr(given, name), dtype=np.float64) for name in _SCALARS}
    joined = {name: join(given, name) for name in RAW[:6]} if given.tokens else {}
    bad = _nonfinite(given, joined, lengths, scalars)
    for values in scalars.values():
        values[np.isinf(values)] = np.nan
    cells = (len(RATIOS), len(names.names), SIGNS)
    histograms = np.zeros((*cells, CODES), dtype=np.int64)
    moments, largest = np.zeros((*cells, len(MOMENTS))), np.zeros(cells)
    tokens, entropy = np.zeros((cells[1], 2), dtype=np.int64), np.zeros((cells[1], 2))
    columns: dict[str, Floats] = {}
    if joined:
        batch = _batch(given, names, joined, scalars["advantage"])
        ratios = {name: _ratio(batch, name) for name in RATIOS}
        for at, ratio in enumerate(ratios.values()):
            if ratio is not None:
                histograms[at], moments[at], largest[at] = ratio.histogram, ratio.moments, ratio.largest
        tokens, entropy = _counts(batch)
        columns = _columns(batch, ratios)
    columns |= {"length": lengths.astype(np.float64), "nonfinite": bad.sum(axis=0).astype(np.float64)}
    return Reduced(
        histograms=histograms,
        moments=moments,
        largest=largest,
        tokens=tokens,
        entropy=entropy,
        nonfinite=bad.sum(axis=1),
        table=_table(given, scalars | columns, order),
    )


_SCALARS = ("advantage", "reward", "success", "progress")


def _in_order(ids: Sequence[str]) -> list[int]:
    """Places of the ids in ascending order."""
    order = sorted(range(len(ids)), key=ids.__getitem__)
    if len(set(ids)) != len(ids):
        twice = next(ids[a] for a, b in pairwise(order) if ids[a] == ids[b])
        raise ValueError(f"two streams have the id {twice!r}; every trajectory needs its own")
    return order


def _nonfinite(
    given: TokenColumns, joined: dict[str, Joined | None], lengths: Ints, scalars: dict[str, Floats]
) -> Ints:
    """[8, B]: raw numbers of each input that are NaN or infinite, counted before anything is left out.  scalars: NaN
    for None."""
    found = np.zeros((len(RAW), len(lengths)), dtype=np.int64)
    for at, name in enumerate(RAW[:6]):
        stream = joined.get(name)
        # one NaN or infinity makes the sum one: the tokens are looked at only where there is something to find
        if stream is not None and not np.isfinite(stream.values.sum()):
            row = np.repeat(np.arange(len(lengths)), lengths)
            found[at] = np.bincount(row[~np.isfinite(stream.values)], minlength=len(lengths))
    for at, name in ((6, "advantage"), (7, "reward")):
        bad, raw = ~np.isfinite(scalars[name]), getattr(given, name)
        if bad.sum() > raw.count(None):
            found[at] = bad & [value is not None for value in raw]
    return found


def _batch(given: TokenColumns, names: SliceNames, joined: dict[str, Joined | None], advantage: Floats) -> _Batch:
    sign = np.sign(np.nan_to_num(advantage)).astype(np.int64) + 1
    runs = cut(given, names, sign)
    member = np.zeros((len(names.names) + 1, len(runs.sign)))
    member[runs.families, np.arange(len(runs.sign))] = 1
    return _Batch(
        rows=len(advantage),
        joined=joined,
        runs=runs,
        member=_unions(member[:-1]),
        shift=((runs.families * SIGNS + runs.sign) - np.arange(len(runs.sign))) * CODES,
        advantage=advantage,
    )


def _unions(by_slice: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Fills the two slices that are sums of others: post_tool, and all of text and post_tool."""
    at = {name: i for i, name in enumerate(PRINCIPAL)}
    by_slice[at["post_tool"]] = by_slice[at["post_tool_first"]] + by_slice[at["post_tool_later"]]
    by_slice[at["all"]] = by_slice[at["text"]] + by_slice[at["post_tool"]]
    return by_slice


def _ratio(batch: _Batch, name: str) -> _Ratio | None:
    """One ratio of the batch, None where no trajectory has both sides."""
    learner, other = batch.joined["learner"], batch.joined[name]
    if learner is None or other is None:
        return None
    has = learner.has & other.has
    part = batch.part(has)
    start = part.runs.start
    with np.errstate(invalid="ignore"):
        d = part.of(learner.values) - part.of(other.values)
    code = codes(d)
    bad = code % MAGNITUDES == NONFINITE if not np.isfinite(d.sum()) else None
    if bad is not None:
        d[bad] = 0
    size = np.abs(d)
    highest = size.max(initial=0.0)
    if highest > HUGE_NATS:
        d = np.clip(d, -HUGE_NATS, HUGE_NATS)
    weights = np.exp(d if highest <= CLAMP_NATS else np.clip(d, -CLAMP_NATS, CLAMP_NATS))
    if bad is not None:
        weights[bad] = 0
    squares = weights * weights
    good = part.runs.length.astype(np.float64) if bad is None else _per_run(~bad, start)
    columns = [good, *(_per_run(x, start) for x in (d, d * d, weights, squares))]
    if highest > math.log(TOKEN_CAP):
        clipped = np.minimum(weights, np.float32(TOKEN_CAP))
        columns += [_per_run(clipped, start), _per_run(clipped * clipped, start)]
    else:
        columns += columns[3:5]
    columns.append(_per_run(size > CLAMP_NATS, start) if highest > CLAMP_NATS else np.zeros(len(start)))
    per_run = np.stack(columns)
    return _Ratio(
        histogram=_histogram(batch, part, code),
        moments=_by_sign(batch, part, per_run),
        largest=_largest(batch, part, size),
        has=has,
        part=part,
        per_run=per_run,
        squares=squares,
    )


def _per_run(values: npt.NDArray[Any], start: Ints) -> Floats:
    # of few tokens, to convert first is twice as fast as to let the sum do it; of many it is memory
    converted = values.astype(np.float64) if len(values) <= FEW_TOKENS else values
    return np.add.reduceat(converted, start, dtype=np.float64)


def _histogram(batch: _Batch, part: _Part, code: Ints) -> Ints:
    """[S, 3, 200]: counted by (class, code), then added to the slices of the class."""
    slices, cell = len(batch.member), part.cell
    cells = cell * CODES + code
    weights: Ints | None = None
    if len(cells) > FEW_TOKENS:
        counted = np.bincount(cells)
        cells = np.flatnonzero(counted)
        weights, cell = counted[cells], cells // CODES
    # a class begins at 200 x class in `cells`, and at 200 x (3 x slice + sign) in the histograms of its slices
    target = batch.shift.take(cell, axis=1)
    target += cells
    repeated = None if weights is None else np.tile(weights, len(target))
    total = np.bincount(target.ravel(), repeated, minlength=(slices + 1) * SIGNS * CODES)
    exact = total.astype(np.int64, copy=False).reshape(slices + 1, SIGNS, CODES)
    return _unions(exact[:-1])


def _per_class(cell: Ints, per_run: Floats, classes: int) -> Floats:
    """[K, C] sums of [K, R]."""
    cells = cell + classes * np.arange(len(per_run))[:, None]
    sums: Floats = np.bincount(cells.ravel(), per_run.ravel(), minlength=classes * len(per_run)).astype(
        np.float64, copy=False
    )
    return sums.reshape(len(per_run), classes)


def _by_sign(batch: _Batch, part: _Part, per_run: Floats) -> Floats:
    """[S, 3, K] sums of [K, R] over slices and signs."""
    per_class = _per_class(part.runs.cell, per_run, len(batch.runs.sign)).T
    # classes are sorted by sign
    edges = np.searchsorted(batch.runs.sign, np.arange(SIGNS + 1))
    return np.stack([batch.member[:, low:high] @ per_class[low:high] for low, high in pairwise(edges)], axis=1)


def _largest(batch: _Batch, part: _Part, size: Singles) -> Floats:
    """[S, 3] maxima of [M]."""
    per_class = np.zeros(len(batch.runs.sign), dtype=np.float32)
    # where runs are short, one maximum for each of them costs more than one look at each token
    if len(size) > FEW_TOKENS:
        np.maximum.at(per_class, part.runs.cell, np.maximum.reduceat(size, part.runs.start))
    else:
        np.maximum.at(per_class, part.cell, size)
    by_class, edges = batch.member * per_class, np.searchsorted(batch.runs.sign, np.arange(SIGNS + 1))
    found = [by_class[:, low:high].max(axis=1, initial=0.0) for low, high in pairwise(edges)]
    return np.stack(found, axis=1)


def _counts(batch: _Batch) -> tuple[Ints, Floats]:
    """Sampled and trained tokens of each slice [S, 2]; sum and count of entropies [S, 2]."""
    runs, learner, entropy = batch.runs, batch.joined["learner"], batch.joined["entropy"]
    length = runs.length.astype(np.float64)
    trained = ~np.isnan(batch.advantage) & (learner.has if learner is not None else False)
    columns = [length, length * trained[runs.trajectory]]
    if entropy is not None:
        good = np.isfinite(entropy.values)
        values = entropy.values if good.all() else np.where(good, entropy.values, np.float32(0))
        has = entropy.has[runs.trajectory]
        columns += [_per_run(values, runs.start) * has, _per_run(good, runs.start) * has]
    sums = batch.member @ _per_class(runs.cell, np.stack(columns), len(runs.sign)).T
    return sums[:, :2].astype(np.int64), sums[:, 2:] if entropy is not None else np.zeros((len(sums), 2))


def _columns(batch: _Batch, ratios: dict[str, _Ratio | None]) -> dict[str, Floats]:
    """What the table gets from the tokens: sequence log-ratios, squares, update sizes; [B] each, NaN where unknown."""
    runs, rows = batch.runs, batch.rows

    def per_row(of: Runs, per_run: npt.NDArray[Any]) -> Floats:
        # of no runs, numpy counts in integers
        return np.bincount(of.trajectory, per_run, minlength=rows).astype(np.float64, copy=False)

    found = {"post_tool_tokens": per_row(runs, runs.length * runs.post_tool)}
    with np.errstate(invalid="ignore"):
        known = per_row(runs, runs.length * np.isfinite(runs.staleness))
        found["staleness"] = per_row(runs, runs.length * runs.staleness) / known
    for name, ratio in ratios.items():
        if ratio is not None:
            found[f"s_{name}"] = np.where(ratio.has, per_row(ratio.part.runs, ratio.per_run[1]), np.nan)
    ratio = ratios["behaviour"]
    if ratio is not None:
        part, square = ratio.part, ratio.per_run[2]
        total = per_row(part.runs, _per_run(ratio.squares * _score_norms(batch, ratio), part.runs.start))
        sums = {
            "square": per_row(part.runs, square),
            "post_tool_square": per_row(part.runs, square * part.runs.post_tool),
            "update_size": np.abs(batch.advantage) * np.sqrt(total),
        }
        found |= {name: np.where(ratio.has, values, np.nan) for name, values in sums.items()}
    return found


def _score_norms(batch: _Batch, ratio: _Ratio) -> Singles:
    """[M] squared score norms W = 1 - 2 p + sum_v p_v^2, or their lower bound (1 - p)^2 where not all of them are
    known.

    W lies in [(1 - p)^2, 2 (1 - p)^2], because the rest of the vocabulary shares 1 - p: the bound needs no softmax,
    and is within a factor of two.
    """
    known, learner = batch.joined["score_norm"], batch.joined["learner"]
    if known is not None and known.has[ratio.has].all():
        norms = ratio.part.of(known.values)
    else:
        assert learner is not None
        norms = np.square(np.expm1(np.minimum(ratio.part.of(learner.values), np.float32(0))))
    return norms if np.isfinite(norms.sum()) else np.nan_to_num(norms, nan=0.0, posinf=0.0, neginf=0.0)


def _table(given: TokenColumns, columns: dict[str, Floats], order: Sequence[int]) -> TrajectoryTable:
    """columns: what comes from the tokens, and scalars, in the order given; order: that of the rows."""
    numbers = np.full((len(NUMBERS), len(order)), np.nan)
    learner = given.has.get("learner")
    known = {
        "turns": horizons(given),
        "post_tool_tokens": 0,
        **{name: getattr(given, name) for name in ("tool_calls", "tool_errors", "retries")},
        "trained": False if learner is None else np.frombuffer(learner, np.bool_) & ~np.isnan(columns["advantage"]),
        **columns,
    }
    for row, name in zip(numbers, NUMBERS, strict=True):
        if name in known:
            row[:] = known[name]
    texts = {name: getattr(given, name) for name in TEXTS}
    if len(order) > 1:
        pick = itemgetter(*order)
        texts = {name: pick(column) for name, column in texts.items()}
    return TrajectoryTable(texts=texts, numbers=numbers.take(order, axis=1))
