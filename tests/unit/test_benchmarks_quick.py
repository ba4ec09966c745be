"""Benchmarks: their quick forms run, and the figures that bars rest on are computed as they say."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmarks folder by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def quick(name: str, *words: str) -> dict[str, Any]:
    """The last line of a benchmark's quick form."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / name), "--quick", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_gpu_benchmark_runs_without_a_gpu(tmp_path: Path) -> None:
    found = quick("gpu.py", "--device", "cpu", "--data", str(tmp_path))
    assert found["holds"] is None
    assert found["device"] == "cpu"
    assert set(found["results"]) == {"toy sample", "toy train"}
    for result in found["results"].values():
        assert result["burnish"]["tokens_per_s"] > 0
        assert 0 < result["plain"]["mfu"] < 1
    assert json.loads((tmp_path / "gpu-cpu.json").read_text()) == found


def test_operations_of_a_forward_pass(benchmarks: Any) -> None:
    import torch

    gpu = benchmarks("gpu")
    model = gpu.build(gpu.TOY, torch.device("cpu"), seed=0)
    weights = gpu.weights_of(model)
    # by hand: tied embedding 512 x 64; a layer: q and o 64 x 64, k and v 64 x 32, three of 64 x 128
    assert weights == 512 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    # 3 tokens see 1 + 2 + 3 keys; scores and values: 4 operations for each of 2 x 4 x 16 dimensions
    assert gpu.forward_flop(model, gpu.TOY, 0, 3) == 2 * weights * 3 + 4 * 2 * 4 * 16 * 6
    whole = gpu.forward_flop(model, gpu.TOY, 0, 9)
    assert gpu.forward_flop(model, gpu.TOY, 0, 5) + gpu.forward_flop(model, gpu.TOY, 5, 9) == whole


def test_the_longest_known_name_of_a_device_holds(benchmarks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    gpu = benchmarks("gpu")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA L40S")
    assert gpu.peak_flops(torch.device("cuda")) == (362e12, "data sheet")


def run_of(benchmarks: Any, reward: list[float], seconds: float) -> Any:
    spec = benchmarks("peers.spec")
    steps = len(reward)
    ended = tuple(10.0 + seconds * step for step in range(steps))
    return spec.Run(ended_s=ended, reward=tuple(reward), tokens=(100.0,) * steps, rollout_s=(0.5,) * steps)


def test_time_to_a_reward_counts_from_the_end_of_the_first_step(benchmarks: Any) -> None:
    run = run_of(benchmarks, [0.2, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9], 2.0)
    assert run.seconds_to(0.9) == 10.0, "the first five batches average .76, the next five .9"
    assert run.seconds_to(0.95) is None
    assert run.step_s == [2.0] * 6
    assert run.tokens_per_s == [50.0] * 6


def test_a_goal_that_one_side_missed_is_no_draw(benchmarks: Any) -> None:
    against = benchmarks("against_trl")
    good, bad = run_of(benchmarks, [1.0] * 10, 1.0), run_of(benchmarks, [0.0] * 10, 4.0)
    assert against.goal_ratio(good, good) == 1.0
    assert against.goal_ratio(good, bad) == 36.0 / 4.0, "TRL's whole time, a lower bound"
    assert against.goal_ratio(bad, good) == 0.0
    assert against.goal_ratio(bad, bad) is None


def test_bars_decide_only_what_the_machine_can(benchmarks: Any) -> None:
    against = benchmarks("against_trl")
    fast, slow = run_of(benchmarks, [1.0] * 12, 1.0), run_of(benchmarks, [1.0] * 12, 3.0)
    runs = {
        arm: [fast if arm.startswith("burnish") else slow] * 2
        for one in (*against.COMPARISONS, against.LARGE)
        for arm in (one.burnish, one.trl)
    }
    ratios = {one.title: against.compare(one, runs) for one in against.COMPARISONS}
    four = against.bars(runs, ratios, 4)
    assert four["1 process, 1 thread: 2.5x per step"] is True
    assert four["all cores: 4x per step"] is False
    assert four["all cores: 4x to 0.9"] is False
    assert four["all cores: rewards agree"] is True
    two = against.bars(runs, ratios, 2)
    assert two["1 process, 1 thread: 2.5x per step"] is True
    assert {two[name] for name in two if name.startswith("all cores")} == {None}
    runs["trl installed"] = [run_of(benchmarks, [0.8] * 12, 3.0)] * 2
    assert against.bars(runs, ratios, 4)["all cores: rewards agree"] is False


def test_the_search_takes_the_fastest_that_ran(
    benchmarks: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sides, spec = benchmarks("peers.sides"), benchmarks("peers.spec")
    asked = []

    def run_trl(work: Any, config: Any, folder: Path, *, timeout_s: float) -> dict[str, Any]:
        asked.append(config)
        if config.continuous_batching:
            raise sides.SideFailed("no")
        seconds = 4.0 / config.threads / config.processes + config.bf16 + 0.1 * (config.threads - 1)
        seconds -= 0.5 * (config.micro_batch == 64) + (not config.remember_schemas)
        ended = tuple(seconds * step for step in range(4))
        return {"ended_s": ended, "reward": (0.0,) * 4, "tokens": (1.0,) * 4, "rollout_s": (1.0,) * 4}

    monkeypatch.setattr(sides, "run_trl", run_trl)
    file = tmp_path / "trials.json"
    work = spec.Work(model="", order=(), seed=0, steps=4)
    search = sides.Search(file, work, cores=4)
    search.run()
    assert search.best(processes=1, threads=1) == spec.Config(micro_batch=64)
    assert search.best(processes=1) == spec.Config(threads=3, micro_batch=64)
    assert search.best() == spec.Config(processes=4, micro_batch=64), (
        "what is fast by leaving our patch out is not ours"
    )
    assert max(config.threads * config.processes for config in asked) <= 4
    assert len(asked) == len(set(asked))
    n_asked = len(asked)
    again = sides.Search(file, work, cores=4)
    again.run()
    assert len(asked) == n_asked, "trials are kept"
    assert again.best() == search.best()


def test_both_sides_are_given_the_same_work(benchmarks: Any, tmp_path: Path) -> None:
    from burnish.loop.recipes import load_recipe

    sides, spec = benchmarks("peers.sides"), benchmarks("peers.spec")
    work = sides.make_work(tmp_path, 3, steps=2)
    assert len(work.order) == 64
    assert len(set(work.order)) == 64
    recipe = load_recipe("shop", sides.burnish_words(work, sides.Burnish(workers=1), tmp_path, "x"))
    assert (recipe.rl.lr, recipe.rl.groups, recipe.rl.group_size) == (work.lr, work.groups, work.group_size)
    assert not recipe.rl.filter_zero_signal
    path = tmp_path / "spec.json"
    written = spec.Spec(work=work, config=replace(spec.Config(), threads=2), out="out")
    written.write(path)
    assert spec.Spec.read(path) == written
