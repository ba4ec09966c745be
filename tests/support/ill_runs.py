"""Runs whose health signals move as a known fault would move them, with the findings that a watch would have made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from synthetic_run import SyntheticRun, example_manifest, rl_rows, rl_scalars

from burnish.core.finding import Act, Decision, Finding
from burnish.store.rows import EvaluationRow, Event, StepRecord

STEPS, ONSET, DELAY, BASELINE = 120, 60, 8, 20
RATE = 0.5
MONITORS = 24

HEALTHY: Mapping[str, float] = {
    "health/monitors": MONITORS,
    "health/text/log_ratio_behaviour_p95": 0.12,
    "health/text/log_ratio_behaviour_p99": 0.31,
    "health/post_tool/log_ratio_behaviour_p95": 0.16,
    "health/post_tool/log_ratio_behaviour_p99": 0.42,
    "health/post_tool_first/log_ratio_behaviour_p95": 0.18,
    "health/post_tool_later/log_ratio_behaviour_p95": 0.14,
    "health/post_tool_error/log_ratio_behaviour_p95": 0.22,
    "health/control/log_ratio_behaviour_p95": 0.05,
    "health/tool:get_order/log_ratio_behaviour_p95": 0.15,
    "health/tool:search/log_ratio_behaviour_p95": 0.17,
    "health/all/m2_behaviour": 0.006,
    "health/all/log_ratio_proximal_p95": 0.03,
    "health/text/log_ratio_proximal_p95": 0.03,
    "health/post_tool/log_ratio_proximal_p95": 0.03,
    "health/text/log_ratio_reference_p95": 0.9,
    "health/post_tool/log_ratio_reference_p95": 1.1,
    "health/ess_sequence_raw": 0.55,
    "health/ess_sequence_clipped": 0.9,
    "health/ess_sequence_normalised": 1.0,
    "health/ess_sequence_variance_per_token": 0.003,
    "health/text/ess_token_raw": 0.97,
    "health/post_tool/ess_token_raw": 0.95,
    "health/text/ess_token_clipped": 0.99,
    "health/post_tool/ess_token_clipped": 0.98,
    "health/gini_update": 0.45,
    "health/top5_update": 0.2,
    "health/post_tool_share": 0.4,
    "health/tool_error_rate": 0.05,
    "health/retry_rate": 0.03,
    "health/length_mean": 180.0,
    "health/truncated_share": 0.02,
    "health/all/entropy": 0.6,
    "health/text/entropy": 0.7,
    "health/post_tool/entropy": 0.5,
    "health/input_retrieval": 0.9,
    "health/input_dependence": 0.88,
    "health/failed_despite_progress": 0.02,
    "health/succeeded_without_progress": 0.01,
    "health/source:shop/reward_sd": 0.4,
    "health/source:forum/reward_sd": 0.45,
    "health/zero_signal_share": 0.3,
    "health/reward_mean": 0.5,
    "health/success_mean": 0.5,
    "health/progress_mean": 0.6,
    "health/outcome_contrast": 0.35,
    "health/reward_progress_correlation": 0.8,
    "health/success_shortfall": 0.04,
    "health/setback": 0.02,
    "health/reference_speed": 0.02,
    "grad_norm": 1.2,
    "health/staleness_mean": 1.0,
    "health/horizon:1/success": 0.8,
    "health/horizon:2-3/success": 0.6,
    "health/horizon:4-7/success": 0.35,
    "health/horizon:16+/success": 0.1,
}
"""Level of each signal while nothing is wrong."""


SHARES = ("_raw", "_clipped", "_share", "_rate", "_dependence", "success_mean", "/success", "_update")
"""Ends of names whose values are at most 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """cause: key of the cause that has to rank first.  moves: factor on each signal once the fault is there.  monitors:
    those that fire, the first one `DELAY` steps after the onset, the others two steps apart."""

    cause: str
    moves: Mapping[str, float]
    monitors: tuple[str, ...]
    held_out_falls: bool = True


