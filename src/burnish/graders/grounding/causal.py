"""Does an answer rest on what it cites?  Change the pixels of the cited thing, and, as control, of another one.

F1 alone permits decorative pointing: a policy may guess the answer from the question and point at the right thing all
the same.  With the cited thing changed so that the truth becomes another, an answer that rests on it follows; with some
other thing changed, the truth stays, and so does the answer:

    causal score = share of answers that follow - share of answers that change under the control

Over the tasks that have both, after Goyal et al. 2019 (counterfactual visual explanations) in spirit.  In [-1, 1]; 0
for an answer that looks at no pixel, and for one that changes whatever is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from burnish.graders.rules import normalised


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The answers to one task and its two changed versions.

    `Probe(original="red", target="blue", target_truth="blue", control="red", was_right=True)`

    was_right: the original answer was; where it was not, there is nothing to follow from.
    """

    original: str
    target: str
    target_truth: str
    control: str
    was_right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalScore:
    """`CausalScore(score=0.8, followed=0.9, disturbed=0.1, n=200)`; NaN for n = 0."""

    score: float
    followed: float
    disturbed: float
    n: int


def causal_score(probes: Sequence[Probe]) -> CausalScore:
    """Over the probes whose original answer was right.

    >>> causal_score([Probe(original="red", target="blue", target_truth="blue", control="red", was_right=True)]).score
    1.0
    """
    kept = [probe for probe in probes if probe.was_right]
    if not kept:
        return CausalScore(score=float("nan"), followed=float("nan"), disturbed=float("nan"), n=0)
    followed = sum(normalised(probe.target) == normalised(probe.target_truth) for probe in kept) / len(kept)
    disturbed = sum(normalised(probe.control) != normalised(probe.original) for probe in kept) / len(kept)
    return CausalScore(score=followed - disturbed, followed=followed, disturbed=disturbed, n=len(kept))
