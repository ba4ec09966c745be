"""Health and control of a run: what its shards saw is merged, watched and decided upon, once a step.

The conductor owns everything here.  In the modes "off" and "dry_run" nothing that is computed has any effect on the
training; in "act" decisions turn `LoopState.knobs` after the step that led to them, and the next step obeys.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from burnish.control.ladder import Ladder
from burnish.control.outcome import OutcomeContrast
from burnish.control.reservoir import Candidate, Reservoir, ReservoirSpec
from burnish.control.rollback import CheckpointMark
from burnish.control.spec import LADDER, LadderSpec
from burnish.core.finding import Act, Decision, Finding
from burnish.core.grade import Aggregator
from burnish.core.streams import TokenColumns, TokenStream
from burnish.core.task import Task
from burnish.diagnosis.built_in import engine_of, policy_of_world
from burnish.diagnosis.tags import near_misses
from burnish.health.monitors import default_monitors
from burnish.health.slices import OTHER, SliceNames
from burnish.health.sums import HealthSums
from burnish.health.table import TrajectoryTable
from burnish.health.watch import Watch, WatchSpec
from burnish.loop.config import Recipe
from burnish.loop.curriculum import Curriculum, records_of
from burnish.loop.grading import integrity_monitors
from burnish.loop.members import can_be_capped
from burnish.loop.state import LoopState
from burnish.loop.step_order import Seen
from burnish.loop.worlds import World
from burnish.rollout.group import GroupResult
from burnish.rollout.streams import source_of
from burnish.store.rows import Event

MOST_NAMES = 32
"""Tools, sources and skills beyond the most frequent so many are counted as "other"."""

_NOT_OF_LADDER = {"mode", "rungs", "keep_reference", "quarantine_steps", "reservoir_groups", "progress_from"}
UNWATCHED = ("time/", "rate/", "pool/")
"""Scalars that say something about the machine, not about the estimator; a resumed run would not repeat them."""

_ENDS = (Act.ROLLBACK, Act.STOP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What one step showed, and what is to be done.

    ending: the decision that takes the run out of its course (rollback, stop), None where there is none or where
    control may not act.  sizes: by id, the part of each trained trajectory in the update, where `rl.normalise` learns
    from them.  `Observed(scalars={"health/gini_update": 0.4})`
    """

    scalars: Mapping[str, float]
    events: Sequence[Event] = ()
    decisions: Sequence[Decision] = ()
    streams: Sequence[TokenStream] = ()
    ending: Decision | None = None
    sizes: Mapping[str, float] = field(default_factory=dict)


