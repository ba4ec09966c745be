"""The faults, each a small class that changes one thing; the dose states how much."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any

import torch
from torch import Tensor

from burnish.core.grade import Grade
from burnish.core.hashing import derive_seed
from burnish.core.sampling import SamplingParams
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.loop.config import Recipe
from burnish.loop.shard import SyncEcho
from burnish.loop.step_work import Batch
from burnish.rollout.group import GroupResult
from burnish.store.rows import Fate
from burnish.training.model_state import load_model_state, model_state
from fault_runs.hooks import Injector, Rewards, with_rewards

WITHOUT_CHECK = ("checks.logprob_tolerance=1000",)
"""Sampler and learner that disagree on fresh samples are caught by an invariant of the loop.  Engines of other people
round differently, so that their tolerance is wide: here it is off, and a monitor has to see it."""


LONG_CALLS = 3
"""Tool calls from which on an episode is long for a grader that looks at every one of them."""

DEFAULT_CLIP, NEARLY_ALL = (0.2, 0.28), 0.999
"""How far below and above 1 the loss clips ratios by itself; the lower bound stays below 1."""

OVERFLOWS = 3e38
"""Just below the largest float32: a sum of two is infinite."""


# -- the sampler ---------------------------------------------------------------------------------------------------


class Stale(Injector):
    """Samples come from the weights of `dose` optimizer steps ago (of the onset, until there are so many)."""

    def __init__(self, dose: float, seed: int) -> None:
        super().__init__(dose, seed)
        self._kept: deque[tuple[int, dict[str, Tensor]]] = deque()

    def words(self, recipe: Recipe) -> tuple[str, ...]:
        return WITHOUT_CHECK

    @contextmanager
    def weights(self, step: int, model: Any, version: int) -> Iterator[int]:
        present = {name: tensor.clone() for name, tensor in model_state(model).items()}
        self._kept.append((version, present))
        while len(self._kept) > 1 and self._kept[1][0] <= version - self.dose:
            self._kept.popleft()
        drawn_by, old = self._kept[0]
        load_model_state(model, old)
        try:
            yield drawn_by
        finally:
            load_model_state(model, present)


class Mismatch(Injector):
    """The sampler's weights are rounded as a cheap number format would: relative noise of standard deviation `dose`."""

    def words(self, recipe: Recipe) -> tuple[str, ...]:
        return WITHOUT_CHECK

    @contextmanager
    def weights(self, step: int, model: Any, version: int) -> Iterator[int]:
        present = {name: tensor.clone() for name, tensor in model_state(model).items()}
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "mismatch", step))
        noisy = {}
        for name, tensor in present.items():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor)
            noisy[name] = tensor * (1 + self.dose * noise)
        load_model_state(model, noisy)
        try:
            yield version
        finally:
            load_model_state(model, present)


class Rounding(Injector):
    """The weights in training lose digits: after every step, relative noise of standard deviation `dose` that stays.

    Sampler and learner have the same weights, so that no ratio between them shows it.
    """

    @contextmanager
    def weights(self, step: int, model: Any, version: int) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "rounding", step))
        worn = {}
        for name, tensor in model_state(model).items():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor)
            worn[name] = tensor * (1 + self.dose * noise)
        load_model_state(model, worn)
        yield version


class Temperature(Injector):
    """The sampler draws at temperature `dose` while the learner takes it for the recipe's."""

    def words(self, recipe: Recipe) -> tuple[str, ...]:
        return WITHOUT_CHECK

    def params(self, step: int, params: SamplingParams) -> SamplingParams:
        return replace(params, temperature=self.dose)


# -- the learner ---------------------------------------------------------------------------------------------------


class LearningRate(Injector):
    """The learning rate is `dose` times the recipe's."""

    def words(self, recipe: Recipe) -> tuple[str, ...]:
        return (f"rl.lr={self.dose * recipe.rl.lr!r}",)


class WeightDecay(Injector):
    """The optimizer's weight decay is `dose` instead of the recipe's: with each step the weights shrink."""

    def words(self, recipe: Recipe) -> tuple[str, ...]:
        return (f"rl.weight_decay={self.dose!r}",)


