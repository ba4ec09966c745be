"""One share of a run's work: a replica of the policy that rolls out, grades and back-propagates its groups.

A shard holds no run state beyond the weights and the trajectories that are still to be trained on; the conductor tells
it the rest.  The same class runs in worker processes and, one shard after another, in a single process.
"""

from __future__ import annotations

import asyncio
import copy
import time
from array import array
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch

from burnish.algorithms.registry import make_loss
from burnish.core.errors import InvariantViolation
from burnish.core.grade import Grade
from burnish.core.learning import TrainingSample
from burnish.core.sampling import SampleRequest, SamplingParams
from burnish.core.trajectory import Node, Trajectory
from burnish.graders.boundary import grade_trajectories
from burnish.graders.judge_policy import judging_policy
from burnish.loop.invariants import audit_tokens, check_round_trip
from burnish.loop.policy import Policy, control_ids
from burnish.loop.served import ServedSampler
from burnish.loop.shard_episodes import EpisodePlayer, EpisodeSetting
from burnish.loop.shard_pool import Deliver, GroupOrder, PoolSetting, RolledGroup, ShardPool
from burnish.loop.shard_step import Samples, ShardStep
from burnish.loop.step_order import Gradient, Seen, StepOrder
from burnish.loop.worlds import World, mistaken_expert
from burnish.policies.sampler import EmbeddedSampler, weight_checksum
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.pool import EpisodePool, FinishedGroup
from burnish.rollout.runner import run_scripted
from burnish.rollout.streams import ControlTokens
from burnish.training.gradients import flatten_gradients, zero_gradients
from burnish.training.learner import Learner
from burnish.training.token_record import TokenRecord

