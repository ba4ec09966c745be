"""The synchronous runner: the specification of what a rollout is.

Episodes go in lockstep by turns: one batch is sampled for every live episode in the order of the plans, then the
world answers all of them concurrently, and the answers are joined in the order of the plans.  What comes out depends on
the plans, the policy and the tools alone, never on how long anything took.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from random import Random
from typing import Any, TypeVar

from burnish.core.environment import Environment, Script, ScriptedPolicy
from burnish.core.errors import InvariantViolation
from burnish.core.hashing import derive_seed
from burnish.core.message import Message, ToolCall
from burnish.core.outcome import Owner
from burnish.core.sampling import Finish, Renderer, Sample, Sampler, SamplingParams
from burnish.core.task import Limits, Task
from burnish.core.tool import Tool
from burnish.core.trajectory import NO_VERSION, Trajectory
from burnish.rollout.boundary import EpisodeStop, failure, guarded
from burnish.rollout.episode import Episode, EpisodePlan
from burnish.rollout.hygiene import clean_message
from burnish.rollout.messages_only import MessageRenderer

T = TypeVar("T")

MakeEnvironment = Callable[[Task], Environment]

CANCEL_GRACE_S = 5.0
SCRIPTS_AT_ONCE = 64


async def run_episodes(
    plans: Sequence[EpisodePlan],
    *,
    make_environment: MakeEnvironment,
    renderer: Renderer,
    sampler: Sampler,
    params: SamplingParams,
    limits: Limits | None = None,
    max_live: int | None = None,
) -> list[Trajectory]:
    """Roll out every plan; one trajectory for each, in order.

    limits: for tasks that state none of their own.  max_live: at most so many episodes at a time (None: all); the next
    plans fill places as they become free.

    A world or renderer that breaks gives an error outcome.  A sampler that raises, or breaks its contract
    (InvariantViolation), ends the whole call; every environment is closed in any case.
    """
    if max_live is not None and max_live < 1:
        raise ValueError(f"max_live is at least 1 or None, got {max_live}")
    _check_ids(plans)

    def make(plan: EpisodePlan) -> Episode:
        return Episode(plan, made_environment(make_environment, plan.task), renderer, limits, params)

    return await _Lockstep(plans, make, sampler, max_live or max(1, len(plans))).run()


class _Lockstep:
    """The state of one `run_episodes`."""

    def __init__(
        self, plans: Sequence[EpisodePlan], make: Callable[[EpisodePlan], Episode], sampler: Sampler, max_live: int
    ) -> None:
        self._waiting = deque(plans)
        self._make = make
        self._sampler = sampler
        self._max_live = max_live
        self._open: dict[str, Episode] = {}
        self._order = [plan.id for plan in plans]
        self._done: dict[str, Trajectory] = {}

    async def run(self) -> list[Trajectory]:
        live: list[Episode] = []
        try:
            while True:
                live += await self._admit(self._max_live - len(live))
                if not live:
                    return [self._done[plan_id] for plan_id in self._order]
                samples = await self._sample(live)
                await together([self._turn(*pair) for pair in zip(live, samples, strict=True)])
                live = [episode for episode in live if episode.live]
        finally:
            await together([episode.close() for episode in self._open.values()])

    async def _admit(self, places: int) -> list[Episode]:
        """Start the next episodes until `places` of them are live or none is left."""
        admitted: list[Episode] = []
        while len(admitted) < places and self._waiting:
            count = min(places - len(admitted), len(self._waiting))
            new = [self._make(self._waiting.popleft()) for _ in range(count)]
            self._open |= {episode.plan.id: episode for episode in new}
            await together([self._begin(episode) for episode in new])
            admitted += [episode for episode in new if episode.live]
        return admitted

    async def _sample(self, live: Sequence[Episode]) -> Sequence[Sample]:
        samples = await self._sampler.sample([episode.request() for episode in live])
        if len(samples) != len(live):
            raise InvariantViolation("sample_count", f"{len(live)} requests came back as {len(samples)} samples")
        return samples

    async def _begin(self, episode: Episode) -> None:
        await episode.start()
        await self._settle(episode)

    async def _turn(self, episode: Episode, sample: Sample) -> None:
        await episode.apply(sample)
        await self._settle(episode)

    async def _settle(self, episode: Episode) -> None:
        if not episode.live:
            self._done[episode.plan.id] = await episode.finish()
            del self._open[episode.plan.id]


def _check_ids(plans: Sequence[EpisodePlan]) -> None:
    twice = [plan_id for plan_id, count in Counter(plan.id for plan in plans).items() if count > 1]
    if twice:
        raise ValueError(f"plans need ids of their own; {twice[:3]} stand there more than once")


async def run_scripted(
    plans: Sequence[EpisodePlan],
    *,
    make_environment: MakeEnvironment,
    policy: ScriptedPolicy,
    renderer: Renderer | None = None,
    limits: Limits | None = None,
) -> list[Trajectory]:
    """Let a scripted policy (expert, no-op, random, constant) act through the same episodes; one trajectory each.

    Its messages are encoded by `renderer` as the policy would have sampled them, with log-probability 0 and version
    -1: demonstrations for SFT.  Without a renderer there are no tokens.  The script's random numbers come from the
    plan's seed.  A script that raises, or ends while the world goes on, is an environment error ("script_raised",
    "script_ended"); one that is cut by a limit is truncated, as the policy would be.
    """
    _check_ids(plans)
    places = asyncio.Semaphore(SCRIPTS_AT_ONCE)

    async def play(plan: EpisodePlan) -> Trajectory:
        async with places:
            episode = Episode(
                plan,
                made_environment(make_environment, plan.task),
                renderer or MessageRenderer(),
                limits,
                SamplingParams(),
            )
            try:
                await _play(episode, policy)
                return await episode.finish()
            finally:
                await episode.close()

    return await together([play(plan) for plan in plans])


async def _play(episode: Episode, policy: ScriptedPolicy) -> None:
    await episode.start()
    if not episode.live:
        return
    plan = episode.plan
    rng = Random(derive_seed(plan.seed, "script"))
    try:
        script = guarded(Owner.ENVIRONMENT, "script", lambda: policy(episode.environment, plan.task, rng))
        await _follow(episode, script)
    except EpisodeStop as stop:
        episode.stop(stop.outcome)


async def _follow(episode: Episode, script: Script) -> None:
    """Send the script the world's answers until the episode ends; its return value is the final answer."""
    heard: Any = None
    answered = False
    while episode.live:
        if answered:
            raise failure(Owner.ENVIRONMENT, "script_ended", "the script gave its answer and the world went on")
        said = guarded(Owner.ENVIRONMENT, "script", lambda: _next(script, heard))  # noqa: B023 - called at once
        message, answered = _message_of(said)
        await episode.apply(_scripted_sample(episode, clean_message(message)))
        texts = [item.text for item in episode.observation]
        heard = texts[0] if isinstance(said, ToolCall) and texts else texts
    guarded(Owner.ENVIRONMENT, "script", script.close)


