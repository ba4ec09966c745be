"""CPU time of health: what watching a step costs.

    python benchmarks/health_cost.py [--quick] [--seeds N] [--data DIR]

Three parts, all in CPU time, on one thread.

"long": 256 trajectories of 4,096 tokens (1.05 M), with one, two and three ratios: columns to sums, milliseconds for a
million tokens and ratio, beside exact quantiles of three slices of the same log-ratios, which do not add up over
shards; the two alternate.

"small": a step of the demo's size, 256 trajectories of 10 to 60 tokens in 2 shards, half of them trained on: from
trajectories to columns in each shard, columns through a pipe, their reduction in the conductor, and the watch; medians
over rounds.  It shows where time goes, in a loop that does nothing else.

"run": the demo itself, 200 steps of RL after its warm start (quick: 3 after a short one), in one process, with two
workers, and with one for each core: what every run logs as `time/health_s` and `time/health_streaming_s` over the
processor time of the step in all its processes, and over its wall time; and the gradient of one batch with and without
squared score norms, which alternate: they are computed every `health.softmax_every` steps.  Cross-scoring is not done
in training.

Streaming is everything up to the sums; together adds scalars, monitors and a step's part of the squared score norms.
Bar: streaming at most 50 ms per million tokens and ratio on "long"; in each of the runs streaming at most 1% and
together at most 2% of a step's processor time, medians of 200.  Shares of the wall time add up what
processes do side by side, and grow with the workers: reported, with no bar.  Takes ten minutes on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from burnish.algorithms.grpo import GrpoLoss
from burnish.core.message import Message, ToolCall
from burnish.core.outcome import COMPLETED
from burnish.core.streams import ActionSpan, TokenColumns, TokenStream
from burnish.core.trajectory import Node, Trajectory
from burnish.health.slices import SliceNames
from burnish.health.sums import HealthSums
from burnish.health.watch import Watch, WatchSpec
from burnish.loop.conductor import start_run
from burnish.loop.progress import Progress
from burnish.loop.recipes import load_recipe
from burnish.loop.setup import available_cores
from burnish.loop.standalone import stored_policy
from burnish.rollout.samples import training_samples
from burnish.rollout.streams import ControlTokens, Judgement, LearnerStreams, token_columns
from burnish.store.reader import RunReader
from burnish.training.learner import Learner
from burnish.training.token_record import TokenRecord

LONG_BAR_MS, STREAMING_BAR, TOGETHER_BAR = 50.0, 1.0, 2.0
"""Milliseconds, and percent."""
SHARDS = 2
NAMES = SliceNames(tools=("search", "lookup"), sources=("shop", "forms"))
RUN = ("rl.steps=200", "evaluation.every=1000", "evaluation.tasks=20", "evaluation.quick_tasks=20")
RUN_QUICK = (*RUN, "rl.steps=3", "warm_start.steps=60", "warm_start.traces=600")
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
            1: TokenColumns.of([replace(stream, proximal=None, reference=None) for stream in whole]),
            2: TokenColumns.of([replace(stream, proximal=None) for stream in whole]),
            3: TokenColumns.of(whole),
        }
        for _ in range(rounds):
            for ratios, columns in sides.items():
                spent = cpu_ms(lambda columns=columns: HealthSums.of(columns, NAMES))  # type: ignore[misc]
                seen.setdefault(f"sums, {ratios} ratios", []).append(spent / millions / ratios)
            spent = cpu_ms(lambda streams=whole: exact_quantiles(streams))  # type: ignore[misc]
            seen.setdefault("exact quantiles", []).append(spent / millions)
    return {name: spread(values) for name, values in seen.items()}


def episodes(n: int, seed: int) -> list[Trajectory]:
    """n trajectories of 1 to 4 turns of 8 to 15 tokens, with a tool result between them."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        nodes = [node(-1, Message.user("?"), rng)]
        for turn in range(int(rng.integers(1, 5))):
            call = ToolCall(id=f"call_{turn}", name=NAMES.tools[turn % 2], arguments={})
            if turn:
                nodes.append(node(len(nodes) - 1, Message.tool("3", call=call, is_error=turn == 3), rng))
            nodes.append(node(len(nodes) - 1, Message.assistant("", (call,)), rng, is_action=True))
        key = f"rl/000001/{i // 8:04d}/{i % 8:02d}"
        found.append(
            Trajectory(
                id=key,
                task_id="t",
                task_hash="h",
                group_id=key.rpartition("/")[0],
                sample_index=i % 8,
                seed=i,
                nodes=tuple(nodes),
                outcome=COMPLETED,
                counters={"tool_calls": len(nodes) // 2 - 1},
                tags={"source": NAMES.sources[i % 2]},
            )
        )
    return found


def node(parent: int, message: Message, rng: np.random.Generator, *, is_action: bool = False) -> Node:
    tokens = int(rng.integers(8, 16))
    return Node(
        parent=parent,
        messages=(message,),
        token_ids=array("i", rng.integers(0, 90, tokens).tolist()),
        action_mask=array("b", [int(is_action)] * tokens),
        logprobs=floats(-rng.exponential(0.5, tokens)),
        versions=array("i", [4] * tokens),
        is_action=is_action,
    )


def shard_columns(trajectories: list[Trajectory], rng: np.random.Generator) -> Callable[[], TokenColumns]:
    """What one shard does in a step: columns of what is not trained on, and of what is."""
    half, control = len(trajectories) // 2, ControlTokens([3, 4, 5])
    tokens = sum(trajectory.action_tokens for trajectory in trajectories[half:])
    behaviour = np.concatenate([np.array(n.logprobs) for t in trajectories[half:] for n in t.nodes if n.is_action])
    learner = LearnerStreams(
        logprobs=(behaviour + rng.normal(0, 0.05, tokens)).astype(np.float32),
        entropy=rng.exponential(0.5, tokens).astype(np.float32),
    )
    judged = [Judgement(reward=float(rng.random() < 0.5), success=0.0, progress=0.5) for _ in trajectories]
    trained = [replace(judgement, advantage=float(rng.normal())) for judgement in judged[half:]]

    judged[half:] = trained

    def work() -> TokenColumns:
        return token_columns(trajectories, judged, step=1, version=4, control=control, learner=learner, untrained=half)

    return work


def small_costs(rounds: int, seeds: int) -> dict[str, dict[str, float]]:
    """CPU milliseconds of each part of a step, after the warm-up of the watch."""
    seen: dict[str, list[float]] = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        watch = Watch(WatchSpec(names=NAMES, baseline_steps=10))
        steps = [episodes(256, 100 * seed + k) for k in range(8)]
        shards = [[shard_columns(step[i::SHARDS], rng) for i in range(SHARDS)] for step in steps]
        for step in range(rounds + 12):
            made_s: list[TokenColumns] = []
            spent = {"columns": cpu_ms(lambda: made_s.extend(work() for work in shards[step % 8]))}  # noqa: B023
            spent["pipes"] = cpu_ms(lambda: [pickle.loads(pickle.dumps(columns)) for columns in made_s])  # noqa: B023
            sums: list[HealthSums] = []
            spent["sums"] = cpu_ms(lambda: sums.append(HealthSums.of(TokenColumns.joined(made_s), NAMES)))  # noqa: B023
            spent["streaming"] = sum(spent.values())
            spent["watch"] = cpu_ms(lambda: watch.step(step, sums[0]))  # noqa: B023
            if step >= 12:
                for name, value in spent.items():
                    seen.setdefault(name, []).append(value)
    return {name: spread(values) for name, values in seen.items()}


class Processors:
    """A watcher of a run: processor seconds of its processes in each RL step."""

    def __init__(self) -> None:
        self.step_s: dict[int, float] = {}
        self._spent_s: float | None = None
        self._processes: list[psutil.Process] = []

    def __call__(self, progress: Progress) -> None:
        if progress.phase != "rl" or not progress.step:
            return
        before_s, self._spent_s = self._spent_s, self._spent()
        if before_s is not None:
            self.step_s[progress.step] = self._spent_s - before_s

    def _spent(self) -> float:
        """Of this process and of those that it has started, which live as long as the run."""
        if not self._processes:
            own = psutil.Process()
            self._processes = [own, *own.children(recursive=True)]
        times = [process.cpu_times() for process in self._processes]
        return sum(one.user + one.system for one in times)


def run_costs(data: Path, *, workers: int, quick: bool) -> dict[str, dict[str, float]]:
    """The demo: milliseconds of a step and of health in it, its share, and what squared score norms add to a step."""
    folder = data / f"run-{workers}{'-quick' if quick else ''}"
    kept = folder / "processors.json"
    if not kept.exists():
        shutil.rmtree(folder, ignore_errors=True)
        processors = Processors()
        changes = (*(RUN_QUICK if quick else RUN), f"run.workers={workers}")
        start_run(load_recipe("demo", changes), folder, watch=processors)
        kept.write_text(json.dumps(processors.step_s), encoding="utf-8")
    cpu_s = {int(step): value for step, value in json.loads(kept.read_text(encoding="utf-8")).items()}
    scalars = RunReader(folder).all_scalars("rl")
    wall_s, health_s, streaming_s = (
        np.array([value for step, value in scalars[name] if step in cpu_s])
        for name in ("time/step_s", "time/health_s", "time/health_streaming_s")
    )
    spent_s = np.array([cpu_s[step] for step, _ in scalars["time/step_s"] if step in cpu_s])
    norms_ms, every = score_norm_ms(folder, 3 if quick else 15), load_recipe("demo").health.softmax_every
    together_s = health_s + spread(norms_ms)["median"] / 1e3 / every
    return {
        "step, wall ms": spread(1e3 * wall_s),
        "step, CPU ms": spread(1e3 * spent_s),
        "streaming, CPU ms": spread(1e3 * streaming_s),
        "health_s, CPU ms": spread(1e3 * health_s),
        f"score norms, CPU ms, every {every} steps": spread(norms_ms),
        "streaming, % of CPU": spread(100 * streaming_s / spent_s),
        "together, % of CPU": spread(100 * together_s / spent_s),
        "streaming, % of wall": spread(100 * streaming_s / wall_s),
        "together, % of wall": spread(100 * together_s / wall_s),
    }


def score_norm_ms(folder: Path, rounds: int) -> list[float]:
    """CPU milliseconds that squared score norms add to the gradient of the newest batch, pairs that alternate."""
    recipe, policy, _ = stored_policy(folder)
    reader = RunReader(folder)
    rows = reader.trajectories("rl", max(info.step for info in reader.steps("rl")))
    samples = [sample for row in rows if row.reward is not None for sample in training_samples(row.trajectory, 1.0)]
    learner = Learner(policy.model, GrpoLoss(), temperature=recipe.rl.temperature, pad_id=policy.pad_id)

    def spent(score_norm: bool) -> float:
        return cpu_ms(lambda: learner.accumulate(samples, 1.0, record=TokenRecord(score_norm=score_norm)))

    spent(False)
    return [spent(True) - spent(False) for _ in range(rounds)]


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    return {"median": float(np.median(values)), "low": float(min(values)), "high": float(max(values))}


def shown(title: str, rows: dict[str, dict[str, float]], digits: int = 2) -> None:
    table = Table(title=title, title_justify="left", width=78)
    table.add_column("")
    for name in ("median", "low", "high"):
        table.add_column(name, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[key]:.{digits}f}" for key in ("median", "low", "high")))
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="smaller shapes, no verdict")
    parser.add_argument("--seeds", type=int, default=None, help="default 3, quick 1")
    parser.add_argument("--data", type=Path, default=None, help="where the run and the figures are kept")
    asked = parser.parse_args()
    seeds = asked.seeds or (1 if asked.quick else 3)
    long = long_costs(3 if asked.quick else 15, seeds, 64 if asked.quick else 256)
    small = small_costs(20 if asked.quick else 200, seeds)
    data = asked.data or Path("runs/health_cost")
    runs = {n: run_costs(data, workers=n, quick=asked.quick) for n in sorted({1, 2, available_cores()})}
    shown("long: CPU ms per million tokens (sums: and per ratio)", long)
    shown(f"small: CPU ms per step of 256 trajectories, {SHARDS} shards", small)
    for workers, run in runs.items():
        shown(f"run: the demo, {workers} worker{'s' * (workers > 1)}", run)
    worst_ms = max(row["median"] for name, row in long.items() if name.startswith("sums"))
    streaming, together = (
        {workers: run[f"{name}, % of CPU"]["median"] for workers, run in runs.items()}
        for name in ("streaming", "together")
    )
    console.print(
        f"sums {worst_ms:.1f} ms per million tokens and ratio (bar {LONG_BAR_MS:.0f})\n"
        "of a step's processor time, at most:\n"
        f"  streaming {max(streaming.values()):.2f}% (bar {STREAMING_BAR:g}%)\n"
        f"  together {max(together.values()):.2f}% (bar {TOGETHER_BAR:g}%)\n"
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    met = (
        worst_ms <= LONG_BAR_MS and max(streaming.values()) <= STREAMING_BAR and max(together.values()) <= TOGETHER_BAR
    )
    holds = None if asked.quick else met
    figures = {
        "long_ms": long,
        "small_ms": small,
        "run": runs,
        "worst_ms_per_million": worst_ms,
        "streaming_percent": streaming,
        "together_percent": together,
        "load": os.getloadavg()[0],
        "holds": holds,
    }
    if asked.data is not None:
        asked.data.mkdir(parents=True, exist_ok=True)
        (asked.data / "health_cost.json").write_text(json.dumps(figures), encoding="utf-8")
    print(json.dumps(figures))
    return 0 if holds is not False else 1


if __name__ == "__main__":
    sys.exit(main())
