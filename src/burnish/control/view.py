"""What a rung gets to see when it is asked whether to engage, to move, or to let go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from burnish.control.baseline import Baselines, History
from burnish.control.conditions import Condition
from burnish.control.outcome import OutcomeWatch
from burnish.control.rollback import CheckpointMark
from burnish.control.spec import LadderSpec

ESS = "health/ess_sequence_normalised"
"""Normalised sequence ESS, 1 where the batch is worth what it was on policy."""

TAIL = "health/{slice}/log_ratio_behaviour_p95"
"""95th percentile of |log(learner/behaviour)| in a slice, nats."""

MOMENT = "health/{slice}/m2_behaviour"
"""Mean squared log(learner/behaviour) of a slice, nats squared."""

AGREEMENT = "reward/agreement"
"""How far the recipe's rewards rank the members of a group as the verifiable graders alone do, in [-1, 1]."""

DRIFT = "health/all/k3_reference"
"""k3 estimate of KL(learner || reference) over all tokens, nats."""

SHARE = "health/post_tool_share"
"""Share of the trained tokens that are conditioned on tool output, in [0, 1]."""

ENTROPY = "health/entropy"
"""Mean entropy of the learner's distribution, nats."""

SOURCE_ESS = "health/source:{source}/ess_token_raw"
"""Raw token ESS of one source's tokens, in (0, 1]."""

SOURCE_SPREAD = "health/source:{source}/reward_sd"
"""Standard deviation of one source's rewards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One call of the ladder, read only.

    tick: calls so far.  open: conditions with a finding within `active_steps`; remembered: those of the last
    `memory_steps` too.  ess: smoothed normalised sequence ESS, None where it was never measured.  smoothed: running
    means of the agreement and of ESS and spread of each source, by the name of the scalar.  rate_ceiling: the factor
    on the learning rate that a rollback holds, which its rung may go below, 1 where none does.  drift, share: recent
    values by step.
    """

    spec: LadderSpec
    step: int
    tick: int
    scalars: Mapping[str, float]
    open: tuple[Condition, ...]
    remembered: tuple[Condition, ...]
    outcome: OutcomeWatch
    ess_is_low: bool
    ess: float | None
    smoothed: Mapping[str, float]
    rate_ceiling: float
    baselines: Baselines
    drift: History
    share: History
    checkpoints: Sequence[CheckpointMark]
    reservoir_groups: int

    def scalar(self, name: str) -> float | None:
        """The finite value of a scalar, None where there is none."""
        value = self.scalars.get(name)
        return float(value) if value is not None and math.isfinite(value) else None

    def within_baseline(self, name: str) -> bool | None:
        """Whether a scalar is inside its frozen band; None where that cannot be said."""
        return self.baselines.within(name, self.scalar(name))

    def persists(self, condition: Condition) -> bool:
        """Whether a condition is still there after a rung engaged for it: found again, or still out of its band.

        Where neither can be said it does not: the next rung is harder, and needs a reason.
        """
        if condition.served_tick < 0 or condition.last_tick > condition.served_tick:
            return True
        names = [name for monitor in condition.monitors for name in (f"health/{monitor}", monitor)]
        return any(self.within_baseline(name) is False for name in names)


@dataclass(slots=True, kw_only=True)
class Grip:
    """The state of one rung, JSON-able.

    since_tick: when it engaged, -1 while it is let go.  values: what its last decision said.  memo: what it must
    remember from then on, such as the target of a servo.  well_steps: steps in a row in which all was well.
    engagements: how often it engaged so far.  barred_until: it stays closed before this tick.
    """

    since_tick: int = -1
    values: dict[str, Any] = field(default_factory=dict)
    memo: dict[str, float] = field(default_factory=dict)
    monitors: list[str] = field(default_factory=list)
    well_steps: int = 0
    engagements: int = 0
    barred_until: int = 0

    @property
    def engaged(self) -> bool:
        """Whether the knob is off the recipe's value at the moment."""
        return self.since_tick >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What a rung wants.  `Proposal(values={"factor": 0.7}, reason="normalised ESS is 0.49")`"""

    values: Mapping[str, Any]
    reason: str
    memo: Mapping[str, float] = field(default_factory=dict)
