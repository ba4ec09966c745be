"""CPU time of the streaming part of health: what watching a step costs.

    python benchmarks/health_cost.py [--quick] [--seeds N] [--data DIR]

Two shapes.  "long": 256 trajectories of 4,096 tokens (1.05 M), with one, two and three ratios: sums alone, CPU
milliseconds for a million tokens and ratio, beside exact quantiles of three slices of the same log-ratios, which do
not add up over shards; the two alternate.  "small": 256 trajectories of 10 to 60 tokens, the size of the demo's
steps: everything that a step needs (sums in 2 shards, bytes, merge, watch), against a step of 0.25 s.  Medians over
rounds, on one thread.

Bar: at most 50 ms per million tokens and ratio on "long", and at most 1% of 0.25 s on "small".  Takes two minutes;
the real share of a run's step time is logged by every run as `time/health_s`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from rich.console import Console
from rich.table import Table

from burnish.core.streams import ActionSpan, TokenStream
from burnish.health.slices import SliceNames
from burnish.health.sums import HealthSums
from burnish.health.watch import Watch, WatchSpec

LONG_BAR_MS, SMALL_BAR, STEP_S = 50.0, 0.01, 0.25
NAMES = SliceNames(tools=("search", "lookup"), sources=("shop", "forms"))
RATIOS = ("behaviour", "proximal", "reference")
console = Console(width=80)


def floats(values: np.ndarray) -> array[float]:
    return array("f", values.astype(np.float32).tobytes())


def made(n: int, turns: tuple[int, int], tokens: tuple[int, int], seed: int, *, ratios: int = 3) -> list[TokenStream]:
    """n trajectories of so many turns of so many tokens; log-ratios are normal, sd 0.05."""
    rng = np.random.default_rng(seed)
    streams = []
    for i in range(n):
        spans, at = [], 0
        for turn in range(int(rng.integers(*turns))):
            end = at + int(rng.integers(*tokens))
            tool = NAMES.tools[turn % 2] if turn else ""
            spans.append(ActionSpan(start=at, end=end, turn=turn, tool=tool, after_tool=turn > 0))
            at = end
        behaviour = -rng.exponential(0.5, at)
        learner = behaviour + rng.normal(0, 0.05, at)
        control = np.zeros(at, dtype=np.int8)
        control[[span.start for span in spans] + [span.end - 1 for span in spans]] = 1
        others = [floats(learner + rng.normal(0, 0.05, at)) if ratios > k else None for k in (1, 2)]
        streams.append(
            TokenStream(
                id=f"{i // 8:04d}/{i % 8}",
                group_id=f"{i // 8:04d}",
                step=1,
                behaviour=floats(behaviour),
                learner=floats(learner),
                proximal=others[0],
                reference=others[1],
                spans=tuple(spans),
                control=array("b", control.tobytes()),
                staleness=array("i", [int(i % 3)]) * at,
                advantage=float(rng.normal()),
                reward=float(rng.random() < 0.5),
                success=float(rng.random() < 0.5),
                progress=float(rng.random()),
                source=NAMES.sources[i % 2],
                turns=len(spans),
                tool_calls=len(spans) - 1,
                outcome="completed",
            )
        )
    return streams


def exact_quantiles(streams: list[TokenStream]) -> list[float]:
    """p50, p95, p99 and p99.9 of |learner / behaviour| over all, text and post-tool tokens."""
    d = np.abs(
        np.concatenate(
            [np.frombuffer(s.learner or b"", np.float32) - np.frombuffer(s.behaviour, np.float32) for s in streams]
        )
    )
    spans = [span for s in streams for span in s.spans]
    after = np.repeat([span.after_tool for span in spans], [span.end - span.start for span in spans])
    return [float(q) for x in (d, d[~after], d[after]) for q in np.quantile(x, [0.5, 0.95, 0.99, 0.999])]


def cpu_ms(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return (time.process_time() - started) * 1e3


def long_costs(rounds: int, seeds: int, trajectories: int) -> dict[str, dict[str, float]]:
    """CPU milliseconds for a million tokens: sums by count of ratios (per ratio), and exact quantiles."""
    seen: dict[str, list[float]] = {}
    for seed in range(seeds):
        whole = made(trajectories, (8, 9), (500, 525), seed)
        millions = sum(stream.length for stream in whole) / 1e6
        sides = {
            1: [replace(stream, proximal=None, reference=None) for stream in whole],
            2: [replace(stream, proximal=None) for stream in whole],
            3: whole,
        }
        for _ in range(rounds):
            for ratios, streams in sides.items():
                spent = cpu_ms(lambda streams=streams: HealthSums.of(streams, NAMES))  # type: ignore[misc]
                seen.setdefault(f"sums, {ratios} ratios", []).append(spent / millions / ratios)
            spent = cpu_ms(lambda streams=whole: exact_quantiles(streams))  # type: ignore[misc]
            seen.setdefault("exact quantiles", []).append(spent / millions)
    return {name: spread(values) for name, values in seen.items()}


def small_costs(rounds: int, seeds: int) -> dict[str, dict[str, float]]:
    """CPU milliseconds of each part of a step, after the warm-up of the watch."""
    seen: dict[str, list[float]] = {}
    for seed in range(seeds):
        watch = Watch(WatchSpec(names=NAMES, baseline_steps=10))
        steps = [made(256, (1, 5), (8, 16), 100 * seed + k, ratios=1) for k in range(8)]
        for step in range(rounds + 12):
            streams = steps[step % len(steps)]
            parts: list[HealthSums] = []
            spent = {
                "sums": cpu_ms(lambda: parts.extend(HealthSums.of(s, NAMES) for s in (streams[:128], streams[128:])))  # noqa: B023
            }
            told = [part.to_bytes() for part in parts]
            spent["bytes and merge"] = cpu_ms(lambda: [p.to_bytes() for p in parts]) + cpu_ms(  # noqa: B023
                lambda: HealthSums.merge([HealthSums.from_bytes(data) for data in told])  # noqa: B023
            )
            merged = HealthSums.merge(parts)
            spent["watch"] = cpu_ms(lambda: watch.step(step, merged))  # noqa: B023
            spent["together"] = sum(spent.values())
            if step >= 12:
                for name, value in spent.items():
                    seen.setdefault(name, []).append(value)
    return {name: spread(values) for name, values in seen.items()}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def shown(title: str, rows: dict[str, dict[str, float]]) -> None:
    table = Table(title=title, title_justify="left", width=78)
    table.add_column("")
    for name in ("median", "low", "high"):
        table.add_column(name, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[key]:.2f}" for key in ("median", "low", "high")))
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="smaller shapes, no verdict")
    parser.add_argument("--seeds", type=int, default=None, help="default 3, quick 1")
    parser.add_argument("--data", type=Path, default=None, help="a folder that the figures are also written to")
    asked = parser.parse_args()
    seeds = asked.seeds or (1 if asked.quick else 3)
    long = long_costs(3 if asked.quick else 15, seeds, 64 if asked.quick else 256)
    small = small_costs(20 if asked.quick else 200, seeds)
    shown("long: CPU ms per million tokens (sums: and per ratio)", long)
    shown("small: CPU ms per step of 256 trajectories", small)
    worst_ms = max(row["median"] for name, row in long.items() if name.startswith("sums"))
    share = small["together"]["median"] / 1e3 / STEP_S
    console.print(
        f"sums {worst_ms:.1f} ms per million tokens and ratio (bar {LONG_BAR_MS:.0f})\n"
        f"step {share:.2%} of 0.25 s (bar {SMALL_BAR:.0%})"
    )
    holds = None if asked.quick else worst_ms <= LONG_BAR_MS and share <= SMALL_BAR
    figures = {
        "long_ms": long,
        "small_ms": small,
        "worst_ms_per_million": worst_ms,
        "share_of_step": share,
        "holds": holds,
    }
    if asked.data is not None:
        asked.data.mkdir(parents=True, exist_ok=True)
        (asked.data / "health_cost.json").write_text(json.dumps(figures), encoding="utf-8")
    print(json.dumps(figures))
    return 0 if holds is not False else 1


if __name__ == "__main__":
    sys.exit(main())
