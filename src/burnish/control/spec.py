"""What the ladder is told when a run starts: the recipe's knobs, its limits, and how careful it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from burnish.core.finding import Act

LADDER: tuple[Act, ...] = (
    Act.MASK_TAIL,
    Act.VERIFIED_REWARD,
    Act.LEARNING_RATE,
    Act.KL_WEIGHT,
    Act.POST_TOOL_CAP,
    Act.CURRICULUM,
    Act.NEAR_MISSES,
    Act.ROLLBACK,
    Act.STOP,
)
"""The rungs from gentle to hard.  A rung is a knob and a knob is a rung, so that no two can pull at the same one; the
one exception, the knobs that a rollback changes, is settled by the hold of `rollback_hold_steps`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderSpec:
    """Defaults and their reasons stand in docs/control.md.

    dry_run: decisions are only written down.  rungs: those that may act; the others stay closed.

    Pace, in steps (calls of `decide`).  baseline_steps: the first ones, which give the frozen baselines.
    cooldown_steps: between two rungs that engage or let go.  active_steps: how long a finding opens gentle rungs;
    memory_steps: how long it can open rollback and stop, because damage shows later than its cause.  release_steps: how
    long all must have been well before a rung lets go; twice as long each time it had to engage again, up to 16 times.

    moment_cap: largest mean squared log-ratio (nats squared) that tail masking leaves in a slice; moment_factor: the
    same as a multiple of the slice's baseline; the smaller of the two holds.
    learning_rate_floor: smallest factor.  ess_low, ess_recovered: normalised ESS under which near-misses may come,
    above which learning rate and near-misses are let go.
    agreement_low, agreement_recovered: of trained rewards with the verifiable graders, as a share of its baseline.
    kl_weight: the recipe's, None where the run has no reference (the rung stays closed).  kl_weight_start: where the
    servo starts from if the recipe's is smaller; kl_weight_cap: where it ends; kl_target_least_nats: smallest target,
    k3 per token.  entropy_floor_share: of the baseline's entropy.
    sources: the recipe's shares by source, {} where there is one source (the curriculum stays closed);
    source_share_floor: no source falls below this part of its recipe share.
    groups_per_step: groups of a batch; near_miss_share: the part of it that near-misses may take.
    contrast_low, contrast_recovered: within-group reward variance as a share of its baseline.
    heldout_margin: drop of held-out success in [0, 1] that counts as damage, beyond 1.64 standard errors.
    onset_margin_steps: a checkpoint must be this much older than the estimated onset.  max_rollbacks: then stop.
    rollback_learning_rate: factor after a rollback, for rollback_hold_steps.  stop_evaluations: held-out evaluations
    in a row that must show the damage before a run without another way out is stopped.

    `LadderSpec(dry_run=False, kl_weight=0.01, groups_per_step=16)`
    """

    dry_run: bool = True
    rungs: tuple[Act, ...] = LADDER
    baseline_steps: int = 30
    cooldown_steps: int = 8
    active_steps: int = 20
    memory_steps: int = 100
    release_steps: int = 12
    moment_cap: float = 0.04
    moment_factor: float = 2.0
    learning_rate_floor: float = 0.1
    ess_low: float = 0.5
    ess_recovered: float = 0.8
    agreement_low: float = 0.5
    agreement_recovered: float = 0.75
    kl_weight: float | None = None
    kl_weight_start: float = 0.01
    kl_weight_cap: float = 0.2
    kl_target_least_nats: float = 0.01
    entropy_floor_share: float = 0.5
    sources: Mapping[str, float] = field(default_factory=dict)
    source_share_floor: float = 0.25
    groups_per_step: int = 8
    near_miss_share: float = 0.15
    contrast_low: float = 0.5
    contrast_recovered: float = 0.75
    heldout_margin: float = 0.05
    onset_margin_steps: int = 1
    max_rollbacks: int = 2
    rollback_learning_rate: float = 0.25
    rollback_hold_steps: int = 50
    stop_evaluations: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "rungs", tuple(Act(act) for act in self.rungs))
        counts = ("baseline_steps", "cooldown_steps", "active_steps", "release_steps", "groups_per_step")
        for name in (*counts, "memory_steps", "rollback_hold_steps", "stop_evaluations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, got {getattr(self, name)}")
        for name in ("max_rollbacks", "onset_margin_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is at least 0, got {getattr(self, name)}")
        shares = ("learning_rate_floor", "entropy_floor_share", "source_share_floor", "near_miss_share")
        for name in (*shares, "rollback_learning_rate"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name} lies in (0, 1], got {getattr(self, name)}")
        bounds = ("ess_low", "ess_recovered"), ("contrast_low", "contrast_recovered")
        for low, high in (*bounds, ("agreement_low", "agreement_recovered")):
            if not 0.0 < getattr(self, low) < getattr(self, high) < math.inf:
                raise ValueError(
                    f"{low} must be above 0 and below {high}, or the rung would flutter; "
                    f"got {getattr(self, low)} and {getattr(self, high)}"
                )
        for name in ("moment_cap", "moment_factor", "kl_weight_start", "kl_target_least_nats", "heldout_margin"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is above 0 and finite, got {getattr(self, name)}")
        if not max(self.kl_weight_start, self.kl_weight or 0.0) <= self.kl_weight_cap < math.inf:
            raise ValueError(
                f"kl_weight_cap must be at least kl_weight and kl_weight_start, got {self.kl_weight_cap}: "
                "raise it, or take kl_weight out of `rungs`"
            )
        if self.kl_weight is not None and not self.kl_weight >= 0.0:
            raise ValueError(f"kl_weight is at least 0, got {self.kl_weight}")
        if any(not share > 0.0 for share in self.sources.values()):
            raise ValueError(f"the share of a source is above 0, got {dict(self.sources)}")