def _next(script: Script, heard: Any) -> ToolCall | Sequence[ToolCall] | Message | str:
    try:
        said = script.send(heard)
    except StopIteration as end:
        return "" if end.value is None else str(end.value)
    if isinstance(said, str):
        raise TypeError(f"the script yielded text ({said!r:.60}); yield tool calls or a Message, return the answer")
    return said


def _message_of(said: ToolCall | Sequence[ToolCall] | Message | str) -> tuple[Message, bool]:
    """What a script said as a turn, and whether it was its last."""
    if isinstance(said, str):
        return Message.assistant(said), True
    if isinstance(said, Message):
        return said, False
    calls = (said,) if isinstance(said, ToolCall) else tuple(said)
    named = (ToolCall(id=f"call_{i}", name=c.name, arguments=c.arguments, error=c.error) for i, c in enumerate(calls))
    return Message.assistant("", tuple(named)), False


def _scripted_sample(episode: Episode, message: Message) -> Sample:
    request = episode.request()
    ids: array[int] = guarded(Owner.INFRASTRUCTURE, "encode", lambda: episode.renderer.encode_action(message))
    finish = Finish.STOP
    if len(ids) > request.max_tokens:
        ids, finish = ids[: request.max_tokens], Finish.LENGTH
    elif len(ids):
        _check_round_trip(episode.renderer, message, ids)
    logprobs = array("f", bytes(4 * len(ids)))
    return Sample(
        token_ids=ids,
        logprobs=logprobs,
        versions=array("i", [NO_VERSION]) * len(ids),
        finish=finish,
        message=message,
    )


def _check_round_trip(renderer: Renderer, message: Message, ids: array[int]) -> None:
    """A demonstration that comes back as something else would teach what nobody showed."""
    back = guarded(Owner.INFRASTRUCTURE, "parse", lambda: renderer.parse(ids))
    same = back.text.strip() == message.text.strip() and _asked(back) == _asked(message)
    if not same:
        detail = f"a scripted turn comes back from its tokens changed: {message!r:.200} as {back!r:.200}"
        raise failure(Owner.INFRASTRUCTURE, "action_round_trip", detail)


def _asked(message: Message) -> list[tuple[str, Mapping[str, Any]]]:
    return [(call.name, dict(call.arguments)) for call in message.tool_calls]


async def together(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run concurrently, started and joined in order.  Where one raises, the others are cancelled and it is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        if tasks:
            # Bounded: a world that swallows its cancellation must not keep the run from ending.
            await asyncio.wait(tasks, timeout=CANCEL_GRACE_S)
        raise


class _Unmade:
    """Stands in for an environment whose constructor raised, so that this is an outcome like any other."""

    def __init__(self, error: EpisodeStop) -> None:
        self._error = error

    async def start(self, task: Task) -> Sequence[Message]:
        raise self._error

    def tools(self) -> Sequence[Tool]:
        return ()

    async def reply(self, message: Message) -> Sequence[Message] | None:
        return None

    async def finish(self, answer: str) -> Mapping[str, Any]:
        return {}

    async def close(self) -> None:
        return None


def made_environment(make_environment: MakeEnvironment, task: Task) -> Environment:
    """The environment of a task; one whose constructor raises comes as a world that fails when it is started."""
    try:
        return guarded(Owner.ENVIRONMENT, "make_environment", lambda: make_environment(task))
    except EpisodeStop as stop:
        return _Unmade(stop)
