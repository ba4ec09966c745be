"""Everything about a run except its trajectories, as one JSON-able value."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from burnish.core.errors import StoreError
from burnish.core.outcome import Ending, Limit, Owner
from burnish.reports.cost import CostReadings, cost_view
from burnish.reports.headline import headline, title_of
from burnish.reports.health import health_view, symptoms_of
from burnish.reports.overrides import override_view
from burnish.reports.series import (
    Points,
    Readings,
    all_scalars,
    columns,
    number,
    phase_rates,
    phase_seconds,
)
from burnish.store.reader import RunReader
from burnish.store.rows import EvaluationRow, Fate, RunStatus, StepInfo, StoredEvent

MAX_EVENTS = 500
FLOAT32_TOLERANCE = 1e-4
"""Of log-probabilities and of gradients, where the recipe names none and the run is in float32."""

FATES = tuple(str(fate) for fate in Fate)
OUTCOMES = (
    str(Ending.COMPLETED),
    *(f"{Ending.TRUNCATED}:{limit}" for limit in Limit),
    *(f"{Ending.ERROR}:{owner}" for owner in Owner),
)
LEDGER = ("dispatched", "trained", "filtered", "dropped", "failed")
STALENESS_SCALAR = "staleness/mean"
"""Runs that store it are asynchronous: their tokens may be older than the learner."""
NO_COST: dict[str, Any] = {"tradeoff": [], "bins": {"rows": []}, "staleness": {"steps": [], "buckets": []}}

_CHECKS = (
    ("check/canary_nats", "sampler freshness: canary log-probabilities", "nats", "logprob_tolerance"),
    ("check/ratio_nats", "ratio 1 on fresh samples: learner / sampler", "nats", "logprob_tolerance"),
    ("check/micro_batch", "gradient invariant to micro-batches", "relative", "micro_batch_tolerance"),
)


def overview(reader: RunReader, readings: Readings, costs: CostReadings) -> dict[str, Any]:
    """Header, headline, scalars, evaluations, checks, events and what can be browsed, of this moment.

    What cannot be read (a missing segment, a broken manifest) is left out and named under "problems".
    """
    problems: list[str] = []
    status, steps, scalars = reader.status(), reader.steps(), all_scalars(reader)
    evaluations, events = reader.evaluations(), reader.events()
    try:
        manifest = reader.manifest()
    except StoreError as error:
        manifest = {}
        problems.append(str(error))
    manifest = manifest | {"model": _built(reader)}
    try:
        readings.update(status.attempt)
        costs.update(status.attempt, is_asynchronous=STALENESS_SCALAR in scalars["rl"])
        cost = cost_view(costs, evaluations)
    except StoreError as error:
        problems.append(f"trajectories cannot be read, so that reward has no band: {error}")
        cost = NO_COST
    rl = columns(scalars["rl"])
    return {
        "name": reader.layout.root.resolve().name,
        "generated_at_s": time.time(),
        "problems": problems,
        "status": _status(status),
        "facts": facts(manifest, status, steps),
        "manifest": manifest,
        "headline": _headline(evaluations),
        "phases": _phases(scalars, steps),
        "ledger": _ledger(scalars["rl"]),
        "cost": cost,
        "scalars": {"sft": columns(scalars["sft"]), "rl": rl, "eval": columns(scalars["eval"])},
        "reward_band": [readings.intervals.get(step, (None, None)) for step in rl["steps"]],
        "evaluations": [_evaluation(row) for row in evaluations],
        "checks": _checks(scalars["rl"], manifest),
        "health": health_view(symptoms_of(scalars["rl"], events, evaluations, manifest), events),
        "events": _events(events),
        "overrides": override_view(reader.overrides()),
        "browse": {
            "total": sum(info.n_trajectories for info in steps),
            "steps": _browsable(steps, readings.titles),
            "fates": FATES,
            "outcomes": OUTCOMES,
        },
    }


def _status(status: RunStatus) -> dict[str, Any]:
    return {
        "state": str(status.state),
        "detail": status.detail,
        "attempt": status.attempt,
        "live": status.live,
        "created_at_s": status.created_at_s,
        "updated_at_s": status.updated_at_s,
    }


def facts(manifest: Mapping[str, Any], status: RunStatus, steps: Sequence[StepInfo]) -> list[tuple[str, str]]:
    """What to say about a run in its header, as (title, text); what the manifest does not hold is left out."""
    recipe, hardware, versions = (_mapping(manifest, key) for key in ("recipe", "hardware", "versions"))
    newest_s = max([status.updated_at_s, *(info.committed_at_s for info in steps[-1:])])
    pairs = [
        ("recipe", _recipe_text(recipe)),
        ("forked from", _origin_text(_mapping(manifest, "parent"))),
        ("recipe hash", str(manifest.get("recipe_hash", ""))),
        ("environment", _environment_text(_mapping(recipe, "environment"))),
        ("model", _model_text(_mapping(recipe, "model"), _mapping(manifest, "model"))),
        ("seed", str(manifest.get("seed", ""))),
        ("wall time", duration_text(newest_s - status.created_at_s)),
        ("resumed", {0: "", 1: "once"}.get(status.attempt, f"{status.attempt} times")),
        (
            "workers",
            f"{hardware['workers']} (threads each: {hardware.get('threads')})" if "workers" in hardware else "",
        ),
        ("machine", _machine_text(hardware)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
        ("commit", str(_mapping(manifest, "git").get("commit") or "")),
    ]
    return [(title, text) for title, text in pairs if text]


def _built(reader: RunReader) -> dict[str, Any]:
    """What was noted beside the model when it was made, such as its number of parameters."""
    try:
        note = json.loads((reader.layout.model / "burnish.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(_mapping(note, "model")) if isinstance(note, dict) else {}


def duration_text(seconds: float) -> str:
    """A duration in words.

    >>> duration_text(42.3), duration_text(125), duration_text(7300)
    ('42 s', '2 min 5 s', '2 h 1 min')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _recipe_text(recipe: Mapping[str, Any]) -> str:
    rl, warm_start = _mapping(recipe, "rl"), _mapping(recipe, "warm_start")
    parts = [
        f"SFT {warm_start['steps']} steps" if warm_start.get("steps") else "",
        f"{rl.get('loss')} {rl['steps']} steps of {rl.get('groups')} x {rl.get('group_size')}"
        if rl.get("steps")
        else "",
    ]
    return ", ".join(part for part in parts if part)


