"""All templates of the shop, and in which order a mixture of levels takes them."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, cycle
from random import Random

from burnish.core.errors import ConfigError
from burnish.environments.shop import level1, level2, level3
from burnish.environments.shop.templates import Template

LEVELS: dict[int, tuple[Template, ...]] = {1: level1.TEMPLATES, 2: level2.TEMPLATES, 3: level3.TEMPLATES}
BY_NAME: dict[str, Template] = {template.name: template for level in LEVELS.values() for template in level}


def level_shares(level: int | Mapping[str, float]) -> dict[int, float]:
    """The share of tasks of each level, from one level or from weights by level (TOML keys are text).

    Raises ConfigError for another level, or weights that cannot be shares.

    >>> level_shares({"2": 3, "3": 1})
    {2: 0.75, 3: 0.25}
    """
    if not isinstance(level, Mapping):
        if level not in LEVELS:
            raise ConfigError(f"shop: level is 1, 2 or 3, or weights by level, got {level!r}")
        return {level: 1.0}
    known = {str(one): one for one in LEVELS}
    for name in level:
        if str(name) not in known:
            raise ConfigError(f"shop: level is 1, 2 or 3, got {name!r} among the weights by level")
    return {known[str(name)]: share for name, share in shares(level, "weights by level").items() if share > 0}


def shares(weights: Mapping[str, float], what: str) -> dict[str, float]:
    """The weights over their sum.  Raises ConfigError where one is negative or not finite, or all are 0.

    >>> shares({"a": 1, "b": 3}, "weights")
    {'a': 0.25, 'b': 0.75}
    """
    for name, weight in weights.items():
        if not (isinstance(weight, (int, float)) and math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"shop: {what} are numbers from 0 on, got {weight!r} for {name!r}")
    total = sum(weights.values())
    if total <= 0:
        raise ConfigError(f"shop: {what} need one above 0, got {dict(weights)!r}")
    return {name: weight / total for name, weight in weights.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where tasks are said to come from.  `Sources(shares={"phone": 0.7, "mail": 0.3}, noise={"mail": 0.3})`

    shares: of the tasks, by name; empty for none.  noise: standard deviation of what people there think of a
    conversation, in units of a score (see `preference`).
    """

    shares: Mapping[str, float] = field(default_factory=dict)
    noise: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def of(options: Mapping[str, float | Mapping[str, float]]) -> Sources:
        """From weights by name, or tables with a `weight` and a `noise` (1 and 0 by default).

        Raises ConfigError for other keys, and weights that cannot be shares.

        >>> Sources.of({"phone": 3, "mail": {"weight": 1, "noise": 0.3}})
        Sources(shares={'phone': 0.75, 'mail': 0.25}, noise={'mail': 0.3})
        """
        if not options:
            return Sources()
        tables = {name: one if isinstance(one, Mapping) else {"weight": one} for name, one in options.items()}
        for name, table in tables.items():
            if unknown := [key for key in table if key not in ("weight", "noise")]:
                raise ConfigError(f"shop: a source has weight and noise, got {unknown[0]!r} for {name!r}")
        return Sources(
            shares=shares({name: table.get("weight", 1.0) for name, table in tables.items()}, "weights of sources"),
            noise={name: table["noise"] for name, table in tables.items() if "noise" in table},
        )


def templates_in_turn(shares_by_level: Mapping[int, float], *, unseen: bool) -> Iterator[Template]:
    """Templates without end: those of a level in turn, the levels spread evenly in their shares.

    The first n of them hold each level within one of its share of n, so that short evaluations have the right mixture.
    """
    by_level = {
        level: cycle([template for template in LEVELS[level] if template.unseen == unseen]) for level in shares_by_level
    }
    owed = dict.fromkeys(shares_by_level, 0.0)
    while True:
        for level, share in shares_by_level.items():
            owed[level] += share
        level = max(owed, key=lambda one: (owed[one], -one))
        owed[level] -= 1.0
        yield next(by_level[level])


def draw(rng: Random, shares_by_name: Mapping[str, float]) -> str:
    """One name with the probability of its share.  Only `Random.random` is used, as everywhere in the shop."""
    edges = list(accumulate(shares_by_name.values()))
    return list(shares_by_name)[min(bisect(edges, rng.random()), len(edges) - 1)]
