"""Seeded token streams for tests of health: a made-up agent whose log-ratios have a chosen spread by slice."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import numpy as np

from burnish.core.streams import ActionSpan, TokenStream

Draw = Callable[[np.random.Generator, int, bool], np.ndarray]


def normal(scale: float, post_tool: float | None = None) -> Draw:
    """Normal log-ratios of one standard deviation, or another one after a tool."""
    return lambda rng, n, after: rng.normal(0, post_tool if after and post_tool is not None else scale, n)


def floats(values: np.ndarray) -> array[float]:
    return array("f", np.asarray(values, dtype=np.float32).tobytes())


def make_stream(rng: np.random.Generator, name: str, *, step: int = 1, draw: Draw | None = None) -> TokenStream:
    """One trajectory of 1 to 4 turns; turns after the first follow a tool, every third of them directly."""
    draw = draw or normal(0.05)
    spans: list[ActionSpan] = []
    ratios, at = [], 0
    for turn in range(int(rng.integers(1, 5))):
        n = int(rng.integers(3, 20))
        tool = ("search", "lookup", "unheard_of", "")[turn % 4] if turn else ""
        error = turn > 0 and bool(rng.random() < 0.2)
        spans.append(
            ActionSpan(
                start=at,
                end=at + n,
                turn=turn,
                tool=tool,
                after_tool=turn > 0,
                after_error=error,
                after_image=turn == 3,
            )
        )
        ratios.append(draw(rng, n, turn > 0))
        at += n
    behaviour = -rng.exponential(0.5, at)
    control = np.zeros(at, dtype=np.int8)
    control[[span.end - 1 for span in spans]] = 1
    success = float(rng.random() < 0.5)
    return TokenStream(
        id=name,
        group_id=name.rsplit("/", 1)[0],
        step=step,
        spans=tuple(spans),
        behaviour=floats(behaviour),
        learner=floats(behaviour + np.concatenate(ratios)),
        reference=floats(behaviour),
        entropy=floats(rng.exponential(0.5, at)),
        control=array("b", control.tobytes()),
        staleness=array("i", [int(rng.integers(0, 4))] * at),
        advantage=float(rng.normal()) if rng.random() < 0.9 else None,
        reward=success,
        success=success,
        progress=min(1.0, success + float(rng.random()) * 0.5),
        source=("shop", "forms", "unheard_of")[int(rng.integers(0, 3))],
        turns=len(spans),
        tool_calls=len(spans) - 1,
        outcome="completed",
    )


def make_step(seed: int, n: int = 64, *, step: int = 1, draw: Draw | None = None) -> list[TokenStream]:
    """One step's trajectories in groups of 8."""
    rng = np.random.default_rng(seed)
    return [make_stream(rng, f"rl/{step:06d}/{i // 8:04d}/{i % 8:02d}", step=step, draw=draw) for i in range(n)]
