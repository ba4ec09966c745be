"""A policy as a judge: any sampler with its renderer, or whichever policy the grading is for, the one in training.

A grader graph is read before there is a policy, and again in every process, so its judge `OwnPolicyJudge` finds the
policy when it is asked: whoever grades says `with judging_policy(sampler, renderer)` around it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from burnish.core.errors import RenderError, SamplerError
from burnish.core.judge import JudgeCause, JudgeError, JudgeReply, JudgeRequest, JudgeUsage
from burnish.core.judge_reply import read_reply
from burnish.core.message import Message
from burnish.core.sampling import Finish, Renderer, Sampler, SampleRequest, SamplingParams


class PolicyJudge:
    """Asks a sampler.  `PolicyJudge(sampler, renderer, version="policy@120")`

    renderer: None for a sampler that takes messages.  version: name it by the policy version; a policy that judges
    itself while it learns is another judge after each step.  temperature: 0 takes the likeliest reply.
    """

    def __init__(
        self,
        sampler: Sampler,
        renderer: Renderer | None,
        *,
        version: str,
        name: str = "policy",
        temperature: float = 0.0,
    ) -> None:
        self.name = name
        self.version = version
        self._sampler = sampler
        self._renderer = renderer
        self._params = SamplingParams(temperature=temperature)

    async def judge(self, request: JudgeRequest) -> JudgeReply:
        """The verdicts in what the policy says."""
        messages = (Message.system(request.system), Message.user(request.prompt))
        try:
            prompt_ids = self._renderer.open(messages, ()) if self._renderer else array("i")
            max_tokens = self._room(len(prompt_ids), request.max_tokens)
            asked = self._request(request, prompt_ids, messages, max_tokens)
            (sample,) = await self._sampler.sample([asked])
        except RenderError as error:
            raise JudgeError(JudgeCause.REFUSED, f"the question cannot be rendered: {error}") from error
        except SamplerError as error:
            raise JudgeError(JudgeCause.UNAVAILABLE, str(error)) from error
        usage = JudgeUsage(requests=1, prompt_tokens=len(prompt_ids), completion_tokens=len(sample.token_ids))
        if sample.finish is Finish.LENGTH:
            raise JudgeError(JudgeCause.MALFORMED, f"the reply was cut at {max_tokens} tokens; raise max_tokens", usage)
        if sample.message is not None:
            text = sample.message.text
        else:
            assert self._renderer is not None, "a sampler that gives tokens needs a renderer"
            text = self._renderer.parse(sample.token_ids).text
        try:
            verdicts = read_reply(request, text)
        except JudgeError as error:
            raise JudgeError(error.cause, error.detail, usage) from error
        return JudgeReply(verdicts=verdicts, version=self.version, usage=usage)

    def _room(self, prompt_tokens: int, max_tokens: int) -> int:
        """Tokens that a reply may have in the sampler's context."""
        most = getattr(self._sampler, "max_positions", None)
        room = max_tokens if most is None else min(max_tokens, most - prompt_tokens)
        if room < 1:
            raise JudgeError(
                JudgeCause.CONTEXT_TOO_LONG, f"the question has {prompt_tokens} tokens, the policy holds {most}"
            )
        return room

    def _request(
        self, request: JudgeRequest, prompt_ids: array[int], messages: tuple[Message, ...], max_tokens: int
    ) -> SampleRequest:
        return SampleRequest(
            key=f"judge/{request.content_key[:16]}",
            prompt_ids=prompt_ids,
            params=self._params,
            max_tokens=max_tokens,
            seed=request.seed,
            stop_ids=self._renderer.stop_ids if self._renderer else (),
            messages=messages,
        )


_POLICY: ContextVar[tuple[Sampler, Renderer | None] | None] = ContextVar("judging_policy", default=None)


@contextmanager
def judging_policy(sampler: Sampler, renderer: Renderer | None) -> Iterator[None]:
    """Within it, also in tasks that are started within it, `OwnPolicyJudge` asks this sampler."""
    token = _POLICY.set((sampler, renderer))
    try:
        yield
    finally:
        _POLICY.reset(token)


class OwnPolicyJudge:
    """The policy that is trained, or evaluated, as the judge of what it wrote: `use = "policy"` of a graph's judge.

    Its replies name the version of the weights that judged ("policy@120"); its own version does not, since the graph
    is the same all along.  temperature: as of `PolicyJudge`.
    """

    name = "policy"

    def __init__(self, *, temperature: float = 0.0) -> None:
        self.version = f"policy/t{temperature:g}"
        self._temperature = temperature

    async def judge(self, request: JudgeRequest) -> JudgeReply:
        """The verdicts of the policy as it is now."""
        policy = _POLICY.get()
        if policy is None:
            raise JudgeError(JudgeCause.UNAVAILABLE, "the policy judges in its own run and evaluations alone")
        sampler, renderer = policy
        version = f"policy@{getattr(sampler, 'version', '?')}"
        return await PolicyJudge(sampler, renderer, version=version, temperature=self._temperature).judge(request)
