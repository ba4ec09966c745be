"""A judge behind any endpoint that speaks the OpenAI chat-completions protocol."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
import httpx

from burnish.core.errors import ConfigError
from burnish.core.judge import JudgeCause, JudgeError, JudgeReply, JudgeRequest, JudgeUsage
from burnish.core.judge_reply import read_reply
from burnish.integrations.endpoint import Endpoint, EndpointCause, EndpointError, EndpointOptions, malformed
from burnish.integrations.openai_chat import ROUTE

_CAUSES = {
    EndpointCause.RATE_LIMITED: JudgeCause.RATE_LIMITED,
    EndpointCause.TIMEOUT: JudgeCause.TIMEOUT,
    EndpointCause.MALFORMED_RESPONSE: JudgeCause.MALFORMED,
    EndpointCause.REFUSED: JudgeCause.REFUSED,
    EndpointCause.CONTEXT_TOO_LONG: JudgeCause.CONTEXT_TOO_LONG,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIJudgeOptions(EndpointOptions):
    """How to talk to the endpoint.  `OpenAIJudgeOptions(requests_per_minute=60)`

    structured: how the schema is sent, "json_schema" for servers with structured output, "json_object", or "none" to
    trust the words alone; what comes back is checked all the same.  requests_per_minute: requests start at least so far
    apart; 0: no pace.  model_reported: the exact model that answers must say it is, such as a dated snapshot; "" takes
    any.  extra_body: merged into every request.
    """

    timeout_s: float = 60.0
    max_attempts: int = 5
    max_in_flight: int = 8
    temperature: float | None = 0.0
    structured: Literal["json_schema", "json_object", "none"] = "json_schema"
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    send_seed: bool = True
    requests_per_minute: float = 0.0
    model_reported: str = ""
    extra_body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    text: str
    refusal: str
    finish: str
    model: str
    usage: JudgeUsage


def judge_at(url: str, model: str, *, key_variable: str = "OPENAI_API_KEY", **options: Any) -> OpenAIJudge:
    """The judge that a grader graph names by plain values: `judge_at("http://127.0.0.1:8000/v1", "judge-7b")`

    key_variable: where the API key stands in the environment, since a graph is stored with its run, and what its
    processes have in common is the environment.  options: those of `OpenAIJudgeOptions`.
    """
    return OpenAIJudge(url, model, os.environ.get(key_variable, ""), options=OpenAIJudgeOptions(**options))


class OpenAIJudge:
    """A core `Judge` over `POST {base_url}/chat/completions`.

    `OpenAIJudge("http://127.0.0.1:8000/v1", "judge-7b")`.  Retries, waits and bounded concurrency are those of
    `Endpoint`; a reply that is no verdict is not tried again here, since the caller asks anew with another nonce.
    `version` names model and settings; replies from another model than `model_reported` raise VERSION_CHANGED.

    sleep, clock and transport are seams for tests.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str = "",
        *,
        options: OpenAIJudgeOptions | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        clock: Callable[[], float] = time.monotonic,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if not model:
            raise ConfigError("model is empty; name the model that the endpoint serves")
        self.model = model
        self.options = options or OpenAIJudgeOptions()
        self.name = f"openai:{model}"
        pinned = self.options.model_reported
        self.version = f"{self.name}" + (f"={pinned}" if pinned else "") + f"/t{self.options.temperature}"
        self._endpoint = Endpoint(base_url, api_key, options=self.options, sleep=sleep, transport=transport)
        self._sleep, self._clock = sleep, clock
        self._next_start_s = 0.0

    async def judge(self, request: JudgeRequest) -> JudgeReply:
        """The model's verdicts."""
        await self._keep_pace()
        try:
            answer = await self._endpoint.post(ROUTE, self._body(request), self._read, seed=request.seed)
        except EndpointError as error:
            cause = _CAUSES.get(error.cause, JudgeCause.UNAVAILABLE)
            raise JudgeError(cause, str(error), JudgeUsage(requests=error.attempts)) from error
        pinned = self.options.model_reported
        if pinned and answer.model != pinned:
            raise JudgeError(
                JudgeCause.VERSION_CHANGED,
                f"{self.name} is pinned to {pinned!r}, and {answer.model!r} answered; pin the new one, and calibrate "
                "it before its scores are compared with old ones",
                answer.usage,
            )
        if answer.refusal or answer.finish == "content_filter":
            raise JudgeError(
                JudgeCause.REFUSED, f"the model declines: {answer.refusal[:200] or answer.finish}", answer.usage
            )
        if answer.finish == "length":
            detail = f"the reply was cut at {request.max_tokens} tokens; raise max_tokens"
            raise JudgeError(JudgeCause.MALFORMED, detail, answer.usage)
        try:
            verdicts = read_reply(request, answer.text)
        except JudgeError as error:
            raise JudgeError(error.cause, error.detail, answer.usage) from error
        return JudgeReply(verdicts=verdicts, version=f"{self.version}@{answer.model}", usage=answer.usage)

    async def _keep_pace(self) -> None:
        if self.options.requests_per_minute <= 0:
            return
        now_s = self._clock()
        start_s = max(now_s, self._next_start_s)
        self._next_start_s = start_s + 60.0 / self.options.requests_per_minute
        if start_s > now_s:
            await self._sleep(start_s - now_s)

    def _body(self, request: JudgeRequest) -> dict[str, Any]:
        options = self.options
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": request.system},
                {"role": "user", "content": request.prompt},
            ],
            options.max_tokens_key: request.max_tokens,
        }
        if options.temperature is not None:
            body["temperature"] = options.temperature
        if options.send_seed:
            body["seed"] = request.seed % 2**31
        if options.structured == "json_schema":
            schema = {"name": "verdicts", "strict": True, "schema": dict(request.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif options.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body | dict(options.extra_body)

    def _read(self, data: Mapping[str, Any]) -> _Answer:
        """The answer in a completion.  Raises `AttemptFailed` where it is not one."""
        try:
            choice = data["choices"][0]
            message = choice["message"]
            text, refusal = message.get("content") or "", message.get("refusal") or ""
            if not isinstance(text, str) or not isinstance(refusal, str):
                raise TypeError("content is no text")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise malformed(f"not a chat completion ({type(error).__name__}: {error})") from error
        self._endpoint.count(data.get("usage"))
        return _Answer(
            text=text,
            refusal=refusal,
            finish=str(choice.get("finish_reason") or ""),
            model=str(data.get("model") or ""),
            usage=_usage(data.get("usage")),
        )


def _usage(usage: Any) -> JudgeUsage:
    counts = usage if isinstance(usage, Mapping) else {}
    found = {key: counts.get(key) for key in ("prompt_tokens", "completion_tokens")}
    prompt, completion = (value if isinstance(value, int) and value > 0 else 0 for value in found.values())
    return JudgeUsage(requests=1, prompt_tokens=prompt, completion_tokens=completion)