CANARY_TOKENS = 4
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
    params: SamplingParams
    hold: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DemonstrationOrder:
    """Let the expert solve these plans; `mistakes[i]` names the mistake that it makes in plan i (None: none)."""

    plans: tuple[EpisodePlan, ...]
    mistakes: tuple[str | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A shard's part of what the loss must know of a whole batch: normalisers add up, surveys are looked at together.

    `Share(normaliser=128.0, survey=array("d"))`
    """

    normaliser: float
    survey: array[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientOrder:
    """Back-propagate what was prepared.

    normaliser, trust_limit: of the whole batch.  version: of the weights as they are; None where the samples were not
    drawn by a policy.  first: of its step, so that health hears of what is not trained on too.
    """

    phase: str
    normaliser: float
    version: int | None = None
    trust_limit: float = inf
    first: bool = True


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
    """See the module's text.  `losses` holds name and options of the loss of each phase ("sft", "rl").

    Experts act in this process whatever `episodes` says: they are part of the environment, and nothing that a policy
    says reaches them.  served: samples the policy in place of this process.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        world: World,
        episodes: EpisodeSetting,
        losses: Mapping[str, LossSetting],
        max_micro_batch_tokens: int,
        served: ServedSampler | None = None,
    ) -> None:
        self.policy = policy
        self._world = world
        self._losses = losses
        self._grader_timeout_s = episodes.grader_timeout_s
        self._max_micro_batch_tokens = max_micro_batch_tokens
        self._sampler: EmbeddedSampler | ServedSampler = served or EmbeddedSampler(
            policy.model, pad_id=policy.pad_id, device=policy.device
        )
        self._player = EpisodePlayer(episodes, world=world, renderer=policy.renderer, sampler=self._sampler)
        if served is not None:
            served.context_tokens = self._player.limits.max_context_tokens
        self._held: dict[str, Trajectory] = {}
        self._control = ControlTokens(control_ids(policy))
        self._step: ShardStep | None = None
        self._samples: Samples = {}
        self._batch: list[TrainingSample] = []
        self._batch_ids: tuple[str, ...] = ()
        self._demonstrations: list[TrainingSample] = []
        self._learners: dict[str, Learner] = {}
        self._reference: Any = None
        self._pool: ShardPool | None = None

    def close(self) -> None:
        """End the hosts and the graders' sandbox."""
        self._player.close()
        if self._world.sandbox is not None:
            asyncio.run(self._world.sandbox.close())

    @property
    def progress(self) -> int:
        """A number that changes whenever an episode moves on."""
        return self._sampler.counts.requests + self._sampler.counts.generated_tokens

    @property
    def busy(self) -> bool:
        """Whether episodes of the asynchronous pool are under way."""
        return self._pool is not None and self._pool.running > 0

    async def rollout(self, order: RolloutOrder) -> Rolled:
        """Run the episodes of a shard, audit their tokens, grade them."""
        started = time.perf_counter()
        # A resumed process has nothing cached; reuse from an earlier order would differ from it in the last bits.
        self._sampler.forget()
        trajectories = await self._player.play(order.plans, order.params)
        version = self._sampler.version
        self._audit(trajectories, oldest=version, newest=version)
        if order.hold:
            self.hold(trajectories)
        return await self._graded(order.plans, trajectories, started)

    def _audit(self, trajectories: Sequence[Trajectory], *, oldest: int, newest: int) -> None:
        for trajectory in trajectories:
            audit_tokens(trajectory, oldest=oldest, newest=newest)
        for trajectory in trajectories[:ROUND_TRIPS]:
            check_round_trip(self.policy.renderer, trajectory)

    async def demonstrate(self, order: DemonstrationOrder) -> Rolled:
        """Run the expert, with its mistakes, and grade what comes out."""
        started = time.perf_counter()
        by_mistake: dict[str | None, list[int]] = {}
        for index, mistake in enumerate(order.mistakes):
            by_mistake.setdefault(mistake, []).append(index)
        found: dict[int, Trajectory] = {}
        for mistake, indices in by_mistake.items():
            done = await run_scripted(
                [order.plans[index] for index in indices],
                make_environment=self._world.make,
                renderer=self.policy.renderer,
                policy=mistaken_expert(mistake),
                limits=self._player.limits,
            )
            found.update(zip(indices, done, strict=True))
        return await self._graded(order.plans, [found[index] for index in range(len(order.plans))], started)

    async def _graded(self, plans: Sequence[EpisodePlan], trajectories: Sequence[Trajectory], started: float) -> Rolled:
        rolled = time.perf_counter()
        tasks, graders = [plan.task for plan in plans], self._world.graders
        with self.judging():
            grades = await grade_trajectories(tasks, trajectories, graders, timeout_s=self._grader_timeout_s)
        return Rolled(
            trajectories=tuple(trajectories),
            grades=tuple(tuple(item) for item in grades),
            rollout_s=rolled - started,
            grading_s=time.perf_counter() - rolled,
        )

    def judging(self) -> AbstractContextManager[None]:
        """Within it graders that ask the policy itself ask this shard's."""
        return judging_policy(self._sampler, self.policy.renderer)

    # -- the asynchronous pool -----------------------------------------------------------------------------------

    async def open_pool(self, setting: PoolSetting, deliver: Deliver) -> None:
        """Take groups one by one from now on; `deliver` is called with each that finishes."""
        roll = await self._player.open(setting.params)
        self._pool = ShardPool(EpisodePool(roll, max_running=setting.max_running), self._grade_group, deliver)

    def start_group(self, order: GroupOrder) -> None:
        """Begin one group; needs an open pool."""
        self._opened.start(order, version=self._sampler.version)

    async def cancel_groups(self, group_ids: Sequence[str]) -> list[str]:
        """Give up groups; those that had not finished."""
        return [group_id for group_id in group_ids if await self._opened.cancel(group_id)]

    async def pause(self, drain: bool) -> None:
        """Sample nothing more until the next `sync`, so that the weights may change; with `drain` episodes under way
        are run to their end first."""
        if drain:
            await self._opened.drain()
        self._sampler.hold()

    async def close_pool(self) -> None:
        """Cancel what is under way."""
        if self._pool is not None:
            await self._pool.close()
            self._pool = None
        await self._player.leave()

    @property
    def _opened(self) -> ShardPool:
        if self._pool is None:
            raise ValueError("the shard has no open pool; call open_pool first")
        return self._pool

    async def _grade_group(self, order: GroupOrder, group: FinishedGroup, version: int) -> RolledGroup:
        """Audit and grade a group that was started under policy `version`."""
        started = time.perf_counter()
        self._audit(group.trajectories, oldest=version, newest=self._sampler.version)
        by_id = {plan.id: plan for plan in order.plans}
        rolled = await self._graded([by_id[t.id] for t in group.trajectories], group.trajectories, started)
        return RolledGroup(
            number=order.number,
            trajectories=rolled.trajectories,
            grades=rolled.grades,
            cancelled=group.cancelled,
            requeued=group.requeued,
        )

    # -- learning ------------------------------------------------------------------------------------------------

    def hold(self, trajectories: Sequence[Trajectory]) -> None:
        """Keep these trajectories, and no others, for `gradients`: after a rollout, what an asynchronous step trains
        on, from the store for a replay."""
        self._held = {trajectory.id: trajectory for trajectory in trajectories}

    def begin_step(self, order: StepOrder) -> Seen:
        """Make the training samples of held trajectories; where none is trained on, tell what health sees of them.

        Scores them under the present weights, the proximal policy, where the loss needs that.
        """
        learner = self._learner("rl")
        self._set_kl_weight(learner, order.knobs.kl_weight)
        self._step = ShardStep(order, self._held, self._control)
        self._samples = self._step.make_samples(learner)
        return self._step.see_untrained()

    def _set_kl_weight(self, learner: Learner, weight: float | None) -> None:
        setting = self._losses["rl"]
        options = setting.options if weight is None else {**setting.options, "kl_weight": weight}
        learner.loss = make_loss(setting.name, options)

    def prepare(self, trajectory_ids: Sequence[str]) -> Share:
        """Choose what the next update trains on, in this order."""
        self._batch_ids = tuple(trajectory_ids)
        if self._step is not None:
            self._samples |= self._step.without_tails(trajectory_ids, self._samples, self._learner("rl"))
            self._step.look_ahead(trajectory_ids)
        self._batch = [sample for key in trajectory_ids for sample in self._samples[key]]
        loss = self._learner("rl").loss
        return Share(normaliser=loss.normaliser(self._batch), survey=loss.survey(self._batch))

    def load_demonstrations(self, samples: Sequence[TrainingSample]) -> None:
        """Keep the whole warm-start set."""
        self._demonstrations = list(samples)

    def prepare_demonstrations(self, indices: Sequence[int]) -> Share:
        """Choose demonstrations by position."""
        self._batch = [self._demonstrations[index] for index in indices]
        return Share(normaliser=self._learner("sft").normaliser(self._batch), survey=array("d"))

    def gradients(self, order: GradientOrder) -> Gradient:
        """Add the gradient of what was prepared into the model's .grad."""
        step = self._step if order.phase == "rl" else None
        record = None
        if step is not None and step.order.names is not None:
            record = TokenRecord(score_norm=step.order.score_norm)
        losses = self._learner(order.phase).accumulate(
            self._batch, order.normaliser, version=order.version, trust_limit=order.trust_limit, record=record
        )
        if step is None or record is None:
            return Gradient(losses=losses)
        seen = step.see_trained(self._batch_ids, self._samples, record, first=order.first)
        return Gradient(losses=losses, seen=(seen,))

    def use_reference(self, weights: Sequence[torch.Tensor]) -> None:
        """Make these weights, in the order of the model's parameters, the reference of the KL term; none with LoRA,
        whose reference is the model without its adapters."""
        model = self.policy.model
        self._reference = model
        if not hasattr(model, "disable_adapter"):
            self._reference = copy.deepcopy(model).requires_grad_(False)
            for parameter, weight in zip(self._reference.parameters(), weights, strict=True):
                parameter.data = weight
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

    async def sync(self, version: int, canary: Sequence[Node]) -> SyncEcho:
        """Take note of new weights; answer with what the sampler now computes on the canary prompts."""
        requests = [
            SampleRequest(
                key=f"canary/{index}",
                prompt_ids=prompt.token_ids,
                images=prompt.images,
                params=SamplingParams(temperature=1.0),
                max_tokens=CANARY_TOKENS,
                seed=index,
                stop_ids=(),
            )
            for index, prompt in enumerate(canary)
        ]
        samples = await self._sampler.follow(version, requests)
        if self._pool is not None:
            self._pool.resume()
        return SyncEcho(
            version=self._sampler.version,
            checksum=weight_checksum(self.policy.model),
            canary_ids=tuple(sample.token_ids for sample in samples),
            canary_logprobs=tuple(sample.logprobs for sample in samples),
        )

    def score(self, prompts: Sequence[Node], echo: SyncEcho) -> list[array[float]]:
        """The learner's own log-probabilities of the canary actions in `echo`."""
        samples = []
        for prompt, action in zip(prompts, echo.canary_ids, strict=True):
            before = len(prompt.token_ids)
            total = before + len(action)
            samples.append(
                TrainingSample(
                    trajectory_id="canary",
                    group_id="canary",
                    token_ids=prompt.token_ids + action,
                    images=prompt.images,
                    loss_mask=array("b", [0] * before + [1] * len(action)),
                    behaviour_logprobs=array("f", [0.0] * total),
                    versions=array("i", [echo.version] * total),
                    advantages=array("f", [0.0] * total),
                )
            )
        scores = self._learner("canary").score(samples)
        return [score[len(prompt.token_ids) :] for score, prompt in zip(scores, prompts, strict=True)]

    def check_micro_batches(self, order: GradientOrder, tolerance: float) -> float:
        """Relative difference of the gradient between two ways to cut some of the prepared samples into micro-batches.

        Raises InvariantViolation beyond `tolerance`.  Leaves no gradients behind.
        """
        samples = self._batch[:MICRO_BATCH_PROBE]
        if len(samples) < 2:
            return 0.0
        whole = self._probe(order, samples, None)
        split = self._probe(order, samples, max(sample.length for sample in samples))
        difference = float((whole - split).norm() / whole.norm().clamp_min(SMALLEST_GRADIENT))
        if not difference <= tolerance:
            raise InvariantViolation(
                "micro_batch_invariance",
                f"the gradient changes by {difference:.2e} (tolerance {tolerance:.0e}) with the size of micro-batches; "
                "a loss must divide by the normaliser of the whole batch, not by a micro-batch's own",
            )
        return difference

    def _probe(self, order: GradientOrder, samples: Sequence[TrainingSample], max_tokens: int | None) -> torch.Tensor:
        learner, model = self._learner(order.phase), self.policy.model
        zero_gradients(model)
        learner.accumulate(
            samples,
            learner.normaliser(samples),
            version=order.version,
            trust_limit=order.trust_limit,
            max_micro_batch_tokens=max_tokens,
        )
        flat = flatten_gradients(model)
        zero_gradients(model)
        return flat
