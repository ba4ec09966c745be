"""What isolation costs: each rung of the sandbox ladder against a plain `python -I` in the same run.

    python benchmarks/sandbox.py [--quick] [--seeds N] [--data DIR] [--interpreter PATH]

The command prints 42. Bars, for every rung that holds on this machine: cold start (a fresh sandbox and a fresh
interpreter) at most 3x plain; a run of a warm Python at most 0.5x; throughput of four workers, each with cold starts,
at least 0.4x. The two sides alternate; a figure is the median over rounds of the ratio within a round, with its
quartiles. --seeds is the number of blocks of rounds, 3 by default. Also printed: how far each watched limit was
overshot.

Both sides run the same interpreter: this one's, or --interpreter; the leaner its start, the higher the ratios. No data
is needed; --data is accepted and unused. Takes about a minute on 4 quiet cores, --quick ten seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from burnish.core.sandbox import KilledFor, Sandbox, SandboxLimits, World
from burnish.sandbox.ladder import LADDER, SandboxSpec, plan_for, probe
from burnish.sandbox.local import LocalSandbox, Spawner
from burnish.sandbox.warm import WarmServers

COLD_BAR, WARM_BAR, THROUGHPUT_BAR = 3.0, 0.5, 0.4
COMMAND = ("python", "-I", "-c", "print(6*7)")
WORKERS = 4
MIB = 2**20
OVERSHOOT_LIMITS = SandboxLimits(wall_s=0.5, memory_bytes=128 * MIB, disk_bytes=8 * MIB)
MEMORY_BOMB = "import os, time\nos.fork(); os.fork()\nx = b'x' * (60 * 2**20)\ntime.sleep(0.4)"
DISK_BOMB = "for n in range(100):\n with open(f'f{n}', 'wb') as f: f.write(b'x' * 2**20)"
LOOP = "while True: pass"
console = Console(width=80)


async def plain(interpreter: str) -> None:
    """The side that everything is measured against: fresh interpreter, no isolation, no limits."""
    pipe, nowhere = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(interpreter, *COMMAND[1:], stdin=nowhere, stdout=pipe, stderr=pipe)
    out, _ = await process.communicate()
    assert out == b"42\n", out


async def caged(sandbox: Sandbox) -> None:
    """One run that has to give the right answer."""
    result = await sandbox.run(COMMAND)
    assert result.stdout == b"42\n", result


async def timed(action: Callable[[], Awaitable[None]]) -> float:
    """Seconds that it took."""
    begin_s = time.perf_counter()
    await action()
    return time.perf_counter() - begin_s


async def crowd(action: Callable[[], Awaitable[None]], runs: int) -> float:
    """Runs per second of four workers."""

    async def work() -> None:
        for _ in range(runs):
            await action()

    seconds = await timed(lambda: _all(work() for _ in range(WORKERS)))
    return WORKERS * runs / seconds


async def _all(work: Any) -> None:
    await asyncio.gather(*work)


def spread(values: Sequence[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 4:
        return [min(values), statistics.median(values), max(values)]
    low, middle, high = statistics.quantiles(values, n=4)
    return [low, middle, high]


async def measure(sandbox: LocalSandbox, *, rounds: int, runs: int, blocks: int) -> dict[str, Any]:
    """Every figure of one rung."""
    interpreter = sandbox.plan.interpreter
    servers = WarmServers(sandbox, imports=("json",))
    begin_s = time.perf_counter()
    warm = await servers.get("benchmark", World.AGENT)
    open_s = time.perf_counter() - begin_s
    plain_s: list[float] = []
    cold: list[float] = []
    warmed: list[float] = []
    rates: list[float] = []
    cold_s: list[float] = []
    warm_s: list[float] = []
    for _ in range(blocks):
        for _ in range(rounds):
            # Both orders within a round, so that neither side always runs first.
            base_s = await timed(lambda: plain(interpreter))
            one_s = await timed(lambda: caged(sandbox))
            fork_s = await timed(lambda: caged(warm))
            other_s = await timed(lambda: caged(sandbox))
            again_s = await timed(lambda: plain(interpreter))
            plain_s.append((base_s + again_s) / 2)
            cold_s.append((one_s + other_s) / 2)
            warm_s.append(fork_s)
            cold.append((one_s + other_s) / (base_s + again_s))
            warmed.append(2 * fork_s / (base_s + again_s))
        free = await crowd(lambda: plain(interpreter), runs)
        rates.append(await crowd(lambda: caged(sandbox), runs) / free)
    await servers.close()
    return {
        "plain_ms": 1e3 * statistics.median(plain_s),
        "cold_ms": 1e3 * statistics.median(cold_s),
        "warm_ms": 1e3 * statistics.median(warm_s),
        "open_warm_ms": 1e3 * open_s,
        "cold": spread(cold),
        "warm": spread(warmed),
        "throughput": spread(rates),
        "overshoot": await overshoots(sandbox),
    }


async def overshoots(sandbox: LocalSandbox) -> dict[str, float]:
    """How far beyond its limit each watched figure was when the command was ended; absent where the kernel keeps it."""
    found: dict[str, float] = {}
    for program, expected in ((LOOP, KilledFor.WALL), (MEMORY_BOMB, KilledFor.MEMORY), (DISK_BOMB, KilledFor.DISK)):
        result = await sandbox.run(["python", "-I", "-c", program], limits=OVERSHOOT_LIMITS)
        if result.killed_for is expected:
            found |= result.overshoot
    return found


def holds(figures: dict[str, Any]) -> bool:
    """Whether one rung is within every bar."""
    cold, warm, throughput = (figures[name][1] for name in ("cold", "warm", "throughput"))
    return bool(cold <= COLD_BAR and warm <= WARM_BAR and throughput >= THROUGHPUT_BAR)


def show(rungs: dict[str, dict[str, Any]]) -> None:
    """The tables."""
    table = Table(title="against plain python -I: median, quartiles", box=None, pad_edge=False)
    for name in ("rung", "cold start, at most 3", "warm, at most 0.5", "4 workers, at least 0.4"):
        table.add_column(name, no_wrap=True)
    for rung, row in rungs.items():
        cells = [f"{row[key][1]:.2f} {row[key][0]:.2f}-{row[key][2]:.2f}" for key in ("cold", "warm", "throughput")]
        table.add_row(rung, *cells)
    console.print(table)
    beyond = Table(title="median ms; overshoot of watched limits", box=None, pad_edge=False)
    for name in ("rung", "plain", "cold", "warm", "wall s", "MiB of 128", "disk MiB of 8"):
        beyond.add_column(name, no_wrap=True)
    for rung, row in rungs.items():
        over = row["overshoot"]
        times = [f"{row[f'{key}_ms']:.1f}" for key in ("plain", "cold", "warm")]
        disk = f"{over['disk_bytes'] / MIB:.1f}" if "disk_bytes" in over else "kernel keeps it"
        beyond.add_row(rung, *times, f"{over.get('wall_s', 0):.3f}", f"{over.get('memory_bytes', 0) / MIB:.1f}", disk)
    console.print(beyond)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every rung that holds here, one after the other."""
    spawner, spec = Spawner(), SandboxSpec(interpreter=options.interpreter)
    size = (
        {"rounds": 5, "runs": 4, "blocks": 1} if options.quick else {"rounds": 15, "runs": 12, "blocks": options.seeds}
    )
    rungs: dict[str, dict[str, Any]] = {}
    absent: dict[str, str] = {}
    for rung in LADDER:
        tried = await probe(rung, spec, spawner)
        if tried.holds:
            rungs[str(rung)] = await measure(LocalSandbox(plan_for(rung, spec), spawner), **size)
        else:
            absent[str(rung)] = tried.problem
            console.print(f"{rung} does not hold here: {tried.problem}")
    spawner.close()
    show(rungs)
    return {"rungs": rungs, "absent": absent, "cores": os.cpu_count(), **size}


def main() -> int:
    """Run, print, and say by the exit status whether the bars hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--interpreter", default="")
    options = parser.parse_args()
    figures = asyncio.run(run(options))
    verdict = None if options.quick or not figures["rungs"] else all(holds(row) for row in figures["rungs"].values())
    figures["holds"] = verdict
    print(json.dumps(figures))
    return 1 if verdict is False else 0


if __name__ == "__main__":
    sys.exit(main())
