"""What a shard is told at the start of a step, and what it tells back for those who watch the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from burnish.algorithms.loss import LossSums
from burnish.core.streams import TokenColumns
from burnish.core.trajectory import Trajectory
from burnish.health.slices import SliceNames
from burnish.rollout.streams import Judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardKnobs:
    """What control has turned and a shard carries out; the defaults change nothing.

    kl_weight: None for the recipe's.  post_tool_factor: multiplies the advantages of tokens after a tool result.
    tail_caps: by slice, the largest mean of squared log-ratios learner/behaviour (nats squared) among the tokens of a
    shard that stay in the loss; the largest leave first.

    `ShardKnobs(post_tool_factor=0.5, tail_caps={"post_tool": 0.04})`
    """

    kl_weight: float | None = None
    post_tool_factor: float = 1.0
    tail_caps: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOrder:
    """A step, before its updates.

    step: its number.  version: of the learner before the first update.  judgements: by id, of all trajectories of the
    shard, in the order of the groups; those with an advantage are trained on.  replayed: trajectories of earlier steps
    among them.  names: the slices, None where nobody watches.  score_norm: whether squared score norms are wanted.
    keep_streams: give the streams back as they are, too.

    `StepOrder(step=12, version=52, updates=1, judgements={"rl/000012/0000/00": Judgement(advantage=.5, reward=1.0)})`
    """

    step: int
    version: int
    updates: int
    judgements: Mapping[str, Judgement]
    replayed: tuple[Trajectory, ...] = ()
    knobs: ShardKnobs = ShardKnobs()
    names: SliceNames | None = None
    score_norm: bool = False
    keep_streams: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a shard saw of some trajectories: their `HealthSums` as bytes (empty for none), or their columns where they
    are few or kept (None for none); how many tokens the tail caps took out of the loss, and the CPU seconds that all
    this took.

    `Seen(sums=b"...", cpu_s=0.002)`
    """

    sums: bytes = b""
    columns: TokenColumns | None = None
    masked_tokens: int = 0
    cpu_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """What `gradients` gives beside the gradients: the loss's statistics, and what was seen of what was trained.

    `Gradient(losses=LossSums(sums={"tokens": 3.0}), seen=(Seen(),))`
    """

    losses: LossSums
    seen: tuple[Seen, ...] = ()