FAULTS: Mapping[str, Fault] = {
    "stale": Fault(
        cause="stale_data",
        moves={"staleness_mean": 6, "text/log_ratio_behaviour_p95": 2, "post_tool/log_ratio_behaviour_p95": 2.2,
               "all/m2_behaviour": 4, "ess_sequence_normalised": 0.3, "ess_sequence_variance_per_token": 4},
        monitors=("ess_sequence_variance_per_token", "text/log_ratio_behaviour_p95", "all/m2_behaviour"),
    ),
    "mismatch": Fault(
        cause="engine_mismatch",
        moves={"text/log_ratio_behaviour_p95": 2.5, "post_tool/log_ratio_behaviour_p95": 2.5, "all/m2_behaviour": 6,
               "ess_sequence_normalised": 0.4, "ess_sequence_variance_per_token": 3},
        monitors=("text/log_ratio_behaviour_p95", "post_tool/log_ratio_behaviour_p95",
                  "ess_sequence_variance_per_token"),
    ),
    "drift": Fault(
        cause="tool_drift",
        moves={"post_tool/log_ratio_behaviour_p95": 3, "post_tool/log_ratio_behaviour_p99": 3.4,
               "post_tool_first/log_ratio_behaviour_p95": 3.2, "tool:search/log_ratio_behaviour_p95": 4,
               "tool_error_rate": 2.5, "post_tool/ess_token_raw": 0.6, "post_tool/entropy": 1.8},
        monitors=("post_tool/log_ratio_behaviour_p95", "post_tool/ess_token_raw", "tool_error_rate",
                  "post_tool/entropy"),
    ),
    "outage": Fault(
        cause="tool_outage",
        moves={"tool_error_rate": 8, "retry_rate": 6, "post_tool_error/log_ratio_behaviour_p95": 1.5,
               "reward_mean": 0.7, "success_mean": 0.7, "progress_mean": 0.6, "success_shortfall": 5},
        monitors=("tool_error_rate", "retry_rate", "success_shortfall"),
    ),
    "hack": Fault(
        cause="reward_hacking",
        moves={"reward_mean": 1.8, "success_mean": 1.8, "progress_mean": 0.4, "succeeded_without_progress": 30,
               "reward_progress_correlation": 0.2, "length_mean": 0.5, "all/entropy": 0.4},
        monitors=("succeeded_without_progress", "reward_progress_correlation", "all/entropy"),
    ),
    "grader": Fault(
        cause="grader_failure",
        moves={"reward_mean": 0.5, "success_mean": 0.5, "zero_signal_share": 1.6, "success_shortfall": 6,
               "failed_despite_progress": 12},
        monitors=("failed_despite_progress", "success_shortfall", "zero_signal_share"),
    ),
    "length": Fault(
        cause="length_blow_up",
        moves={"length_mean": 2.5, "truncated_share": 10, "gini_update": 1.3},
        monitors=("length_mean", "truncated_share", "gini_update"),
    ),
    "template": Fault(
        cause="template_collapse",
        moves={"input_dependence": 0.4, "input_retrieval": 0.4, "zero_signal_share": 1.5, "outcome_contrast": 0.5},
        monitors=("input_dependence", "zero_signal_share"),
    ),
    "noise": Fault(
        cause="source_noise",
        moves={"gini_update": 1.6, "top5_update": 2.2, "outcome_contrast": 1.5, "source:forum/reward_sd": 3},
        monitors=("gini_update", "top5_update", "source:forum/reward_sd"),
        held_out_falls=False,
    ),
    "rate": Fault(
        cause="learning_rate",
        moves={"all/log_ratio_proximal_p95": 6, "text/log_ratio_proximal_p95": 6, "text/log_ratio_reference_p95": 2,
               "text/log_ratio_behaviour_p95": 2, "all/m2_behaviour": 4, "reference_speed": 6, "grad_norm": 4,
               "ess_sequence_normalised": 0.3, "all/entropy": 0.4},
        monitors=("grad_norm", "reference_speed", "all/m2_behaviour", "all/entropy"),
    ),
    "entropy": Fault(
        cause="entropy_collapse",
        moves={"all/entropy": 0.3, "text/entropy": 0.3, "zero_signal_share": 1.8, "outcome_contrast": 0.5},
        monitors=("all/entropy", "zero_signal_share"),
    ),
    "random": Fault(
        cause="entropy_blow_up",
        moves={"all/entropy": 3, "text/entropy": 3, "post_tool/entropy": 3, "success_shortfall": 4},
        monitors=("all/entropy", "success_shortfall"),
    ),
    "wear": Fault(
        cause="unlearning",
        moves={"setback": 15, "progress_mean": 0.7, "success_mean": 0.6, "reward_mean": 0.6, "tool_error_rate": 2.5,
               "all/entropy": 1.6, "text/entropy": 1.6, "success_shortfall": 5},
        monitors=("setback", "success_shortfall"),
    ),
    "surge": Fault(
        cause="post_tool_surge",
        moves={"post_tool_share": 1.8, "post_tool/log_ratio_behaviour_p95": 1.3},
        monitors=("post_tool_share",),
    ),
    "control": Fault(
        cause="control_tokens",
        moves={"control/log_ratio_behaviour_p95": 5, "tool_error_rate": 1.5},
        monitors=("control/log_ratio_behaviour_p95",),
    ),
    "signal": Fault(
        cause="no_signal",
        moves={"zero_signal_share": 2.5, "outcome_contrast": 0.3},
        monitors=("zero_signal_share",),
        held_out_falls=False,
    ),
}  # fmt: skip


