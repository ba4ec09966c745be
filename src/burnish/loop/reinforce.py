"""One RL step: tasks -> rollouts -> grades -> groups -> advantages -> gradients -> optimizer -> proof -> store."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from random import Random

from burnish.algorithms.advantages import group_advantages
from burnish.algorithms.loss import LossSums
from burnish.core.cost import EpisodeCost
from burnish.core.errors import InvariantViolation, RunStopped
from burnish.core.finding import Decision
from burnish.core.grade import Grade
from burnish.core.hashing import derive_seed
from burnish.core.sampling import SamplingParams
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.graders.graph import aggregator_at
from burnish.loop.config import RLSection
from burnish.loop.grading import bar_cheated_tasks, grade_scalars, honey_read, share_done
from burnish.loop.held_out import exclusion_text
from burnish.loop.invariants import check_on_policy
from burnish.loop.objective import learn_entropy, learn_sizes, trajectory_weights, weighed
from burnish.loop.oversight import Observed, finding_event
from burnish.loop.session import Session, group_plans
from burnish.loop.setup import rl_loss, token_charge
from burnish.loop.shard import GradientOrder
from burnish.loop.state import Ledger
from burnish.loop.step_order import Seen
from burnish.loop.step_work import Batch, read_near_misses, share_out
from burnish.loop.task_queue import TaskQueue
from burnish.loop.verified import agreement, verified
from burnish.rollout.cost import cost_scalars, mean_charge
from burnish.rollout.group import assemble_groups
from burnish.store.rows import Event, Fate, StepRecord, StoredTrajectory
from burnish.training.failures import NonFiniteLoss
from burnish.training.optimizer import OptimizerSpec, Schedule

EXCLUSION_WINDOW = 4
COUNTERS = (
    "tool_calls",
    "tool_errors",
    "malformed_calls",
    "invalid_arguments",
    "unknown_tools",
    "forks",
    "cut_results",
)
PROGRAM_COUNTERS = ("requests", "refused_requests", "abandoned_requests", "ignored_params")


def optimizer_spec(settings: RLSection) -> OptimizerSpec:
    """The optimizer settings of this phase."""
    return OptimizerSpec(
        learning_rate=settings.lr,
        schedule=Schedule(settings.schedule),
        warmup_steps=settings.warmup_steps,
        total_steps=settings.steps * settings.updates,
        weight_decay=settings.weight_decay,
        beta2=settings.beta2,
        max_grad_norm=settings.grad_clip,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What one step trains on: trajectories in group order with their grades.

    wait_s: seconds until they were there.  dispatched: episodes started since the step before.  dropped: rows of
    episodes that came in and are not used.  lost: episodes dropped without a trajectory (cancelled).  under_way:
    episodes started and not yet used.  fresh: every token was sampled by the present version.  scalars: more about how
    they were collected.
    """

    trajectories: Sequence[Trajectory]
    grades: Sequence[tuple[Grade, ...]]
    wait_s: float
    dispatched: int
    dropped: Sequence[StoredTrajectory] = ()
    lost: int = 0
    under_way: int = 0
    fresh: bool = True
    scalars: Mapping[str, float] = field(default_factory=dict)


def rl_step(session: Session, queue: TaskQueue, tasks: Sequence[Task]) -> dict[str, float]:
    """Roll out one step, train on it and commit it; returns its scalars.  Raises as `train_step` does."""
    started = time.perf_counter()
    settings, state = session.recipe.rl, session.state
    step = state.rl_step + 1
    kinds = session.oversight.kind_shares
    indices = queue.next(settings.groups, step=step, knobs=state.knobs, kind_shares=kinds)
    chosen = [tasks[index] for index in indices]
    plans = [
        one
        for group, task in enumerate(chosen)
        for one in group_plans(session.recipe, task, step, group, settings.group_size)
    ]
    trajectories, grades, rollout_s = session.rollout(plans, sampling_params(settings), hold=True)
    collected = Collected(trajectories=trajectories, grades=grades, wait_s=rollout_s, dispatched=len(plans))
    return train_step(session, collected, started)


def sampling_params(settings: RLSection) -> SamplingParams:
    """How the policy is sampled for training."""
    return SamplingParams(temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k)


