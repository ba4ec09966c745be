"""The asynchronous RL phase: groups are rolled out beside the learner, which trains on what has come in.

Which groups may run, and which a step trains on, is decided in `dispatch`; here the decisions are carried out.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from burnish.core.task import Task
from burnish.core.trajectory import NO_VERSION, Trajectory
from burnish.loop.dispatch import Dispatcher, Place, staleness_steps
from burnish.loop.executor import Arrived, ShardEvent
from burnish.loop.reinforce import Collected, sampling_params, train_step
from burnish.loop.session import Session, group_plans
from burnish.loop.shard_pool import GroupOrder, PoolSetting, RolledGroup
from burnish.loop.task_queue import TaskQueue
from burnish.store.rows import Fate, StoredTrajectory

POLL_S = 1.0
WAITED_SHARE = 0.1
"""A step that the learner waited for longer than this share of it shows that too little is under way."""


@contextmanager
def open_rollouts(session: Session, queue: TaskQueue, tasks: Sequence[Task]) -> Iterator[AsyncRollouts]:
    """Rollouts beside the learner until the block ends; what is then still under way is cancelled."""
    rollouts = AsyncRollouts(session, queue, tasks)
    session.overlapping = True
    try:
        yield rollouts
    finally:
        session.overlapping = False
    session.executor.close_pools()


class AsyncRollouts:
    """`rollouts.step()` trains on the next groups that have come in, while others go on."""

    def __init__(self, session: Session, queue: TaskQueue, tasks: Sequence[Task]) -> None:
        self._session, self._queue, self._tasks = session, queue, tasks
        settings, state = session.recipe, session.state
        self._members = settings.rl.group_size + settings.rollout.surplus
        self._dispatcher = Dispatcher(
            groups=settings.rl.groups,
            steps=settings.rl.steps,
            shards=session.executor.size,
            max_staleness=settings.rollout.max_staleness,
            step=state.rl_step,
            next_number=max(state.next_group, state.rl_step * settings.rl.groups),
            accepted=state.rl_step * settings.rl.groups,
        )
        self._rolled: dict[int, RolledGroup] = {}
        # What a checkpoint has counted as dispatched is not counted again.
        self._dispatched = self._members * len(state.under_way) - state.ledger.pending
        self._requeued = self._lost = 0
        self._dropped: list[StoredTrajectory] = []
        self._causes: Counter[str] = Counter()
        setting = PoolSetting(params=sampling_params(settings.rl), max_running=settings.rollout.max_running)
        session.executor.open_pools(setting)
        for place in self._dispatcher.adopt(state.under_way):
            self._order(place)

    def step(self) -> dict[str, float] | None:
        """Wait for the groups of one step, train on them, start the next; returns the step's scalars.

        None where the user asked for a stop while nothing but waiting was going on: nothing has changed since the step
        before.
        """
        started = time.perf_counter()
        if not self._wait():
            return None
        places = self._dispatcher.take()
        groups = [self._rolled.pop(place.number) for place in places]
        trajectories = [trajectory for group in groups for trajectory in group.trajectories]
        grades = [given for group in groups for given in group.grades]
        size = self._session.executor.size
        parts = [[t for group in groups[shard::size] for t in group.trajectories] for shard in range(size)]
        self._session.executor.hold(parts)
        cancelled = sum(group.cancelled for group in groups)
        self._lost += cancelled
        self._causes["surplus"] += cancelled
        collected = Collected(
            trajectories=trajectories,
            grades=grades,
            wait_s=time.perf_counter() - started,
            dispatched=self._dispatched,
            dropped=tuple(self._dropped),
            lost=self._lost,
            under_way=self._members * len(self._dispatcher.pending),
            fresh=all(v in (NO_VERSION, self._session.state.version) for t in trajectories for v in _versions(t)),
            scalars=self._scalars(trajectories, sum(group.requeued for group in groups)),
        )
        self._dispatched = self._requeued = self._lost = 0
        self._dropped = []
        self._causes.clear()
        self._remember()
        scalars = train_step(self._session, collected, started)
        self._dispatcher.advance(waited=collected.wait_s > WAITED_SHARE * scalars["time/step_s"])
        self._fill()
        self._remember()
        return scalars

    # -- starting and receiving ------------------------------------------------------------------------------------

    def _wait(self) -> bool:
        """Until the next step is ready; False where the user asked for a stop."""
        since_s = time.perf_counter()
        patience_s = self._session.recipe.rollout.straggler_s
        self._fill()
        while True:
            for number in self._too_stale():
                self._drop_stale(number)
            if self._dispatcher.ready:
                return True
            if self._session.stop_requested():
                return False
            self._take_in(self._session.executor.poll(POLL_S))
            if patience_s and time.perf_counter() - since_s > patience_s:
                self._give_up([place.number for place in self._dispatcher.oldest_running()])
            self._fill()
            self._session.tell_notices()

    def _fill(self) -> None:
        """Start as many groups as pacing allows."""
        # First of all take note of lost workers: what is started on a new one must not be started again.
        self._take_in(self._session.executor.poll(0.0))
        for _ in range(self._dispatcher.room()):
            knobs, kinds = self._session.state.knobs, self._session.oversight.kind_shares
            (task,) = self._queue.next(1, step=self._dispatcher.step + 1, knobs=knobs, kind_shares=kinds)
            self._order(self._dispatcher.start(task))
            self._dispatched += self._members

    def _order(self, place: Place) -> None:
        settings = self._session.recipe
        step, group = divmod(place.number, settings.rl.groups)
        plans = group_plans(settings, self._tasks[place.task], step + 1, group, self._members)
        order = GroupOrder(number=place.number, plans=tuple(plans), need=settings.rl.group_size)
        self._session.executor.start(place.shard, order)

    def _take_in(self, events: Sequence[ShardEvent]) -> None:
        for event in events:
            if isinstance(event, Arrived):
                self._arrived(event.group)
                continue
            lost = [place.number for place in self._dispatcher.running.values() if place.shard == event.shard]
            for number in lost:
                self._order(self._dispatcher.restart(number))
            self._requeued += self._members * len(lost)

    def _arrived(self, group: RolledGroup) -> None:
        if group.number not in self._dispatcher.running:
            return  # Given up meanwhile, and counted then.
        self._dispatcher.finish(group.number)
        self._rolled[group.number] = group

    def _too_stale(self) -> list[int]:
        """Groups that came in and must not be used: the check that holds whatever pacing has done."""
        bound, updates = self._session.recipe.rollout.max_staleness, self._session.recipe.rl.updates
        version = self._session.state.version
        return [
            number
            for number, group in self._rolled.items()
            if staleness_steps((v for t in group.trajectories for v in _versions(t)), version, updates) > bound
        ]

    def _drop_stale(self, number: int) -> None:
        self._dispatcher.discard(number)
        group = self._rolled.pop(number)
        step = self._session.state.rl_step + 1
        self._causes["stale"] += len(group.trajectories)
        self._causes["surplus"] += group.cancelled
        self._lost += group.cancelled
        self._dropped += [
            StoredTrajectory(
                trajectory=trajectory,
                phase="rl",
                step=step,
                policy_version=self._session.state.version,
                fate=Fate.DROPPED,
                grades=grades,
            )
            for trajectory, grades in zip(group.trajectories, group.grades, strict=True)
        ]

    def _give_up(self, numbers: Sequence[int]) -> None:
        """Cancel groups that a step will not wait for any longer."""
        for place in self._dispatcher.give_up(numbers):
            step, group = divmod(place.number, self._session.recipe.rl.groups)
            self._session.executor.cancel(place.shard, [f"rl/{step + 1:06d}/{group:04d}"])
            self._lost += self._members
            self._causes["cancelled"] += self._members

    # -- what is recorded ------------------------------------------------------------------------------------------

    def _remember(self) -> None:
        """What a checkpoint needs to start again what is under way."""
        state = self._session.state
        state.next_group, state.under_way = self._dispatcher.next_number, self._dispatcher.pending
        state.task_cursor = self._queue.state()

    def _scalars(self, trajectories: Sequence[Trajectory], requeued: int) -> dict[str, float]:
        version = self._session.state.version
        ages = [version - v for t in trajectories for v in _versions(t) if v != NO_VERSION]
        return {
            "staleness/mean": sum(ages) / max(1, len(ages)),
            "staleness/max": float(max(ages, default=0)),
            "staleness/share_stale": sum(age > 0 for age in ages) / max(1, len(ages)),
            "pool/depth_steps": float(self._dispatcher.depth),
            "pool/in_flight": float(len(self._dispatcher.running) * self._members),
            "pool/ready": float(len(self._dispatcher.finished) * self._members),
            "pool/requeued": float(self._requeued + requeued),
            **{f"dropped/{cause}": float(self._causes[cause]) for cause in ("stale", "surplus", "cancelled")},
        }


def _versions(trajectory: Trajectory) -> Iterator[int]:
    """The policy version of every sampled token."""
    for node in trajectory.nodes:
        if node.is_action:
            yield from node.versions
