"""Ladders that are driven step by step, and what a healthy step looks like to them."""

from __future__ import annotations

from burnish.control.ladder import Ladder
from burnish.control.outcome import OutcomeContrast
from burnish.control.rollback import CheckpointMark
from burnish.control.spec import LadderSpec
from burnish.core.finding import Finding

ESS = "health/ess_sequence_normalised"
HEALTHY = {
    ESS: 1.0,
    "health/post_tool/log_ratio_behaviour_p95": 0.05,
    "health/post_tool/m2_behaviour": 0.001,
    "health/all/k3_reference": 0.02,
    "health/post_tool_share": 0.3,
    "reward/agreement": 0.9,
    "health/entropy": 1.0,
    "health/source:easy/ess_token_raw": 0.9,
    "health/source:noisy/ess_token_raw": 0.9,
    "health/source:easy/reward_sd": 0.4,
    "health/source:noisy/reward_sd": 0.4,
}
CHECKPOINTS = [CheckpointMark(name=f"{step:06d}", step=step, verified=step <= 40) for step in range(0, 400, 20)]


def alarm(kind, step=0, onset=-1, slice_name="", **fields):
    defaults = {"monitor": f"monitor of {kind}", "summary": kind}
    return Finding(**{**defaults, "step": step, "kind": kind, "onset_step": onset, "slice_name": slice_name, **fields})


class Drive:
    """Feeds a ladder step by step."""

    def __init__(self, warm_up=5, **options):
        defaults = {"baseline_steps": 5, "cooldown_steps": 4, "release_steps": 6, "active_steps": 10}
        self.ladder = Ladder(LadderSpec(**{**defaults, **options}))
        self.now = -1
        for _ in range(warm_up):
            assert self.step() == ()

    def step(self, *findings, ess=1.0, variance=0.2, heldout=None, checkpoints=(), reservoir=0, **changes):
        self.now += 1
        given = {name.replace("__", "/").replace("_COLON_", ":"): value for name, value in changes.items()}
        return self.ladder.decide(
            self.now,
            {**HEALTHY, ESS: ess, **given},
            findings,
            OutcomeContrast(reward_variance=variance, heldout_success=heldout, heldout_episodes=1000),
            checkpoints=checkpoints,
            reservoir_groups=reservoir,
        )

    def run(self, steps, *findings, every_step=False, **fields):
        """`findings` in the first step, or in each; all decisions."""
        decisions = []
        for index in range(steps):
            decisions += self.step(*(findings if every_step or index == 0 else ()), **fields)
        return decisions


def acts(decisions):
    return [(decision.act.value, decision.release) for decision in decisions]
