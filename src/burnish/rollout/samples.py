"""From a trajectory to what the learner is fed: one sample for each root-to-leaf path, every action trained once."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence

from burnish.core.images import joined_spans
from burnish.core.kept import KeptSets
from burnish.core.learning import TrainingSample
from burnish.core.trajectory import NO_VERSION, Node, Trajectory


def training_samples(trajectory: Trajectory, advantage: float) -> list[TrainingSample]:
    """The samples of one trajectory, every trained token with `advantage`.

    One sample for each leaf, in the order of the leaves; an action that several paths share is trained in the first of
    them and is context in the others, and a path that trains nothing is left out.

    Raises ValueError where the trajectory may not be trained on: its outcome carries no reward, an action came without
    tokens, or the advantage is not a finite number.
    """
    if not trajectory.outcome.may_carry_reward:
        raise ValueError(f"{trajectory.id} ended as {trajectory.outcome.label}; such an episode leaves the loss")
    if not math.isfinite(advantage):
        raise ValueError(f"the advantage of {trajectory.id} is {advantage}; it must be a finite number")
    return _samples(trajectory, advantage)


def demonstration_samples(trajectory: Trajectory) -> list[TrainingSample]:
    """The samples of one demonstration: as `training_samples` with advantage 1 on every action token."""
    return training_samples(trajectory, 1.0)


def _samples(trajectory: Trajectory, advantage: float) -> list[TrainingSample]:
    if not trajectory.is_token_exact:
        raise ValueError(f"{trajectory.id} has actions without token ids; it cannot be trained on")
    return [
        _sample(trajectory, [trajectory.nodes[index] for index in path], fresh, advantage)
        for path, fresh in _paths(trajectory)
    ]


def trained_nodes(trajectory: Trajectory) -> list[int]:
    """The actions in the order in which the samples train them: that of the nodes, unless the conversation branched."""
    return [
        index for path, fresh in _paths(trajectory) for index, is_fresh in zip(path, fresh, strict=True) if is_fresh
    ]


def _paths(trajectory: Trajectory) -> Iterator[tuple[tuple[int, ...], list[bool]]]:
    """Each path that trains something, and which of its nodes are trained in it."""
    trained: set[int] = set()
    for leaf in trajectory.leaves():
        path = trajectory.path(leaf)
        fresh = [index not in trained and trajectory.nodes[index].is_action for index in path]
        trained.update(path)
        if any(fresh):
            yield path, fresh


def _sample(trajectory: Trajectory, nodes: Sequence[Node], fresh: Sequence[bool], advantage: float) -> TrainingSample:
    ids, mask, versions = array("i"), array("b"), array("i")
    logprobs, advantages = array("f"), array("f")
    for node, is_fresh in zip(nodes, fresh, strict=True):
        ids.extend(node.token_ids)
        count = len(node.token_ids)
        if not is_fresh:
            mask.frombytes(bytes(count))
            logprobs.frombytes(bytes(4 * count))
            advantages.frombytes(bytes(4 * count))
            versions.extend([NO_VERSION] * count)
        elif all(node.action_mask):
            mask.extend(node.action_mask)
            logprobs.extend(node.logprobs)
            advantages.extend([advantage] * count)
            versions.extend(node.versions)
        else:
            # Part of the action was not sampled (ids that a controller forced): context, like an observation.
            for sampled, logprob, version in zip(node.action_mask, node.logprobs, node.versions, strict=True):
                mask.append(sampled)
                logprobs.append(logprob if sampled else 0.0)
                advantages.append(advantage if sampled else 0.0)
                versions.append(version if sampled else NO_VERSION)
    return TrainingSample(
        kept=KeptSets.join(
            [
                (node.kept if is_fresh else None, len(node.token_ids))
                for node, is_fresh in zip(nodes, fresh, strict=True)
            ]
        ),
        trajectory_id=trajectory.id,
        group_id=trajectory.group_id,
        token_ids=ids,
        loss_mask=mask,
        behaviour_logprobs=logprobs,
        versions=versions,
        advantages=advantages,
        images=joined_spans([(len(node.token_ids), node.images) for node in nodes])
        if any(node.images for node in nodes)
        else (),
    )
