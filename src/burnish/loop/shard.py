"""One share of a run's work: a replica of the policy that rolls out, grades and back-propagates its groups.

A shard holds no run state beyond the weights and the trajectories of its last rollout; the conductor tells it the rest.
The same class runs in worker processes and, one shard after another, in a single process.
"""

from __future__ import annotations

import asyncio
import copy
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from burnish.algorithms.loss import LossSums
from burnish.algorithms.registry import make_loss
from burnish.core.errors import InvariantViolation
from burnish.core.grade import Grade
from burnish.core.learning import TrainingSample
from burnish.core.sampling import SampleRequest, SamplingParams
from burnish.core.task import Limits
from burnish.core.trajectory import Trajectory
from burnish.graders.boundary import grade_trajectories
from burnish.loop.invariants import audit_tokens, check_round_trip
from burnish.loop.policy import Policy, fit_limits
from burnish.loop.worlds import World, mistaken_expert
from burnish.policies.sampler import EmbeddedSampler, weight_checksum
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.runner import run_episodes, run_scripted
from burnish.rollout.samples import training_samples
from burnish.training.gradients import flatten_gradients, zero_gradients
from burnish.training.learner import Learner

CANARY_TOKENS = 8
ROUND_TRIPS = 4
MICRO_BATCH_PROBE = 16
SMALLEST_GRADIENT = 1e-3
"""A gradient with a smaller norm is mostly rounding (no advantage, KL at its minimum): its change says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSetting:
    """Which loss a phase uses.  `LossSetting(name="grpo", options={"clip_low": 0.2}, temperature=1.0)`"""

    name: str
    options: Mapping[str, Any]
    temperature: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutOrder:
    """Roll out these plans.  `hold`: keep the trajectories for a later `gradients` call (training, not evaluation)."""

    plans: tuple[EpisodePlan, ...]
    temperature: float
    hold: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DemonstrationOrder:
    """Let the expert solve these plans; `mistakes[i]` names the mistake that it makes in plan i (None: none)."""

    plans: tuple[EpisodePlan, ...]
    mistakes: tuple[str | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rolled:
    """Trajectories with their grades, in the order of the plans, and how long it took."""

    trajectories: tuple[Trajectory, ...]
    grades: tuple[tuple[Grade, ...], ...]
    rollout_s: float
    grading_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncEcho:
    """What a sampler says after a weight update: version, checksum, and log-probabilities on the canary prompts."""

    version: int
    checksum: str
    canary_ids: tuple[array[int], ...] = field(default=())
    canary_logprobs: tuple[array[float], ...] = field(default=())


class Shard:
    """See the module's text.  `losses` holds name and options of the loss of each phase ("sft", "rl")."""

    def __init__(
        self,
        *,
        policy: Policy,
        world: World,
        limits: Limits,
        losses: Mapping[str, LossSetting],
        grader_timeout_s: float,
        max_micro_batch_tokens: int,
    ) -> None:
        self.policy = policy
        self._world = world
        self._losses = losses
        self._grader_timeout_s = grader_timeout_s
        self._max_micro_batch_tokens = max_micro_batch_tokens
        self._sampler = EmbeddedSampler(policy.model, pad_id=policy.pad_id, device=policy.device)
        self._limits = fit_limits(limits, self._sampler.max_positions)
        self._held: dict[str, Trajectory] = {}
        self._batch: list[TrainingSample] = []
        self._demonstrations: list[TrainingSample] = []
        self._learners: dict[str, Learner] = {}
        self._reference: Any = None

    def rollout(self, order: RolloutOrder) -> Rolled:
        """Run the episodes of a shard, audit their tokens, grade them."""
        started = time.perf_counter()
        # A resumed process has nothing cached; reuse from an earlier order would differ from it in the last bits.
        self._sampler.forget()
        trajectories = asyncio.run(
            run_episodes(
                order.plans,
                make_environment=self._world.make,
                renderer=self.policy.renderer,
                sampler=self._sampler,
                params=SamplingParams(temperature=order.temperature),
                limits=self._limits,
            )
        )
        for trajectory in trajectories:
            audit_tokens(trajectory, version=self._sampler.version)
        for trajectory in trajectories[:ROUND_TRIPS]:
            check_round_trip(self.policy.renderer, trajectory)
        if order.hold:
            self.hold(trajectories)
        return self._graded(order.plans, trajectories, started)

    def demonstrate(self, order: DemonstrationOrder) -> Rolled:
        """Run the expert, with its mistakes, and grade what comes out."""
        started = time.perf_counter()
        by_mistake: dict[str | None, list[int]] = {}
        for index, mistake in enumerate(order.mistakes):
            by_mistake.setdefault(mistake, []).append(index)
        found: dict[int, Trajectory] = {}
        for mistake, indices in by_mistake.items():
            done = asyncio.run(
                run_scripted(
                    [order.plans[index] for index in indices],
                    make_environment=self._world.make,
                    renderer=self.policy.renderer,
                    policy=mistaken_expert(mistake),
                    limits=self._limits,
                )
            )
            found.update(zip(indices, done, strict=True))
        return self._graded(order.plans, [found[index] for index in range(len(order.plans))], started)

    def _graded(self, plans: Sequence[EpisodePlan], trajectories: Sequence[Trajectory], started: float) -> Rolled:
        rolled = time.perf_counter()
        tasks = [plan.task for plan in plans]
        grades = asyncio.run(
            grade_trajectories(tasks, trajectories, self._world.graders, timeout_s=self._grader_timeout_s)
        )
        return Rolled(
            trajectories=tuple(trajectories),
            grades=tuple(tuple(item) for item in grades),
            rollout_s=rolled - started,
            grading_s=time.perf_counter() - rolled,
        )

    def hold(self, trajectories: Sequence[Trajectory]) -> None:
        """Keep these trajectories for `gradients`; after a rollout, or from the store for a replay."""
        self._held = {trajectory.id: trajectory for trajectory in trajectories}

    def prepare(self, phase: str, advantages: Mapping[str, float]) -> float:
        """Make the training samples of held trajectories, in the order of `advantages`; returns their normaliser."""
        self._batch = [
            sample
            for trajectory_id, advantage in advantages.items()
            for sample in training_samples(self._held[trajectory_id], advantage)
        ]
        return self._learner(phase).normaliser(self._batch)

    def load_demonstrations(self, samples: Sequence[TrainingSample]) -> None:
        """Keep the whole warm-start set."""
        self._demonstrations = list(samples)

    def prepare_demonstrations(self, indices: Sequence[int]) -> float:
        """Choose demonstrations by position; returns their normaliser."""
        self._batch = [self._demonstrations[index] for index in indices]
        return self._learner("sft").normaliser(self._batch)

    def gradients(self, phase: str, normaliser: float) -> LossSums:
        """Add the gradient of what was prepared into the model's .grad."""
        return self._learner(phase).accumulate(self._batch, normaliser)

    def freeze_reference(self) -> None:
        """Make the present weights the reference of the KL term (with LoRA: the model without its adapters)."""
        model = self.policy.model
        if hasattr(model, "disable_adapter"):
            self._reference = model
        else:
            # Copied by value: the live weights may sit in memory that other processes change.
            self._reference = copy.deepcopy(model).requires_grad_(False)
        self._learners.pop("rl", None)

    def _learner(self, phase: str) -> Learner:
        if phase not in self._learners:
            setting = self._losses[phase]
            self._learners[phase] = Learner(
                self.policy.model,
                make_loss(setting.name, setting.options),
                temperature=setting.temperature,
                max_micro_batch_tokens=self._max_micro_batch_tokens,
                pad_id=self.policy.pad_id,
                reference=self._reference if phase == "rl" else None,
            )
        return self._learners[phase]

    def sync(self, version: int, canary: Sequence[array[int]]) -> SyncEcho:
        """Take note of new weights; answer with what the sampler now computes on the canary prompts."""
        self._sampler.version = version
        requests = [
            SampleRequest(
                key=f"canary/{index}",
                prompt_ids=ids,
                params=SamplingParams(temperature=1.0),
                max_tokens=CANARY_TOKENS,
                seed=index,
                stop_ids=(),
            )
            for index, ids in enumerate(canary)
        ]
        samples = self._sampler.sample_now(requests) if requests else []
        return SyncEcho(
            version=self._sampler.version,
            checksum=weight_checksum(self.policy.model),
            canary_ids=tuple(sample.token_ids for sample in samples),
            canary_logprobs=tuple(sample.logprobs for sample in samples),
        )

    def score(self, prompts: Sequence[array[int]], echo: SyncEcho) -> list[array[float]]:
        """The learner's own log-probabilities of the canary actions in `echo`."""
        samples = []
        for prompt, action in zip(prompts, echo.canary_ids, strict=True):
            total = len(prompt) + len(action)
            samples.append(
                TrainingSample(
                    trajectory_id="canary",
                    group_id="canary",
                    token_ids=prompt + action,
                    loss_mask=array("b", [0] * len(prompt) + [1] * len(action)),
                    behaviour_logprobs=array("f", [0.0] * total),
                    versions=array("i", [echo.version] * total),
                    advantages=array("f", [0.0] * total),
                )
            )
        scores = self._learner("canary").score(samples)
        return [score[len(prompt) :] for score, prompt in zip(scores, prompts, strict=True)]

    def check_micro_batches(self, phase: str, tolerance: float) -> float:
        """Relative difference of the gradient between two ways to cut some of the prepared samples into micro-batches.

        Raises InvariantViolation beyond `tolerance`.  Leaves no gradients behind.
        """
        samples = self._batch[:MICRO_BATCH_PROBE]
        if len(samples) < 2:
            return 0.0
        whole = self._probe(phase, samples, None)
        split = self._probe(phase, samples, max(sample.length for sample in samples))
        difference = float((whole - split).norm() / whole.norm().clamp_min(SMALLEST_GRADIENT))
        if not difference <= tolerance:
            raise InvariantViolation(
                "micro_batch_invariance",
                f"the gradient changes by {difference:.2e} (tolerance {tolerance:.0e}) with the size of micro-batches; "
                "a loss must divide by the normaliser of the whole batch, not by a micro-batch's own",
            )
        return difference

    def _probe(self, phase: str, samples: Sequence[TrainingSample], max_tokens: int | None) -> torch.Tensor:
        learner, model = self._learner(phase), self.policy.model
        zero_gradients(model)
        learner.accumulate(samples, learner.normaliser(samples), max_micro_batch_tokens=max_tokens)
        flat = flatten_gradients(model)
        zero_gradients(model)
        return flat
