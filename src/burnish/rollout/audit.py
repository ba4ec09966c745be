"""The mask audit: what must hold for the tokens of every trajectory before any of them is trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from burnish.core.errors import InvariantViolation, RenderError
from burnish.core.learning import TrainingSample
from burnish.core.message import Message, Role
from burnish.core.sampling import Renderer
from burnish.core.trajectory import NO_VERSION, Node, Trajectory
from burnish.rollout.hygiene import clean_message

LOGPROB_ROUNDING = 1e-4
"""A log-probability of float32 logits may come out this far above 0."""


def audit_trajectory(trajectory: Trajectory, renderer: Renderer | None = None) -> list[str]:
    """Everything that is wrong with the tokens of a trajectory; an empty list where nothing is.

    Checked for every node: parents come before children, only forks and the prompt are roots, forks are named and
    counted; sampled tokens stand in actions alone, each with a finite log-probability <= 0 and a version where it was
    sampled by a policy (demonstrations have version -1 and log-probability 0); no other token has either.  With a
    `renderer`, the token round trip as well: an action's ids, read again, give its message.
    """
    problems = [f"node {i}: {what}" for i, node in enumerate(trajectory.nodes) for what in _node(trajectory, i, node)]
    forks = sum(bool(node.fork) for node in trajectory.nodes)
    counted = trajectory.counters.get("forks", 0)
    if forks != counted:
        problems.append(f"{forks} forks, {counted} counted")
    if renderer is not None:
        problems += _round_trip(trajectory, renderer)
    return problems


def require_audit(trajectory: Trajectory, renderer: Renderer | None = None) -> None:
    """Raises InvariantViolation "mask_audit" with the first problems of a trajectory."""
    problems = audit_trajectory(trajectory, renderer)
    if problems:
        raise InvariantViolation("mask_audit", f"{trajectory.id}: {'; '.join(problems[:3])}")


def audit_samples(trajectory: Trajectory, samples: Sequence[TrainingSample]) -> list[str]:
    """What is wrong with the training samples of one trajectory: each sampled token is trained exactly once."""
    problems = []
    trained = sum(sample.trained_tokens for sample in samples)
    if trained != trajectory.action_tokens:
        problems.append(f"{trajectory.action_tokens} tokens were sampled, {trained} are trained")
    paths = {tuple(path_ids(trajectory, leaf)) for leaf in trajectory.leaves()}
    for index, sample in enumerate(samples):
        if tuple(sample.token_ids) not in paths:
            problems.append(f"sample {index} is no path of the trajectory")
        outside = zip(sample.loss_mask, sample.behaviour_logprobs, sample.advantages, sample.versions, strict=True)
        if any(not mask and (logp or adv or version != NO_VERSION) for mask, logp, adv, version in outside):
            problems.append(f"sample {index} carries numbers outside its mask")
    return problems


def path_ids(trajectory: Trajectory, leaf: int) -> list[int]:
    """The exact ids of the branch that ends in node `leaf`."""
    return [token for index in trajectory.path(leaf) for token in trajectory.nodes[index].token_ids]


def _node(trajectory: Trajectory, index: int, node: Node) -> list[str]:
    problems = []
    if not -1 <= node.parent < index:
        problems.append(f"its parent {node.parent} does not come before it")
    is_root = node.parent < 0
    if is_root and index > 0 and not node.fork:
        problems.append("a second root without a named fork")
    if node.fork and not is_root:
        problems.append(f"a fork ({node.fork}) that is no root")
    roles = {message.role for message in node.messages}
    if node.is_action and (roles != {Role.ASSISTANT} or len(node.messages) != 1):
        problems.append(f"an action holds one assistant message, this one has {sorted(roles)}")
    if node.is_action and is_root:
        problems.append("an action without a prompt")
    if not node.is_action and any(node.action_mask):
        problems.append("an observation with sampled tokens")
    return problems + _streams(node)


def _streams(node: Node) -> list[str]:
    mask, versions = np.asarray(node.action_mask), np.asarray(node.versions)
    logprobs = np.asarray(node.logprobs)
    sampled = mask == 1
    problems = []
    if ((mask != 0) & ~sampled).any():
        problems.append("the action mask holds more than 0 and 1")
    # Comparisons with NaN are False, so a missing log-probability of a sampled token is caught here as well.
    if not ((logprobs[sampled] <= LOGPROB_ROUNDING) & (logprobs[sampled] > -np.inf)).all():
        problems.append("a sampled token without a log-probability <= 0")
    if (versions[sampled] < NO_VERSION).any():
        problems.append("a sampled token without a version")
    if not np.isnan(logprobs[~sampled]).all():
        problems.append("a log-probability on a token that was not sampled")
    if (versions[~sampled] != NO_VERSION).any():
        problems.append("a version on a token that was not sampled")
    return problems


def _round_trip(trajectory: Trajectory, renderer: Renderer) -> list[str]:
    problems = []
    for index, node in enumerate(trajectory.nodes):
        if not (node.is_action and len(node.token_ids)):
            continue
        try:
            back: Message | None = clean_message(renderer.parse(node.token_ids))
        except RenderError as error:
            problems.append(f"node {index}: its ids cannot be read again: {error}")
            continue
        if (back,) != node.messages:
            problems.append(f"node {index}: its ids read as another message")
    return problems
