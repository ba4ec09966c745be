"""One step's tokens as sums of a fixed size, which add up over shards.

The keys depend on `SliceNames` alone: a slice that is absent in one shard has zeros there, so that shards never
disagree on what they add.  Counts are integers and add up exactly; other sums add up to rounding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from burnish.core.streams import TokenColumns, TokenStream
from burnish.health.columns import SIGNS
from burnish.health.figures import TrajectoryFigures
from burnish.health.reduction import MOMENTS, RATIOS, RAW, Reduced, reduce_columns
from burnish.health.slices import SliceNames
from burnish.health.table import NUMBERS, TEXTS, TrajectoryTable
from burnish.stats.histogram import CODES

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HealthSums(Reduced):
    """The sums of a step under the slices `names`; those of several shards add up.

    Example: `HealthSums.of([], SliceNames())` holds zeros and no rows.
    """

    names: SliceNames

    @classmethod
    def of(cls, given: TokenColumns | Sequence[TokenStream], names: SliceNames) -> HealthSums:
        """The sums of some trajectories of one step; no trajectories give zeros under the same keys.

        Raises ValueError where two streams have the same id.
        """
        reduced = reduce_columns(given if isinstance(given, TokenColumns) else TokenColumns.of(given), names)
        return cls(names=names, **{name: getattr(reduced, name) for name in Reduced.__slots__})

    @classmethod
    def merge(cls, parts: Sequence[HealthSums]) -> HealthSums:
        """The sums of all parts (at least one, all of equal `names`), whatever their order."""
        if not parts or any(part.names != parts[0].names for part in parts):
            raise ValueError(f"merge needs at least one part and equal slice names, got {[p.names for p in parts]}")
        if len(parts) == 1:
            return parts[0]
        return cls(
            names=parts[0].names,
            histograms=reduce(np.add, [part.histograms for part in parts]),
            moments=np.sum([part.moments for part in parts], axis=0),
            largest=np.max([part.largest for part in parts], axis=0),
            tokens=np.sum([part.tokens for part in parts], axis=0),
            entropy=np.sum([part.entropy for part in parts], axis=0),
            nonfinite=np.sum([part.nonfinite for part in parts], axis=0),
            table=TrajectoryTable.merged([part.table for part in parts]),
        )

    def to_bytes(self) -> bytes:
        """For another process: the length of a JSON header, the header, and the arrays, little-endian."""
        header = json.dumps({"names": self.names.to_dict(), "texts": self.table.texts}).encode()
        arrays = [
            getattr(self, name).astype(kind, copy=False) for name, kind, _ in _layout(self.names, len(self.table))
        ]
        return b"".join([len(header).to_bytes(8, "little"), header, *(array.tobytes() for array in arrays)])

    @classmethod
    def from_bytes(cls, data: bytes) -> HealthSums:
        """Back from `to_bytes`; raises ValueError for anything else."""
        at = 8 + int.from_bytes(data[:8], "little")
        if not 8 < at <= len(data):
            raise ValueError(f"{len(data)} bytes that start with {data[:8]!r} are no health sums")
        header = json.loads(data[8:at])
        names = SliceNames.from_dict(header["names"])
        texts = {name: tuple(header["texts"][name]) for name in TEXTS}
        found: dict[str, Any] = {}
        for name, kind, shape in _layout(names, len(texts["id"])):
            count = int(np.prod(shape, dtype=np.int64))
            if at + count * 8 > len(data):
                raise ValueError(f"health sums are cut off: {len(data)} bytes end within {name}")
            found[name] = np.frombuffer(data, dtype=kind, count=count, offset=at).reshape(shape)
            at += count * 8
        if at != len(data):
            raise ValueError(f"health sums end at byte {at}, but {len(data)} bytes were given")
        table = TrajectoryTable(texts=texts, numbers=found.pop("numbers"))
        return cls(names=names, table=table, **found)

    @property
    def numbers(self) -> Floats:
        """The numbers of the table, [len(NUMBERS), B]."""
        return self.table.numbers

    @property
    def trajectories(self) -> tuple[TrajectoryFigures, ...]:
        """One row for each trajectory, sorted by id."""
        return self.table.rows()


def _layout(names: SliceNames, rows: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape of each array, in the order of the bytes."""
    cells = (len(RATIOS), len(names.names), SIGNS)
    return [
        ("histograms", "<i8", (*cells, CODES)),
        ("moments", "<f8", (*cells, len(MOMENTS))),
        ("largest", "<f8", cells),
        ("tokens", "<i8", (cells[1], 2)),
        ("entropy", "<f8", (cells[1], 2)),
        ("nonfinite", "<i8", (len(RAW),)),
        ("numbers", "<f8", (len(NUMBERS), rows)),
    ]
