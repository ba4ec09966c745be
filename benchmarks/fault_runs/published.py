"""The rules of the Post-Training Toolkit as it publishes them, on what they can read of such a run: shown, not ranked.

Source: microsoft/post-training-toolkit, `models/heuristics.py` and `heuristics/builtin/{common,grpo}`, state of January
2026; severity "high" alone, which is what stops a run.  Each rule looks at the whole history so far, after every step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fault_runs.cache import Replay
from fault_runs.detectors import Alarm

Columns = dict[str, NDArray[np.float64]]
Rule = Callable[[Columns], bool]


def _kl_cap(c: Columns) -> bool:
    return len(c["kl"]) >= 30 and bool(c["kl"][-1] > 0.3)


def _entropy_floor(c: Columns) -> bool:
    return len(c["entropy"]) > 30 and bool(c["entropy"][-30:].mean() < 1.0)


def _ratio_low(c: Columns) -> bool:
    return bool(c["ratio_mean"][-1] < 0.5)


def _group_collapse(c: Columns) -> bool:
    return len(c["group_std"]) >= 40 and bool(c["group_std"][-20:].mean() < 0.01)


def _reward_spread(c: Columns) -> bool:
    values = c["reward_std"]
    return len(values) >= 50 and bool(values[-1] > 2.5 * values[-20:].mean())


def _hotspot(c: Columns) -> bool:
    if len(c["kl"]) < 16:
        return False
    combined = sum(
        ((values - values.mean()) / (values.std(ddof=1) + 1e-8)) ** 2 for values in (c["reward_mean"], c["kl"])
    )
    kernel = np.ones(min(30, len(c["kl"])))
    return bool((np.convolve(combined, kernel / len(kernel), mode="valid")).max() >= 2.0)


def _hacking(c: Columns) -> bool:
    if len(c["kl"]) < 50:
        return False
    steps = np.arange(50)
    reward, kl = (stats.linregress(steps, c[key][-50:]).slope for key in ("reward_mean", "kl"))
    return bool(reward > 0 and kl > 0.005 and kl / (reward + 1e-8) > 3.0)


RULES: dict[str, Rule] = {
    "kl above .3": _kl_cap,
    "entropy below 1 nat": _entropy_floor,
    "importance ratio below .5": _ratio_low,
    "group reward collapse": _group_collapse,
    "reward variance spike": _reward_spread,
    "instability hotspot": _hotspot,
    "reward hacking": _hacking,
}


def published_alarms(replay: Replay) -> list[Alarm]:
    """One alarm whenever a rule begins to hold."""
    keys = ("kl", "entropy", "ratio_mean", "group_std", "reward_std", "reward_mean")
    columns = {key: np.array([item.plain[key] for item in replay.steps]) for key in keys}
    found = []
    for name, rule in RULES.items():
        held = False
        for place, item in enumerate(replay.steps):
            holds = rule({key: values[: place + 1] for key, values in columns.items()})
            if holds and not held:
                found.append(Alarm(step=item.step, about=name))
            held = holds
    return sorted(found, key=lambda alarm: alarm.step)
