"""Where a fault gets into a run: the points that an injector may change, and how they are put in place.

Nothing in the library knows of faults.  A run process installs one injector, which replaces four names in `loop` for as
long as the run lasts; a name that the library no longer has is an AttributeError at once, not a fault that never was.
Held-out evaluations pass through none of these points, so that success is always measured in the world as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any
from unittest import mock

from burnish.core.sampling import SamplingParams
from burnish.core.task import Task
from burnish.loop import conductor, fork, reinforce, setup
from burnish.loop.config import Recipe
from burnish.loop.shard import Rolled, RolloutOrder, Shard, SyncEcho
from burnish.loop.state import Mark
from burnish.loop.step_work import Batch
from burnish.rollout.group import SIGNAL_TOLERANCE, GroupResult
from fault_runs.catalogue import EVERYTHING

Rewards = Sequence[float | None]


class Injector:
    """A run without a fault; a fault overrides what it changes.  Every method sees training steps alone.

    dose: how strong, in the unit that the class states.  seed: of everything that the fault draws.
    """

    def __init__(self, dose: float, seed: int) -> None:
        self.dose = dose
        self.seed = seed

    def words(self, recipe: Recipe) -> tuple[str, ...]:
        """Overrides of the recipe, `section.key=value`, for faults that are settings."""
        return ()

    def tasks(self, step: int, tasks: Sequence[Task]) -> Sequence[Task]:
        """The training tasks, by the index that the run's own order draws."""
        return tasks

    def params(self, step: int, params: SamplingParams) -> SamplingParams:
        """How the sampler draws."""
        return params

    def world(self, step: int, make: Callable[..., Any]) -> Callable[..., Any]:
        """What makes the environment of an episode."""
        return make

    def weights(self, step: int, model: Any, version: int) -> AbstractContextManager[int]:
        """Change the sampler's weights while the step is rolled out; gives the version that they are."""
        return nullcontext(version)

    def rewards(self, step: int, group: GroupResult) -> Rewards:
        """The rewards of one group."""
        return group.rewards_G

    def graded(self, step: int, group: GroupResult) -> GroupResult:
        """One group as everybody sees it from here on: training, the store and whoever watches."""
        return with_rewards(group, self.rewards(step, group))

    def decided(self, step: int, batch: Batch) -> Batch:
        """Advantages and fates of the whole step."""
        return batch

    def echo(self, echo: SyncEcho) -> SyncEcho:
        """What the sampler says about the weights that it got."""
        return echo


class FaultyShard(Shard):
    """A shard whose training rollouts go through an injector."""

    def __init__(self, *, injector: Injector, **settings: Any) -> None:
        super().__init__(**settings)
        self._injector = injector

    async def rollout(self, order: RolloutOrder) -> Rolled:
        step = step_of(order.plans[0].id) if order.hold and order.plans else None
        if step is None:
            return await super().rollout(order)
        injector, present, make = self._injector, self._sampler.version, self._player.make
        order = replace(order, params=injector.params(step, order.params))
        self._player.make = injector.world(step, make)
        try:
            with injector.weights(step, self.policy.model, present) as drawn_by:
                # Setting the version also makes the sampler read the weights anew.
                self._sampler.version = drawn_by
                return await super().rollout(order)
        finally:
            self._player.make = make
            self._sampler.version = present

    async def sync(self, version: int, canary: Sequence[Any]) -> SyncEcho:
        return self._injector.echo(await super().sync(version, canary))


def make_injector(kind: str, dose: float, seed: int) -> Injector:
    """The injector of a kind in the catalogue; one that changes nothing for ""."""
    if not kind:
        return Injector(0.0, seed)
    module, _, name = EVERYTHING[kind].injector.partition(".")
    made: Injector = getattr(import_module(f"fault_runs.{module}"), name)(dose, seed)
    return made


def step_of(trajectory_id: str) -> int | None:
    """The RL step in the id of an episode or group, None for one of another phase.

    >>> step_of("rl/000012/0003/05"), step_of("eval/heldout/greedy/0001")
    (12, None)
    """
    phase, _, rest = trajectory_id.partition("/")
    return int(rest.partition("/")[0]) if phase == "rl" else None


def with_rewards(group: GroupResult, rewards: Rewards) -> GroupResult:
    """The group with other rewards; what has no reward keeps none, since failed is not zero."""
    merged = tuple(new if old is not None else None for old, new in zip(group.rewards_G, rewards, strict=True))
    known = [reward for reward in merged if reward is not None]
    signal = len(known) > 1 and max(known) - min(known) > SIGNAL_TOLERANCE
    return replace(group, rewards_G=merged, signal=signal)


@contextmanager
def installed(injector: Injector) -> Iterator[None]:
    """Runs in this process go through `injector` until the context ends; they must use one worker, synchronously."""
    assemble, decide = reinforce.assemble_groups, reinforce.decide
    take_step, make_executor = reinforce.rl_step, conductor.make_executor

    def groups(trajectories: Sequence[Any], *args: Any, **named: Any) -> list[GroupResult]:
        found = assemble(trajectories, *args, **named)
        step = step_of(trajectories[0].id) if trajectories else None
        return [injector.graded(step or 0, group) for group in found]

    def decided(session: Any, step: int, *args: Any, **named: Any) -> Batch:
        return injector.decided(step, decide(session, step, *args, **named))

    def stepped(session: Any, cursor: Any, tasks: Sequence[Task], *args: Any, **named: Any) -> dict[str, float]:
        return take_step(session, cursor, injector.tasks(session.state.rl_step + 1, tasks), *args, **named)

    def executor(*args: Any, **named: Any) -> Any:
        with mock.patch.object(setup, "Shard", partial(FaultyShard, injector=injector)):
            return make_executor(*args, **named)

    with ExitStack() as patches:
        for module, name, changed in (
            (reinforce, "assemble_groups", groups),
            (reinforce, "decide", decided),
            (reinforce, "rl_step", stepped),
            (conductor, "make_executor", executor),
        ):
            patches.enter_context(mock.patch.object(module, name, changed))
        yield


@contextmanager
def carrying_over() -> Iterator[None]:
    """Forks in this process go on with the baselines of health and control, as one run through the onset would have;
    the checkpoint that they start from is the only one that a rollback can go to."""
    begin = fork._state

    def begun(state: Any, *args: Any) -> Any:
        kept = {name: getattr(state, name) for name in ("health", "control", "reservoir", "evaluated")}
        fresh = begin(state, *args)
        for name, value in kept.items():
            setattr(fresh, name, value)
        fresh.marks = [Mark(name=f"rl-{fresh.rl_step:06d}", step=fresh.rl_step, verified=True)]
        return fresh

    with mock.patch.object(fork, "_state", begun):
        yield