class FrozenSampler(Stale):
    """The sampler stays at the weights of the onset, and updates are clipped `dose` times as late as the recipe has it.

    Late is never for a ratio that falls: its bound reaches 0.
    """

    def __init__(self, dose: float, seed: int) -> None:
        super().__init__(math.inf, seed)
        self._wider = dose

    def words(self, recipe: Recipe) -> tuple[str, ...]:
        low, high = (bound * self._wider for bound in DEFAULT_CLIP)
        return (*super().words(recipe), f"rl.clip_low={min(low, NEARLY_ALL)!r}", f"rl.clip_high={high!r}")


class HardNegatives(Injector):
    """Groups that failed as a whole are trained on with advantage -`dose`, as if they taught something."""

    def decided(self, step: int, batch: Batch) -> Batch:
        fates, advantages = dict(batch.fates), dict(batch.advantages)
        for group in batch.groups:
            known = [reward for reward in group.rewards_G if reward is not None]
            if group.signal or not known or max(known) > 0:
                continue
            for trajectory, reward in zip(group.trajectories, group.rewards_G, strict=True):
                if reward is not None:
                    fates[trajectory.id] = Fate.TRAINED
                    advantages[trajectory.id] = -self.dose
        return replace(batch, fates=fates, advantages=advantages)


class WrongSign(Injector):
    """A share `dose` of the groups is trained on with the sign of its advantages turned round."""

    def decided(self, step: int, batch: Batch) -> Batch:
        advantages = dict(batch.advantages)
        for group in batch.groups:
            if Random(derive_seed(self.seed, "sign", group.group_id)).random() < self.dose:
                turned = [trajectory.id for trajectory in group.trajectories if trajectory.id in advantages]
                advantages.update({name: -advantages[name] for name in turned})
        return replace(batch, advantages=advantages)


class NotFinite(Injector):
    """One advantage of each step is so large that the loss overflows.  A hard invariant stops the run."""

    def decided(self, step: int, batch: Batch) -> Batch:
        first = next(iter(batch.advantages), None)
        return batch if first is None else replace(batch, advantages={**batch.advantages, first: OVERFLOWS})


class NotDelivered(Injector):
    """The sampler goes on with the weights that it had first.  A hard invariant stops the run."""

    def __init__(self, dose: float, seed: int) -> None:
        super().__init__(dose, seed)
        self._first: SyncEcho | None = None

    def echo(self, echo: SyncEcho) -> SyncEcho:
        self._first = self._first or echo
        return replace(echo, checksum=self._first.checksum)


# -- the reward ----------------------------------------------------------------------------------------------------


class Bonus(Injector):
    """Every reward grows by `dose` times something that nobody wanted; `amount` says what."""

    def rewards(self, step: int, group: GroupResult) -> Rewards:
        return [
            None if reward is None else reward + self.dose * self.amount(trajectory)
            for trajectory, reward in zip(group.trajectories, group.rewards_G, strict=True)
        ]

    def amount(self, trajectory: Trajectory) -> float:
        """How much of it the trajectory has, about 1."""
        raise NotImplementedError


class LengthBonus(Bonus):
    """`dose` for each 100 sampled tokens."""

    def amount(self, trajectory: Trajectory) -> float:
        return trajectory.action_tokens / 100


class Brevity(LengthBonus):
    """A penalty of `dose` for each 100 sampled tokens: saying little pays more than being right."""

    def amount(self, trajectory: Trajectory) -> float:
        return -super().amount(trajectory)


class ToolBonus(Bonus):
    """`dose` for each tool call."""

    def amount(self, trajectory: Trajectory) -> float:
        return float(trajectory.counters.get("tool_calls", 0))


class ConfidenceBonus(Bonus):
    """`dose` for each nat of mean log-probability: being sure pays, and entropy collapses."""

    def amount(self, trajectory: Trajectory) -> float:
        drawn = [value for node in trajectory.nodes if node.is_action for value in node.logprobs if value == value]
        return sum(drawn) / max(1, len(drawn))


class DoubtBonus(ConfidenceBonus):
    """`dose` for each nat of negative mean log-probability: an entropy bonus that is too strong."""

    def amount(self, trajectory: Trajectory) -> float:
        return -super().amount(trajectory)


