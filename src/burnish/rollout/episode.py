"""One policy in one environment: the state machine between sampled tokens and the world's answers."""

from __future__ import annotations

import time
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from burnish.core.environment import Environment
from burnish.core.hashing import derive_seed
from burnish.core.message import Message, TextPart
from burnish.core.outcome import COMPLETED, Limit, Outcome, Owner
from burnish.core.sampling import Extension, Finish, Renderer, Sample, SampleRequest, SamplingParams, opened
from burnish.core.task import Limits, Task
from burnish.core.text import cap_text
from burnish.core.tool import Tool, ToolSpec, specs_of
from burnish.core.trajectory import Trajectory
from burnish.rollout.boundary import Deadline, EpisodeStop, failure, guarded, in_world, truncation
from burnish.rollout.graph import GraphBuilder, check_sample
from burnish.rollout.hygiene import clean_message, stored_state
from burnish.rollout.tools import Toolbelt

T = TypeVar("T")

THINK_END = "</think>"

WORLD_TIMEOUT_S = 120.0
"""Wall seconds for one call of start, reply, finish or close: a world that hangs must not hang the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodePlan:
    """What to roll out, before anything has happened.

    `EpisodePlan(id="rl/000012/0003/05", group_id="rl/000012/0003", task=task, sample_index=5, seed=1234)`

    seed: `derive_seed(run_seed, task.id, sample_index, step)`; turn t is sampled with `derive_seed(seed, t)`.
    max_turns: in place of the number that the limits of the episode have; 0 leaves it.
    """

    id: str
    group_id: str
    task: Task
    sample_index: int
    seed: int
    max_turns: int = 0


def effective_limits(plan: EpisodePlan, environment: object, limits: Limits | None) -> Limits:
    """The limits of an episode: the task's own, else those handed in, else the environment's, else the defaults; with
    the turns of the plan where it states them."""
    found = plan.task.limits or limits or getattr(environment, "limits", None) or Limits()
    return replace(found, max_turns=plan.max_turns) if plan.max_turns else found


class Episode:
    """Drive: `await start()`; while `live`: `request()`, `await apply(sample)`; then `await finish()`, always.

    Errors of the world end the episode as environment errors, errors of the renderer as infrastructure errors; both
    are outcomes, not exceptions.  A sampler that breaks its contract raises InvariantViolation.  `observation` holds
    the messages of the latest answer of the world, for scripts.
    """

    def __init__(
        self,
        plan: EpisodePlan,
        environment: Environment,
        renderer: Renderer,
        limits: Limits | None,
        params: SamplingParams,
    ) -> None:
        self.plan = plan
        self.environment = environment
        self.renderer = renderer
        self.limits = effective_limits(plan, environment, limits)
        self.params = params
        self.outcome: Outcome | None = None
        self.observation: tuple[Message, ...] = ()
        self.turns = 0
        self._graph = GraphBuilder()
        self._belt = Toolbelt((), max_result_chars=self.limits.max_tool_result_chars)
        self._answer = ""
        self._final_state: Mapping[str, Any] = {}
        self._close_errors = 0
        self._closed = False
        self._started = False
        self._zero_s = time.perf_counter()
        self._asked_s = 0.0
        self._deadline: Deadline | None = None

    @property
    def live(self) -> bool:
        """Whether the policy is to act next."""
        return self._started and self.outcome is None

    @property
    def tool_specs(self) -> tuple[ToolSpec, ...]:
        """What the policy is told about its tools."""
        return self._belt.specs

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation so far."""
        return tuple(self._graph.messages)

    async def start(self) -> None:
        """Build the world and render the first prompt."""
        self._zero_s = time.perf_counter()
        self._deadline = Deadline(self.limits.timeout_s)
        await self._step(self._start)
        self._started = True

    def request(self) -> SampleRequest:
        """The next action to ask the sampler for; only while `live`."""
        if not self.live:
            raise ValueError(f"episode {self.plan.id} is not live; nothing is to be sampled")
        self._asked_s = self._now_s()
        return SampleRequest(
            key=f"{self.plan.id}/{self.turns}",
            prompt_ids=self._graph.prefix_ids(),
            params=self.params,
            max_tokens=self._room()[0],
            seed=derive_seed(self.plan.seed, self.turns),
            stop_ids=self.renderer.stop_ids,
            messages=tuple(self._graph.messages),
            tools=self._belt.specs,
            images=self._graph.prefix_images(),
        )

    async def apply(self, sample: Sample) -> None:
        """Take the policy's action and let the world answer.  Raises InvariantViolation for a broken sample."""
        if not self.live:
            raise ValueError(f"episode {self.plan.id} is not live; no action can be applied")
        self.observation = ()
        await self._step(lambda: self._act(sample))

    async def finish(self) -> Trajectory:
        """Let the world report its final state, close it, and freeze the record.

        The final state is asked for wherever a reward is possible: a truncated episode and one that the model broke
        are graded too.
        """
        if self.outcome is None:
            raise ValueError(f"episode {self.plan.id} is still live; apply samples until it ends")
        if self.outcome.may_carry_reward:
            try:
                self._final_state = await self._finish_world()
            except EpisodeStop as stop:
                self.outcome = stop.outcome
        await self.close()
        return self._record(self.outcome)

    async def close(self) -> None:
        """Close the world, once; an error there is counted as `close_errors` and changes nothing that happened."""
        if self._closed:
            return
        self._closed = True
        try:
            await in_world("close", self.environment.close, timeout_s=WORLD_TIMEOUT_S, deadline=Deadline(0.0))
        except EpisodeStop:
            self._close_errors += 1

    def stop(self, outcome: Outcome) -> None:
        """End the episode from outside, where nothing has ended it yet (a script that broke)."""
        self.outcome = self.outcome or outcome

    # -- the steps -----------------------------------------------------------------------------------------------

    async def _step(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except EpisodeStop as stop:
            self.outcome = stop.outcome

    async def _start(self) -> None:
        # Until the policy has acted, lost time is the world's and no truncation that could carry a reward.
        start_s = min(self.limits.timeout_s or WORLD_TIMEOUT_S, WORLD_TIMEOUT_S)
        shown = await in_world(
            "start", lambda: self.environment.start(self.plan.task), timeout_s=start_s, deadline=Deadline(0.0)
        )
        messages = tuple(clean_message(message) for message in self._checked("start", shown))
        tools = guarded(Owner.ENVIRONMENT, "tools", lambda: offered(self.environment.tools(), self.plan.task))
        self._belt = Toolbelt(tools, max_result_chars=self.limits.max_tool_result_chars)
        ids, images = guarded(Owner.INFRASTRUCTURE, "render", lambda: opened(self.renderer, messages, self._belt.specs))
        self._graph.add_prompt(messages, ids, images=images, duration_s=self._now_s())
        self.observation = messages
        if len(ids) >= self.limits.max_context_tokens:
            detail = f"the first prompt has {len(ids)} tokens of at most {self.limits.max_context_tokens}"
            raise failure(Owner.ENVIRONMENT, "prompt_too_long", f"{detail}; raise max_context_tokens")

    async def _act(self, sample: Sample) -> None:
        room, limit = self._room()
        check_sample(sample, room=room, stop_ids=self.renderer.stop_ids, episode=self.plan.id)
        message = self._read(sample)
        self._graph.add_action(
            message, sample, started_s=self._asked_s, duration_s=max(0.0, self._now_s() - self._asked_s)
        )
        self.turns += 1
        if sample.finish is Finish.LENGTH and not _ends_with(sample.token_ids, self.renderer.stop_ids):
            raise truncation(limit, f"turn {self.turns} was cut at {len(sample.token_ids)} tokens")
        answer_s = self._now_s()
        new = await self._answer_of_world(message)
        if new is None:
            self._answer = spoken(message.text)
            self.outcome = COMPLETED
            return
        self.observation = new
        self._observe(new, answer_s)
        self._check_limits()

    async def _answer_of_world(self, message: Message) -> tuple[Message, ...] | None:
        """Results of the turn's tool calls, or the world's reply; None where the turn was the answer."""
        if message.tool_calls:
            return await self._belt.run(message.tool_calls, self._running_deadline)
        shown = await self._world("reply", lambda: self.environment.reply(message))
        if shown is None:
            return None
        return tuple(self._capped(item) for item in self._checked("reply", shown))

    def _observe(self, new: tuple[Message, ...], started_s: float) -> None:
        past = self._graph.messages
        extension: Extension = guarded(
            Owner.INFRASTRUCTURE, "render", lambda: self.renderer.extend(past, new, self._belt.specs)
        )
        self._graph.add_observation(new, extension, started_s=started_s, duration_s=self._now_s() - started_s)

    async def _finish_world(self) -> Mapping[str, Any]:
        # A spent wall limit has already been named; reporting the final state must still be possible.
        state = await in_world(
            "finish",
            lambda: self.environment.finish(self._answer),
            timeout_s=WORLD_TIMEOUT_S,
            deadline=Deadline(0.0),
        )
        return guarded(Owner.ENVIRONMENT, "final_state", lambda: stored_state(state))

    # -- limits --------------------------------------------------------------------------------------------------

    def _room(self) -> tuple[int, Limit]:
        """How many tokens the next action may have, and the limit that says so."""
        limits, graph = self.limits, self._graph
        room, limit = limits.max_turn_tokens, Limit.TURN_TOKENS
        left = limits.max_episode_tokens - graph.sampled_tokens
        if left < room:
            room, limit = left, Limit.EPISODE_TOKENS
        left = limits.max_context_tokens - graph.path_tokens
        if left < room:
            room, limit = left, Limit.CONTEXT_TOKENS
        return room, limit

    def _check_limits(self) -> None:
        """Called after the world answered: may the policy act again?"""
        malformed = self._belt.counters["malformed_calls"]
        if malformed > self.limits.max_malformed_calls:
            detail = f"{malformed} unreadable tool calls, at most {self.limits.max_malformed_calls} are allowed"
            raise failure(Owner.MODEL, "malformed_calls", detail)
        if self.turns >= self.limits.max_turns:
            raise truncation(Limit.TURNS, f"{self.turns} turns are taken")
        room, limit = self._room()
        if room <= 0:
            raise truncation(limit, f"no tokens are left for turn {self.turns + 1}")
        self._check_time()

    def _check_time(self) -> None:
        if self._running_deadline.over:
            raise truncation(Limit.TIME, f"{self.limits.timeout_s:g} s are over")

    # -- what comes in -------------------------------------------------------------------------------------------

    def _read(self, sample: Sample) -> Message:
        """The message in a sample; what was sampled is parsed, never encoded again."""
        if sample.message is not None and not len(sample.token_ids):
            return clean_message(sample.message)
        parsed = guarded(Owner.INFRASTRUCTURE, "parse", lambda: self.renderer.parse(sample.token_ids))
        return clean_message(parsed)

    def _capped(self, message: Message) -> Message:
        """A reply is bounded like a tool's result."""
        if len(message.text) <= self.limits.max_tool_result_chars:
            return clean_message(message)
        self._belt.counters["cut_results"] += 1
        text = cap_text(message.text, self.limits.max_tool_result_chars)[0]
        return clean_message(replace(message, parts=(TextPart(text=text), *message.images)))

    @staticmethod
    def _checked(phase: str, shown: Sequence[Message]) -> Sequence[Message]:
        if isinstance(shown, (list, tuple)) and shown and all(isinstance(item, Message) for item in shown):
            return shown
        detail = f"{phase} gave {type(shown).__name__} {shown!r:.80}; it gives a list of one or more messages"
        raise failure(Owner.ENVIRONMENT, f"{phase}_not_messages", detail)

    # -- the record ----------------------------------------------------------------------------------------------

    def _record(self, outcome: Outcome) -> Trajectory:
        counters = {"turns": self.turns, **self._belt.counters, **self._graph.fork_counts()}
        counters["close_errors"] = self._close_errors
        return self._graph.record(
            self.plan,
            outcome,
            counters,
            answer=self._answer,
            final_state=self._final_state,
            tool_s=self._belt.tool_s,
            total_s=self._now_s(),
        )

    async def _world(self, phase: str, call: Callable[[], Awaitable[T]]) -> T:
        return await in_world(phase, call, timeout_s=WORLD_TIMEOUT_S, deadline=self._running_deadline)

    @property
    def _running_deadline(self) -> Deadline:
        if self._deadline is None:
            raise ValueError(f"episode {self.plan.id} has not been started")
        return self._deadline

    def _now_s(self) -> float:
        return time.perf_counter() - self._zero_s


def spoken(text: str) -> str:
    """What is left of a turn after its thinking: graders judge the answer, not how it was found.

    >>> spoken("<think>3 + 4 is 7</think>\\n\\n7"), spoken("7")
    ('7', '7')
    """
    return text.rpartition(THINK_END)[2].lstrip("\n") if THINK_END in text else text


def offered(tools: Sequence[Tool], task: Task) -> Sequence[Tool]:
    """The tools of an episode: those the task names, in its order, or all.  Raises ValueError for names that clash
    or are not there."""
    names = [spec.name for spec in specs_of(tools)]
    if len(set(names)) != len(names):
        raise ValueError(f"two tools share a name: {sorted(names)}")
    if task.tools is None:
        return tools
    missing = [name for name in task.tools if name not in names]
    if missing:
        raise ValueError(f"task {task.id} offers tools {missing}, the environment has {sorted(names)}")
    return tuple(tools[names.index(name)] for name in task.tools)


def _ends_with(token_ids: array[int], stop_ids: tuple[int, ...]) -> bool:
    return len(token_ids) > 0 and token_ids[-1] in stop_ids
