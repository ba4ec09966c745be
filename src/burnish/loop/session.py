"""What the phases of a run share: recipe, store, world, policy, shards, optimizer, state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from burnish.core.errors import RunStopped, StoreError
from burnish.core.finding import Decision
from burnish.core.grade import Grade
from burnish.core.hashing import derive_seed
from burnish.core.sampling import SamplingParams
from burnish.core.task import Task
from burnish.core.tracked import Tracker
from burnish.core.trajectory import Node, Trajectory
from burnish.loop.config import Recipe
from burnish.loop.executor import Executor, deal
from burnish.loop.following import tracked
from burnish.loop.invariants import (
    FLOAT32_TOLERANCE,
    bf16_tolerance,
    check_freshness,
    largest_difference,
)
from burnish.loop.oversight import Oversight
from burnish.loop.policy import Policy
from burnish.loop.progress import Progress, Watcher
from burnish.loop.shard import RolloutOrder, Shard
from burnish.loop.state import LoopState
from burnish.loop.worlds import World
from burnish.policies.checksum import weight_checksum
from burnish.rollout.episode import EpisodePlan
from burnish.store.rows import StepRecord
from burnish.store.writer import RunWriter
from burnish.tasks.horizon import HorizonMix
from burnish.training.optimizer import Optimizer

MICRO_BATCH_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
CALIBRATION_REPEATS = 3


@dataclass(slots=True, kw_only=True)
class Session:
    """All resources of a run in progress; the phases change `state` and the weights, and nothing else.

    own: a shard on the conductor's model, for scores that the shards' samplers are compared with.  canary: prompts
    whose log-probabilities are compared after every weight update.  overlapping: episodes run beside the learner.
    ending: what control decided in the newest step that takes the run out of its course.  proven: an update of this
    process was seen to reach the samplers.  trackers: hear of every stored step.
    """

    recipe: Recipe
    writer: RunWriter
    world: World
    policy: Policy
    executor: Executor
    own: Shard
    state: LoopState
    oversight: Oversight
    watch: Watcher
    stop_requested: Callable[[], bool]
    optimizer: Optimizer | None = None
    overlapping: bool = False
    canary: tuple[Node, ...] = ()
    tolerance: float = FLOAT32_TOLERANCE
    ending: Decision | None = None
    proven: bool = False
    trackers: Sequence[Tracker] = ()
    started_s: float = field(default_factory=time.perf_counter)

    @property
    def micro_batch_tolerance(self) -> float:
        """Largest relative change of a gradient with the size of micro-batches."""
        given = self.recipe.checks.micro_batch_tolerance
        return given if given is not None else MICRO_BATCH_TOLERANCE[self.policy.dtype]

    def tell(self, phase: str, **values: Any) -> None:
        """Report progress, with the newest held-out success, and say in the run directory that the run is alive."""
        self.writer.heartbeat()
        self.executor.on_progress()
        self.tell_notices()
        self.watch(Progress(phase=phase, success=self.state.success, **values))

    def tell_notices(self) -> None:
        """Record and report what the executor wants the user to know."""
        while self.executor.notices:
            notice = self.executor.notices.pop(0)
            self.writer.event("worker_replaced", notice)
            self.watch(Progress(phase="prepare", message=notice))

    def store(self, record: StepRecord) -> None:
        """Make a step durable, and let the trackers hear of it."""
        self.writer.commit_step(record)
        if self.trackers:
            step, notes = tracked(record)
            for tracker in self.trackers:
                tracker.take(step, notes)
            self.tell_troubles()

    def tell_troubles(self) -> None:
        """Record and report what went wrong with a tracker; the run goes on without it."""
        for tracker in self.trackers:
            for trouble in tracker.troubles():
                self.writer.event("tracker_trouble", trouble)
                self.watch(Progress(phase="prepare", message=trouble))

    def close_trackers(self) -> None:
        """The run has ended, in whatever way."""
        for tracker in self.trackers:
            tracker.close()
        # A full disk must not hide why the run ended.
        with suppress(StoreError):
            self.tell_troubles()

    def later(self, work: Callable[[], object]) -> None:
        """Do `work` beside the next rollouts, in the order in which it was left; now where shards do not wait for the
        conductor.  `settle` waits for it; an error comes from there or from what the shards are told next."""
        if self.overlapping:
            work()
        else:
            self.executor.later(work)

    def settle(self) -> None:
        """Whatever was committed is durable when this returns."""
        self.executor.settle()

    def check_stop(self) -> None:
        """Raises RunStopped where the user asked for a stop."""
        if self.stop_requested():
            raise RunStopped("interrupted", "stopped on request; everything is stored, go on with `burnish resume`")

    def pause(self) -> None:
        """Where episodes run beside the learner: sample nothing more until the next `sync`."""
        if self.overlapping:
            self.executor.pause(drain=self.recipe.rollout.weights == "episode")

    def step_optimizer(self) -> dict[str, float]:
        """Apply the gradients and count the version; samplers hear of it in `sync`."""
        if self.optimizer is None:
            raise RunStopped("no_optimizer", "a phase was entered without an optimizer")
        if self.state.phase == "rl":
            rate = self.recipe.rl.lr * self.state.knobs.learning_rate
            self.optimizer.spec = replace(self.optimizer.spec, learning_rate=rate)
        done = self.optimizer.step()
        self.state.version += 1
        return {"lr": done.learning_rate, "grad_norm": done.grad_norm}

    def sync(self, *, prove: bool = True) -> float | None:
        """Announce the present weights to every sampler and check that they arrived, by version and checksum and, to
        `prove` it, by what they now make of the canary prompts; returns that difference, None unproven."""
        canary = self.canary if prove else ()
        checksums: list[str] = []
        self.executor.later(lambda: checksums.append(weight_checksum(self.policy.model)))
        echoes = self.executor.sync(self.state.version, canary)
        own = self.own.score(canary, echoes[0]) if canary else []
        difference = max((largest_difference(own, echo.canary_logprobs) for echo in echoes), default=0.0)
        check_freshness(
            version=self.state.version,
            checksum=checksums[0],
            echoed=[(echo.version, echo.checksum) for echo in echoes],
            difference=difference,
            tolerance=self.tolerance,
        )
        return difference if prove else None

    def sync_update(self, step: int) -> float | None:
        """`sync` after an update of RL step `step`, proven in the first step and every `checks.every` steps.

        Where all samples are fresh, the ratio of every one of their tokens shows the same before anything is learnt
        from them, so that now and then is enough; stale samples and servers leave it to the canary.  The first update
        of a process is proven too, and not told: a run that was resumed records what one that never stopped records.
        """
        always = self.overlapping or bool(self.recipe.sampler.url)
        due = always or step == 1 or step % self.recipe.checks.every == 0
        difference = self.sync(prove=due or not self.proven)
        self.proven = True
        return difference if due else None

    def calibrate(self) -> None:
        """Choose the canary prompts and, in half precision, the tolerance from repeats with equal weights."""
        tasks = self.world.tasks("train", 2)
        plans = [plan(task, "canary", 0, index, 0, self.recipe.run.seed) for index, task in enumerate(tasks)]
        rolled = asyncio.run(self.own.rollout(RolloutOrder(plans=tuple(plans), params=SamplingParams())))
        self.canary = tuple(t.nodes[0] for t in rolled.trajectories if t.nodes)
        if self.recipe.checks.logprob_tolerance is not None:
            self.tolerance = self.recipe.checks.logprob_tolerance
        elif self.policy.dtype == torch.float32:
            self.tolerance = FLOAT32_TOLERANCE
        else:
            observed = []
            for size in range(1, CALIBRATION_REPEATS + 1):
                prompts = (self.canary * size)[: len(self.canary) + size]
                echo = asyncio.run(self.own.sync(self.state.version, prompts))
                observed.append(largest_difference(self.own.score(prompts, echo), echo.canary_logprobs))
            self.tolerance = bf16_tolerance(observed)

    def rollout(
        self, plans: Sequence[EpisodePlan], params: SamplingParams, *, hold: bool
    ) -> tuple[list[Trajectory], list[tuple[Grade, ...]], float]:
        """Roll out on all shards, whole groups dealt by index; trajectories and grades in the order of the plans,
        and the seconds of the slowest shard."""
        parts = self.deal_plans(plans)
        orders = [RolloutOrder(plans=tuple(plans[index] for index in part), params=params, hold=hold) for part in parts]
        found: dict[int, tuple[Trajectory, tuple[Grade, ...]]] = {}
        results = self.executor.rollout(orders)
        for part, rolled in zip(parts, results, strict=True):
            found.update(zip(part, zip(rolled.trajectories, rolled.grades, strict=True), strict=True))
        ordered = [found[index] for index in range(len(plans))]
        seconds = max((rolled.rollout_s + rolled.grading_s for rolled in results), default=0.0)
        return [item[0] for item in ordered], [item[1] for item in ordered], seconds

    def deal_plans(self, plans: Sequence[EpisodePlan]) -> list[list[int]]:
        """Positions of the plans for each shard; a group is never split."""
        groups: dict[str, list[int]] = {}
        for index, one in enumerate(plans):
            groups.setdefault(one.group_id, []).append(index)
        members = list(groups.values())
        return [[i for group in part for i in members[group]] for part in deal(len(members), self.executor.size)]


def group_plans(recipe: Recipe, task: Task, step: int, group: int, members: int) -> list[EpisodePlan]:
    """The episodes of one training group, which may all take equally many turns."""
    plans = [plan(task, "rl", step, group, sample, recipe.run.seed) for sample in range(members)]
    if not recipe.limits.horizons:
        return plans
    turns = HorizonMix(horizons=recipe.limits.horizons).draw(recipe.run.seed, step, group)
    return [replace(one, max_turns=turns) for one in plans]


def plan(task: Task, phase: str, step: int, group: int, sample: int, seed: int) -> EpisodePlan:
    """The plan of one episode; its seed is a function of (run seed, task, sample, step) and the phase."""
    group_id = f"{phase}/{step:06d}/{group:04d}"
    return EpisodePlan(
        id=f"{group_id}/{sample:02d}",
        group_id=group_id,
        task=task,
        sample_index=sample,
        seed=derive_seed(seed, task.id, sample, f"{phase}/{step}"),
    )
