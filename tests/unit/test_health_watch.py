"""The watch: what it finds and when, its rate of false alarms, and that it goes on exactly after a stop."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from token_streams import floats, make_step, normal

from burnish.core.streams import ActionSpan, TokenStream
from burnish.health.monitors import Monitor, MonitorSpec
from burnish.health.slices import SliceNames
from burnish.health.sums import HealthSums
from burnish.health.watch import Watch, WatchSpec

NAMES = SliceNames(tools=("search", "lookup"), sources=("shop", "forms"))
SPEC = WatchSpec(names=NAMES, baseline_steps=20)


@cache
def healthy(step: int) -> HealthSums:
    return HealthSums.of(make_step(1000 + step, 48, step=step), NAMES)


def warmed(steps: int = 24, spec: WatchSpec = SPEC) -> Watch:
    watch = Watch(spec)
    for step in range(steps):
        assert watch.step(step, healthy(step), {"grad_norm": 1.0 + 0.01 * (step % 3)}).findings == ()
    return watch


def test_growth_after_a_tool_is_found_where_it_is() -> None:
    watch, found = warmed(), []
    for step in range(24, 34):
        sums = HealthSums.of(make_step(step, 48, step=step, draw=normal(0.05, 0.25)), NAMES)
        found += watch.step(step, sums).findings
    tails = {f.monitor: f for f in found if f.kind == "tail_growth"}
    assert "post_tool/log_ratio_behaviour_p95" in tails
    assert "text/log_ratio_behaviour_p95" not in tails
    first = tails["post_tool/log_ratio_behaviour_p95"]
    assert abs(first.onset_step - 24) <= 1
    assert first.step <= 30
    assert first.slice_name == "post_tool"
    assert first.false_alarms_per_1000 == pytest.approx(0.5 / len(SPEC.all_monitors))
    assert first.evidence["value"] > 2 * first.evidence["usual"]
    json.dumps(dict(first.evidence), allow_nan=False)
    rows = {row.id: row.post_tool_square or 0.0 for row in sums.trajectories}
    assert len(first.trajectory_ids) == 8
    assert {name.rsplit("/", 1)[0] for name in first.trajectory_ids} >= set(first.evidence["group_ids"])
    last = [f for f in found if f.step == step and f.kind == "tail_growth"]
    assert all(rows[name] >= np.median(list(rows.values())) for f in last for name in f.trajectory_ids)


def test_a_finding_is_followed_by_silence_and_then_repeated() -> None:
    watch = warmed()
    steps = []
    for step in range(24, 80):
        sums = HealthSums.of(make_step(step, 48, step=step, draw=normal(0.3)), NAMES)
        steps += [f.step for f in watch.step(step, sums).findings if f.monitor == "text/log_ratio_behaviour_p95"]
    assert len(steps) >= 2
    assert all(b - a >= SPEC.cooldown_steps for a, b in pairwise(steps))


def test_a_number_that_is_not_finite_is_found_at_once_even_in_the_warm_up() -> None:
    watch = Watch(SPEC)
    streams = make_step(0, 48)
    spoilt = np.array(streams[5].learner, dtype=np.float32)
    spoilt[0] = np.nan
    streams[5] = replace(streams[5], learner=floats(spoilt))
    found = watch.step(0, HealthSums.of(streams, NAMES), {"grad_norm": math.inf, "loss": 1.0}).findings
    assert {f.monitor for f in found} == {"non_finite/learner", "non_finite/grad_norm"}
    assert all(f.severity == "alarm" and f.kind == "non_finite" and f.false_alarms_per_1000 is None for f in found)
    assert next(f for f in found if f.monitor == "non_finite/learner").trajectory_ids == (streams[5].id,)
    json.dumps([dict(f.evidence) for f in found], allow_nan=False)


def test_a_log_ratio_that_no_policy_could_have_is_a_warning() -> None:
    streams = make_step(1, 48)
    far = np.array(streams[7].learner, dtype=np.float32)
    far[0] -= 30
    found = Watch(SPEC).step(
        0, HealthSums.of([*streams[:7], replace(streams[7], learner=floats(far)), *streams[8:]], NAMES)
    )
    assert [f.monitor for f in found.findings] == [
        "all/log_ratio_behaviour_clamped_share",
        "all/log_ratio_reference_clamped_share",
    ]
    finding = found.findings[0]
    assert (finding.kind, finding.severity, finding.trajectory_ids) == ("overflow", "warning", (streams[7].id,))


def test_it_goes_on_exactly_after_a_stop_anywhere() -> None:
    def run(stops: tuple[int, ...]) -> list[object]:
        watch, seen = Watch(SPEC), []
        for step in range(45):
            if step in stops:
                watch = Watch.restore(SPEC, json.loads(json.dumps(watch.state(), allow_nan=False)))
            draw = normal(0.05) if step < 30 else normal(0.2)
            seen.append(watch.step(step, HealthSums.of(make_step(step, 24, step=step, draw=draw), NAMES)))
        return [*seen, watch.state()]

    straight = run(())
    assert any(seen.findings for seen in straight[:-1])  # type: ignore[attr-defined]
    assert run((5, 20, 33, 34)) == straight


def test_a_state_of_another_watch_is_refused() -> None:
    state = Watch(SPEC).state()
    for other in (WatchSpec(names=NAMES), replace(SPEC, names=SliceNames(sources=("shop", "forms")))):
        with pytest.raises(ValueError, match="another watch"):
            Watch.restore(other, state)
    with pytest.raises(ValueError, match="the watch is for"):
        Watch(SPEC).step(0, HealthSums.of([], SliceNames()))


def test_missing_slices_and_empty_steps_change_nothing() -> None:
    watch = warmed()
    text_only = [replace(s, spans=(ActionSpan(start=0, end=s.length, turn=0),)) for s in make_step(5, 48)]
    for step in range(24, 60):
        sums = HealthSums.of(text_only if step % 2 else [], NAMES)
        assert not [f for f in watch.step(step, sums).findings if "post_tool/log" in f.monitor]


def test_global_random_state_is_not_touched() -> None:
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    warmed(22)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index]


def test_learning_itself_is_no_fault_and_the_same_without_success_is() -> None:
    def run(learns: bool) -> set[str]:
        watch, kinds = Watch(SPEC), set()
        for step in range(90):
            grown = max(0, step - 20) / 70
            sums = HealthSums.of([aged(s, grown, learns) for s in make_step(step, 48, step=step)], NAMES)
            kinds |= {f.kind for f in watch.step(step, sums).findings}
        return kinds

    assert run(learns=True) & {"entropy_low", "length_blow_up", "post_tool_share", "zero_signal"} == set()
    assert "entropy_low" in run(learns=False)


def aged(stream: TokenStream, grown: float, learns: bool) -> TokenStream:
    """A trajectory of later training: entropy falls to a tenth, and success rises or not."""
    assert stream.entropy is not None
    success = stream.success
    if learns and hash_of(stream) < 2 * grown:
        success = 1.0
    entropy = floats(np.array(stream.entropy) * 10.0**-grown)
    return replace(stream, entropy=entropy, success=success, reward=success, progress=success)


def hash_of(stream: TokenStream) -> float:
    return (sum(stream.id.encode()) * 2654435761 % 1000) / 1000


@pytest.mark.parametrize("jitter", [0.0, 0.2])
def test_healthy_runs_are_left_alone(jitter: float) -> None:
    """600 healthy steps: at 0.5 false alarms per 1,000 a third of one is expected, three have probability 0.4%."""
    alarms = 0
    for seed in range(3):
        watch, rng = Watch(replace(SPEC, baseline_steps=50)), np.random.default_rng(seed)
        for step in range(250):
            scale = 0.05 * math.exp(jitter * rng.standard_normal())
            sums = HealthSums.of(make_step(10_000 * seed + step, 16, step=step, draw=normal(scale)), NAMES)
            alarms += len(watch.step(step, sums).findings)
    assert alarms <= 2


def test_post_tool_growth_is_found_before_plain_kl_finds_it() -> None:
    """The generator of the sheet: Student-t(3) after tools, scale 0.05 + 0.25 (t / T)^2, text jittered by 20%."""
    ahead = []
    for seed in range(5):
        watch = Watch(WatchSpec(names=SliceNames()))
        plain = Monitor(
            MonitorSpec(name="all/k3_behaviour", kind="kl", transform="log", floor=1e-5),
            rate=0.5e-3,
            warm_up=50,
            cooldown=20,
        )
        steps: dict[str, int] = {}
        rng = np.random.default_rng(seed)
        for t in range(300):
            seen = watch.step(t, HealthSums.of(growing(rng, t / 300, t), SliceNames()))
            for finding in seen.findings:
                steps.setdefault(finding.monitor, t)
            if plain.step(t, seen.scalars["health/all/k3_behaviour"]) is not None:
                steps.setdefault("plain KL", t)
        assert "text/log_ratio_behaviour_p95" not in steps
        ahead.append(steps.get("plain KL", 300) - steps["post_tool/log_ratio_behaviour_p95"])
        assert steps["post_tool/log_ratio_behaviour_p95"] < 160
    assert np.median(ahead) >= 0


def growing(rng: np.random.Generator, age: float, step: int) -> list[TokenStream]:
    """16 trajectories of 256 tokens, 3 to 10% of them after a tool."""
    after = int(256 * (0.03 + 0.07 * age))
    jitter = 0.05 * math.exp(0.2 * rng.standard_normal())
    streams = []
    for i in range(16):
        d = np.concatenate(
            [rng.normal(0, jitter, 256 - after), rng.standard_t(3, after) * (0.05 + 0.25 * age**2)],
        )
        behaviour = -rng.exponential(0.5, 256)
        spans = (
            ActionSpan(start=0, end=256 - after, turn=0),
            ActionSpan(start=256 - after, end=256, turn=1, tool="search", after_tool=True),
        )
        streams.append(
            TokenStream(
                id=f"{step}/{i:02d}",
                group_id=str(step),
                step=step,
                behaviour=floats(behaviour),
                learner=floats(behaviour + d),
                spans=spans,
                advantage=float(rng.normal()),
            )
        )
    return streams
