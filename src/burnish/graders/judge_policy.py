"""A policy as a judge, the one in training included: any sampler with its renderer."""

from __future__ import annotations

from array import array

from burnish.core.errors import RenderError, SamplerError
from burnish.core.judge import JudgeCause, JudgeError, JudgeReply, JudgeRequest, JudgeUsage
from burnish.core.message import Message
from burnish.core.sampling import Finish, Renderer, Sampler, SampleRequest, SamplingParams
from burnish.graders.judge_reply import read_reply


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
            (sample,) = await self._sampler.sample([self._request(request, prompt_ids, messages)])
        except RenderError as error:
            raise JudgeError(JudgeCause.REFUSED, f"the question cannot be rendered: {error}") from error
        except SamplerError as error:
            raise JudgeError(JudgeCause.UNAVAILABLE, str(error)) from error
        usage = JudgeUsage(requests=1, prompt_tokens=len(prompt_ids), completion_tokens=len(sample.token_ids))
        if sample.finish is Finish.LENGTH:
            raise JudgeError(
                JudgeCause.MALFORMED, f"the reply was cut at {request.max_tokens} tokens; raise max_tokens", usage
            )
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

    def _request(self, request: JudgeRequest, prompt_ids: array[int], messages: tuple[Message, ...]) -> SampleRequest:
        return SampleRequest(
            key=f"judge/{request.content_key[:16]}",
            prompt_ids=prompt_ids,
            params=self._params,
            max_tokens=request.max_tokens,
            seed=request.seed,
            stop_ids=self._renderer.stop_ids if self._renderer else (),
            messages=messages,
        )
