"""What a scalar was like while the run was young and well, and what it has been lately."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

_MAD_TO_SD = 1.4826
"""Of a normal distribution, standard deviation over median absolute deviation."""

_SMALLEST_RELATIVE_SPREAD = 0.05
"""A scalar that hardly moved while young would else have a band that no later value fits into."""

_BAND_WIDTHS = 4.0


class Baselines:
    """The frozen early window of every scalar: median and robust spread of its first `steps` finite values.

    Frozen, because a sliding one follows a slow drift and never sees it.  A value that comes while a finding is open is
    left out by the caller.

    >>> baselines = Baselines(3)
    >>> for value in (1.0, 2.0, 3.0):
    ...     baselines.update({"x": value})
    >>> baselines.median("x"), baselines.within("x", 3.0), baselines.within("x", 30.0), baselines.within("y", 1.0)
    (2.0, True, False, None)
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._values: dict[str, list[float]] = {}
        self._bands: dict[str, tuple[float, float]] = {}

    def update(self, scalars: Mapping[str, float]) -> None:
        """Take the scalars of one step; a frozen one stays as it is."""
        for name, value in scalars.items():
            if name in self._bands or not math.isfinite(value):
                continue
            values = self._values.setdefault(name, [])
            values.append(float(value))
            if len(values) >= self._steps:
                self._bands[name] = _band(values)
                del self._values[name]

    def median(self, name: str) -> float | None:
        """Of the early window; None where it is not full."""
        band = self._bands.get(name)
        return None if band is None else band[0]

    def within(self, name: str, value: float | None) -> bool | None:
        """Whether a value lies within four spreads of the median; None where there is no baseline or no value."""
        band = self._bands.get(name)
        if band is None or value is None or not math.isfinite(value):
            return None
        return abs(value - band[0]) <= _BAND_WIDTHS * band[1]

    def state(self) -> dict[str, Any]:
        """Everything needed to go on exactly, JSON-able."""
        return {
            "values": {name: list(values) for name, values in self._values.items()},
            "bands": {name: list(band) for name, band in self._bands.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._values = {str(name): [float(value) for value in values] for name, values in state["values"].items()}
        self._bands = {str(name): (float(band[0]), float(band[1])) for name, band in state["bands"].items()}


class History:
    """The last `length` values of one scalar by step, to know what it was when a change began.

    >>> history = History(8)
    >>> for step, value in enumerate((1.0, 2.0, 3.0)):
    ...     history.add(step, value)
    >>> history.at(1), history.at(-1)
    (2.0, 3.0)
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._entries: list[tuple[int, float]] = []

    def add(self, step: int, value: float | None) -> None:
        """Take the value of a step; entries of this step and later ones are dropped, for they were rolled back."""
        self._entries = [entry for entry in self._entries if entry[0] < step]
        if value is not None and math.isfinite(value):
            self._entries = [*self._entries, (step, float(value))][-self._length :]

    def at(self, onset_step: int) -> float | None:
        """The value right at a step, or at the one before it; the oldest kept where that is gone, the newest where
        the onset is not known (-1); None where there is no value."""
        if not self._entries:
            return None
        if onset_step < 0:
            return self._entries[-1][1]
        earlier = [value for step, value in self._entries if step <= onset_step]
        return earlier[-1] if earlier else self._entries[0][1]

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return iter(self._entries)

    def state(self) -> list[list[float]]:
        """Everything needed to go on exactly, JSON-able."""
        return [[step, value] for step, value in self._entries]

    def load(self, state: list[list[float]]) -> None:
        """Go on from `state`."""
        self._entries = [(int(step), float(value)) for step, value in state]


def _band(values: list[float]) -> tuple[float, float]:
    middle = statistics.median(values)
    spread = _MAD_TO_SD * statistics.median([abs(value - middle) for value in values])
    return middle, max(spread, _SMALLEST_RELATIVE_SPREAD * abs(middle), 1e-12)
