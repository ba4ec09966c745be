"""The setback: how far a policy has gone back from its best."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from burnish.health.monitors import Monitor, MonitorSpec, default_monitors
from burnish.health.setback import LARGEST_PART, Setback
from burnish.health.slices import SliceNames

WARM_UP = 50
RATE = 0.5 / 1000 / 46


def scalars(progress: float, entropy: float = 0.1, errors: float = 0.04) -> dict[str, float]:
    return {"health/progress_mean": progress, "health/entropy": entropy, "health/tool_error_rate": errors}


def settled(progress: float = 0.7) -> Setback:
    setback = Setback()
    for _ in range(30):
        setback.add(scalars(progress))
    return setback


def test_each_part_counts_as_stated() -> None:
    assert settled().add(scalars(0.7)) == pytest.approx(0.0, abs=1e-9)
    assert settled().add(scalars(0.6)) == pytest.approx(0.1)
    assert settled().add(scalars(0.7, entropy=0.21)) == pytest.approx(0.2 * math.log(2))
    assert settled().add(scalars(0.7, errors=0.09)) == pytest.approx(0.1)
    assert settled().add(scalars(0.0)) == pytest.approx(LARGEST_PART)


def test_a_warm_up_that_learns_is_no_setback_and_what_it_learnt_can_be_lost() -> None:
    setback = Setback()
    rising = [setback.add(scalars(0.2 + 0.01 * step)) for step in range(50)]
    assert rising[0] is None
    assert all(value < 0 for value in rising[10:] if value is not None)
    back = setback.add(scalars(0.45))
    assert back is not None
    assert back > 0.1


def test_nothing_is_said_where_nobody_judges() -> None:
    assert Setback().add({"health/entropy": 0.1}) is None


def test_it_goes_on_from_its_state() -> None:
    setback = settled()
    again = Setback.of(json.loads(json.dumps(setback.state())))
    assert again.add(scalars(0.5)) == setback.add(scalars(0.5))
    fresh = Setback.of(json.loads(json.dumps(Setback().state())))
    assert fresh.add(scalars(0.5)) is None


def false_alarms(weight: float) -> int:
    """Alarms on a quarter of the trajectories: noise twice as large as in the warm-up, and nothing wrong."""
    spec, found = MonitorSpec(name="setback", kind="success_drop", known_mean=0.0), 0
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0.0, 0.1, 500)
        noise[WARM_UP:] *= 2
        monitor = Monitor(spec, rate=RATE, warm_up=WARM_UP, cooldown=20)
        for step, value in enumerate(noise):
            found += monitor.step(step, float(value), weight=1.0 if step < WARM_UP else weight) is not None
    return found


def test_steps_of_fewer_trajectories_do_not_alarm_more_often() -> None:
    assert false_alarms(weight=0.5) == 0
    assert false_alarms(weight=1.0) > 0


def test_a_noisier_step_moves_the_running_mean_less() -> None:
    setback = settled()
    setback.add(scalars(0.9), 0.5)
    assert setback.add(scalars(0.7)) == pytest.approx(0.1 * 0.25 * 0.2)


def alarms(rot_from: int, steps: int, seed: int) -> list[int]:
    """Steps of the monitor's alarms in a run that learns, and then loses .004 of progress a step while its entropy
    rises; figures are as noisy as a step of six groups."""
    rng = np.random.default_rng(seed)
    (spec,) = (spec for spec in default_monitors(SliceNames()) if spec.name == "setback")
    monitor, setback, found = Monitor(spec, rate=RATE, warm_up=WARM_UP, cooldown=20), Setback(), []
    for step in range(1, steps + 1):
        skill = 0.75 - 0.4 * math.exp(-step / 15) - 0.004 * max(0, step - rot_from)
        noise, own = rng.normal(), rng.normal(size=3)
        mixed = 0.7 * noise + 0.7 * own
        value = setback.add(
            scalars(
                min(1.0, max(0.0, skill - 0.08 * mixed[0])),
                0.1 * math.exp(1.5 * (0.75 - skill) + 0.4 * mixed[1]),
                min(1.0, max(0.0, 0.17 + 0.07 * mixed[2]) ** 2),
            )
        )
        if monitor.step(step, value) is not None:
            found.append(step)
    return found


def test_rot_is_found_and_a_healthy_run_is_left_alone() -> None:
    healthy = [alarms(10_000, 400, seed) for seed in range(20)]
    assert sum(map(len, healthy)) == 0, healthy
    rotten = [alarms(100, 180, seed) for seed in range(20)]
    assert all(found and found[0] > 100 for found in rotten), rotten
    assert np.median([found[0] for found in rotten]) < 160
