"""Regrading: 10,000 stored trajectories judged again by rule and math graders, on two cores.

    python benchmarks/regrade.py [--quick] [--seeds N] [--data DIR]

Bar: `burnish regrade` takes under 60 s of wall time on two cores, start of the program, Parquet reads and math-verify's
import included, in every seed, with every verdict right; and its memory does not grow with the run: the peak for all
trajectories is at most 1.15 times that for a quarter of them.

A store of synthetic trajectories is written for each seed under --data (default: runs/regrade) and used again: groups
of 8 on tasks whose answers are fractions, surds, polynomials, sets and plain numbers in LaTeX; right answers are
written another way than the reference, wrong ones are near and four to a task.  Three seeds take about three minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from array import array
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.table import Table

from burnish.core.grade import Grade
from burnish.core.message import Message, ToolCall
from burnish.core.outcome import COMPLETED, Ending, Limit, Outcome
from burnish.core.task import Task
from burnish.core.trajectory import Node, Trajectory
from burnish.graders.rules import ExactGrader
from burnish.loop.config import Recipe
from burnish.loop.worlds import load_world
from burnish.store.reader import RunReader
from burnish.store.rows import Fate, StepRecord, StoredTrajectory
from burnish.store.writer import RunWriter

TRAJECTORIES, QUICK = 10_000, 1_000
GROUP, GROUPS_A_STEP = 8, 25
CORES = 2
BAR_S, BAR_MEMORY = 60.0, 1.15
GRADERS = """
[graders.exact]
use = "exact"
weight = 0.0

[graders.number]
use = "last_number"
weight = 0.0

