"""Every fault and healthy control by name: its injector, its ladder of doses, and what a right diagnosis names."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOSES = Path(__file__).with_name("doses.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One fault.  injector: module and class, imported by the run process alone.  doses: from mild to strong, in the
    injector's unit.  names: a Finding is attributed rightly where its kind, monitor or slice contains one of them.
    repairable: an action of the ladder can help while the fault goes on.

    `Kind(injector="inject.Stale", doses=(8.0, 16.0), names=("staleness",), repairable=True)`
    """

    injector: str
    doses: tuple[float, ...]
    names: tuple[str, ...] = ()
    repairable: bool = False


FAULTS: dict[str, Kind] = {
    "stale": Kind(
        injector="inject.Stale",
        doses=(16.0, 32.0, 64.0, 128.0),
        names=("staleness", "tail_growth", "ess_drop"),
        repairable=True,
    ),
    "mismatch": Kind(
        injector="inject.Mismatch",
        doses=(0.05, 0.1, 0.2, 0.4),
        names=("tail_growth", "ess_drop"),
        repairable=True,
    ),
    "temperature": Kind(
        injector="inject.Temperature",
        doses=(1.3, 1.6, 2.0, 2.5),
        names=("tail_growth", "ess_drop"),
        repairable=True,
    ),
    "learning_rate": Kind(
        injector="inject.LearningRate",
        doses=(3.0, 6.0, 12.0, 24.0),
        names=("learning_rate", "kl_drift", "tail_growth", "ess_drop"),
        repairable=True,
    ),
    "rounding": Kind(
        injector="inject.Rounding",
        doses=(0.02, 0.04, 0.06),
        names=("success_drop", "entropy_high", "kl_drift"),
    ),
    "weight_decay": Kind(
        injector="inject.WeightDecay",
        doses=(5.0, 20.0, 60.0),
        names=("success_drop", "entropy_high", "kl_drift", "learning_rate"),
    ),
    "frozen_sampler": Kind(
        injector="inject.FrozenSampler",
        doses=(5.0, 1000.0),
        names=("staleness", "tail_growth", "ess_drop"),
        repairable=True,
    ),
    "wrong_sign": Kind(
        injector="inject.WrongSign",
        doses=(0.6, 1.0),
        names=("credit",),
    ),
    "tool_format": Kind(
        injector="worlds.FormatDrift",
        doses=(0.5, 1.0),
        names=("post_tool", "tool_errors"),
    ),
    "noisy_tool": Kind(
        injector="worlds.NoisyTool",
        doses=(0.25, 0.5, 1.0),
        names=("post_tool", "tool_errors"),
    ),
    "failing_tool": Kind(
        injector="worlds.FailingTool",
        doses=(0.2, 0.4, 0.8),
        names=("tool_errors", "post_tool"),
    ),
    "leaking_tool": Kind(
        injector="worlds.LeakingTool",
        doses=(1.0,),
        names=("reward_jump", "post_tool"),
    ),
    "exploit": Kind(
        injector="inject.Exploit",
        doses=(0.5, 1.0, 2.0, 4.0),
        names=("reward_jump",),
    ),
    "silent_failure": Kind(
        injector="inject.SilentFailure",
        doses=(0.3, 0.6, 1.0),
        names=("grader_failure", "exclusion_rate"),
    ),
    "length": Kind(
        injector="inject.LengthBonus",
        doses=(0.5, 1.0, 2.0, 4.0),
        names=("length_blow_up", "reward_jump"),
        repairable=True,
    ),
    "brevity": Kind(
        injector="inject.Brevity",
        doses=(2.0, 16.0),
        names=("reward_jump", "length"),
        repairable=True,
    ),
    "tool_share": Kind(
        injector="inject.ToolBonus",
        doses=(0.1, 0.3, 1.0),
        names=("post_tool_share", "reward_jump"),
        repairable=True,
    ),
    "template": Kind(
        injector="inject.Template",
        doses=(0.3, 0.6, 1.0),
        names=("template_collapse", "reward_jump"),
    ),
    "inverted": Kind(
        injector="inject.Inverted",
        doses=(0.3, 0.6, 1.0),
        names=("grader_failure", "reward_jump"),
    ),
    "noisy_source": Kind(
        injector="inject.NoisySource",
        doses=(1.0, 4.0, 16.0),
        names=("source_noise", "concentration"),
        repairable=True,
    ),
    "entropy_collapse": Kind(
        injector="inject.ConfidenceBonus",
        doses=(1.0, 3.0, 10.0),
        names=("entropy_low", "reward_jump"),
        repairable=True,
    ),
    "entropy_bonus": Kind(
        injector="inject.DoubtBonus",
        doses=(0.3, 1.0, 3.0),
        names=("entropy_high", "reward_jump"),
        repairable=True,
    ),
    "hard_negatives": Kind(
        injector="inject.HardNegatives",
        doses=(0.3, 1.0, 3.0, 30.0),
        names=("left_p95_negative", "zero_signal", "concentration", "credit"),
    ),
}

CONTROLS: dict[str, Kind] = {
    "mix_shift": Kind(injector="controls.MixShift", doses=(0.4,)),
    "curriculum": Kind(injector="controls.CurriculumStep", doses=(0.5,)),
    "longer_answers": Kind(injector="controls.LongerAnswers", doses=(0.5,)),
    "smaller_batch": Kind(injector="controls.SmallerBatch", doses=(0.5,)),
    "lower_rate": Kind(injector="inject.LearningRate", doses=(0.5,)),
}
"""Announced changes among them: curriculum and lower_rate, after which a monitor may be told to begin anew."""

ANNOUNCED = ("curriculum", "lower_rate")

HARD: dict[str, Kind] = {
    "not_finite": Kind(injector="inject.NotFinite", doses=(1.0,)),
    "not_delivered": Kind(injector="inject.NotDelivered", doses=(1.0,)),
}
"""Faults that an invariant catches at once: tabled apart."""

ARMS: dict[str, Kind] = {
    "near_misses": Kind(injector="arms.NearMisses", doses=(1.0,)),
    "all_negative": Kind(injector="inject.HardNegatives", doses=(1.0,)),
    "corrected": Kind(injector="arms.Corrected", doses=(4.0,)),
    "staged": Kind(injector="arms.Staged", doses=(0.1, 0.3, 0.5)),
}
"""What claims compare with each other."""

KINDS = FAULTS | CONTROLS | HARD
EVERYTHING = KINDS | ARMS


def read_doses(path: Path = DOSES) -> dict[str, dict[str, Any]]:
    """`doses.toml`: a table with dose, gap and status by kind."""
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def chosen_dose(kind: str, doses: dict[str, dict[str, Any]]) -> float:
    """The tuned dose; where there is none, the middle of the ladder."""
    ladder = KINDS[kind].doses
    return float(doses.get(kind, {}).get("dose", ladder[len(ladder) // 2]))


def write_doses(found: dict[str, dict[str, Any]], path: Path = DOSES) -> None:
    """Merge into the file; its comment at the top stays."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    head = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    merged = {**read_doses(path), **found}
    tables = []
    for kind in sorted(merged):
        rows = [f"{key} = {_toml(value)}" for key, value in merged[kind].items()]
        tables.append("\n".join([f"[{kind}]", *rows]))
    path.write_text(head + "\n\n" + "\n\n".join(tables) + "\n", encoding="utf-8")


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)