def _origin_text(parent: Mapping[str, Any]) -> str:
    return f"{parent['run']} at {parent.get('checkpoint', 'its end')}" if parent.get("run") else ""


def _environment_text(environment: Mapping[str, Any]) -> str:
    options = ", ".join(f"{key}={value}" for key, value in _mapping(environment, "options").items())
    return f"{environment.get('name', '')} ({options})" if options else str(environment.get("name", ""))


def _model_text(model: Mapping[str, Any], built: Mapping[str, Any]) -> str:
    """`built` may hold the number of parameters, counted when the model was made."""
    tiny, lora = _mapping(model, "tiny"), _mapping(model, "lora")
    if model.get("path"):
        text = str(model["path"])
    elif tiny:
        text = f"tiny {tiny.get('family')}, {tiny.get('layers')} layers of {tiny.get('hidden_size')}"
    else:
        return ""
    if built.get("parameters"):
        text += f", {float(built['parameters']) / 1e6:.3g}M parameters"
    if lora.get("rank"):
        text += f", LoRA rank {lora['rank']}"
    return text


def _machine_text(hardware: Mapping[str, Any]) -> str:
    memory = hardware.get("memory_bytes")
    parts = [
        str(hardware.get("gpu") or ""),
        f"{hardware['cores']} cores" if hardware.get("cores") else "",
        f"{memory / 1e9:.0f} GB" if isinstance(memory, (int, float)) and memory else "",
        f"{hardware.get('system', '')} {hardware.get('machine', '')}".strip(),
    ]
    return ", ".join(part for part in parts if part)