def health_scalars(step: int, fault: Fault | None = None, *, seed: int = 0) -> dict[str, float]:
    """Signals of a step: their healthy level with 4% noise, times what the fault does, which grows over ten steps."""
    rng = Random(f"{seed}/{step}")
    grown = min(1.0, max(0.0, (step - ONSET) / 10)) if fault else 0.0
    made = {}
    for name, level in HEALTHY.items():
        factor = fault.moves.get(name.removeprefix("health/"), 1.0) if fault else 1.0
        noise = 1.0 if name == "health/monitors" else math.exp(rng.gauss(0, 0.04))
        made[name] = level * noise * (1 + grown * (factor - 1))
        if name.endswith(SHARES):
            made[name] = min(1.0, made[name])
    return made


def findings_of(fault: Fault) -> list[Finding]:
    """What a watch would find, with two trajectories each."""
    return [
        Finding(
            monitor=monitor,
            step=ONSET + DELAY + 2 * index,
            onset_step=ONSET + 1,
            kind="change",
            slice_name=monitor.partition("/")[0] if "/" in monitor else "",
            summary=f"{monitor} left its baseline",
            evidence={
                "statistic": 11.3,
                "threshold": 9.8,
                "usual": HEALTHY.get(f"health/{monitor}", HEALTHY.get(monitor)),
                "rising": fault.moves[monitor] > 1,
            },
            trajectory_ids=tuple(f"rl/{ONSET + DELAY + 2 * index:06d}/{n:04d}/00" for n in range(2)),
            severity="warning" if index == 3 else "alarm",
            false_alarms_per_1000=RATE / MONITORS,
        )
        for index, monitor in enumerate(fault.monitors)
    ]


def series(fault: Fault | None, *, seed: int = 0) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every signal."""
    made: dict[str, list[tuple[int, float]]] = {}
    for step in range(1, STEPS + 1):
        for name, value in health_scalars(step, fault, seed=seed).items():
            made.setdefault(name, []).append((step, value))
    return made


def evaluations(fault: Fault | None) -> list[EvaluationRow]:
    """Held-out success every 20 steps; where the fault hurts it falls from step 100 on."""
    rows = []
    for step in range(0, STEPS + 1, 20):
        mean = 0.4 + 0.003 * min(step, ONSET)
        if fault and fault.held_out_falls and step >= ONSET + 40:
            mean = 0.2
        rows.append(
            EvaluationRow(
                label=f"rl-{step:06d}" if step else "after_sft", split="heldout", mode="greedy",
                phase="rl" if step else "sft", step=step, n=300, successes=300 * mean, mean=mean, low=mean - 0.05,
                high=mean + 0.05,
            )
        )  # fmt: skip
    return rows


def decisions_of(step: int) -> list[Decision]:
    """A ladder that is tried and released, as a dry run would write it down; the rollback was carried out."""
    found = ("ess_sequence_normalised",)
    return [
        Decision(act=Act.LEARNING_RATE, step=step, reason="sequence ESS is at 41% of its reference",
                 values={"factor": 0.64}, findings=found),
        Decision(act=Act.KL_WEIGHT, step=step + 6, reason="the tail of learner / reference left its band",
                 values={"weight": 0.02}),
        Decision(act=Act.LEARNING_RATE, step=step + 14, reason="sequence ESS is back", release=True),
        Decision(act=Act.ROLLBACK, step=step + 20, reason="held-out success fell after the onset", dry_run=False,
                 values={"checkpoint": "rl-000050", "group_ids": [f"rl/{step:06d}/{n:04d}" for n in range(5)]}),
    ]  # fmt: skip


def manifest() -> dict[str, Any]:
    """Of a run that was watched."""
    made = example_manifest()
    made["recipe"]["health"] = {"on": True, "baseline_steps": BASELINE, "false_alarms_per_1000": RATE}
    return made


def ill_run(folder: Path, fault: Fault | None) -> SyntheticRun:
    """A stored run with the fault (None: a healthy one), its writer still open."""
    run = SyntheticRun(folder, manifest=manifest())
    events: dict[int, list[Event]] = {}
    for finding in findings_of(fault) if fault else ():
        event = Event(kind="finding", detail=finding.summary, data=asdict(finding))
        events.setdefault(finding.step, []).append(event)
    for decision in decisions_of(ONSET + DELAY) if fault else ():
        event = Event(kind="decision", detail=decision.reason, data=asdict(decision))
        events.setdefault(decision.step, []).append(event)
    plain = {row.step: row for row in evaluations(fault)}
    for step in range(1, STEPS + 1):
        is_full = step in (1, STEPS // 2, STEPS) or ONSET + DELAY <= step <= ONSET + DELAY + 8
        rows = rl_rows(step, 0.5) if is_full else []
        scalars = health_scalars(step, fault) | (rl_scalars(step, rows) if rows else {"reward/mean": 0.5})
        record = StepRecord(phase="rl", step=step, rows=rows, scalars=scalars, events=events.get(step, ()))
        run.writer.commit_step(record)
        if step in plain:
            run.writer.commit_step(
                StepRecord(phase="eval", step=step, scalars={"success": plain[step].mean}, evaluations=[plain[step]])
            )
    run.rl_step = STEPS
    return run
