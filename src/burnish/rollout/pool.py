"""The asynchronous pool: episodes run continuously, each at its own pace, and groups come out as they finish.

Every episode asks the sampler for its own actions; a sampler that batches concurrent requests keeps its batch full
while other episodes wait for their tools.  What an episode does depends on its plan, the policy and its tools alone, so
for one policy version the groups are those of the synchronous runner, whatever order they finish in.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.core.errors import InvariantViolation, SamplerError
from burnish.core.outcome import Ending, Outcome, Owner
from burnish.core.sampling import Renderer, Sampler, SamplingParams
from burnish.core.task import Limits
from burnish.core.trajectory import Trajectory
from burnish.rollout.episode import Episode, EpisodePlan
from burnish.rollout.runner import CANCEL_GRACE_S, MakeEnvironment, made_environment

Roll = Callable[[EpisodePlan], Coroutine[Any, Any, Trajectory]]
"""Takes one plan to a trajectory; whatever ends the episode is in its outcome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedGroup:
    """The members of a group that finished, in sample order.

    cancelled: how many members were cancelled because enough had finished.  requeued: how many times a member was
    started again after a failure of the infrastructure.

    `FinishedGroup(group_id="rl/000012/0003", trajectories=(a, b, c), cancelled=1, requeued=0)`
    """

    group_id: str
    trajectories: tuple[Trajectory, ...]
    cancelled: int = 0
    requeued: int = 0


@dataclass(slots=True, kw_only=True)
class _Open:
    """A group that is running.  need: members that must finish."""

    plans: tuple[EpisodePlan, ...]
    need: int
    tasks: dict[str, asyncio.Task[None]]
    done: dict[str, Trajectory]
    requeued: int = 0