def _headline(evaluations: Sequence[EvaluationRow]) -> dict[str, Any]:
    table = headline(evaluations)
    rows = []
    for stage in table.stages:
        found = (stage.evaluations.get((column.split, column.mode)) for column in table.columns)
        rows.append({"title": stage.title, "cells": [_evaluation(row) if row else None for row in found]})
    titles = [{"title": column.title, "split": column.split, "mode": column.mode} for column in table.columns]
    return {"columns": titles, "rows": rows}


def _evaluation(row: EvaluationRow) -> dict[str, Any]:
    return {
        "label": row.label,
        "split": row.split,
        "mode": row.mode,
        "title": title_of(row.split, row.mode),
        "phase": row.phase,
        "step": row.step,
        "n": row.n,
        "successes": row.successes,
        "mean": number(row.mean),
        "low": number(row.low),
        "high": number(row.high),
        "excluded": row.details.get("excluded", 0),
        "outcomes": row.details.get("outcomes", {}),
    }


def _ledger(scalars: Mapping[str, Points]) -> dict[str, int]:
    """Sums over the steps; what is pending is a level, so its newest value stands."""
    pending = scalars.get("episodes/pending", ())
    return {
        **{key: sum(int(value) for _, value in scalars.get(f"episodes/{key}", ())) for key in LEDGER},
        "pending": int(pending[-1][1]) if pending else 0,
    }


def _phases(scalars: Mapping[str, Mapping[str, Points]], steps: Sequence[StepInfo]) -> list[dict[str, Any]]:
    seconds, rates = phase_seconds(scalars), phase_rates(scalars)
    found = []
    for phase, title in (("sft", "warm start (SFT)"), ("rl", "RL"), ("eval", "held-out evaluations")):
        members = [info for info in steps if info.phase == phase]
        if members:
            evaluated = scalars.get("eval", {}).get("success", ())
            count = len(evaluated) if phase == "eval" else members[-1].step
            rate = number(rates.get(phase))
            found.append({"title": title, "steps": count, "seconds": number(seconds[phase]), "tokens_per_s": rate})
    return found


def _checks(scalars: Mapping[str, Points], manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    checks = []
    for name, title, unit, key in _CHECKS:
        values = [value for _, value in scalars.get(name, ())]
        if values:
            largest = max(values, key=lambda value: value if value == value else float("inf"))
            checks.append(
                {
                    "name": name,
                    "title": title,
                    "unit": unit,
                    "n": len(values),
                    "last": number(values[-1]),
                    "largest": number(largest),
                    "tolerance": _tolerance(scalars, manifest, key),
                }
            )
    return checks


def _tolerance(scalars: Mapping[str, Points], manifest: Mapping[str, Any], key: str) -> float | None:
    """The tolerance of a check: as the run stored it, else of the recipe, else the default of float32, else unknown."""
    stored = scalars.get(f"check/{key}")
    if stored:
        return number(stored[-1][1])
    recipe = _mapping(manifest, "recipe")
    given = _mapping(recipe, "checks").get(key)
    if given is not None:
        return number(float(given))
    model = _mapping(recipe, "model")
    is_float32 = model.get("dtype") == "float32" or (model.get("dtype") == "auto" and not model.get("path"))
    return FLOAT32_TOLERANCE if is_float32 else None


def _events(events: Sequence[StoredEvent]) -> list[dict[str, Any]]:
    return [
        {
            "kind": event.kind,
            "detail": event.detail,
            "data": event.data,
            "phase": event.phase,
            "step": event.step,
            "attempt": event.attempt,
            "at_s": event.at_s,
        }
        for event in events[-MAX_EVENTS:]
    ]


def _browsable(steps: Sequence[StepInfo], eval_titles: Mapping[int, str]) -> dict[str, list[dict[str, Any]]]:
    """Steps that have trajectories, by phase."""
    found: dict[str, list[dict[str, Any]]] = {}
    for info in steps:
        if info.n_trajectories:
            title = eval_titles.get(info.step, "") if info.phase == "eval" else ""
            found.setdefault(info.phase, []).append({"step": info.step, "n": info.n_trajectories, "title": title})
    return found


def _mapping(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    return value if isinstance(value, Mapping) else {}
