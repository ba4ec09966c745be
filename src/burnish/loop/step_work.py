"""What a step's groups mean for each shard: who trains what in which update, and under which of control's knobs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from burnish.core.grade import Aggregator
from burnish.core.trajectory import Trajectory
from burnish.loop.grading import judged
from burnish.loop.knobs import Knobs, post_tool_factor
from burnish.loop.objective import entropy_weight
from burnish.loop.session import Session
from burnish.loop.step_order import ShardKnobs, StepOrder
from burnish.rollout.group import GroupResult
from burnish.rollout.streams import Judgement, action_spans
from burnish.store.reader import RunReader
from burnish.store.rows import Fate, StoredTrajectory

FLOOR_WEIGHT = "entropy_floor/kl_weight"
"""The scalar of what the entropy floor added to the KL weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A step's groups with everything decided about their members.

    advantages and fates by trajectory id; only trained trajectories have an advantage.  weights: what is in their
    advantages of `rl.normalise`, {} for nothing.  agreement: of the recipe's rewards with its verifiable graders
    (`verified.agreement`).
    """

    groups: Sequence[GroupResult]
    advantages: Mapping[str, float]
    fates: Mapping[str, Fate]
    weights: Mapping[str, float] = field(default_factory=dict)
    agreement: float = math.nan

    @property
    def trained(self) -> list[Trajectory]:
        """In group order."""
        return [t for group in self.groups for t in group.trajectories if t.id in self.advantages]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """orders: one for each shard.  parts: ids by shard and update.  scalars: what control did to the batch."""

    orders: Sequence[StepOrder]
    parts: Sequence[Sequence[Sequence[str]]]
    scalars: Mapping[str, float]


def share_out(
    session: Session, step: int, batch: Batch, replayed: Sequence[Sequence[StoredTrajectory]] = ()
) -> StepWork:
    """Shard s holds the groups that `deal_plans` gave it and every W-th replayed one; update u of U takes every U-th
    group.  Of a replayed trajectory the advantage is the one that it had."""
    oversight, settings, aggregator = session.oversight, session.recipe.rl, session.world.aggregator
    size, updates = session.executor.size, settings.updates
    parts: list[list[list[str]]] = [[[] for _ in range(updates)] for _ in range(size)]
    judgements: list[dict[str, Judgement]] = [{} for _ in range(size)]
    extra: list[list[StoredTrajectory]] = [[] for _ in range(size)]
    for index, group in enumerate(batch.groups):
        judgements[index % size] |= _judged(group, batch, aggregator)
        parts[index % size][index % updates] += [t.id for t in group.trajectories if t.id in batch.advantages]
    for index, rows in enumerate(replayed, start=len(batch.groups)):
        extra[index % size] += rows
        for row in rows:
            parts[index % size][index % updates].append(row.trajectory.id)
            found = judged(aggregator, row.grades, reward=row.reward, advantage=row.advantage)
            judgements[index % size][row.trajectory.id] = found
    knobs, scalars = _shard_knobs(session, batch)
    orders = [
        StepOrder(
            step=step,
            version=session.state.version,
            updates=updates,
            judgements=judgements[shard],
            replayed=tuple(row.trajectory for row in extra[shard]),
            knobs=knobs,
            names=oversight.names,
            score_norm=oversight.wants_score_norm(step),
            keep_streams=session.recipe.health.keep_streams,
        )
        for shard in range(size)
    ]
    if oversight.acts:
        scalars["control/near_miss_groups"] = float(len(replayed))
    return StepWork(orders=orders, parts=parts, scalars=scalars)


def _judged(group: GroupResult, batch: Batch, aggregator: Aggregator) -> dict[str, Judgement]:
    return {
        trajectory.id: judged(aggregator, grades, reward=reward, advantage=batch.advantages.get(trajectory.id))
        for trajectory, grades, reward in zip(group.trajectories, group.grades_G, group.rewards_G, strict=True)
    }


def _shard_knobs(session: Session, batch: Batch) -> tuple[ShardKnobs, dict[str, float]]:
    """The state's knobs as the shards of this step need them, and what the entropy floor adds."""
    rl, acts = session.recipe.rl, session.oversight.acts
    knobs = session.state.knobs if acts else Knobs()
    factor, kl_weight, scalars = 1.0, knobs.kl_weight, {}
    if knobs.post_tool_share is not None:
        after = other = 0
        for trajectory in batch.trained:
            for span in action_spans(trajectory)[0]:
                after += (span.end - span.start) * span.after_tool
                other += (span.end - span.start) * (not span.after_tool)
        factor = post_tool_factor(after, other, knobs.post_tool_share)
    if acts:
        scalars["control/post_tool_factor"] = factor
    if rl.entropy_floor > 0.0:
        scalars[FLOOR_WEIGHT] = entropy_weight(session.recipe, session.state)
        kl_weight = (rl.kl_weight if kl_weight is None else kl_weight) + scalars[FLOOR_WEIGHT]
    return ShardKnobs(kl_weight=kl_weight, post_tool_factor=factor, tail_caps=knobs.tail_caps), scalars


def read_near_misses(session: Session, step: int) -> list[list[StoredTrajectory]]:
    """The groups that control adds from the reservoir: rows of earlier steps, with the advantages that they had."""
    groups = []
    for stored_step, ids in session.oversight.near_misses(step):
        wanted = set(ids)
        rows = RunReader(session.writer.layout.root).trajectories("rl", stored_step)
        groups.append([row for row in rows if row.trajectory.id in wanted and row.fate is Fate.TRAINED])
    return [rows for rows in groups if rows]
