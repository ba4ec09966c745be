"""A switch with two thresholds: on below one, off above a higher one that must hold for a while.

With one threshold a signal that wanders around it turns a knob on and off at every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Hysteresis:
    """On once the value is under `enter`, off after `hold_steps` values in a row of at least `leave`.

    enter < leave, in the unit of the value; a value of None (not measured) changes nothing, not even the count.
    Raises ValueError where the thresholds are the wrong way round.

    >>> switch = Hysteresis(enter=0.5, leave=0.8, hold_steps=2)
    >>> [switch.update(value) for value in (0.9, 0.4, 0.7, 0.9, 0.9)]
    [False, True, True, True, False]
    """

    def __init__(self, *, enter: float, leave: float, hold_steps: int) -> None:
        if not enter < leave:
            raise ValueError(f"enter must be below leave, got {enter} and {leave}; else the switch flutters")
        if hold_steps < 1:
            raise ValueError(f"hold_steps is at least 1, got {hold_steps}")
        self._enter, self._leave, self._hold_steps = enter, leave, hold_steps
        self._streak = 0
        self.on = False

    def update(self, value: float | None) -> bool:
        """Take one value; whether the switch is on now."""
        if value is None:
            return self.on
        self._streak = self._streak + 1 if value >= self._leave else 0
        if value < self._enter:
            self.on = True
        elif self._streak >= self._hold_steps:
            self.on = False
        return self.on

    def restart(self) -> None:
        """Off, as at the start."""
        self.on, self._streak = False, 0

    def state(self) -> dict[str, Any]:
        """Everything needed to go on exactly, JSON-able."""
        return {"on": self.on, "streak": self._streak}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.on = bool(state["on"])
        self._streak = int(state["streak"])