class Oversight:
    """`oversight.observe(step, seen, scalars, groups)` after every step, then `oversight.carry_out(observed)`.

    names: None where health is off, and control with it.  curriculum: None where tasks are drawn evenly.  `remember`
    writes what must survive into the state.
    """

    def __init__(self, recipe: Recipe, world: World, state: LoopState) -> None:
        self._recipe, self._state, self._aggregator = recipe, state, world.aggregator
        self.names: SliceNames | None = None
        self._watch: Watch | None = None
        self._ladder: Ladder | None = None
        self._reservoir: Reservoir | None = None
        self._engine = engine_of(recipe.curriculum.policy or policy_of_world(recipe.environment.name))
        self.curriculum: Curriculum | None = None
        tasks = world.tasks("train") if recipe.health.on or recipe.curriculum.draw != "even" else []
        if recipe.curriculum.draw != "even":
            self.curriculum = Curriculum(recipe, tasks, state, self._engine)
        if not recipe.health.on:
            return
        self.names = slice_names(world, tasks)
        self._open_watch(self.names)
        if recipe.control.mode != "off":
            spec = ladder_spec(recipe, tasks)
            self._ladder = Ladder(spec) if state.control is None else Ladder.restore(spec, state.control)
            self._open_reservoir()

    def _open_watch(self, names: SliceNames) -> None:
        spec, stored = watch_spec(self._recipe, names, self._aggregator), self._state.health
        self._watch = Watch(spec) if stored is None else Watch.restore(spec, stored)

    def _open_reservoir(self) -> None:
        stored, settings = self._state.reservoir, self._recipe.control
        spec = ReservoirSpec(capacity=settings.reservoir_groups)
        self._reservoir = Reservoir(spec) if stored is None else Reservoir.restore(spec, stored)

    @property
    def kind_shares(self) -> dict[str, float]:
        """Probability of each kind of task in the next step, {} where tasks are drawn evenly."""
        return {} if self.curriculum is None else self.curriculum.probabilities()

    def learn_kinds(self, groups: Sequence[GroupResult], step: int) -> dict[str, float]:
        """Tell the curriculum what became of a step's groups; its scalars, {} without one."""
        if self.curriculum is None:
            return {}
        started_s = time.thread_time()
        found = self.curriculum.learn(groups, step)
        return {**found, "time/curriculum_s": time.thread_time() - started_s}

    @property
    def acts(self) -> bool:
        """Whether decisions are carried out."""
        return self._ladder is not None and self._recipe.control.mode == "act"

    @property
    def steers(self) -> bool:
        """Whether a step depends on what `observe` made of the one before."""
        return self.acts or self._recipe.rl.normalise == "variance"

    def wants_score_norm(self, step: int) -> bool:
        """Whether step `step` computes squared score norms."""
        every = self._recipe.health.softmax_every
        return self.names is not None and every > 0 and (step - 1) % every == 0

    def observe(
        self, step: int, seen: Sequence[Seen], scalars: Mapping[str, float], groups: Sequence[GroupResult]
    ) -> Observed:
        """Merge what the shards saw, in the order given, and look at it."""
        if self._watch is None or self.names is None:
            return Observed(scalars={})
        started_s = time.thread_time()
        sums = merged(seen, self.names)
        counted_s = time.thread_time()
        streaming_s = counted_s - started_s + sum(one.cpu_s for one in seen)
        raw = {name: value for name, value in scalars.items() if not name.startswith(UNWATCHED)}
        found = self._watch.step(step, sums, raw)
        watched_s = time.thread_time()
        decisions = self._decide(step, {**raw, **found.scalars}, found.findings, groups, sums.table)
        ends = [decision for decision in decisions if decision.act in _ENDS and self.acts]
        more = {**self._state.knobs.scalars(), "control/decisions": float(len(decisions))} if self._ladder else {}
        if self._ladder is not None:
            more["time/control_s"] = time.thread_time() - watched_s
        return Observed(
            scalars={
                **found.scalars,
                **more,
                "health/findings": float(len(found.findings)),
                "time/health_s": watched_s - counted_s + streaming_s,
                "time/health_streaming_s": streaming_s,
            },
            events=[*map(finding_event, found.findings), *map(_decision_event, decisions)],
            decisions=decisions,
            streams=_kept(seen) if self._recipe.health.keep_streams else (),
            ending=ends[0] if ends else None,
            sizes=_sizes(sums) if self._recipe.rl.normalise == "variance" else {},
        )

    def _decide(
        self,
        step: int,
        scalars: Mapping[str, float],
        findings: Sequence[Finding],
        groups: Sequence[GroupResult],
        table: TrajectoryTable,
    ) -> tuple[Decision, ...]:
        if self._ladder is None or self._reservoir is None:
            return ()
        state, evaluated = self._state, self._state.evaluated
        state.evaluated = None
        outcome = OutcomeContrast.of(
            [[reward for reward in group.rewards_G if reward is not None] for group in groups],
            None if evaluated is None else evaluated.success,
            0 if evaluated is None else evaluated.episodes,
        )
        decisions = self._ladder.decide(
            step,
            scalars,
            findings,
            outcome,
            checkpoints=[CheckpointMark(name=mark.name, step=mark.step, verified=True) for mark in state.ways_back()],
            reservoir_groups=self._reservoir.available(step),
        )
        if evaluated is not None and self._ladder.is_well:
            for mark in state.marks:
                mark.verified |= mark.step == evaluated.step
        outcomes = dict(
            zip(table.texts["id"], zip(table.column("success"), table.column("progress"), strict=True), strict=True)
        )
        for group in groups:
            if group.signal:
                self._reservoir.offer(_candidates(group, step, outcomes, self._distances(group, step)))
        return tuple(_without_unknown_slice(decision) for decision in decisions)

    def _distances(self, group: GroupResult, step: int) -> dict[str, float]:
        """How far the failed members came before their critical step, by id, where the recipe asks for a diagnosis."""
        if self._recipe.control.progress_from != "diagnosis":
            return {}
        return near_misses(self._engine, records_of(group, step))

    def carry_out(self, observed: Observed) -> None:
        """Turn the knobs, where control may act.

        Another mixture of tasks is another world for the monitors: when the curriculum begins and when it ends they
        warm up anew.  In between it follows its sources, which must not leave the run unwatched.  Of the other knobs,
        near-miss groups alone move monitors in the direction of their fault, and no monitor can be reset by itself.
        """
        if not self.acts:
            return
        knobs = self._state.knobs
        before = Act.CURRICULUM in knobs.turned
        for decision in observed.decisions:
            knobs.turn(decision)
        if self._watch is not None and (Act.CURRICULUM in knobs.turned) != before:
            self._watch.rebaseline()

    def near_misses(self, step: int) -> list[tuple[int, tuple[str, ...]]]:
        """What the next batch gets from the reservoir: the step and the ids of each group."""
        if self._reservoir is None or not self.acts or not self._state.knobs.near_misses:
            return []
        drawn = self._reservoir.draw(self._state.knobs.near_misses, step)
        return [(group.step, (*group.near_miss_ids, *group.success_ids)) for group in drawn]

    def remember(self) -> None:
        """Write everything that a resumed run goes on from into the state."""
        if self._watch is not None:
            self._state.health = self._watch.state()
        if self._ladder is not None:
            self._state.control = self._ladder.state()
        if self._reservoir is not None:
            self._state.reservoir = self._reservoir.state()

    def go_back(self) -> None:
        """The state was restored from an older checkpoint: watch and reservoir as they were then; the ladder stays,
        for it would otherwise decide the same again."""
        if self.names is not None:
            self._open_watch(self.names)
        if self._reservoir is not None:
            self._open_reservoir()
        self.remember()


