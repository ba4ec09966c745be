"""pass@k and pass^k from n attempts at each task."""

from __future__ import annotations

from collections.abc import Iterable
from math import comb


def pass_at_k(n: int, successes: int, k: int) -> float:
    """Chance that at least one of k attempts succeeds: 1 - C(n-c, k) / C(n, k), unbiased from c successes in n attempts
    (Chen et al. 2021, arXiv 2107.03374, equation 1).

    Raises ValueError unless 1 <= k <= n and 0 <= successes <= n.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    _check(n, successes, k)
    return 1.0 - comb(n - successes, k) / comb(n, k)


def pass_hat_k(n: int, successes: int, k: int) -> float:
    """pass^k, the chance that k attempts all succeed: C(c, k) / C(n, k), unbiased (Yao et al. 2024, arXiv 2406.12045).

    Raises ValueError unless 1 <= k <= n and 0 <= successes <= n.

    >>> pass_hat_k(4, 2, 2) == 1 / 6
    True
    """
    _check(n, successes, k)
    return comb(successes, k) / comb(n, k)


def mean_pass_at_k(counts: Iterable[tuple[int, int]], k: int) -> float:
    """Mean of `pass_at_k` over tasks, each given as (n, successes).  Raises ValueError for no tasks.

    >>> mean_pass_at_k([(4, 1), (4, 4)], 2)
    0.75
    """
    return _mean([pass_at_k(n, successes, k) for n, successes in counts])


def mean_pass_hat_k(counts: Iterable[tuple[int, int]], k: int) -> float:
    """Mean of `pass_hat_k` over tasks, each given as (n, successes).  Raises ValueError for no tasks.

    >>> mean_pass_hat_k([(4, 0), (4, 4)], 2)
    0.5
    """
    return _mean([pass_hat_k(n, successes, k) for n, successes in counts])


def _mean(values: list[float]) -> float:
    if not values:
        raise ValueError("a mean over tasks needs at least one task, got none")
    return sum(values) / len(values)


def _check(n: int, successes: int, k: int) -> None:
    if not (1 <= k <= n and 0 <= successes <= n):
        raise ValueError(f"need 1 <= k <= n and 0 <= successes <= n, got n={n}, successes={successes}, k={k}")
