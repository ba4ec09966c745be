"""What an episode spent, and what a group's rewards lose to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from burnish.core.trajectory import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeCost:
    """What one episode spent.

    `EpisodeCost(action_tokens=48, context_tokens=310, turns=3, tool_calls=2, tool_s=0.4, total_s=1.7)`

    action_tokens: sampled.  context_tokens: everything, shown and sampled, in the longest path.  turns: actions of the
    policy.  tool_s, total_s: wall seconds in tools, and of the whole episode.
    """

    action_tokens: int
    context_tokens: int
    turns: int
    tool_calls: int
    tool_s: float
    total_s: float

    @staticmethod
    def of(trajectory: Trajectory) -> EpisodeCost:
        """The cost of a finished episode, read from its record."""
        return EpisodeCost(
            action_tokens=trajectory.action_tokens,
            context_tokens=longest_path_tokens(trajectory),
            turns=sum(node.is_action for node in trajectory.nodes),
            tool_calls=trajectory.counters.get("tool_calls", 0),
            tool_s=trajectory.tool_s,
            total_s=trajectory.total_s,
        )


def longest_path_tokens(trajectory: Trajectory) -> int:
    """Tokens of the longest root-to-leaf path; 0 without nodes.  A node's parent always stands before it."""
    reached: list[int] = []
    for node in trajectory.nodes:
        reached.append(len(node.token_ids) + (reached[node.parent] if node.parent >= 0 else 0))
    return max(reached, default=0)


class Charge(Protocol):
    """Takes the costs of a group's episodes from its rewards, after aggregation; None stays None.

    Only training charges: evaluations report what graders said, whatever it cost.
    """

    def charged(self, rewards_G: Sequence[float | None], costs_G: Sequence[EpisodeCost]) -> Sequence[float | None]: ...
