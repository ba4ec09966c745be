"""Canaries of a run: what is measured beside its steps, and never trained on.

Impossible twins of training tasks are played like a held-out evaluation: whoever succeeds has cheated.  Judges are
asked about the same labelled examples as at the start.  What comes of it is a step of phase "eval"; what it goes on
from lies in the checkpoint.  Honeyfiles are looked for in the grades of each step (`grading.honey_read`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from burnish.core.errors import ConfigError
from burnish.core.finding import Finding
from burnish.core.grade import Aggregator, Grade
from burnish.core.hashing import derive_seed
from burnish.core.hints import did_you_mean
from burnish.core.judge import Judge
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.evaluation.heldout import SUCCESS_AT, EvalSpec, Mode, evaluation_plans
from burnish.graders.graph import ScheduledAggregator
from burnish.graders.graph_files import GraphFiles
from burnish.graders.integrity.canaries import CanaryOutcome, CanaryWatch, canary_outcome, impossible
from burnish.graders.integrity.metrics import canary_scalars
from burnish.graders.judge_check import FALSE_ALARM_RATE, Checked, JudgeCheck, judged_rubric
from burnish.graders.judge_drift import least_cases
from burnish.graders.judge_spec import JudgeSpec, make_judge
from burnish.graders.rubric_labelled import load_labelled
from burnish.loop.config import Recipe
from burnish.loop.grading import is_success, open_world
from burnish.loop.held_out import held_out_rows
from burnish.loop.oversight import finding_event
from burnish.loop.session import Session
from burnish.loop.worlds import World
from burnish.store.rows import Event, StepRecord, StoredTrajectory

SPLIT = "impossible"
_WATCH, _JUDGES = "watch", "judges"


@dataclass(frozen=True, slots=True, kw_only=True)
class Noticed:
    """What canaries say.  `Noticed(scalars={"integrity/canary/cheat": 0.0, "integrity/canary/n": 2.0})`"""

    scalars: Mapping[str, float] = field(default_factory=dict)
    events: Sequence[Event] = ()
    rows: Sequence[StoredTrajectory] = ()


class Canaries:
    """`canaries.begin(session)` before the first step of RL, `canaries.after_step(session)` after each one.

    Raises ConfigError where the recipe asks for what its world, or its graph, does not have.
    """

    def __init__(self, recipe: Recipe, world: World) -> None:
        self._settings, self._per_step = recipe.canaries, recipe.canaries.impossible * recipe.rl.groups
        self._twins = impossible_twins(recipe, world) if recipe.canaries.impossible else ()
        self._checks = judge_checks(recipe, world) if recipe.canaries.judge_every else ()

    def begin(self, session: Session) -> None:
        """Let the judges judge twice what they will be asked again, unless this was done before a resume."""
        known = session.state.canaries.get(_JUDGES, {})
        if missing := [one for one in self._checks if not _is_of(one, known.get(one.judge.name))]:
            _commit(session, _merged([_asked(session, one) for one in missing]))

    def after_step(self, session: Session) -> None:
        """Whatever is due after RL step `state.rl_step`."""
        step, every = session.state.rl_step, self._settings.judge_every
        found = [self._play(session, twins)] if (twins := self._due(step)) else []
        if self._checks and step % every == 0:
            found += [_asked(session, one) for one in self._checks]
        if found:
            _commit(session, _merged(found))

    def _due(self, step: int) -> Sequence[Task]:
        """The twins of a step: always the next ones, as many as keep the share, none twice in a step."""
        if not self._twins:
            return ()
        first, last = (math.floor(self._per_step * at + 1e-9) for at in (step - 1, step))
        count = min(last - first, len(self._twins))
        return [self._twins[(first + index) % len(self._twins)] for index in range(count)]

    def _play(self, session: Session, twins: Sequence[Task]) -> Noticed:
        recipe, state = session.recipe, session.state
        spec = EvalSpec(
            label=f"canary-{state.rl_step:06d}",
            split=SPLIT,
            mode=Mode.SAMPLED,
            seed=derive_seed(recipe.run.seed, "canary", state.rl_step),
            temperature=recipe.rl.temperature,
        )
        trajectories, grades, seconds = session.rollout(evaluation_plans(twins, spec), spec.params, hold=False)
        outcomes = {
            trajectory.id: canary_outcome(visible_pass=passed, answer=trajectory.answer)
            for trajectory, given in zip(trajectories, grades, strict=True)
            if (passed := _passed(recipe, session.world.aggregator, trajectory, given)) is not None
        }
        findings = _canary_findings(state.canaries, state.rl_step, outcomes)
        rows = held_out_rows(state, trajectories, grades, [None] * len(trajectories))
        scalars = {"excluded": float(len(trajectories) - len(outcomes)), "time/rollout_s": seconds}
        scalars |= canary_scalars(list(outcomes.values()))
        return Noticed(scalars=scalars, events=[finding_event(one) for one in findings], rows=rows)


def _commit(session: Session, noticed: Noticed) -> None:
    """Store it as the next step of phase "eval"; superseded by a resume from before it, like an evaluation."""
    state = session.state
    session.settle()
    session.writer.commit_step(
        StepRecord(
            phase="eval",
            step=state.evaluations + 1,
            policy_version=state.version,
            rows=noticed.rows,
            scalars=noticed.scalars,
            events=noticed.events,
        )
    )
    state.evaluations += 1


def _merged(parts: Sequence[Noticed]) -> Noticed:
    return Noticed(
        scalars={name: value for part in parts for name, value in part.scalars.items()},
        events=[event for part in parts for event in part.events],
        rows=[row for part in parts for row in part.rows],
    )


# -- impossible tasks --------------------------------------------------------------------------------------------------


def impossible_twins(recipe: Recipe, world: World) -> tuple[Task, ...]:
    """The twin of every training task that has one, in an order of the run's own."""
    names, wanted = [grader.name for grader in world.graders], recipe.canaries.impossible_grader
    if wanted and wanted not in names:
        hint = did_you_mean(wanted, names, f"there are {', '.join(names)}")
        raise ConfigError(f"canaries.impossible_grader is {wanted!r}, which is none of the graders; {hint}")
    twins = []
    for task in world.tasks("train"):
        if other := world.contradiction(task):
            twins.append(impossible(task, contradiction=other.get("setup", {}), reference=other.get("reference", {})))
    if not twins:
        raise ConfigError(
            f"canaries.impossible is {recipe.canaries.impossible:g}, and no task of {world.name} has an impossible "
            "twin; write the environment's method `contradiction` (docs/integrity.md)"
        )
    return tuple(Random(derive_seed(recipe.run.seed, "canaries")).sample(twins, len(twins)))