class EpisodePool:
    """Runs groups of episodes on the running event loop.

    `pool.start(plans_of_a_group)`, then `await pool.next()` for whichever group finishes first.  `await pool.drain()`
    returns once no episode is under way and starts none before `pool.resume()`; `await pool.close()` cancels all.

    roll: how one episode is run, see `episode_roll`.  max_running: episodes at a time, the next in the order of their
    start (0: all of them).  retries: how often an episode that the infrastructure broke is started again, with the same
    seed.  An error that no episode may swallow (a sampler that breaks its contract, weights that are unusable) comes
    out of `next`.
    """

    def __init__(self, roll: Roll, *, max_running: int = 0, retries: int = 1) -> None:
        if max_running < 0 or retries < 0:
            raise ValueError(f"max_running and retries are at least 0, got {max_running} and {retries}")
        self.counts: Counter[str] = Counter()
        self._roll = roll
        self._retries = retries
        self._places = asyncio.Semaphore(max_running) if max_running else None
        self._open: dict[str, _Open] = {}
        self._finished: asyncio.Queue[FinishedGroup | BaseException] = asyncio.Queue()
        self._gate = asyncio.Event()
        self._gate.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._running = 0

    @property
    def running(self) -> int:
        """Episodes under way."""
        return self._running

    @property
    def open_groups(self) -> tuple[str, ...]:
        """Groups that have been started and not yet come out, in the order of their start."""
        return tuple(self._open)

    def start(self, plans: Sequence[EpisodePlan], *, need: int | None = None) -> None:
        """Begin one group.  need: it is finished once so many members are; the others are cancelled (None: all).

        Fewer than all prefers members that finish early, which are the short ones: a cure for long tails that has a
        price.  Raises ValueError for plans of several groups, a group that is open already, or a need out of range.
        """
        groups = {plan.group_id for plan in plans}
        if len(groups) != 1:
            raise ValueError(f"one group is started at a time, got plans of {sorted(groups) or 'none'}")
        group_id = groups.pop()
        need = len(plans) if need is None else need
        if not 1 <= need <= len(plans):
            raise ValueError(f"need lies between 1 and the {len(plans)} members of {group_id}, got {need}")
        if group_id in self._open:
            raise ValueError(f"group {group_id} has been started already")
        group = _Open(plans=tuple(plans), need=need, tasks={}, done={})
        self._open[group_id] = group
        for plan in plans:
            group.tasks[plan.id] = asyncio.ensure_future(self._member(group_id, group, plan))

    async def next(self) -> FinishedGroup:
        """The next group to finish."""
        found = await self._finished.get()
        if isinstance(found, BaseException):
            raise found
        return found

    async def cancel(self, group_id: str) -> bool:
        """Give up a group; False where it is not open (it has finished, or never was)."""
        group = self._open.pop(group_id, None)
        if group is None:
            return False
        await _end(list(group.tasks.values()))
        return True

    async def drain(self) -> None:
        """Start no further episode, and wait until none is under way."""
        self._gate.clear()
        await self._idle.wait()

    def resume(self) -> None:
        """Let episodes start again."""
        self._gate.set()

    async def close(self) -> None:
        """Cancel everything; worlds are closed."""
        groups, self._open = list(self._open.values()), {}
        await _end([task for group in groups for task in group.tasks.values()])

    # -- one member ----------------------------------------------------------------------------------------------

    async def _member(self, group_id: str, group: _Open, plan: EpisodePlan) -> None:
        try:
            trajectory = await self._placed(group, plan)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - no boundary: it is handed on to whoever waits in `next`
            self._finished.put_nowait(error)
            return
        group.done[plan.id] = trajectory
        if len(group.done) >= group.need and self._open.get(group_id) is group:
            self._finish(group_id, group)

    async def _placed(self, group: _Open, plan: EpisodePlan) -> Trajectory:
        if self._places is None:
            return await self._attempts(group, plan)
        async with self._places:
            return await self._attempts(group, plan)

    async def _attempts(self, group: _Open, plan: EpisodePlan) -> Trajectory:
        for attempt in range(self._retries + 1):
            while not self._gate.is_set():
                await self._gate.wait()
            trajectory = await self._counted(plan)
            if trajectory.outcome.owner is not Owner.INFRASTRUCTURE or attempt == self._retries:
                break
            group.requeued += 1
            self.counts["requeued"] += 1
        return trajectory

    async def _counted(self, plan: EpisodePlan) -> Trajectory:
        self._running += 1
        self._idle.clear()
        try:
            return await self._roll(plan)
        finally:
            self._running -= 1
            if self._running == 0:
                self._idle.set()

    def _finish(self, group_id: str, group: _Open) -> None:
        del self._open[group_id]
        left = [task for plan_id, task in group.tasks.items() if plan_id not in group.done]
        for task in left:
            task.cancel()
        self.counts["cancelled"] += len(left)
        self._finished.put_nowait(
            FinishedGroup(
                group_id=group_id,
                trajectories=tuple(group.done[plan.id] for plan in group.plans if plan.id in group.done),
                cancelled=len(left),
                requeued=group.requeued,
            )
        )


def episode_roll(
    *,
    make_environment: MakeEnvironment,
    renderer: Renderer,
    sampler: Sampler,
    params: SamplingParams,
    limits: Limits | None = None,
) -> Roll:
    """The way to run an episode in an environment; the arguments are those of `run_episodes`.

    A sampler that fails for this request alone (`SamplerError`: a server that answers with errors) ends the episode as
    an infrastructure error; any other exception of a sampler ends everything.
    """

    async def roll(plan: EpisodePlan) -> Trajectory:
        episode = Episode(plan, made_environment(make_environment, plan.task), renderer, limits, params)
        try:
            await episode.start()
            while episode.live:
                try:
                    samples = await sampler.sample([episode.request()])
                except SamplerError as error:
                    episode.stop(_sampler_failed(error))
                    break
                if len(samples) != 1:
                    raise InvariantViolation("sample_count", f"1 request came back as {len(samples)} samples")
                await episode.apply(samples[0])
            return await episode.finish()
        finally:
            await episode.close()

    return roll


def _sampler_failed(error: SamplerError) -> Outcome:
    return Outcome(ending=Ending.ERROR, owner=Owner.INFRASTRUCTURE, cause="sampler_failed", detail=str(error))


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel and wait, but not for ever: a world that swallows its cancellation must not hold up the run."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CANCEL_GRACE_S)
