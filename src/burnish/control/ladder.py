"""The control ladder: findings and outcomes in, decisions out; the loop carries them out, or writes them down.

Kinds of finding that open a rung (`rungs.ROUTES` says which): tail_growth, ess_drop, kl_drift, entropy_low,
entropy_high, post_tool_share, concentration, length_blow_up, zero_signal, tool_errors, exclusion_rate,
template_collapse, reward_jump (reward up while independent evidence does not follow), source_noise, learning_rate
(size of the update), staleness, success_drop, grader_failure, non_finite.  Others, and warnings, are left to people.

One call does at most one of these, in this order:

    stop        non_finite at once; else damage in `stop_evaluations` held-out evaluations with no way back left
    rollback    an alarm with an onset + damage + a checkpoint verified before it; a gentler rung had its chance
    let go      the hardest engaged rung whose step was well for `release_steps` steps in a row
    engage      the gentlest closed rung that an open condition may use and whose gate is open

and no rung engages within `cooldown_steps` of the last one, so that what each did can be seen.  Engaged rungs that
follow a signal (learning rate, KL weight, sources, count of near-misses) move in any call.  A condition gets its next
rung only where it persists after the last one.  Concepts, gates and reasons for the defaults: docs/control.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from burnish.control.baseline import Baselines, History
from burnish.control.conditions import Condition, Conditions
from burnish.control.hysteresis import Hysteresis
from burnish.control.outcome import OutcomeContrast, OutcomeWatch
from burnish.control.rollback import CheckpointMark, choose_checkpoint
from burnish.control.rungs import GENTLE, ROUTES, NearMisses, Rung
from burnish.control.spec import LADDER, LadderSpec
from burnish.control.view import AGREEMENT, DRIFT, ESS, SHARE, SOURCE_ESS, SOURCE_SPREAD, Grip, Proposal, View
from burnish.core.finding import Act, Decision, Finding

_STATE_VERSION = 3
_SMOOTHING = 0.3
"""Weight of the newest value in the running means that a knob follows, about five steps of memory: one odd batch moves
none far, and a source has but a few groups in each."""

_HISTORY_STEPS = 256
_MOST_BACKOFF = 16
_RUNGS: dict[Act, Rung] = {rung.act: rung for rung in GENTLE}


class Ladder:
    """Decides what to do about findings; the same calls give the same decisions.

    In a dry run everything goes as if each decision had been carried out, so the record says what would have been done.
    The state must survive a rollback (the loop keeps it, instead of restoring the checkpoint's): else a run would go
    back for the same reason for ever.

    >>> ladder = Ladder(LadderSpec(baseline_steps=1))
    >>> alarm = Finding(monitor="all/ess", step=3, summary="ESS fell", kind="ess_drop", onset_step=1)
    >>> [decision] = ladder.decide(3, {"health/ess_sequence_normalised": 0.25}, [alarm], OutcomeContrast())
    >>> decision.act.value, dict(decision.values), decision.dry_run
    ('learning_rate', {'factor': 0.5}, True)
    """

    def __init__(self, spec: LadderSpec) -> None:
        self.spec = spec
        self._tick = 0
        self._changed_tick = -spec.cooldown_steps
        self._grips = {act: Grip() for act in _RUNGS}
        self._conditions = Conditions()
        self._outcome = OutcomeWatch(
            baseline_steps=spec.baseline_steps,
            low=spec.contrast_low,
            recovered=spec.contrast_recovered,
            hold_steps=spec.release_steps,
            margin=spec.heldout_margin,
        )
        self._baselines = Baselines(spec.baseline_steps)
        self._drift = History(_HISTORY_STEPS)
        self._share = History(_HISTORY_STEPS)
        self._ess: float | None = None
        self._smoothed: dict[str, float] = {}
        self._ess_low = Hysteresis(enter=spec.ess_low, leave=spec.ess_recovered, hold_steps=spec.release_steps)
        self._rollbacks: list[str] = []
        self._held_until = -1
        self._rate_ceiling = 1.0
        self._stopped = False

    @property
    def is_well(self) -> bool:
        """Whether nothing is open and no damage shows: a checkpoint made now may be marked as verified, if held-out
        success was looked at too."""
        recent = self._conditions.since(self._tick - self.spec.active_steps)
        return not recent and self._outcome.damaged_evaluations == 0

    @property
    def engaged(self) -> Mapping[Act, Mapping[str, Any]]:
        """The values of every knob that is off the recipe's, by rung."""
        return {act: dict(grip.values) for act, grip in self._grips.items() if grip.engaged}

    def decide(
        self,
        step: int,
        scalars: Mapping[str, float],
        findings: Sequence[Finding],
        outcome: OutcomeContrast,
        *,
        checkpoints: Sequence[CheckpointMark] = (),
        reservoir_groups: int = 0,
    ) -> tuple[Decision, ...]:
        """What to do after a step.

        scalars: of that step, by name (`view.py` says which are read; those that are missing keep rungs closed).
        findings: the new ones.  checkpoints: those that exist.  reservoir_groups: near-miss groups that could be drawn.
        """
        self._take(step, scalars, findings, outcome)
        view = self._view(step, scalars, checkpoints, reservoir_groups)
        for grip, rung in ((self._grips[act], _RUNGS[act]) for act in _RUNGS if self._grips[act].engaged):
            grip.well_steps = grip.well_steps + 1 if self._is_well(view, rung, grip) else 0
        stop = self._stop(view)
        if stop is not None:
            return (stop,)
        rollback = self._roll_back(view)
        if rollback:
            return rollback
        decisions = self._follow(view)
        return (*decisions, *(self._let_go(view) or self._engage(view)))

    def state(self) -> dict[str, Any]:
        """Everything needed to go on exactly, JSON-able."""
        return {
            "version": _STATE_VERSION,
            "tick": self._tick,
            "changed_tick": self._changed_tick,
            "grips": {act.value: asdict(grip) for act, grip in self._grips.items()},
            "conditions": self._conditions.state(),
            "outcome": self._outcome.state(),
            "baselines": self._baselines.state(),
            "drift": self._drift.state(),
            "share": self._share.state(),
            "ess": self._ess,
            "smoothed": dict(self._smoothed),
            "ess_low": self._ess_low.state(),
            "rollbacks": list(self._rollbacks),
            "held_until": self._held_until,
            "rate_ceiling": self._rate_ceiling,
            "stopped": self._stopped,
        }

    @classmethod
    def restore(cls, spec: LadderSpec, state: Mapping[str, Any]) -> Ladder:
        """The ladder that `state` was taken from.  Raises ValueError for a state of another version."""
        if state.get("version") != _STATE_VERSION:
            raise ValueError(
                f"the stored ladder has version {state.get('version')!r}, this one reads {_STATE_VERSION}; "
                "start the run anew, or go on with the version that wrote it"
            )
        ladder = cls(spec)
        ladder._tick = int(state["tick"])
        ladder._changed_tick = int(state["changed_tick"])
        ladder._grips = {act: Grip(**state["grips"][act.value]) for act in _RUNGS}
        ladder._conditions.load(state["conditions"])
        ladder._outcome.load(state["outcome"])
        ladder._baselines.load(state["baselines"])
        ladder._drift.load(state["drift"])
        ladder._share.load(state["share"])
        ladder._ess = state["ess"]
        ladder._smoothed = {str(name): float(value) for name, value in state["smoothed"].items()}
        ladder._ess_low.load(state["ess_low"])
        ladder._rollbacks = [str(name) for name in state["rollbacks"]]
        ladder._held_until = int(state["held_until"])
        ladder._rate_ceiling = float(state["rate_ceiling"])
        ladder._stopped = bool(state["stopped"])
        return ladder

    def _take(
        self, step: int, scalars: Mapping[str, float], findings: Sequence[Finding], outcome: OutcomeContrast
    ) -> None:
        self._tick += 1
        self._conditions.forget_before(self._tick - self.spec.memory_steps)
        self._conditions.note(findings, self._tick)
        self._outcome.update(outcome)
        if not self._conditions.since(self._tick - self.spec.active_steps):
            self._baselines.update(scalars)
        self._drift.add(step, scalars.get(DRIFT))
        self._share.add(step, scalars.get(SHARE))

    def _view(
        self, step: int, scalars: Mapping[str, float], checkpoints: Sequence[CheckpointMark], reservoir_groups: int
    ) -> View:
        view = View(
            spec=self.spec,
            step=step,
            tick=self._tick,
            scalars=scalars,
            open=self._conditions.since(self._tick - self.spec.active_steps),
            remembered=self._conditions.since(0),
            outcome=self._outcome,
            ess_is_low=False,
            ess=None,
            smoothed=self._smoothed,
            rate_ceiling=self._rate_ceiling,
            baselines=self._baselines,
            drift=self._drift,
            share=self._share,
            checkpoints=checkpoints,
            reservoir_groups=reservoir_groups,
        )
        of_sources = (
            name.format(source=source) for source in self.spec.sources for name in (SOURCE_ESS, SOURCE_SPREAD)
        )
        for name in (AGREEMENT, *of_sources):
            value = view.scalar(name)
            if value is not None:
                self._smoothed[name] = _smoothed(self._smoothed.get(name), value)
        ess = view.scalar(ESS)
        if ess is not None:
            self._ess = _smoothed(self._ess, ess)
            self._ess_low.update(self._ess)
        return replace(view, ess=self._ess, ess_is_low=self._ess_low.on)

    def _is_well(self, view: View, rung: Rung, grip: Grip) -> bool:
        asked_for = any(rung.act in ROUTES.get(condition.kind, ()) for condition in view.open)
        return not asked_for and rung.recovered(view, grip)

    def _stop(self, view: View) -> Decision | None:
        if Act.STOP not in self.spec.rungs or self._stopped:
            return None
        broken = [condition for condition in view.open if condition.kind == "non_finite"]
        causes = [condition for condition in view.remembered if Act.STOP in ROUTES.get(condition.kind, ())]
        lasting = self._outcome.damaged_evaluations >= self.spec.stop_evaluations
        if broken:
            reason = "a number that must be finite is not; nothing after it can be trusted"
        elif causes and lasting and self._way_back(view) is None:
            reason = (
                f"held-out success is below its level of {self._outcome.level:.2f} in "
                f"{self._outcome.damaged_evaluations} evaluations in a row, and there is no verified checkpoint left"
            )
        else:
            return None
        self._stopped = True
        monitors = tuple(name for condition in broken or causes for name in condition.monitors)
        return self._decision(view, Act.STOP, {"checkpoint": not broken}, reason, monitors)

    def _way_back(self, view: View) -> tuple[Condition, CheckpointMark] | None:
        """What a rollback would go back for, and where to."""
        if Act.ROLLBACK not in self.spec.rungs or len(self._rollbacks) >= self.spec.max_rollbacks:
            return None
        dated = [c for c in view.remembered if c.onset_step >= 0 and Act.ROLLBACK in ROUTES.get(c.kind, ())]
        persisting = [condition for condition in dated if view.persists(condition)]
        if not dated:
            return None
        cause = min(persisting, key=_onset) if persisting else max(dated, key=_onset)
        mark = choose_checkpoint(
            view.checkpoints, cause.onset_step, margin_steps=self.spec.onset_margin_steps, tried=self._rollbacks
        )
        return None if mark is None else (cause, mark)

    def _roll_back(self, view: View) -> tuple[Decision, ...]:
        settled = self._tick - self._changed_tick >= self.spec.cooldown_steps
        way = self._way_back(view) if settled and self._outcome.damaged and not self._stopped else None
        if way is None or self._gentler_is_due(view, way[0]):
            return ()
        cause, mark = way
        factor = self.spec.rollback_learning_rate ** (len(self._rollbacks) + 1)
        values = {
            "checkpoint": mark.name,
            "checkpoint_step": mark.step,
            "onset_step": cause.onset_step,
            "group_ids": list(cause.group_ids),
            "trajectory_ids": list(cause.trajectory_ids),
            "knobs": {"learning_rate": factor},
        }
        reason = (
            f"{cause.kind} began at about step {cause.onset_step} and held-out success has fallen below its level of "
            f"{self._outcome.level:.2f}; {mark.name} is the last checkpoint verified before it"
        )
        released = tuple(
            self._release(view, rung.act, "the rollback puts every knob back", restart=True)
            for rung in reversed(GENTLE)
            if self._grips[rung.act].engaged
        )
        decision = self._decision(view, Act.ROLLBACK, values, reason, tuple(cause.monitors))
        self._rollbacks.append(mark.name)
        self._held_until = self._tick + self.spec.rollback_hold_steps
        self._rate_ceiling = factor
        self._changed_tick = self._tick
        self._conditions.clear()
        self._outcome.restart()
        self._ess = None
        self._smoothed = {}
        self._ess_low.restart()
        return (*released, decision)

    def _gentler_is_due(self, view: View, cause: Condition) -> bool:
        """Whether a gentler rung for the same cause could engage and has not had its chance; each gets one cooldown."""
        if cause.served_tick >= 0:
            return self._tick - cause.served_tick < self.spec.cooldown_steps
        return any(self._proposal(view, act, cause) is not None for act in ROUTES[cause.kind] if act in _RUNGS)

    def _follow(self, view: View) -> tuple[Decision, ...]:
        decisions = []
        for act, rung in _RUNGS.items():
            grip = self._grips[act]
            proposal = rung.follow(view, grip) if grip.engaged else None
            if proposal is not None:
                grip.values, grip.memo = dict(proposal.values), dict(proposal.memo)
                decisions.append(self._decision(view, act, proposal.values, proposal.reason, tuple(grip.monitors)))
        return tuple(decisions)

    def _let_go(self, view: View) -> tuple[Decision, ...]:
        if 0 <= self._held_until <= self._tick:
            self._held_until, self._changed_tick, self._rate_ceiling = -1, self._tick, 1.0
            if self._grips[Act.LEARNING_RATE].engaged:
                return ()  # The rung has the knob from here on, and follows its signal from the next call.
            reason = f"{self.spec.rollback_hold_steps} steps have passed since the rollback"
            return (self._decision(view, Act.LEARNING_RATE, {}, reason, (), release=True),)
        for rung in reversed(GENTLE):
            grip = self._grips[rung.act]
            is_held = rung.act is Act.LEARNING_RATE and self._held_until >= 0
            if not grip.engaged or is_held:
                continue
            if isinstance(rung, NearMisses) and self._is_vain(view, rung, grip):
                grip.barred_until = self._tick + self.spec.memory_steps
                reason = "the reservoir is empty" if view.reservoir_groups == 0 else "ESS came back, outcomes did not"
                return (self._release(view, rung.act, reason),)
            backoff = min(2 ** (grip.engagements - 1), _MOST_BACKOFF)
            settled = self._tick - self._changed_tick >= self.spec.cooldown_steps
            if settled and grip.well_steps >= self.spec.release_steps * backoff:
                return (self._release(view, rung.act, f"well for {grip.well_steps} steps in a row"),)
        return ()

    def _is_vain(self, view: View, rung: NearMisses, grip: Grip) -> bool:
        patience = 2 * self.spec.release_steps
        return view.reservoir_groups == 0 or (self._tick - grip.since_tick >= patience and rung.misled(view, grip))

    def _engage(self, view: View) -> tuple[Decision, ...]:
        if self._tick - self._changed_tick < self.spec.cooldown_steps:
            return ()
        for act in LADDER:
            for condition in view.open:
                if act not in _RUNGS or act not in ROUTES.get(condition.kind, ()) or not view.persists(condition):
                    continue
                proposal = self._proposal(view, act, condition)
                if proposal is not None:
                    return (self._take_hold(view, act, condition, proposal),)
        return ()

    def _proposal(self, view: View, act: Act, condition: Condition) -> Proposal | None:
        grip = self._grips[act]
        if act not in self.spec.rungs or grip.engaged or self._tick < grip.barred_until:
            return None
        return _RUNGS[act].propose(view, condition)

    def _take_hold(self, view: View, act: Act, condition: Condition, proposal: Proposal) -> Decision:
        grip = self._grips[act]
        grip.since_tick = self._changed_tick = condition.served_tick = self._tick
        grip.values, grip.memo = dict(proposal.values), dict(proposal.memo)
        grip.monitors = list(condition.monitors)
        grip.well_steps = 0
        grip.engagements += 1
        return self._decision(view, act, proposal.values, proposal.reason, tuple(condition.monitors))

    def _release(self, view: View, act: Act, reason: str, *, restart: bool = False) -> Decision:
        grip = self._grips[act]
        decision = self._decision(view, act, grip.values, reason, tuple(grip.monitors), release=True)
        self._grips[act] = Grip(engagements=0 if restart else grip.engagements, barred_until=grip.barred_until)
        self._changed_tick = self._tick
        return decision

    def _decision(
        self,
        view: View,
        act: Act,
        values: Mapping[str, Any],
        reason: str,
        monitors: tuple[str, ...],
        release: bool = False,
    ) -> Decision:
        return Decision(
            act=act,
            step=view.step,
            reason=f"would have: {reason}" if self.spec.dry_run else reason,
            values=dict(values),
            findings=monitors,
            release=release,
            dry_run=self.spec.dry_run,
        )


def _smoothed(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _SMOOTHING * (value - mean)


def _onset(condition: Condition) -> int:
    return condition.onset_step
