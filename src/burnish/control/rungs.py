"""The gentle rungs: for each knob, when it opens, what it asks for, how it follows, when it may let go.

Each is a class without state; what it must remember stands in its `Grip`.  `propose` is the gate: None keeps the rung
closed.  `follow` moves the knob of an engaged rung, in place.  `recovered` says whether this step was well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from burnish.control.conditions import Condition
from burnish.control.curriculum import source_probabilities
from burnish.control.kl_servo import KlServo
from burnish.control.view import (
    AGREEMENT,
    DRIFT,
    ENTROPY,
    MOMENT,
    SHARE,
    SOURCE_ESS,
    SOURCE_SPREAD,
    TAIL,
    Grip,
    Proposal,
    View,
)
from burnish.core.finding import Act

_VISIBLE_CHANGE = 0.1
"""Relative change of a knob that is worth another decision; smaller ones would only fill the record."""

_HALVED = 0.5

_SMALLEST_MOMENT = 1e-4
"""nats squared: log-ratios of 0.01, which two ways to compute the same number already differ by on an accelerator."""


class Rung(Protocol):
    """One knob."""

    act: Act

    def propose(self, view: View, condition: Condition) -> Proposal | None:
        """What to engage with for this condition, None where the gate is closed."""
        ...

    def follow(self, view: View, grip: Grip) -> Proposal | None:
        """A new value of an engaged rung, None where it stays."""
        ...

    def recovered(self, view: View, grip: Grip) -> bool:
        """Whether, findings aside, this step gives no reason to stay engaged."""
        ...


class MaskTail:
    """Rung 1.  Gate: the tail of a slice has grown.  Release: the tail is back inside its baseline band.

    The budget is a second moment, because that does not cancel between signs (M2PO, arXiv 2510.01161), at most the
    source's 0.04 and at most `moment_factor` times what the slice had while the run was young: at small log-ratios
    the absolute number alone would never mask anything.
    """

    act = Act.MASK_TAIL

    def propose(self, view: View, condition: Condition) -> Proposal | None:
        usual = view.baselines.median(MOMENT.format(slice=condition.slice_name or "all"))
        cap = view.spec.moment_cap
        if usual is not None and usual > 0.0:
            cap = min(cap, max(view.spec.moment_factor * usual, _SMALLEST_MOMENT))
        where = condition.slice_name or "all tokens"
        return Proposal(
            values={"slice": condition.slice_name, "moment_cap": cap},
            reason=f"the tail of {where} has grown; tokens beyond a second moment of {cap:.3g} nats^2 leave the loss",
        )

    def follow(self, view: View, grip: Grip) -> Proposal | None:
        return None

    def recovered(self, view: View, grip: Grip) -> bool:
        return view.within_baseline(TAIL.format(slice=grip.values["slice"] or "all")) is not False


class VerifiedReward:
    """Rung 2.  Gate: the recipe's rewards no longer rank the members of a group as its verifiable graders do, although
    they used to.  Release: they do again.

    Back to the first stage of a staged objective: what is not verifiable (preferences, prices, a bonus) is left out of
    the reward.  The agreement is that of the recipe's rewards, which are not trained on meanwhile, so that a cause that
    lasts keeps the rung engaged.
    """

    act = Act.VERIFIED_REWARD

    def propose(self, view: View, condition: Condition) -> Proposal | None:
        share = self._share(view)
        if share is None or share >= view.spec.agreement_low:
            return None
        return Proposal(
            values={"agreement": view.smoothed[AGREEMENT]},
            reason=f"the reward agrees with the verifiable graders at {view.smoothed[AGREEMENT]:.2f}, usually "
            f"{view.baselines.median(AGREEMENT):.2f}; they alone are trained on",
        )

    def follow(self, view: View, grip: Grip) -> Proposal | None:
        return None

    def recovered(self, view: View, grip: Grip) -> bool:
        share = self._share(view)
        return share is None or share >= view.spec.agreement_recovered

    def _share(self, view: View) -> float | None:
        """Agreement over its baseline; None where either is unknown, or where the two never agreed."""
        usual, now = view.baselines.median(AGREEMENT), view.smoothed.get(AGREEMENT)
        return None if usual is None or usual <= 0.0 or now is None else now / usual


class LearningRate:
    """Rung 3.  Gate: normalised ESS is low, or the update itself is too large.  Release: follows the ESS.

        factor = max(floor, ceiling * min(sqrt(min(ess, 1)), 2^-halvings))

    sqrt: VCPO, arXiv 2602.17616, the variance of an average of n effective samples is 1/n.  An update that is too large
    at a healthy ESS (kinds learning_rate and length_blow_up) halves the rate instead, again each time it is found anew.
    ceiling: what a rollback holds the rate at, else 1.
    """

    act = Act.LEARNING_RATE
    by_halves = ("learning_rate", "length_blow_up")

    def propose(self, view: View, condition: Condition) -> Proposal | None:
        halvings = 1 if condition.kind in self.by_halves else 0
        if not halvings and (view.ess is None or view.ess >= view.spec.ess_recovered):
            return None
        factor = self._factor(view, halvings)
        return Proposal(
            values={"factor": factor},
            reason=self._reason(view, halvings, factor),
            memo={"halvings": halvings, "halved_tick": view.tick},
        )

    def follow(self, view: View, grip: Grip) -> Proposal | None:
        halvings = int(grip.memo["halvings"])
        halved_tick = int(grip.memo["halved_tick"])
        newest = max((c.last_tick for c in view.open if c.kind in self.by_halves), default=-1)
        if newest > halved_tick and view.tick - halved_tick >= view.spec.cooldown_steps:
            halvings, halved_tick = halvings + 1, view.tick
        factor = self._factor(view, halvings)
        if halvings == int(grip.memo["halvings"]) and not _visible(grip.values["factor"], factor):
            return None
        return Proposal(
            values={"factor": factor},
            reason=self._reason(view, halvings, factor),
            memo={"halvings": halvings, "halved_tick": halved_tick},
        )

    def recovered(self, view: View, grip: Grip) -> bool:
        return view.ess is None or view.ess >= view.spec.ess_recovered

    def _factor(self, view: View, halvings: int) -> float:
        ess = 1.0 if view.ess is None else min(max(view.ess, 0.0), 1.0)
        return max(view.spec.learning_rate_floor, view.rate_ceiling * min(math.sqrt(ess), _HALVED**halvings))

    def _reason(self, view: View, halvings: int, factor: float) -> str:
        ess = "unknown" if view.ess is None else f"{view.ess:.2f}"
        why = f"updates are too large ({halvings} halvings)" if halvings else "fewer samples count"
        return f"{why}; normalised ESS is {ess}; learning rate x {factor:.3g}"


class KlWeight:
    """Rung 4.  Gate: drift from the reference, or entropy under its floor, or output that no longer looks at its input
    or outruns independent evidence.  Release: the servo is idle.

    The target is where the drift stood when it began, not an absolute number: KL to a reference grows in healthy runs.
    It is at least `kl_target_least_nats`, or a change in the first steps would pin the policy to its reference.
    """

    act = Act.KL_WEIGHT

    def propose(self, view: View, condition: Condition) -> Proposal | None:
        base = view.spec.kl_weight
        if base is None:
            return None
        target = max(view.drift.at(condition.onset_step) or 0.0, view.spec.kl_target_least_nats)
        usual = view.baselines.median(ENTROPY) or 0.0
        memo = {"target_nats": target, "floor_nats": max(usual, 0.0) * view.spec.entropy_floor_share}
        start = max(base, view.spec.kl_weight_start)
        weight = self._servo(view).step(start, self._error(view, memo))
        return Proposal(
            values={"weight": weight}, memo={**memo, "weight": weight}, reason=self._reason(view, memo, weight)
        )

    def follow(self, view: View, grip: Grip) -> Proposal | None:
        weight = self._servo(view).step(grip.memo["weight"], self._error(view, grip.memo))
        grip.memo["weight"] = weight
        if not _visible(grip.values["weight"], weight):
            return None
        return Proposal(values={"weight": weight}, memo=grip.memo, reason=self._reason(view, grip.memo, weight))

    def recovered(self, view: View, grip: Grip) -> bool:
        return self._servo(view).idle(grip.memo["weight"], self._error(view, grip.memo))

    def _servo(self, view: View) -> KlServo:
        return KlServo(start=max(view.spec.kl_weight or 0.0, view.spec.kl_weight_start), cap=view.spec.kl_weight_cap)

    def _error(self, view: View, memo: dict[str, float]) -> float:
        """The worse of drift over target and floor over entropy; 1 (stay) where neither can be said."""
        errors = []
        drift, entropy = view.scalar(DRIFT), view.scalar(ENTROPY)
        if drift is not None:
            errors.append(max(drift, 0.0) / memo["target_nats"])
        if entropy is not None and memo["floor_nats"] > 0.0:
            errors.append(memo["floor_nats"] / max(entropy, 1e-9))
        return max(errors, default=1.0)

    def _reason(self, view: View, memo: dict[str, float], weight: float) -> str:
        return (
            f"drift {_text(view.scalar(DRIFT))} nats (target {memo['target_nats']:.3g}), entropy "
            f"{_text(view.scalar(ENTROPY))} nats (floor {memo['floor_nats']:.3g}); KL weight {weight:.3g}, "
            f"cap {view.spec.kl_weight_cap:.3g}"
        )


class PostToolCap:
    """Rung 5.  Gate: the post-tool share has grown *and* a tail after tools has.  Release: slice healthy for a while.

    Either alone is no fault: a share that grows with success is learning to use tools.  The cap is the share at onset.
    """

    act = Act.POST_TOOL_CAP
    slices = ("post_tool", "tool:")

    def propose(self, view: View, condition: Condition) -> Proposal | None:
        kinds = {c.kind for c in view.open if c.kind != "tail_growth" or c.slice_name.startswith(self.slices)}
        onset = min((c.onset_step for c in view.open if c.kind == "post_tool_share"), default=-1)
        share, now = view.share.at(onset), view.scalar(SHARE)
        if not {"tail_growth", "post_tool_share"} <= kinds or share is None or now is None or not 0.0 < share < now:
            return None
        return Proposal(
            values={"share": share},
            reason=f"post-tool share {now:.2f} and a tail after tools grow together; share held at {share:.2f}",
        )

    def follow(self, view: View, grip: Grip) -> Proposal | None:
        return None

    def recovered(self, view: View, grip: Grip) -> bool:
        return view.within_baseline(TAIL.format(slice="post_tool")) is not False


class Curriculum:
    """Rung 5 as well, another knob.  Gate: updates concentrate, or a source is noisy, and sources differ in worth.
    Release: no finding for a while.

    Worth of a source: its token ESS, times usual over present spread of its rewards where that has grown (noise in a
    reward leaves the ESS as it is), both as running means.  What is made of it: `curriculum.py`.
    """

    act = Act.CURRICULUM

    def propose(self, view: View, condition: Condition) -> Proposal | None:
        probabilities = self._probabilities(view)
        total = math.fsum(view.spec.sources.values())
        if probabilities is None or not any(
            _visible(share / total, probabilities[source]) for source, share in view.spec.sources.items()
        ):
            return None
        return self._proposal(probabilities)

    def follow(self, view: View, grip: Grip) -> Proposal | None:
        probabilities = self._probabilities(view)
        last = grip.values["probabilities"]
        if probabilities is None or not any(_visible(last[name], p, 0.2) for name, p in probabilities.items()):
            return None
        return self._proposal(probabilities)

    def recovered(self, view: View, grip: Grip) -> bool:
        return True

    def _probabilities(self, view: View) -> dict[str, float] | None:
        sources = view.spec.sources
        if len(sources) < 2:
            return None
        worth = {source: self._worth(view, source) for source in sources}
        known = {source: value for source, value in worth.items() if value is not None}
        if len(known) < 2:
            return None
        return source_probabilities(sources, known, floor=view.spec.source_share_floor)

    def _worth(self, view: View, source: str) -> float | None:
        ess = view.smoothed.get(SOURCE_ESS.format(source=source))
        name = SOURCE_SPREAD.format(source=source)
        usual, now = view.baselines.median(name), view.smoothed.get(name)
        calm = min(1.0, usual / now) if usual is not None and now is not None and now > 0.0 else 1.0
        return None if ess is None else max(ess, 0.0) * calm

    def _proposal(self, probabilities: dict[str, float]) -> Proposal:
        shares = ", ".join(f"{source} {share:.2f}" for source, share in sorted(probabilities.items()))
        return Proposal(
            values={"probabilities": probabilities}, reason=f"sources weighed by what their samples are worth: {shares}"
        )


class NearMisses:
    """Rung 6.  Gate: ESS low *and* outcome contrast low, and the reservoir has groups.  Release: both recovered.

    Low ESS alone is no gate, because whatever raises the ESS would then look like a cure.  Only groups from the
    reservoir are asked for, which holds no hard negatives (`reservoir.py`).
    """

    act = Act.NEAR_MISSES

    def propose(self, view: View, condition: Condition) -> Proposal | None:
        count = self._count(view)
        if not (view.ess_is_low and view.outcome.contrast_is_low and count > 0):
            return None
        return self._proposal(view, count)

    def follow(self, view: View, grip: Grip) -> Proposal | None:
        count = self._count(view)
        return None if count in (0, grip.values["count"]) else self._proposal(view, count)

    def recovered(self, view: View, grip: Grip) -> bool:
        return not view.ess_is_low and not view.outcome.contrast_is_low

    def misled(self, view: View, grip: Grip) -> bool:
        """ESS came back and contrast did not: the injected groups raise the number, not the learning."""
        return not view.ess_is_low and view.outcome.contrast_is_low

    def _count(self, view: View) -> int:
        wanted = max(1, math.floor(view.spec.near_miss_share * view.spec.groups_per_step))
        return min(view.reservoir_groups, wanted)

    def _proposal(self, view: View, count: int) -> Proposal:
        contrast = view.outcome.contrast
        return Proposal(
            values={"count": count},
            reason=f"normalised ESS {_text(view.ess)} and outcome contrast {_text(contrast)} of its baseline are low; "
            f"{count} near-miss groups a step",
        )


GENTLE: Sequence[Rung] = (
    MaskTail(),
    VerifiedReward(),
    LearningRate(),
    KlWeight(),
    PostToolCap(),
    Curriculum(),
    NearMisses(),
)

ROUTES: dict[str, tuple[Act, ...]] = {
    "tail_growth": (Act.MASK_TAIL, Act.LEARNING_RATE, Act.POST_TOOL_CAP, Act.ROLLBACK, Act.STOP),
    "ess_drop": (Act.LEARNING_RATE, Act.NEAR_MISSES, Act.ROLLBACK, Act.STOP),
    "kl_drift": (Act.VERIFIED_REWARD, Act.LEARNING_RATE, Act.KL_WEIGHT, Act.ROLLBACK, Act.STOP),
    "entropy_low": (Act.VERIFIED_REWARD, Act.KL_WEIGHT, Act.ROLLBACK, Act.STOP),
    "entropy_high": (Act.VERIFIED_REWARD, Act.KL_WEIGHT, Act.ROLLBACK, Act.STOP),
    "post_tool_share": (Act.VERIFIED_REWARD, Act.POST_TOOL_CAP, Act.ROLLBACK, Act.STOP),
    "concentration": (Act.VERIFIED_REWARD, Act.LEARNING_RATE, Act.CURRICULUM, Act.ROLLBACK, Act.STOP),
    "length_blow_up": (Act.VERIFIED_REWARD, Act.LEARNING_RATE, Act.ROLLBACK, Act.STOP),
    "zero_signal": (Act.NEAR_MISSES, Act.ROLLBACK, Act.STOP),
    "tool_errors": (Act.VERIFIED_REWARD, Act.ROLLBACK, Act.STOP),
    "exclusion_rate": (Act.ROLLBACK, Act.STOP),
    "template_collapse": (Act.VERIFIED_REWARD, Act.KL_WEIGHT, Act.ROLLBACK, Act.STOP),
    "reward_jump": (Act.VERIFIED_REWARD, Act.KL_WEIGHT, Act.ROLLBACK, Act.STOP),
    "source_noise": (Act.VERIFIED_REWARD, Act.CURRICULUM, Act.ROLLBACK, Act.STOP),
    "learning_rate": (Act.LEARNING_RATE, Act.ROLLBACK, Act.STOP),
    "staleness": (Act.LEARNING_RATE, Act.ROLLBACK, Act.STOP),
    "success_drop": (Act.VERIFIED_REWARD, Act.ROLLBACK, Act.STOP),
    "grader_failure": (Act.ROLLBACK, Act.STOP),
    "non_finite": (Act.STOP,),
}
"""Which rungs may answer which kind of finding, gentle first; a kind that is not here is only written down."""


def _visible(old: float, new: float, by: float = _VISIBLE_CHANGE) -> bool:
    return abs(new - old) > by * abs(old)


def _text(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
