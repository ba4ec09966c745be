"""One episode of a program that asks for actions one conversation at a time, recorded as tokens.

The program holds the conversation; what is recorded here is what the policy was shown and what it sampled.  A request
continues the longest path of the graph whose messages are an exact prefix of it, and only what is new is rendered;
any other request is a new root with a name.  No HTTP: the proxy is one caller of this.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from burnish.core.errors import InvariantViolation, RenderError, SamplerError
from burnish.core.hashing import derive_seed
from burnish.core.message import Message, Role
from burnish.core.outcome import COMPLETED, Ending, Limit, Outcome, Owner
from burnish.core.sampling import Extension, Finish, Renderer, Sample, Sampler, SampleRequest, SamplingParams
from burnish.core.task import Limits
from burnish.core.trajectory import Trajectory
from burnish.rollout.boundary import Deadline, EpisodeStop, describe, failure, guarded, truncation
from burnish.rollout.branches import Branches, Match, Spot, message_key, path_digests
from burnish.rollout.chat_api import CONTEXT_CODE, LIMIT_CODE, ChatRequest, Completion, Refusal
from burnish.rollout.dialect import Dialect, ended_at
from burnish.rollout.episode import EpisodePlan, effective_limits, spoken
from burnish.rollout.graph import GraphBuilder, check_sample
from burnish.rollout.hygiene import clean_message

T = TypeVar("T")

CLOSE_GRACE_S = 5.0
MAX_REFUSALS = 50
"""So many requests in a row that had to be refused are a program that will not end by itself."""

COUNTERS = ("requests", "refused_requests", "abandoned_requests", "ignored_params", "tool_calls", "malformed_calls")
"""requests: all that could be read; refused_requests: those answered with an error; abandoned_requests: those whose
program went away before the answer, of which nothing is kept; ignored_params: parameters that asked for another
distribution than the run's; tool_calls and malformed_calls: what the policy asked for, and what of it had no form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One admitted request: `spot` is the node that its action will follow."""

    spot: Spot
    request: ChatRequest
    prefix_ids: array[int]
    key: str
    seed: int