def merged(seen: Sequence[Seen], names: SliceNames) -> HealthSums:
    """One reduction of all columns, in the order given, added to the sums of shards that had too much to send."""
    columns = [one.columns for one in seen if one.columns is not None]
    parts = [HealthSums.from_bytes(one.sums) for one in seen if one.sums]
    if columns or not parts:
        parts.append(HealthSums.of(TokenColumns.joined(columns), names))
    return HealthSums.merge(parts)


def _kept(seen: Sequence[Seen]) -> list[TokenStream]:
    return [stream for one in seen if one.columns is not None for stream in one.columns.split()]


def slice_names(world: World, tasks: Sequence[Task]) -> SliceNames:
    """The slices of a run, from the tools of its world and the tags of its training tasks."""
    tools = [tool.spec.name for tool in world.make(tasks[0]).tools()]
    return SliceNames(
        tools=_most_frequent(tools),
        sources=_most_frequent([source_of(task.tags) for task in tasks]),
        skills=_most_frequent([task.tags.get("skill", "") for task in tasks]),
    )


def _most_frequent(names: Sequence[str]) -> tuple[str, ...]:
    counts = Counter(name for name in names if name and name != OTHER)
    ranked = sorted(counts, key=lambda name: (-counts[name], name))
    return tuple(sorted(ranked[:MOST_NAMES]))


def watch_spec(recipe: Recipe, names: SliceNames, aggregator: Aggregator) -> WatchSpec:
    """What is watched, and how strictly."""
    settings = recipe.health
    return WatchSpec(
        names=names,
        baseline_steps=settings.baseline_steps,
        false_alarms_per_1000=settings.false_alarms_per_1000,
        cooldown_steps=settings.cooldown_steps,
        monitors=(*default_monitors(names), *integrity_monitors(aggregator)),
    )


def ladder_spec(recipe: Recipe, tasks: Sequence[Task]) -> LadderSpec:
    """The recipe's limits for control; raises ValueError where they contradict each other."""
    settings, counts = recipe.control, Counter(source_of(task.tags) for task in tasks)
    sources = {name: count / len(tasks) for name, count in sorted(counts.items()) if name}
    fields = settings.model_dump(exclude=_NOT_OF_LADDER)
    return LadderSpec(
        **fields,
        dry_run=settings.mode != "act",
        rungs=tuple(Act(name) for name in settings.rungs) or LADDER,
        kl_weight=recipe.rl.kl_weight if recipe.keeps_reference else None,
        sources=sources if len(sources) > 1 else {},
        groups_per_step=recipe.rl.groups,
    )


def _candidates(
    group: GroupResult, step: int, outcomes: Mapping[str, tuple[float, float]], distances: Mapping[str, float]
) -> list[Candidate]:
    """The members of a group that carry a reward, as the reservoir sees them.  outcomes: success and progress by id,
    NaN where unknown; distances: what stands in for a progress that no grader tells."""
    candidates = []
    for trajectory, reward in zip(group.trajectories, group.rewards_G, strict=True):
        if reward is None:
            continue
        success, progress = outcomes[trajectory.id]
        candidates.append(
            Candidate(
                trajectory_id=trajectory.id,
                group_id=group.group_id,
                step=step,
                source=source_of(trajectory.tags),
                reward=reward,
                success=success == 1.0,
                progress=distances.get(trajectory.id) if math.isnan(progress) else float(progress),
            )
        )
    return candidates


def _without_unknown_slice(decision: Decision) -> Decision:
    """A tail in a slice that no cap can be put on (a range of turns, say) is capped over all tokens."""
    name = str(decision.values.get("slice") or "all")
    if decision.act is not Act.MASK_TAIL or can_be_capped(name):
        return decision
    return Decision(
        act=decision.act,
        step=decision.step,
        reason=f"{decision.reason} (of all tokens: {name} cannot be capped)",
        values={**decision.values, "slice": "all"},
        findings=decision.findings,
        release=decision.release,
        dry_run=decision.dry_run,
    )


def _sizes(sums: HealthSums) -> dict[str, float]:
    return {row.id: row.update_size for row in sums.trajectories if row.trained and row.update_size is not None}


def finding_event(finding: Finding) -> Event:
    return Event(kind="finding", detail=finding.summary, data=asdict(finding))


def _decision_event(decision: Decision) -> Event:
    return Event(kind="decision", detail=decision.reason, data=asdict(decision))
