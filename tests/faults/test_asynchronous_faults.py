"""What goes wrong beside the learner: nothing is lost unnoticed, nothing hangs, and nobody is scored 0 for it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from nursery import Nursery
from tiny_runs import (
    GROUP_SIZE,
    GROUPS,
    HOSTED,
    RL_STEPS,
    SUPPORT,
    asynchronous_problems,
    descendants,
    orphans_after,
    start_run,
    tiny_recipe,
    workers_of,
)

from burnish.core.errors import RunStopped
from burnish.loop import reinforce
from burnish.loop.session import Session
from burnish.store.reader import RunReader
from burnish.store.rows import RunState

SLOW = f"environment.name={SUPPORT / 'slow_env.py'}"
ASYNC = ("rollout.mode=async", "rollout.max_staleness=2", "rl.filter_zero_signal=false")
SHORT = ("evaluation.tasks=2", "evaluation.every=0", "evaluation.before=false", "warm_start.traces=48")


def trained(folder: Path) -> list[str]:
    reader = RunReader(folder)
    return [row.trajectory.id for step in reader.steps("rl") for row in reader.trajectories("rl", step.step)]


@pytest.mark.slow
def test_episodes_of_killed_workers_run_again_and_are_counted_once(nursery: Nursery, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recipe = tiny_recipe(*ASYNC, "run.in_process=false", SLOW, "environment.options.nap_s=0.1", *SHORT)
    attempt = nursery.attempt(folder, recipe.model_dump_json())
    for moment, victim in (("rl 1 ", 0), ("rl 3 ", 1)):
        assert attempt.wait_for(moment), attempt.lines[-3:]
        time.sleep(0.05)
        workers_of(attempt.pid)[victim].kill()
    attempt.wait_for("")
    assert attempt.end == 0, attempt.lines[-3:]
    reader = RunReader(folder)
    assert len(reader.events("worker_replaced")) == 2
    assert sum(value for _, value in reader.scalars("pool/requeued", "rl")) > 0
    assert asynchronous_problems(folder) == []
    assert len(trained(folder)) == len(set(trained(folder))) == RL_STEPS * GROUPS * GROUP_SIZE
    assert max(value for _, value in reader.scalars("staleness/max", "rl")) <= 2


@pytest.mark.slow
def test_a_killed_main_process_goes_on_without_training_anything_twice(nursery: Nursery, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    attempt = nursery.attempt(folder, tiny_recipe(*ASYNC, "run.in_process=false", HOSTED).model_dump_json())
    for moment in ("rl 2 ", "rl 3 ", "rl 5 "):
        assert attempt.wait_for(moment), attempt.lines[-3:]
        everyone = descendants(attempt.pid)
        attempt.kill()
        assert orphans_after(everyone, 5.0) == []
        attempt = nursery.attempt(folder)
    attempt.wait_for("")
    assert attempt.end == 0
    assert asynchronous_problems(folder) == []
    assert len(trained(folder)) == len(set(trained(folder))) == RL_STEPS * GROUPS * GROUP_SIZE


def test_a_learner_slower_than_rollouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = reinforce.learn

    def slow(session: Session, *args: object, **settings: object) -> dict[str, float]:
        time.sleep(0.2)
        return sound(session, *args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(reinforce, "learn", slow)
    folder = tmp_path / "run"
    start_run(tiny_recipe(*ASYNC, "rollout.max_staleness=4", *SHORT), folder)
    reader = RunReader(folder)
    assert asynchronous_problems(folder) == []
    # Backpressure: what lies ready is bounded, and the pipeline is no deeper than this learner needs.
    ready = [value for _, value in reader.scalars("pool/ready", "rl")]
    in_flight = [value for _, value in reader.scalars("pool/in_flight", "rl")]
    assert max(a + b for a, b in zip(ready, in_flight, strict=True)) <= 4 * GROUPS * GROUP_SIZE
    assert max(value for _, value in reader.scalars("staleness/max", "rl")) <= 4


def test_rollouts_slower_than_the_learner(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start_run(tiny_recipe(*ASYNC, SLOW, "environment.options.nap_s=0.2", *SHORT), folder)
    reader = RunReader(folder)
    assert asynchronous_problems(folder) == []
    assert max(value for _, value in reader.scalars("staleness/max", "rl")) <= 2
    assert max(value for _, value in reader.scalars("pool/depth_steps", "rl")) == 3


def test_stragglers_are_given_up_and_counted_as_dropped(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start_run(
        tiny_recipe(
            *ASYNC,
            SLOW,
            "environment.options.stuck=ash",
            "environment.isolation=none",
            "environment.options.after=80",
            "rollout.straggler_s=1.0",
            "rl.steps=3",
            *SHORT,
        ),
        folder,
    )
    reader = RunReader(folder)
    assert reader.status().state is RunState.FINISHED
    assert asynchronous_problems(folder) == []
    assert sum(value for _, value in reader.scalars("dropped/cancelled", "rl")) >= GROUP_SIZE
    assert not any(row.reward == 0 and not row.trajectory.nodes for row in reader.trajectories("rl", 1))


@pytest.mark.slow
def test_a_worker_that_stands_still_writes_its_stacks_and_is_ended(nursery: Nursery, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recipe = tiny_recipe(
        *ASYNC,
        "run.in_process=false",
        SLOW,
        "environment.options.blocking=ash",
        "environment.isolation=none",
        "environment.options.after=5",
        "stop.stall_s=1.5",
        *SHORT,
    )
    attempt = nursery.attempt(folder, recipe.model_dump_json())
    attempt.wait_for("")
    assert attempt.end == 3, "an error, not a hang"
    assert "worker_died" in RunReader(folder).status().detail
    told = [event.detail for event in RunReader(folder).events("worker_replaced")]
    assert any("stood still for" in detail for detail in told)
    stacks = "".join(path.read_text() for path in (folder / "logs").glob("worker-*.stacks.txt"))
    assert "in knock" in stacks


def test_a_conductor_that_stands_still_writes_its_stacks_and_ends(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom burnish.loop.watchdog import Watchdog\n"
        "def stands_still():\n    time.sleep(60)\n"
        "with Watchdog(0.5, Path(sys.argv[1])) as watchdog:\n    watchdog.pet()\n    stands_still()\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "stacks.txt")], timeout=30, check=False)
    assert done.returncode == 1
    assert time.monotonic() - started < 20
    assert "in stands_still" in (tmp_path / "stacks.txt").read_text()


def test_a_petted_watchdog_does_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom burnish.loop.watchdog import Watchdog\n"
        "with Watchdog(0.6, Path(sys.argv[1])) as watchdog:\n"
        "    for _ in range(10):\n        time.sleep(0.15)\n        watchdog.pet()\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], timeout=30, check=False).returncode == 0


@pytest.mark.slow
def test_weights_that_never_arrive_are_caught_at_the_first_update(nursery: Nursery, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recipe = tiny_recipe(*ASYNC, "run.in_process=false")
    attempt = nursery.attempt(folder, recipe.model_dump_json(), "unshared weights")
    attempt.wait_for("")
    assert attempt.end == 3
    assert "invariant sampler_freshness violated" in attempt.lines[-1]
    assert not any(line.startswith("rl 1 ") for line in attempt.lines)


def test_an_error_in_a_pool_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from burnish.policies.sampler import EmbeddedSampler

    async def broken(self: EmbeddedSampler, requests: object) -> object:
        raise RunStopped("non_finite_logits", "NaN")

    folder = tmp_path / "run"
    recipe = tiny_recipe(*ASYNC, "warm_start.steps=0", "evaluation.before=false")
    sound = EmbeddedSampler.sample
    calls = 0

    async def later(self: EmbeddedSampler, requests: object) -> object:
        nonlocal calls
        calls += 1
        return await (broken if calls > 40 else sound)(self, requests)  # type: ignore[arg-type]

    monkeypatch.setattr(EmbeddedSampler, "sample", later)
    with pytest.raises(RunStopped, match="NaN"):
        start_run(recipe, folder)
    assert RunReader(folder).status().state is RunState.STOPPED