class Capture:
    """The capture of one episode; made on the running event loop, which starts the clock of its time limit.

    `await complete(request)` answers one request; any number may be under way.  `await idle(seconds)` returns once the
    program has asked nothing for so long.  `stopped` is set once the program had better be ended from outside.
    `await close()` refuses everything from then on, then `record(...)` freezes the trajectory.

    A limit on turns, on tokens or on time ends the episode: `ended` names it and further requests are refused.  A
    context that is full refuses that request alone, so that a program may shorten its conversation and go on; where it
    does not, that limit is the outcome.

    `broken` is the exception of a sampler that broke its contract: the run cannot go on.
    """

    def __init__(
        self,
        plan: EpisodePlan,
        renderer: Renderer,
        sampler: Sampler,
        params: SamplingParams,
        limits: Limits | None = None,
    ) -> None:
        self.plan = plan
        self.params = params
        self.limits = effective_limits(plan, None, limits)
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self.ended: Outcome | None = None
        self.broken: BaseException | None = None
        self.stopped = asyncio.Event()
        self.refused = ""
        self.deadline = Deadline(self.limits.timeout_s)
        self._renderer = renderer
        self._sampler = sampler
        self._graph = GraphBuilder()
        self._branches = Branches()
        self._dialect = Dialect()
        self._latest: Outcome | None = None
        self._answer = ""
        self._turns = 0
        self._turns_taken = 0
        self._admitted = 0
        self._main = -1
        self._main_turns = 0
        self._asked_before: Counter[bytes] = Counter()
        self._reserved_tokens = 0
        self._freed = asyncio.Event()
        self._under_way: set[asyncio.Task[Completion]] = set()
        self._refusals_in_row = 0
        self._closed = False
        self._zero_s = self._quiet_since_s = time.perf_counter()
        self._program_s = 0.0

    # -- what the proxy and the runner call ----------------------------------------------------------------------

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer one request.  Raises Refusal; a cancelled request leaves no action behind."""
        return await self.begin(request)

    def begin(self, request: ChatRequest) -> asyncio.Task[Completion]:
        """As `complete`, as a task."""
        task = asyncio.ensure_future(self._complete(request))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    def note_refusal(self, refusal: Refusal) -> None:
        """Count a request that is answered with an error, also one that never became a `ChatRequest`."""
        self.refused = str(refusal)
        self.counters["refused_requests"] += 1
        self._refusals_in_row += 1
        if self._refusals_in_row >= MAX_REFUSALS:
            self.stopped.set()

    async def idle(self, seconds: float) -> None:
        """Return once no request has been under way for `seconds`: the program hangs, or works that long."""
        while True:
            quiet_s = 0.0 if self._under_way else time.perf_counter() - self._quiet_since_s
            if quiet_s >= seconds:
                return
            await asyncio.sleep(seconds - quiet_s)

    @property
    def turns(self) -> int:
        """How many actions the policy has taken."""
        return self._turns

    @property
    def limit(self) -> Outcome | None:
        """What ended the episode, or stands in the way of its latest request; None where it may be complete."""
        return self.ended or self._latest

    async def close(self) -> None:
        """Refuse everything from now on; requests under way are cancelled."""
        if self._closed:
            return
        self._closed = True
        if not self._under_way:
            self._account()
        left = tuple(self._under_way)
        for task in left:
            task.cancel()
        if left:
            # Bounded: a sampler that swallows its cancellation must not keep the episode from ending.
            await asyncio.wait(left, timeout=CLOSE_GRACE_S)

    def record(self, outcome: Outcome, answer: str | None = None) -> Trajectory:
        """The trajectory.  answer: the program's, None for the policy's latest words; an episode that did not complete
        has none, as in an `Episode`."""
        counters = {"turns": self._turns, **self.counters, **self._graph.fork_counts()}
        return self._graph.record(
            self.plan,
            outcome,
            counters | {"program_ms": round(1000.0 * self._program_s)},
            answer=spoken(self._answer if answer is None else answer) if outcome == COMPLETED else "",
            total_s=self._now_s(),
        )

    # -- one request ---------------------------------------------------------------------------------------------

    async def _complete(self, request: ChatRequest) -> Completion:
        if len(self._under_way) == 1:
            self._account()
        self.counters["requests"] += 1
        for name in request.ignored:
            self.counters["ignored_params"] += 1
            self.counters[f"ignored:{name}"] += 1
        try:
            completion = await self._answered(request)
        except Refusal as refusal:
            self.note_refusal(refusal)
            raise
        except asyncio.CancelledError:
            self.counters["abandoned_requests"] += 1
            raise
        finally:
            self._quiet_since_s = time.perf_counter()
        self.refused = ""
        self._refusals_in_row = 0
        return completion

    async def _answered(self, request: ChatRequest) -> Completion:
        try:
            asked = self._admit(request)
            taken = False
            try:
                room, limit = await self._reserve(asked)
                started_s = self._now_s()
                sample = await self._sample(asked, room)
                taken = True
                return self._act(asked, sample, limit, started_s)
            finally:
                self._turns_taken -= not taken
        except EpisodeStop as stop:
            self._stop(stop.outcome)
            raise self._over(stop.outcome) from stop

    def _admit(self, request: ChatRequest) -> _Asked:
        """Find and render the place of a request; takes its turn.  Raises Refusal or EpisodeStop."""
        if self._closed or self.ended:
            raise self._over(self.ended)
        if self.deadline.over:
            raise truncation(Limit.TIME, f"{self.limits.timeout_s:g} s are over")
        keys = tuple(message_key(message) for message in request.messages)
        match = self._branches.find(request.messages, keys, same_tools=lambda spot: self._same_opening(spot, request))
        spot, prefix_ids = self._placed(request, keys, match)
        if self._turns_taken >= self.limits.max_turns:
            raise truncation(Limit.TURNS, f"{self._turns} turns are taken")
        self._turns_taken += 1
        self._admitted += 1
        self._latest = None
        return _Asked(
            spot=spot,
            request=request,
            prefix_ids=prefix_ids,
            key=f"{self.plan.id}/{self._admitted - 1}",
            seed=self._seed(match, spot.node, keys, request),
        )

    def _placed(self, request: ChatRequest, keys: tuple[bytes, ...], match: Match) -> tuple[Spot, array[int]]:
        """The spot that the action follows, made where it is not there yet, and the ids up to it."""
        graph, spot = self._graph, match.spot
        if spot is not None and not spot.is_action:
            return spot, graph.prefix_ids(spot.node)
        known = match.known if spot is not None else 0
        new = tuple(self._dialect.as_policy_knows(message) for message in request.messages[known:])
        past = spot.messages if spot is not None else ()
        extension = self._rendered(spot, new, request)
        prefix_ids = extension.token_ids[:]
        if spot is not None and not extension.fork:
            prefix_ids = graph.prefix_ids(spot.node) + prefix_ids
        self._check_context(len(prefix_ids))
        arrived_s = self._now_s()
        since_s = spot.ended_s if spot is not None else 0.0 if not graph.nodes else arrived_s
        taken_s = max(0.0, arrived_s - since_s)
        if spot is not None:
            graph.add_observation(new, extension, parent=spot.node, started_s=since_s, duration_s=taken_s)
        elif match.fork:
            fresh, ids = [new[index] for index in match.fresh], extension.token_ids
            graph.add_root(fresh, ids, fork=match.fork, started_s=since_s, duration_s=taken_s)
        else:
            graph.add_prompt(new, extension.token_ids, started_s=since_s, duration_s=taken_s)
        node = len(graph.nodes) - 1
        goes_on = spot is not None and not extension.fork
        placed = Spot(
            node=node,
            root=spot.root if spot is not None and goes_on else node,
            opening=spot.opening if spot is not None and goes_on else (*past, *new),
            messages=(*past, *new),
            keys=keys,
            tools=request.tools,
            is_action=False,
        )
        self._branches.add(placed)
        return placed, prefix_ids

    def _rendered(self, spot: Spot | None, new: Sequence[Message], request: ChatRequest) -> Extension:
        """Ids of what is new after a spot, or of a whole conversation."""
        if spot is None:
            return Extension(token_ids=self._render(lambda: self._renderer.open(new, request.tools)))
        extension = self._render(lambda: self._renderer.extend(spot.messages, new, request.tools))
        if spot.is_cut and not extension.fork:
            # Nothing was sampled at the end of the turn; the renderer goes on after the end marker, which is shown.
            return Extension(token_ids=array("i", self._renderer.stop_ids[:1]) + extension.token_ids)
        return extension

    async def _reserve(self, asked: _Asked) -> tuple[int, Limit | None]:
        """How many tokens the action may have, and which limit says so (None: the program's own cap).

        Requests under way hold what they may draw, so that together they never pass the episode's limit; one that
        finds nothing left waits for what they do not use.
        """
        while True:
            room, limit = self._room(asked)
            if room > 0:
                self._reserved_tokens += room
                return room, limit
            if not self._reserved_tokens:
                raise truncation(limit or Limit.EPISODE_TOKENS, f"no tokens are left for turn {self._turns + 1}")
            self._freed.clear()
            await self._freed.wait()
            if self._closed or self.ended:
                raise self._over(self.ended)

    def _room(self, asked: _Asked) -> tuple[int, Limit | None]:
        limits = self.limits
        left = limits.max_episode_tokens - self._graph.sampled_tokens - self._reserved_tokens
        caps: list[tuple[int, Limit | None]] = [
            (limits.max_turn_tokens, Limit.TURN_TOKENS),
            (left, Limit.EPISODE_TOKENS),
            (limits.max_context_tokens - len(asked.prefix_ids), Limit.CONTEXT_TOKENS),
        ]
        if asked.request.max_tokens is not None:
            caps.append((asked.request.max_tokens, None))
        return min(caps, key=lambda pair: pair[0])

    async def _sample(self, asked: _Asked, room: int) -> Sample:
        """One action; whatever breaks in the sampler is told apart from what breaks in the program."""
        spot = asked.spot
        request = SampleRequest(
            key=asked.key,
            prompt_ids=asked.prefix_ids,
            params=self.params,
            max_tokens=room,
            seed=asked.seed,
            stop_ids=self._renderer.stop_ids,
            messages=spot.messages,
            tools=asked.request.tools,
        )
        try:
            samples = await self._sampler.sample([request])
            if len(samples) != 1:
                raise InvariantViolation("sample_count", f"1 request came back as {len(samples)} samples")
            check_sample(samples[0], room=room, stop_ids=self._renderer.stop_ids, episode=self.plan.id)
        except SamplerError as error:
            raise failure(Owner.INFRASTRUCTURE, "sampler_failed", str(error)) from error
        except Exception as error:
            raise self._broke(error) from error
        finally:
            self._reserved_tokens -= room
            self._freed.set()
        if self._closed:
            raise self._over(self.ended)
        return samples[0]

    def _act(self, asked: _Asked, sample: Sample, limit: Limit | None, started_s: float) -> Completion:
        """Record the action and say what the program is told of it."""
        request = asked.request
        sample, said = ended_at(sample, request.stop, self._parse)
        message = clean_message(said)
        node = len(self._graph.nodes)
        try:
            self._graph.add_action(
                message,
                sample,
                parent=asked.spot.node,
                started_s=started_s,
                duration_s=max(0.0, self._now_s() - started_s),
            )
        except InvariantViolation as error:
            raise self._broke(error) from error
        self._turns += 1
        told = self._dialect.as_program_knows(message, node, stops=request.stop, hides_calls=request.hides_calls)
        self.counters["tool_calls"] += len(message.tool_calls)
        self.counters["malformed_calls"] += sum(bool(call.error) for call in message.tool_calls)
        has_stop = bool(len(sample.token_ids)) and sample.token_ids[-1] in self._renderer.stop_ids
        was_cut = sample.finish is Finish.LENGTH and not has_stop
        self._branches.add(self._action_spot(asked, message, told, node, is_cut=not has_stop), told)
        if asked.spot.node == self._main:
            self._main = node
        self._answer = told.text
        if was_cut and limit is not None:
            self._cut(limit, len(sample.token_ids))
        return Completion(
            id=asked.key,
            message=told,
            finish_reason="length" if was_cut else "tool_calls" if told.tool_calls else "stop",
            prompt_tokens=len(asked.prefix_ids),
            completion_tokens=len(sample.token_ids),
        )

    def _action_spot(self, asked: _Asked, message: Message, told: Message, node: int, *, is_cut: bool) -> Spot:
        spot = asked.spot
        return replace(
            spot,
            node=node,
            messages=(*spot.messages, message),
            keys=(*spot.keys, message_key(told)),
            tools=asked.request.tools,
            is_action=True,
            is_cut=is_cut,
            ended_s=self._now_s(),
        )

    # -- seeds ---------------------------------------------------------------------------------------------------

    def _seed(self, match: Match, node: int, keys: Sequence[bytes], request: ChatRequest) -> int:
        """The seed of the action after `node`.

        On the line that begins with the task's prompt it is a function of the turn alone, as in an `Episode`; elsewhere
        of the conversation and of how often it was asked before, so that sub-agents draw alike in whatever order their
        requests arrive.
        """
        before = match.spot.node if match.spot is not None and match.spot.is_action else -1
        starts = match.spot is None and not match.fork and self.plan.task.prompt_text in _user_texts(request.messages)
        goes_on = before >= 0 and before == self._main
        if starts or goes_on:
            self._main = node
            self._main_turns += 1
            return derive_seed(self.plan.seed, self._main_turns - 1)
        asked = path_digests(keys)[-1]
        self._asked_before[asked] += 1
        return derive_seed(self.plan.seed, asked.hex(), self._asked_before[asked])

    # -- limits and failures -------------------------------------------------------------------------------------

    def _check_context(self, tokens: int) -> None:
        most = self.limits.max_context_tokens
        if tokens < most:
            return
        detail = f"the conversation has {tokens} tokens of at most {most}"
        if self._turns:
            self._latest = truncation(Limit.CONTEXT_TOKENS, detail).outcome
        else:
            self._latest = failure(Owner.ENVIRONMENT, "prompt_too_long", f"{detail}; raise max_context_tokens").outcome
        raise Refusal(
            f"This model's maximum context length is {most} tokens, your messages have {tokens}.",
            code=CONTEXT_CODE,
            param="messages",
        )

    def _cut(self, limit: Limit, tokens: int) -> None:
        """An action that a limit of the run cut.  A full context can be mended by the program, nothing else can."""
        outcome = truncation(limit, f"turn {self._turns} was cut at {tokens} tokens").outcome
        if limit is Limit.CONTEXT_TOKENS:
            self._latest = outcome
        else:
            self._stop(outcome)

    def _stop(self, outcome: Outcome) -> None:
        self.ended = self.ended or outcome
        self._freed.set()
        if outcome.ending is Ending.ERROR:
            self.stopped.set()

    def _broke(self, error: BaseException) -> Refusal:
        self.broken = self.broken or error
        self._stop(failure(Owner.INFRASTRUCTURE, "sampler_broke", describe(error)).outcome)
        return Refusal("the sampler failed; the run ends", code="sampler_failed", status=500)

    @staticmethod
    def _over(outcome: Outcome | None) -> Refusal:
        if outcome is None:
            return Refusal("this episode is over", code="episode_over")
        if outcome.ending is Ending.ERROR:
            return Refusal(f"this episode has failed: {outcome.detail}", code="episode_failed", status=500)
        return Refusal(
            f"this episode is over: its limit on {outcome.limit} is reached ({outcome.detail})", code=LIMIT_CODE
        )

    # -- code that is not ours -----------------------------------------------------------------------------------

    def _same_opening(self, spot: Spot, request: ChatRequest) -> bool:
        """Whether a path begins with the same tokens when these tools are offered."""
        if spot.tools == request.tools:
            return True
        ids = self._render(lambda: self._renderer.open(spot.opening, request.tools))
        return bool(ids == self._graph.nodes[spot.root].token_ids)

    def _render(self, call: Callable[[], T]) -> T:
        """Render; a conversation that the renderer refuses is the program's to mend."""
        try:
            return guarded(Owner.INFRASTRUCTURE, "render", call)
        except EpisodeStop as stop:
            if isinstance(stop.__cause__, RenderError):
                raise Refusal(str(stop.__cause__), code="invalid_request", param="messages") from stop
            raise

    def _parse(self, ids: array[int]) -> Message:
        return guarded(Owner.INFRASTRUCTURE, "parse", lambda: self._renderer.parse(ids))

    # -- time ----------------------------------------------------------------------------------------------------

    def _account(self) -> None:
        """Between requests the time is the program's."""
        now_s = time.perf_counter()
        self._program_s += max(0.0, now_s - self._quiet_since_s)
        self._quiet_since_s = now_s

    def _now_s(self) -> float:
        return time.perf_counter() - self._zero_s


def _user_texts(messages: Sequence[Message]) -> list[str]:
    return [message.text for message in messages if message.role is Role.USER]
