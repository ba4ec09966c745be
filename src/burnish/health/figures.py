"""What is kept of each trajectory beside the sums: one row of plain figures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryFigures:
    """One trajectory, without its tokens; None where something is unknown or does not exist.

    length: sampled tokens.  turns: actions (the horizon).  s_behaviour, s_proximal, s_reference: its sequence
    log-ratios, sums of learner minus the other's log-probabilities, in nats.  update_size: |A| sqrt(sum_t w_t^2 W_t),
    what it adds to the update without a backward pass (docs/health.md).  square, post_tool_square: sums of squared
    log-ratios learner/behaviour over all and over post-tool tokens.  staleness: mean over its tokens, in versions.
    nonfinite: raw numbers among its inputs that are NaN or infinite.  trained: it has an advantage and learner scores.

    `TrajectoryFigures(id="rl/000001/0000/00", group_id="rl/000001/0000", length=42, reward=1.0, advantage=0.7)`
    """

    id: str
    group_id: str
    source: str = ""
    skill: str = ""
    outcome: str = ""
    length: int = 0
    turns: int = 0
    post_tool_tokens: int = 0
    tool_calls: int = 0
    tool_errors: int = 0
    retries: int = 0
    nonfinite: int = 0
    trained: bool = False
    advantage: float | None = None
    reward: float | None = None
    success: float | None = None
    progress: float | None = None
    s_behaviour: float | None = None
    s_proximal: float | None = None
    s_reference: float | None = None
    update_size: float | None = None
    square: float | None = None
    post_tool_square: float | None = None
    staleness: float | None = None