def train_step(session: Session, collected: Collected, started_s: float) -> dict[str, float]:
    """Train on what was collected and commit the step (`Session.later`), which began at `started_s`; returns its
    scalars.

    Raises InvariantViolation or RunStopped (no signal, exclusions, loss not finite); what was rolled out is committed
    in any case.
    """
    state = session.state
    step, version = state.rl_step + 1, state.version
    batch = decide(session, step, collected.trajectories, collected.grades)
    seen: list[Seen] = []
    ledger = count(batch.fates, collected)
    told = _Told()
    learning = time.perf_counter()
    # Shards wait for what is decided, not for whoever looks on: that is done while they work.
    session.executor.later(lambda: told.add(*_rolled_out(session, step, batch, collected, ledger)))
    try:
        figures = learn(session, step, batch, seen, fresh=collected.fresh)
    except (RunStopped, InvariantViolation) as error:
        session.executor.settle()
        _commit_failed(session, step, version, batch, told.scalars, error)
        raise
    learned = time.perf_counter()
    told.add(figures, [])
    look = partial(session.oversight.observe, step, seen, dict(told.scalars), batch.groups)
    session.later(lambda: told.take(look()))
    if session.oversight.steers:
        session.executor.settle()
        session.ending = _obey(session, batch, told.observed)
    barred = bar_cheated_tasks(session.recipe, session.world.aggregator, state.knobs, batch.groups, step)
    times = {
        "time/step_s": time.perf_counter() - started_s,
        "time/rollout_s": collected.wait_s,
        "time/learn_s": learned - learning,
        "rate/sampled_tokens_per_s": told.scalars["tokens/sampled"] / max(collected.wait_s, 1e-9),
    }
    told.add(session.oversight.learn_kinds(batch.groups, step) | times, barred)
    session.later(partial(_store, session, step, (version, state.version), batch, collected.dropped, told))
    _account(session, ledger, batch, collected.under_way)
    state.rl_step = step
    learn_entropy(session.recipe, state, told.scalars.get("entropy_nats_mean", math.nan))
    _stop_if_hopeless(session, collected.trajectories, collected.grades, ledger)
    return told.scalars


@dataclass(slots=True, kw_only=True)
class _Told:
    """What is said of a step, by and by.  observed: what health and control made of it."""

    scalars: dict[str, float] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    observed: Observed = field(default_factory=lambda: Observed(scalars={}))

    def add(self, scalars: Mapping[str, float], events: Sequence[Event]) -> None:
        self.scalars |= scalars
        self.events += events

    def take(self, observed: Observed) -> None:
        self.observed = observed
        self.add(observed.scalars, observed.events)


def _rolled_out(
    session: Session, step: int, batch: Batch, collected: Collected, ledger: Ledger
) -> tuple[dict[str, float], list[Event]]:
    """Scalars and events of what was rolled out."""
    aggregator = session.world.aggregator
    honey, read = honey_read(session.recipe, aggregator, batch.groups, step)
    scalars = {
        **describe(batch, collected.trajectories),
        **collected.scalars,
        **grade_scalars(aggregator, batch.groups),
        **honey,
        **{f"episodes/{key}": float(n) for key, n in asdict(ledger).items()},
        "episodes/pending": float(collected.under_way),
    }
    return scalars, [*map(finding_event, read)]


def _obey(session: Session, batch: Batch, observed: Observed) -> Decision | None:
    """Let the next step be what this one showed; the decision that ends the course of the run, if there is one."""
    learn_sizes(session.state, batch.trained, batch.weights, observed.sizes)
    session.oversight.carry_out(observed)
    return observed.ending


def _store(
    session: Session,
    step: int,
    versions: tuple[int, int],
    batch: Batch,
    dropped: Sequence[StoredTrajectory],
    told: _Told,
) -> None:
    """versions: of the policy before and after the step."""
    before, after = versions
    session.store(
        StepRecord(
            phase="rl",
            step=step,
            policy_version=after,
            rows=[*stored_rows(batch, step, before), *dropped],
            scalars=told.scalars,
            events=told.events,
            streams=told.observed.streams,
        )
    )


