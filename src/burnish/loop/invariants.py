"""Always-on checks.  Each raises InvariantViolation and names itself; each has a test in which it fails."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

from burnish.core.errors import InvariantViolation
from burnish.core.sampling import Renderer
from burnish.core.trajectory import NO_VERSION, Trajectory
from burnish.rollout.hygiene import clean_message

FLOAT32_TOLERANCE = 1e-4
BF16_FLOOR = 0.05
BF16_MARGIN = 4.0


def audit_tokens(trajectory: Trajectory, *, oldest: int, newest: int) -> None:
    """Mask audit of a sampled trajectory: exactly the action nodes are trainable; every sampled token carries a finite
    log-probability <= 0 and the version of the policy that drew it, `oldest` to `newest`; no other carries either."""
    for index, node in enumerate(trajectory.nodes):
        where = f"{trajectory.id} node {index}"
        if not -1 <= node.parent < index:
            raise InvariantViolation("message_graph", f"{where} names parent {node.parent}")
        if any(bool(mask) != node.is_action for mask in node.action_mask):
            raise InvariantViolation("action_mask", f"{where}: the mask differs from who produced the tokens")
        if node.is_action:
            if any(not oldest <= v <= newest for v in node.versions):
                found = sorted(set(node.versions))
                expected = f"{newest}" if oldest == newest else f"{oldest} to {newest}"
                raise InvariantViolation("policy_version", f"{where}: sampled by version {found}, expected {expected}")
            if any(not math.isfinite(value) or value > 1e-3 for value in node.logprobs):
                raise InvariantViolation("logprobs", f"{where}: a sampled token has no log-probability <= 0")
        elif any(v != NO_VERSION for v in node.versions) or any(not math.isnan(value) for value in node.logprobs):
            raise InvariantViolation("action_mask", f"{where}: an observation carries log-probabilities or versions")


def check_round_trip(renderer: Renderer, trajectory: Trajectory) -> None:
    """The stored ids of every action parse to the stored message: nothing was re-encoded on the way."""
    for index, node in enumerate(trajectory.nodes):
        if node.is_action and clean_message(renderer.parse(node.token_ids)) != node.messages[0]:
            raise InvariantViolation(
                "token_round_trip", f"{trajectory.id} node {index}: its tokens do not parse to its message"
            )


def check_freshness(
    *, version: int, checksum: str, echoed: Sequence[tuple[int, str]], difference: float, tolerance: float
) -> None:
    """After a weight update every sampler echoes the new version and the learner's weight checksum (adapters included),
    and its log-probabilities on the canary batch differ from the learner's by at most `tolerance` nats."""
    for index, (echoed_version, echoed_checksum) in enumerate(echoed):
        if echoed_version != version:
            raise InvariantViolation(
                "sampler_freshness", f"sampler {index} is at version {echoed_version}, the learner at {version}"
            )
        if echoed_checksum != checksum:
            raise InvariantViolation(
                "sampler_freshness",
                f"sampler {index} holds other weights ({echoed_checksum}) than the learner ({checksum}) "
                f"at version {version}: the update did not reach it",
            )
    if not difference <= tolerance:
        raise InvariantViolation(
            "sampler_freshness",
            f"canary log-probabilities of sampler and learner differ by {difference:.2e} nats (max {tolerance:.0e})",
        )


def check_on_policy(max_abs_log_ratio: float, tolerance: float, step: int) -> None:
    """On samples of the present policy the ratio learner/behaviour is 1 before any update."""
    if not max_abs_log_ratio <= tolerance:
        raise InvariantViolation(
            "ratio_one",
            f"at step {step} learner and sampler disagree by {max_abs_log_ratio:.2e} nats on fresh samples "
            f"(tolerance {tolerance:.0e}); check temperature, masks and precision",
        )


def largest_difference(first: Sequence[array[float]], second: Sequence[array[float]]) -> float:
    """Largest absolute difference of two lists of equally long streams; infinite where the shapes differ.

    >>> largest_difference([array("f", [0.0, -1.0])], [array("f", [0.0, -1.5])])
    0.5
    """
    if [len(a) for a in first] != [len(b) for b in second]:
        return math.inf
    pairs = [abs(x - y) for a, b in zip(first, second, strict=True) for x, y in zip(a, b, strict=True)]
    return max(pairs, default=0.0)


def bf16_tolerance(observed: Sequence[float]) -> float:
    """Tolerance in half precision: four times the largest difference on repeats with correct weights, at least .05.

    >>> bf16_tolerance([0.02, 0.04])
    0.16
    """
    return max(BF16_FLOOR, BF16_MARGIN * max(observed, default=0.0))
