"""The slices of a run: named sets of tokens, fixed at its start so that every process counts under the same keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

PRINCIPAL = ("all", "text", "post_tool", "post_tool_first", "post_tool_later", "post_tool_error", "control")
"""Slices that get every figure; post_tool is post_tool_first and post_tool_later together."""

AFTER = ("after_image", "after_compaction")
TURN_FROM = (0, 1, 2, 4, 8)
HORIZON_FROM = (1, 2, 4, 8, 16)
STALENESS_FROM = (0, 1, 2, 4, 8)
LENGTH_FROM = (0, 64, 256, 1024)
OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceNames:
    """What is known of a run before its first step: names of tools, sources and skills, each with an `other` beside.

    Two shards of one run must hold equal values, else their sums do not add up.

    >>> SliceNames(tools=("search",), sources=("shop",)).names[7:13]
    ('after_image', 'after_compaction', 'tool:search', 'tool:other', 'source:shop', 'source:other')
    """

    tools: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    skills: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for kind, names in (("tools", self.tools), ("sources", self.sources), ("skills", self.skills)):
            if len(set(names)) != len(names) or "" in names or OTHER in names:
                raise ValueError(f"{kind} need distinct names, none of them empty or {OTHER!r}, got {names}")

    @property
    def names(self) -> tuple[str, ...]:
        """The S slices in the order in which `HealthSums` holds them."""
        return _all(self.tools, self.sources)

    def to_dict(self) -> dict[str, list[str]]:
        """As JSON."""
        return {"tools": list(self.tools), "sources": list(self.sources), "skills": list(self.skills)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SliceNames:
        """Back from `to_dict`."""
        return cls(tools=tuple(data["tools"]), sources=tuple(data["sources"]), skills=tuple(data["skills"]))


@lru_cache(maxsize=32)
def _all(tools: tuple[str, ...], sources: tuple[str, ...]) -> tuple[str, ...]:
    return (
        PRINCIPAL
        + AFTER
        + tuple(f"tool:{name}" for name in (*tools, OTHER))
        + tuple(f"source:{name}" for name in (*sources, OTHER))
        + _ranges("turn", TURN_FROM)
        + _ranges("horizon", HORIZON_FROM)
        + _ranges("staleness", STALENESS_FROM)
        + _ranges("length", LENGTH_FROM)
    )


def _ranges(kind: str, starts: tuple[int, ...]) -> tuple[str, ...]:
    """Names of half-open ranges, such as turn:0, turn:2-3 and turn:8+."""
    names = []
    for low, after in zip(starts, (*starts[1:], None), strict=True):
        if after is None:
            names.append(f"{kind}:{low}+")
        else:
            names.append(f"{kind}:{low}" if after == low + 1 else f"{kind}:{low}-{after - 1}")
    return tuple(names)