def decide(
    session: Session, step: int, trajectories: Sequence[Trajectory], grades: Sequence[tuple[Grade, ...]]
) -> Batch:
    """Groups, rewards, advantages and the fate of every trajectory."""
    settings = session.recipe.rl
    aggregator = aggregator_at(session.world.aggregator, share_done(session.recipe, step))
    groups = assemble_groups(trajectories, grades, aggregator, token_charge(session.recipe))
    agrees = agreement(groups, session.world.aggregator)
    if session.oversight.acts and session.state.knobs.verified_reward:
        groups = [verified(group, session.world.aggregator) for group in groups]
    rewards = [list(group.rewards_G) for group in groups]
    if settings.shuffle_rewards:
        rewards = _shuffled(rewards, derive_seed(session.recipe.run.seed, "shuffle", step))
    advantages: dict[str, float] = {}
    fates: dict[str, Fate] = {}
    for group, rewards_G in zip(groups, rewards, strict=True):
        known = [reward for reward in rewards_G if reward is not None]
        values = iter(group_advantages(known, baseline=settings.baseline, scale=settings.scale))
        signal = len(known) > 1 and max(known) - min(known) > 1e-9
        for trajectory, reward in zip(group.trajectories, rewards_G, strict=True):
            if reward is None:
                fates[trajectory.id] = Fate.FAILED
                continue
            advantage = next(values)
            if signal or not settings.filter_zero_signal:
                fates[trajectory.id] = Fate.TRAINED
                advantages[trajectory.id] = advantage
            else:
                fates[trajectory.id] = Fate.FILTERED
    batch = Batch(groups=groups, advantages=advantages, fates=fates, agreement=agrees)
    weights = trajectory_weights(session.recipe, session.state, batch.trained)
    return replace(batch, advantages=weighed(session.recipe, advantages, weights, batch.trained), weights=weights)


def _shuffled(rewards: Sequence[list[float | None]], seed: int) -> list[list[float | None]]:
    """All rewards of a step dealt anew to the members that have one: the control without a learning signal."""
    known = [reward for group in rewards for reward in group if reward is not None]
    Random(seed).shuffle(known)
    values = iter(known)
    return [[None if reward is None else next(values) for reward in group] for group in rewards]


def learn(session: Session, step: int, batch: Batch, seen: list[Seen], *, fresh: bool) -> dict[str, float]:
    """Back-propagate the trained members, step the optimizer, prove that the samplers follow.

    seen: is given what the shards saw for health, in an order that does not depend on timing.  fresh: the samples are
    the present policy's own, so that their ratio must be 1.
    """
    settings, state = session.recipe.rl, session.state
    figures: dict[str, float] = {
        "loss": 0.0,
        "policy_version": float(state.version),
        "check/logprob_tolerance": session.tolerance,
        "check/micro_batch_tolerance": session.micro_batch_tolerance,
    }
    total = LossSums()
    loss = rl_loss(session.recipe)
    replayed = read_near_misses(session, step)
    work = share_out(session, step, batch, replayed)
    parts = work.parts
    seen += session.executor.begin_step(work.orders)
    figures |= work.scalars
    for update in range(settings.updates):
        normaliser, surveys = session.executor.prepare([part[update] for part in parts])
        if normaliser <= 0:
            continue
        order = GradientOrder(
            phase="rl",
            normaliser=normaliser,
            version=state.version,
            trust_limit=loss.trust_limit(surveys),
            first=not total.sums,
        )
        if update == 0 and (state.rl_step == 0 or step % session.recipe.checks.every == 0):
            tolerance = session.micro_batch_tolerance
            figures["check/micro_batch"] = session.executor.check_micro_batches(order, tolerance)
        gradient = session.executor.gradients(order)
        sums = gradient.losses
        seen += gradient.seen
        if update == 0:
            largest = sums.maxima["log_ratio_behaviour_abs_nats"]
            figures["check/ratio_nats"] = largest
            if fresh and not replayed:
                check_on_policy(largest, session.tolerance, step)
        total = LossSums.merge([total, sums])
        session.pause()
        figures |= session.step_optimizer()
        difference = session.sync_update(step)
        if difference is not None:
            figures["check/canary_nats"] = difference
    figures["policy_version"] = float(state.version)
    if session.oversight.acts:
        figures["control/tail_masked_tokens"] = float(sum(one.masked_tokens for one in seen))
    return figures | total.metrics()


def count(fates: Mapping[str, Fate], collected: Collected) -> Ledger:
    """What became of the episodes in one step."""
    values = list(fates.values())
    return Ledger(
        dispatched=collected.dispatched,
        trained=values.count(Fate.TRAINED),
        filtered=values.count(Fate.FILTERED),
        dropped=values.count(Fate.DROPPED) + len(collected.dropped) + collected.lost,
        failed=values.count(Fate.FAILED),
    )


