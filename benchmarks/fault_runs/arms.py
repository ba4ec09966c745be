"""Interventions that claims compare, as injectors: what is done to a run, not what is wrong with it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from burnish.algorithms.normalisers import VarianceNormaliser, VarianceSpec
from burnish.core.grade import Grade
from burnish.core.task import Task
from burnish.environments.shop.preference import PreferenceGrader
from burnish.graders.staged import StagedWeights
from burnish.loop.config import Recipe
from burnish.loop.step_work import Batch
from burnish.rollout.group import GroupResult
from burnish.store.rows import Fate
from fault_runs.hooks import Injector, Rewards
from fault_runs.inject import NoisySource, source_of

PREFERENCE_WEIGHT = 0.5
RAMP = 0.3
PREFERENCE_NOISE = {"counter": 0.05, "phone": 0.15, "mail": 0.3}


class NearMisses(Injector):
    """Groups that failed as a whole are trained on by how far their members got: advantage `dose` times progress,
    standardised within the group.  The same trajectories as `HardNegatives`, told apart."""

    def decided(self, step: int, batch: Batch) -> Batch:
        fates, advantages = dict(batch.fates), dict(batch.advantages)
        for group in batch.groups:
            known = [reward for reward in group.rewards_G if reward is not None]
            progress = [progress_of(grades) for grades in group.grades_G]
            spread = statistics.pstdev(progress)
            if group.signal or not known or max(known) > 0 or spread < 1e-9:
                continue
            middle = statistics.fmean(progress)
            for trajectory, reward, far in zip(group.trajectories, group.rewards_G, progress, strict=True):
                if reward is not None:
                    fates[trajectory.id] = Fate.TRAINED
                    advantages[trajectory.id] = self.dose * (far - middle) / spread
        return replace(batch, fates=fates, advantages=advantages)


def progress_of(grades: Sequence[Grade]) -> float:
    """What the first grade that says it says of progress, 0 where none does."""
    told = (grade.evidence.get("progress") for grade in grades)
    return next((float(value) for value in told if isinstance(value, (int, float))), 0.0)


class Corrected(NoisySource):
    """A noisy source, with advantages divided by sigma_source times the length to a fitted exponent (mean weight 1)."""

    def __init__(self, dose: float, seed: int) -> None:
        super().__init__(dose, seed)
        self._normaliser = VarianceNormaliser(VarianceSpec())

    def decided(self, step: int, batch: Batch) -> Batch:
        trained = [t for group in batch.groups for t in group.trajectories if t.id in batch.advantages]
        trained = [trajectory for trajectory in trained if trajectory.action_tokens > 0]
        sources = [source_of(trajectory.tags) for trajectory in trained]
        lengths = [trajectory.action_tokens for trajectory in trained]
        sizes = [
            abs(batch.advantages[trajectory.id]) * length**0.5
            for trajectory, length in zip(trained, lengths, strict=True)
        ]
        weights = self._normaliser.weights(sources, lengths)
        self._normaliser.observe(sources, lengths, sizes)
        changed = {t.id: batch.advantages[t.id] * weight for t, weight in zip(trained, weights, strict=True)}
        return replace(batch, advantages={**batch.advantages, **changed})


class Staged(Injector):
    """Preference scores come in after a share `dose` of the training, linearly over another `RAMP`."""

    def __init__(self, dose: float, seed: int) -> None:
        super().__init__(dose, seed)
        self._steps = 1
        self._by_id: dict[str, Task] = {}
        self._scorer = PreferenceGrader(seed=seed, noise=PREFERENCE_NOISE)
        self._staged = StagedWeights(
            weights={"shop": 1.0, "preference": PREFERENCE_WEIGHT},
            preference=("preference",),
            start=dose,
            end=min(1.0, dose + RAMP),
        )

    def words(self, recipe: Recipe) -> tuple[str, ...]:
        self._steps = recipe.rl.steps
        return ()

    def tasks(self, step: int, tasks: Sequence[Task]) -> Sequence[Task]:
        if not self._by_id:
            self._by_id = {task.id: task for task in tasks}
        return tasks

    def rewards(self, step: int, group: GroupResult) -> Rewards:
        weight = self._staged.at(step / self._steps)["preference"]
        if weight == 0.0:
            return group.rewards_G
        task = self._by_id[group.task_id]
        scores = [self._scorer.judge(task, trajectory).score or 0.0 for trajectory in group.trajectories]
        return [
            None if reward is None else reward + weight * score
            for reward, score in zip(group.rewards_G, scores, strict=True)
        ]
