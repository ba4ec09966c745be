"""The rows of a step's trajectories, held by columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from burnish.health.figures import TrajectoryFigures

TEXTS = ("id", "group_id", "source", "skill", "outcome")
COUNTS = ("length", "turns", "post_tool_tokens", "tool_calls", "tool_errors", "retries", "nonfinite")
NUMBERS = (
    *COUNTS,
    "trained",
    *("advantage", "reward", "success", "progress", "s_behaviour", "s_proximal", "s_reference"),
    *("update_size", "square", "post_tool_square", "staleness"),
)
_AT = {name: i for i, name in enumerate(NUMBERS)}

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrajectoryTable:
    """B trajectories, sorted by id.  texts: a tuple of B for each of `TEXTS`.  numbers: [len(NUMBERS), B], NaN for
    None.

    `TrajectoryTable(texts={"id": ("a",), ...}, numbers=np.zeros((len(NUMBERS), 1)))`
    """

    texts: dict[str, tuple[str, ...]]
    numbers: Floats
    _codes: dict[str, tuple[dict[str, int], Ints]] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.texts["id"])

    def column(self, name: str) -> Floats:
        """One of `NUMBERS`, [B]."""
        found: Floats = self.numbers[_AT[name]]
        return found

    def codes(self, name: str) -> tuple[dict[str, int], Ints]:
        """One of `TEXTS` as numbers: the code of each text, in the order in which they first come up, and [B] codes."""
        if name not in self._codes:
            texts = self.texts[name]
            code = {text: i for i, text in enumerate(dict.fromkeys(texts))}
            self._codes[name] = code, np.array([code[text] for text in texts], dtype=np.int64)
        return self._codes[name]

    def having(self, name: str, text: str) -> npt.NDArray[np.bool_]:
        """[B], which rows have `text` in the column `name` of `TEXTS`."""
        code, codes = self.codes(name)
        return np.equal(codes, code.get(text, -1))

    @classmethod
    def merged(cls, parts: Sequence[TrajectoryTable]) -> TrajectoryTable:
        """All rows of all parts in the order of ids; raises ValueError where two parts hold the same trajectory."""
        texts = {name: tuple(v for part in parts for v in part.texts[name]) for name in TEXTS}
        ids = texts["id"]
        if len(set(ids)) != len(ids):
            twice = next(name for i, name in enumerate(ids) if name in ids[:i])
            raise ValueError(f"trajectory {twice!r} stands in the sums twice; give every trajectory to one shard alone")
        order = sorted(range(len(ids)), key=ids.__getitem__)
        return cls(
            texts={name: tuple(column[i] for i in order) for name, column in texts.items()},
            numbers=np.concatenate([part.numbers for part in parts], axis=1)[:, order],
        )

    def rows(self) -> tuple[TrajectoryFigures, ...]:
        """As values."""
        return tuple(self._row(i, numbers) for i, numbers in enumerate(self.numbers.T.tolist()))

    def _row(self, i: int, numbers: list[float]) -> TrajectoryFigures:
        known: dict[str, Any] = {name: self.texts[name][i] for name in TEXTS}
        for name, number in zip(NUMBERS, numbers, strict=True):
            if name in COUNTS:
                known[name] = int(number)
            elif name == "trained":
                known[name] = bool(number)
            else:
                known[name] = None if number != number else number
        return TrajectoryFigures(**known)
