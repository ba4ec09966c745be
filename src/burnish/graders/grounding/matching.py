"""One-to-one matching with F1: every reference that matches nothing costs precision, so that spraying does not pay.

With c_ij in [0, 1] the credit of citing i for truth j, and a the assignment of largest total credit (Kuhn 1955, by
scipy), TP = sum over a of c_ij and

    F1 = 2 TP / (number cited + number true)

Malformed references count as cited.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.optimize import linear_sum_assignment

Cited = TypeVar("Cited")
True_ = TypeVar("True_")

MAX_CITED_BASE, MAX_CITED_TIMES = 8, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The outcome of a matching.  `Match(f1=1.0, pairs=((0, 0, 1.0),), n_cited=1, n_true=1)`

    pairs: (index cited, index true, credit above 0).
    """

    f1: float
    pairs: tuple[tuple[int, int, float], ...]
    n_cited: int
    n_true: int

    @property
    def true_positives(self) -> float:
        """Total credit."""
        return sum(credit for _, _, credit in self.pairs)


def match(
    cited: Sequence[Cited], true: Sequence[True_], credit: Callable[[Cited, True_], float], *, n_malformed: int = 0
) -> Match:
    """The best one-to-one matching.

    More than 8 + 3 * len(true) references are no citation but a spray: F1 is then 0 without a look at them.  Nothing
    true and nothing cited gives 1.

    >>> match([1, 2, 9], [1, 2], lambda a, b: float(a == b)).f1
    0.8
    """
    n_cited = len(cited) + n_malformed
    if not true and not n_cited:
        return Match(f1=1.0, pairs=(), n_cited=0, n_true=0)
    if not true or not cited or n_cited > MAX_CITED_BASE + MAX_CITED_TIMES * len(true):
        return Match(f1=0.0, pairs=(), n_cited=n_cited, n_true=len(true))
    credits = np.array([[credit(item, other) for other in true] for item in cited])
    rows, columns = linear_sum_assignment(credits, maximize=True)
    pairs = tuple(
        (int(row), int(column), float(credits[row, column]))
        for row, column in zip(rows, columns, strict=True)
        if credits[row, column] > 0.0
    )
    total = sum(value for _, _, value in pairs)
    return Match(f1=min(1.0, 2 * total / (n_cited + len(true))), pairs=pairs, n_cited=n_cited, n_true=len(true))