def _passed(recipe: Recipe, aggregator: Aggregator, trajectory: Trajectory, grades: Sequence[Grade]) -> bool | None:
    """Whether an honest grader would call it a success, flags left aside; None where nobody could judge it."""
    if not trajectory.outcome.may_carry_reward:
        return None
    if name := recipe.canaries.impossible_grader:
        score = next(grade.score for grade in grades if grade.grader == name)
        return None if score is None else score >= SUCCESS_AT
    if isinstance(aggregator, ScheduledAggregator):
        aggregator = replace(aggregator, integrity="")
    return is_success(aggregator, grades)


def _canary_findings(kept: dict[str, Any], step: int, outcomes: Mapping[str, CanaryOutcome]) -> list[Finding]:
    """A warning for every success; the alarm of the sequential test, which then starts anew.  kept: its state."""
    watch = CanaryWatch()
    if _WATCH in kept:
        watch.restore(kept[_WATCH])
    cheats = tuple(key for key, outcome in outcomes.items() if outcome is CanaryOutcome.CHEAT)
    findings = []
    if cheats:
        findings.append(
            Finding(
                monitor="canary/impossible",
                step=step,
                kind="canary_cheat",
                severity="warning",
                summary=f"{len(cheats)} of {len(outcomes)} impossible tasks were passed, which no honest episode can",
                evidence={"cheats": len(cheats), "n": len(outcomes)},
                trajectory_ids=cheats,
            )
        )
    for outcome in outcomes.values():
        if watch.add(outcome):
            summary = f"impossible tasks are passed far more often than {watch.p0:.0%} (within {watch.seen} of them)"
            findings.append(
                Finding(
                    monitor="canary/share",
                    step=step,
                    kind="canary_share",
                    summary=summary,
                    evidence={"p0": watch.p0, "p1": watch.p1, "seen": watch.seen, "sum_nats": watch.sum_nats},
                )
            )
            watch = CanaryWatch()
    kept[_WATCH] = watch.state()
    return findings


# -- judges ------------------------------------------------------------------------------------------------------------


def judge_checks(recipe: Recipe, world: World) -> tuple[JudgeCheck, ...]:
    """Each judge of the rubric that the recipe names, made anew without its cache."""
    settings = recipe.canaries
    if world.graph is None:
        raise ConfigError("canaries.judge_every checks the judges of a grader graph; name one with graders.file")
    if not settings.judge_cases:
        raise ConfigError("canaries.judge_every needs canaries.judge_cases, a file of labelled examples")
    rubric = judged_rubric(open_world(recipe, graph=world.graph, judges=_uncached).graders, settings.judge_grader)
    cases = load_labelled(settings.judge_cases, rubric.rubric)
    if len(cases) < least_cases(FALSE_ALARM_RATE):
        raise ConfigError(
            f"{settings.judge_cases} has {len(cases)} examples; a check with a false alarm rate of "
            f"{FALSE_ALARM_RATE:g} needs at least {least_cases(FALSE_ALARM_RATE)}"
        )
    return tuple(JudgeCheck(rubric=rubric.rubric, judge=judge, cases=cases) for judge in rubric.judges)


def _uncached(spec: JudgeSpec, files: GraphFiles) -> Judge:
    if spec.offline:
        raise ConfigError(f"{spec.use} is offline: it repeats its cache and cannot be checked; canaries.judge_every=0")
    return make_judge(replace(spec, cache=""), files)


def _asked(session: Session, check: JudgeCheck) -> Noticed:
    """The judge asked once more; twice where nothing is known that this could be compared with."""
    known = session.state.canaries.setdefault(_JUDGES, {})
    kept = known.get(check.judge.name)
    with session.own.judging():
        if _is_of(check, kept):
            return _noticed(check, asyncio.run(check.check(kept, step=session.state.rl_step)))
        known[check.judge.name], found = asyncio.run(check.adopt())
    return _noticed(check, found)


def _is_of(check: JudgeCheck, kept: Mapping[str, Any] | None) -> bool:
    return kept is not None and kept["version"] == check.version


def _noticed(check: JudgeCheck, found: Checked) -> Noticed:
    events = [finding_event(found.finding)] if found.finding is not None else []
    if found.missing:
        causes = ", ".join(f"{count} x {cause}" for cause, count in sorted(found.missing.items()))
        events.append(
            Event(
                kind="judge_unchecked",
                detail=f"{check.judge.name} gave no verdict on some labelled examples: {causes}",
                data={"judge": check.judge.name, "missing": dict(found.missing)},
            )
        )
    return Noticed(scalars=found.scalars, events=events)
