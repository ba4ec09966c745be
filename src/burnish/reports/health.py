"""The health of a run as one JSON-able value for its page: panels, findings, decisions and what they look like."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from burnish.core.finding import Act, Decision, Finding
from burnish.reports.findings import read_decisions, read_findings
from burnish.reports.panels import FLOOR_SHARE, PANELS
from burnish.reports.series import Points, number
from burnish.reports.why import Diagnosis, Hypothesis, Symptoms, Watched, diagnose
from burnish.store.rows import EvaluationRow, StoredEvent

PREFIX = "health/"
MAX_FINDINGS = 300
MAX_DECISIONS = 300
MAX_MARKS = 12
WINDOWS = 6
FLOOR_STEPS = 30
KNOBS = {
    Act.MASK_TAIL: "mask the tail",
    Act.VERIFIED_REWARD: "verified reward alone",
    Act.LEARNING_RATE: "learning rate",
    Act.KL_WEIGHT: "KL weight",
    Act.POST_TOOL_CAP: "cap on the post-tool share",
    Act.NEAR_MISSES: "near-misses",
    Act.CURRICULUM: "curriculum",
    Act.ROLLBACK: "rollback",
    Act.STOP: "stop",
}
_HORIZON = re.compile(r"health/horizon:([^/]+)/success(?:_mean)?")


def symptoms_of(
    scalars: Mapping[str, Points],
    events: Sequence[StoredEvent],
    evaluations: Sequence[EvaluationRow],
    manifest: Mapping[str, Any],
) -> Symptoms:
    """What a diagnosis is made of; scalars of phase "rl"."""
    findings = read_findings(events)
    return Symptoms(
        findings=findings,
        scalars=scalars,
        evaluations=evaluations,
        watched=watched(scalars, findings, manifest),
    )


def watched(scalars: Mapping[str, Points], findings: Sequence[Finding], manifest: Mapping[str, Any]) -> Watched:
    """How many steps were compared with the baseline, by how many monitors, at which rate.

    Steps of the baseline itself raise no calibrated alarm, so they are not counted.
    """
    section = manifest.get("recipe", {}).get("health", {}) if isinstance(manifest.get("recipe"), Mapping) else {}
    section = section if isinstance(section, Mapping) else {}
    steps = {step for name, points in scalars.items() if name.startswith(PREFIX) for step, _ in points}
    baseline = section.get("baseline_steps", 0)
    of_baseline = min(len(steps), baseline) if isinstance(baseline, int) else 0
    monitors = scalars.get(f"{PREFIX}monitors", ())
    rate = section.get("false_alarms_per_1000")
    count = int(max(value for _, value in monitors)) if monitors else None
    if not isinstance(rate, (int, float)) and count:
        # A finding states the rate of its own monitor.
        known = [one.false_alarms_per_1000 for one in findings if one.false_alarms_per_1000 is not None]
        rate = count * max(known) if known else None
    return Watched(
        steps=len(steps) - of_baseline,
        baseline_steps=of_baseline,
        monitors=count,
        false_alarms_per_1000=float(rate) if isinstance(rate, (int, float)) else None,
    )


def health_view(symptoms: Symptoms, events: Sequence[StoredEvent]) -> dict[str, Any]:
    """Everything that the health tab shows beside the scalars themselves."""
    diagnosis = diagnose(symptoms)
    decisions = read_decisions(events)
    left_out = max(0, len(symptoms.findings) - MAX_FINDINGS)
    fell = diagnosis.damage
    return {
        "watched": {
            "steps": symptoms.watched.steps,
            "monitors": symptoms.watched.monitors,
            "rate": number(symptoms.watched.false_alarms_per_1000),
        },
        "is_stored": any(name.startswith(PREFIX) for name in symptoms.scalars),
        "findings": [finding_json(one) for one in symptoms.findings[-MAX_FINDINGS:]],
        "left_out": left_out,
        "decisions": [_decision(one) for one in decisions[-MAX_DECISIONS:]],
        "damage": {"step": fell.step, "before": number(fell.before), "after": number(fell.after)} if fell else None,
        "causes": [hypothesis_json(one, diagnosis) for one in diagnosis.hypotheses],
        "unexplained": [one.monitor for one in diagnosis.unexplained],
        "by_chance": number(diagnosis.by_chance),
        "silence": diagnosis.silence,
        "panels": _panels(symptoms),
        "horizons": horizons(symptoms.scalars),
    }


def horizons(scalars: Mapping[str, Points]) -> dict[str, Any]:
    """Mean success by range of turns (rows) in windows of steps (columns), of `health/horizon:RANGE/success`."""
    series = {found[1]: dict(points) for name, points in scalars.items() if (found := _HORIZON.fullmatch(name))}
    steps = sorted({step for points in series.values() for step in points})
    size = max(1, -(-len(steps) // WINDOWS))
    windows = [steps[start : start + size] for start in range(0, len(steps), size)]
    rows = []
    for name in sorted(series, key=lambda text: int(re.split(r"\D", text)[0] or 0)):
        points = series[name]
        cells = [[points[step] for step in window if step in points] for window in windows]
        means = [number(sum(values) / len(values)) if values else None for values in cells]
        rows.append({"title": name.replace("-", "\u2013"), "cells": means})
    return {"columns": [f"steps {window[0]}\u2013{window[-1]}" for window in windows], "rows": rows}


def _panels(symptoms: Symptoms) -> list[dict[str, Any]]:
    made = []
    for panel in PANELS:
        lines = panel.known(symptoms.scalars)
        if not lines:
            continue
        measured = {name.removeprefix(PREFIX) for name, _ in lines}
        marks = [one for one in symptoms.findings if one.monitor in measured]
        made.append(
            {
                "id": panel.id,
                "group": panel.group,
                "title": panel.title,
                "note": panel.note,
                "share": panel.share,
                "lines": lines,
                "floor": _floor(symptoms.scalars.get(panel.floor_of, ())),
                "marks": [
                    {
                        "from": one.onset_step if 0 <= one.onset_step <= one.step else one.step,
                        "to": one.step,
                        "severity": one.severity,
                    }
                    for one in marks[:MAX_MARKS]
                ],
            }
        )
    return made


def _floor(points: Points) -> float | None:
    early = [value for _, value in points[:FLOOR_STEPS] if math.isfinite(value)]
    return number(FLOOR_SHARE * median(early)) if early else None


def finding_json(one: Finding) -> dict[str, Any]:
    return {
        "monitor": one.monitor,
        "step": one.step,
        "onset_step": one.onset_step,
        "kind": one.kind,
        "slice": one.slice_name,
        "severity": one.severity,
        "rate": number(one.false_alarms_per_1000),
        "summary": one.summary,
        "evidence": jsonable(one.evidence),
        "trajectory_ids": list(one.trajectory_ids[:8]),
    }


def _decision(one: Decision) -> dict[str, Any]:
    return {
        "title": KNOBS[one.act],
        "act": str(one.act),
        "step": one.step,
        "reason": one.reason,
        "values": values_text(one.values),
        "findings": list(one.findings),
        "release": one.release,
        "dry_run": one.dry_run,
    }


def values_text(values: Mapping[str, Any]) -> str:
    """The values of a decision in one line.

    >>> values_text({"factor": 0.70711, "group_ids": ["a", "b", "c", "d"]})
    'factor 0.707, group_ids a, b, c and 1 more'
    """
    return ", ".join(f"{key} {_value(value)}" for key, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_value(one)}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        shown = ", ".join(str(one) for one in value[:3])
        return f"{shown} and {len(value) - 3} more" if len(value) > 3 else shown
    return str(value)


def jsonable(value: Any) -> Any:
    """A value as strict JSON holds it: numbers that are not finite become texts.

    >>> jsonable({"max": float("inf"), "steps": (1, 2)})
    {'max': 'inf', 'steps': [1, 2]}
    """
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(one) for one in value]
    return value


def hypothesis_json(one: Hypothesis, diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "key": one.cause.key,
        "title": one.cause.title,
        "meaning": one.cause.meaning,
        "strength": one.strength,
        "score": one.score,
        "when": when_text(one, diagnosis),
        "evidence": list(one.evidence),
        "trajectory_ids": list(one.trajectory_ids),
        "look": one.cause.look,
        "advice": one.cause.advice,
    }


def when_text(one: Hypothesis, diagnosis: Diagnosis) -> str:
    """Onset, first alarm and lead in a sentence."""
    onset = f"Onset about step {one.onset_step}, first" if one.onset_step >= 0 else "First"
    text = f"{onset} noticed at step {one.alarm_step}."
    if one.lead_steps is None or diagnosis.damage is None:
        return f"{text} Held-out success has not clearly fallen."
    fell = f"held-out success fell clearly (step {diagnosis.damage.step})"
    if one.lead_steps >= 0:
        return f"{text} That is {one.lead_steps} steps before {fell}."
    return f"{text} That is {-one.lead_steps} steps after {fell}."