def describe(batch: Batch, trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Scalars of a step's rollouts; names are listed in docs/metrics.md."""
    rewards = [reward for group in batch.groups for reward in group.rewards_G if reward is not None]
    mean = sum(rewards) / len(rewards) if rewards else float("nan")
    spread = (sum((reward - mean) ** 2 for reward in rewards) / len(rewards)) ** 0.5 if rewards else float("nan")
    costs = [EpisodeCost.of(trajectory) for trajectory in trajectories]
    sampled = sum(cost.action_tokens for cost in costs)
    turns = sum(cost.turns for cost in costs)
    scalars = {
        "reward/mean": mean,
        "reward/std": spread,
        "groups/dispatched": float(len(batch.groups)),
        "groups/signal": float(sum(group.signal for group in batch.groups)),
        "tokens/sampled": float(sampled),
        "tokens/per_episode": sampled / max(1, len(trajectories)),
        "episodes/turns": turns / max(1, len(trajectories)),
        "time/tool_s": sum(trajectory.tool_s for trajectory in trajectories),
        "reward/charged_mean": mean_charge(batch.groups),
    }
    if not math.isnan(batch.agreement):
        scalars["reward/agreement"] = batch.agreement
    scalars |= cost_scalars(costs)
    for name in COUNTERS:
        scalars[f"count/{name}"] = float(sum(trajectory.counters.get(name, 0) for trajectory in trajectories))
    for name in PROGRAM_COUNTERS:
        counted = [trajectory.counters[name] for trajectory in trajectories if name in trajectory.counters]
        if counted:
            scalars[f"count/{name}"] = float(sum(counted))
    for trajectory in trajectories:
        key = f"outcome/{trajectory.outcome.label}"
        scalars[key] = scalars.get(key, 0.0) + 1.0
    return scalars


def stored_rows(batch: Batch, step: int, version: int) -> list[StoredTrajectory]:
    """The rows of a step, in group order."""
    return [
        StoredTrajectory(
            trajectory=trajectory,
            phase="rl",
            step=step,
            policy_version=version,
            fate=batch.fates[trajectory.id],
            grades=grades,
            reward=reward,
            advantage=batch.advantages.get(trajectory.id),
        )
        for group in batch.groups
        for trajectory, grades, reward in zip(group.trajectories, group.grades_G, group.rewards_G, strict=True)
    ]


def _commit_failed(
    session: Session,
    step: int,
    version: int,
    batch: Batch,
    scalars: dict[str, float],
    error: RunStopped | InvariantViolation,
) -> None:
    """Keep what was rolled out although the step could not be taken; a resume replaces it."""
    dropped = {key: Fate.DROPPED if fate is Fate.TRAINED else fate for key, fate in batch.fates.items()}
    rows = stored_rows(Batch(groups=batch.groups, advantages=batch.advantages, fates=dropped), step, version)
    named = list(error.trajectory_ids) if isinstance(error, NonFiniteLoss) else []
    kind = error.cause if isinstance(error, RunStopped) else f"invariant:{error.name}"
    event = Event(kind=kind, detail=str(error), data={"trajectory_ids": named})
    scalars["episodes/dropped"] += scalars["episodes/trained"]
    scalars["episodes/trained"] = 0.0
    session.store(StepRecord(phase="rl", step=step, policy_version=version, rows=rows, scalars=scalars, events=[event]))


def _account(session: Session, ledger: Ledger, batch: Batch, under_way: int) -> None:
    state = session.state
    for key, value in asdict(ledger).items():
        setattr(state.ledger, key, getattr(state.ledger, key) + value)
    state.ledger.check(under_way)
    state.recent = [*state.recent, (ledger.failed, len(batch.fates))][-EXCLUSION_WINDOW:]
    state.groups_seen += len(batch.groups)
    state.groups_with_signal += sum(group.signal for group in batch.groups)


def _stop_if_hopeless(
    session: Session, trajectories: Sequence[Trajectory], grades: Sequence[Sequence[Grade]], ledger: Ledger
) -> None:
    """Past the stated share of exclusions, or where no group ever carried a signal, going on only burns money."""
    state, stop = session.state, session.recipe.stop
    failed = sum(item[0] for item in state.recent)
    total = sum(item[1] for item in state.recent)
    if failed > stop.max_excluded_share * total:
        raise RunStopped("excluded", exclusion_text(trajectories, grades, ledger.failed))
    if stop.no_signal_groups and state.groups_with_signal == 0 and state.groups_seen >= stop.no_signal_groups:
        rewards = sorted({grade.score for given in grades for grade in given if grade.score is not None})
        listed = ", ".join(f"{value:g}" for value in rewards[:4]) or "none"
        raise RunStopped(
            "no_signal",
            f"none of the first {state.groups_seen} groups had two different rewards (scores seen: {listed}), so "
            "nothing can be learned from them. Warm-start the policy (write `solve`, then warm_start.steps=200), make "
            "the tasks easier, give partial credit in the grader, or raise rl.group_size and rl.temperature",
        )