[graders.math]
use = "math"
"""
console = Console(width=80)


def problem(rng: Random) -> tuple[str, str, str, list[str]]:
    """Question, reference, a right answer written another way, four different wrong ones."""
    a, b, c = rng.randint(2, 60), rng.randint(2, 60), rng.randint(2, 9)
    off = range(1, 5)
    kind = rng.choice(["fraction", "surd", "polynomial", "set", "number", "number"])
    if kind == "fraction":
        wrong = [f"$\\frac{{{a + d}}}{{{b}}}$" for d in off]
        return f"{a} parts of {b}", f"\\frac{{{a}}}{{{b}}}", f"$\\frac{{{a * c}}}{{{b * c}}}$", wrong
    if kind == "surd":
        wrong = [f"$\\sqrt{{{a * c * c + d}}}$" for d in off]
        return f"root of {a * c * c}", f"{c}\\sqrt{{{a}}}", f"$\\sqrt{{{a * c * c}}}$", wrong
    if kind == "polynomial":
        wrong = [f"$x^2+{2 * a}x+{a * a + d}$" for d in off]
        return f"square of x + {a}", f"x^2+{2 * a}x+{a * a}", f"$(x+{a})^2$", wrong
    if kind == "set":
        wrong = [f"$\\{{{a},{a + b + d}\\}}$" for d in off]
        return f"roots {a}, {a + b}", f"\\{{{a},{a + b}\\}}", f"$\\{{{a + b},{a}\\}}$", wrong
    return f"{a} times {b}", str(a * b), f"${a * b}.0$", [str(a * b + d) for d in off]


def write_tasks(path: Path, n: int, rng: Random) -> dict[str, tuple[str, list[str]]]:
    """A taskset; right and wrong answers of each prompt."""
    answers = {}
    with path.open("w", encoding="utf-8") as file:
        for index in range(n):
            question, reference, right, wrong = problem(rng)
            prompt = f"{index}: {question}?"
            answers[prompt] = (right, wrong)
            print(json.dumps({"prompt": prompt, "answer": reference}), file=file)
    return answers


def node(rng: Random, parent: int, message: Message, tokens: int, *, is_action: bool) -> Node:
    """A node of random tokens."""
    return Node(
        parent=parent,
        messages=(message,),
        token_ids=array("i", [rng.randrange(640) for _ in range(tokens)]),
        action_mask=array("b", [int(is_action)] * tokens),
        logprobs=array("f", [-rng.random() if is_action else math.nan for _ in range(tokens)]),
        versions=array("i", [1 if is_action else -1] * tokens),
        is_action=is_action,
    )


def trajectory(rng: Random, task: Task, group: str, sample: int, texts: tuple[str, list[str]]) -> Trajectory:
    """One episode with a tool call; some answers come with their reasoning, some in a box, a few were cut."""
    is_right = rng.random() < 0.5
    stated = texts[0] if is_right else rng.choice(texts[1])
    answer = rng.choice([stated, f"I get {stated}", f"So it is $\\boxed{{{stated.strip('$')}}}$."])
    call = ToolCall(id="c", name="calculate", arguments={"expression": f"{rng.random():.6f}"})
    nodes = (
        node(rng, -1, Message.user(task.prompt_text), 60, is_action=False),
        node(rng, 0, Message.assistant("Let me see.", (call,)), 80, is_action=True),
        node(rng, 1, Message.tool("0.5", call=call), 20, is_action=False),
        node(rng, 2, Message.assistant(answer), 120, is_action=True),
    )
    is_cut = rng.random() < 0.02
    cut = Outcome(ending=Ending.TRUNCATED, limit=Limit.TURN_TOKENS)
    return Trajectory(
        id=f"{group}/{sample:02d}",
        task_id=task.id,
        task_hash=task.content_hash,
        group_id=group,
        sample_index=sample,
        seed=sample,
        nodes=nodes,
        outcome=cut if is_cut else COMPLETED,
        answer=answer,
        tags={"truth": str(int(is_right and not is_cut))},
    )


def build(folder: Path, n: int, seed: int) -> Path:
    """The run, once."""
    run = folder / f"run-{n}-{seed}"
    if (run / "done").exists():
        return run
    if run.exists():
        run.rename(run.with_name(f"{run.name}.unfinished-{time.time_ns()}"))
    folder.mkdir(parents=True, exist_ok=True)
    rng = Random(seed)
    tasks_file = (folder / f"tasks-{n}-{seed}.jsonl").resolve()
    texts = write_tasks(tasks_file, n // GROUP, rng)
    recipe = Recipe.model_validate({"environment": {"name": str(tasks_file)}})
    world = load_world(str(tasks_file), {}, seed=0)
    tasks = [task for split in world.taskset.splits for task in world.taskset.tasks(split)]
    assert len(tasks) == n // GROUP, world.problems
    exact = ExactGrader()
    with RunWriter.create(run, {"recipe": recipe.model_dump(mode="json")}) as writer:
        for step, start in enumerate(range(0, len(tasks), GROUPS_A_STEP), start=1):
            rows = []
            for index, task in enumerate(tasks[start : start + GROUPS_A_STEP]):
                for sample in range(GROUP):
                    made = trajectory(rng, task, f"rl/{step:06d}/{index:04d}", sample, texts[task.prompt_text])
                    grade: Grade = exact.judge(task, made)
                    rows.append(
                        StoredTrajectory(
                            trajectory=made,
                            phase="rl",
                            step=step,
                            policy_version=step,
                            fate=Fate.TRAINED,
                            grades=(grade,),
                            reward=grade.score,
                            advantage=0.0,
                        )
                    )
            writer.commit_step(StepRecord(phase="rl", step=step, policy_version=step, rows=rows))
    (run / "done").touch()
    return run


def truth_mean(run: Path) -> float:
    """Share of the trajectories whose answer is right, by how they were made."""
    rows = RunReader(run).query("SELECT avg(CAST(tags->>'$.truth' AS DOUBLE)) AS mean FROM trajectories")
    mean: float = rows.to_pylist()[0]["mean"]
    return mean


def high_water_bytes(pid: int) -> int:
    """Peak resident memory of a process so far, 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def regrade(run: Path, graders: Path) -> tuple[float, int, dict[str, Any]]:
    """Wall seconds, peak memory in bytes, and what it printed, of the command on two cores."""
    command = [sys.executable, "-m", "burnish.cli", "regrade", run.name, "--root", str(run.parent)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    cores = sorted(os.sched_getaffinity(0))[-CORES:]
    started_s = time.perf_counter()
    process = subprocess.Popen(
        ["taskset", "-c", ",".join(map(str, cores)), *command, "--graders", str(graders), "--json"],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    peak_bytes, done = 0, threading.Event()

    def watch() -> None:
        # Not the maximum that `wait4` gives: it starts from the memory of the process that forked this one.
        nonlocal peak_bytes
        while not done.wait(0.05):
            peak_bytes = max(peak_bytes, high_water_bytes(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    printed, _ = process.communicate()
    took_s = time.perf_counter() - started_s
    done.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"burnish regrade ended with status {process.returncode}")
    return took_s, peak_bytes, json.loads(printed)


def main() -> int:
    """Run, print, and say by the exit status whether the bar holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path("runs/regrade"))
    options = parser.parse_args()
    n = QUICK if options.quick else TRAJECTORIES
    options.data.mkdir(parents=True, exist_ok=True)
    graders = options.data / "graders.toml"
    graders.write_text(GRADERS, encoding="utf-8")
    results = []
    for seed in range(1 if options.quick else options.seeds):
        quarter_s, quarter_bytes, _ = regrade(build(options.data, n // 4, seed), graders)
        seconds, peak_bytes, found = regrade(build(options.data, n, seed), graders)
        math_column = found["graders"]["math"]
        results.append(
            {
                "seed": seed,
                "seconds": seconds,
                "quarter_seconds": quarter_s,
                "peak_bytes": peak_bytes,
                "memory_ratio": peak_bytes / quarter_bytes,
                "trajectories": found["trajectories"],
                "math_mean": math_column["mean_new"],
                "truth_mean": truth_mean(build(options.data, n, seed)),
                "math_none": math_column["n"] - math_column["n_new"],
                "exact_mean": found["graders"]["exact"]["mean_new"],
            }
        )
    console.print(_table(results))
    enough = len(os.sched_getaffinity(0)) >= CORES
    holds = all(
        result["seconds"] < BAR_S
        and result["memory_ratio"] <= BAR_MEMORY
        and result["math_none"] == 0
        and abs(result["math_mean"] - result["truth_mean"]) < 1e-9
        for result in results
    )
    decided = None if options.quick or not enough else holds
    print(json.dumps({"results": results, "median_s": statistics.median(r["seconds"] for r in results), "cores": CORES,
                      "bar_s": BAR_S, "holds": decided}))  # fmt: skip
    return 0 if decided in (True, None) else 1


def _table(results: list[dict[str, Any]]) -> Table:
    table = Table(title=f"burnish regrade on {CORES} cores, bar {BAR_S:g} s", width=80)
    for title in ("seed", "episodes", "seconds", "peak MB", "x a quarter's", "math", "truth", "None"):
        table.add_column(title, justify="right")
    for row in results:
        table.add_row(
            str(row["seed"]),
            str(row["trajectories"]),
            f"{row['seconds']:.1f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['memory_ratio']:.2f}",
            f"{row['math_mean']:.4f}",
            f"{row['truth_mean']:.4f}",
            str(row["math_none"]),
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