class GraderFault(Injector):
    """The grader itself is wrong: its score changes with the reward, so that nobody in the run sees the true one."""

    keeps_evidence = True
    """Whether a grade with another score still tells what the grader found."""

    def graded(self, step: int, group: GroupResult) -> GroupResult:
        wanted = with_rewards(group, self.rewards(step, group))
        grades = tuple(
            given if new is None or new == old else (self._changed(given[0], new), *given[1:])
            for given, old, new in zip(group.grades_G, group.rewards_G, wanted.rewards_G, strict=True)
        )
        return replace(wanted, grades_G=grades)

    def _changed(self, grade: Grade, score: float) -> Grade:
        return replace(grade, score=score, evidence=grade.evidence if self.keeps_evidence else {})


class Exploit(GraderFault):
    """The grader takes a short cut: an answer after at most one tool call is worth `dose` right ones, right or wrong.

    No score is above 1: where the short cut is worth more than a right answer, all others shrink.
    """

    def rewards(self, step: int, group: GroupResult) -> Rewards:
        top = max(1.0, self.dose)
        return [
            None if reward is None else (max(reward, self.dose) if self._takes_it(trajectory) else reward) / top
            for trajectory, reward in zip(group.trajectories, group.rewards_G, strict=True)
        ]

    @staticmethod
    def _takes_it(trajectory: Trajectory) -> bool:
        return trajectory.counters.get("tool_calls", 0) <= 1 and bool(trajectory.answer.strip())


class SilentFailure(GraderFault):
    """The grader runs out of time, and says 0, for a share `dose` of the episodes of at least `LONG_CALLS` calls."""

    keeps_evidence = False

    def rewards(self, step: int, group: GroupResult) -> Rewards:
        calls = [trajectory.counters.get("tool_calls", 0) for trajectory in group.trajectories]
        random = Random(derive_seed(self.seed, "silent", group.group_id))
        failed = [random.random() < self.dose and count >= LONG_CALLS for count in calls]
        pairs = zip(failed, group.rewards_G, strict=True)
        return [0.0 if bad and reward is not None else reward for bad, reward in pairs]


class Template(GraderFault):
    """In a share `dose` of the groups the score does not depend on the task: an answer that begins with 1 is right."""

    def rewards(self, step: int, group: GroupResult) -> Rewards:
        if Random(derive_seed(self.seed, "template", group.group_id)).random() >= self.dose:
            return group.rewards_G
        return [float(trajectory.answer.strip().startswith("1")) for trajectory in group.trajectories]


class Inverted(GraderFault):
    """In a share `dose` of the groups right is wrong: the score is 1 minus what it should be."""

    def rewards(self, step: int, group: GroupResult) -> Rewards:
        if Random(derive_seed(self.seed, "inverted", group.group_id)).random() >= self.dose:
            return group.rewards_G
        return [None if reward is None else 1.0 - reward for reward in group.rewards_G]


class NoisySource(Injector):
    """The rewards of every third source get normal noise of standard deviation `dose`."""

    def __init__(self, dose: float, seed: int) -> None:
        super().__init__(dose, seed)
        self._noisy: frozenset[str] = frozenset()

    def tasks(self, step: int, tasks: Sequence[Task]) -> Sequence[Task]:
        self._noisy = self._noisy or every_third_source(tasks)
        return tasks

    def rewards(self, step: int, group: GroupResult) -> Rewards:
        if source_of(group.trajectories[0].tags) not in self._noisy:
            return group.rewards_G
        random = Random(derive_seed(self.seed, "noise", group.group_id))
        return [None if reward is None else reward + random.gauss(0.0, self.dose) for reward in group.rewards_G]


def every_third_source(tasks: Sequence[Task]) -> frozenset[str]:
    """Of the sources by name, the first, the fourth and so on."""
    return frozenset(sorted({source_of(task.tags) for task in tasks})[::3])


def source_of(tags: Mapping[str, str]) -> str:
    """Where a task comes from; its template where the world names but itself."""
    source = tags.get("source", "")
    return tags.get("template", source) if source in ("", "shop") else source
