"""A sampler over any endpoint that speaks the OpenAI chat-completions protocol.

Such an endpoint takes messages and gives messages, no token ids: what it produces can be evaluated, never trained on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
import httpx

from burnish.core.errors import ConfigError
from burnish.core.message import ImagePart, Message, Role
from burnish.core.sampling import Finish, Sample, SampleRequest
from burnish.integrations.endpoint import (
    Endpoint,
    EndpointCause,
    EndpointError,
    EndpointOptions,
    EndpointUsage,
    malformed,
    sample_all,
)
from burnish.rollout.wire import message_from_openai, message_to_openai

ROUTE = "/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions(EndpointOptions):
    """How to talk to a chat endpoint.  `ChatOptions(max_in_flight=4, timeout_s=30.0)`

    max_tokens_key: some servers only know the second name.  extra_body: merged into every request.
    """

    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    send_seed: bool = True
    extra_body: Mapping[str, Any] = field(default_factory=dict)


class OpenAIChatSampler:
    """A core `Sampler` over `POST {base_url}/chat/completions`.

    `OpenAIChatSampler("http://127.0.0.1:8000/v1", "my-model")`.  Requests need `messages`; every sample comes back with
    `message` set and no tokens.  Raises `EndpointError` once a request has failed for good; the other requests of that
    batch are then cancelled.  A conversation longer than the endpoint's context gives an empty turn with finish LENGTH.

    load_image: bytes of an image part (needed for tasks with images).  sleep and transport are seams for tests.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str = "",
        *,
        options: ChatOptions | None = None,
        load_image: Callable[[ImagePart], bytes] | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if not model:
            raise ConfigError("model is empty; name the model that the endpoint serves")
        self.model = model
        self._options = options or ChatOptions()
        self._load_image = load_image
        self._endpoint = Endpoint(base_url, api_key, options=self._options, sleep=sleep, transport=transport)

    @property
    def usage(self) -> EndpointUsage:
        """Requests, retries and tokens so far, as the endpoint counts them."""
        return self._endpoint.usage

    async def sample(self, requests: Sequence[SampleRequest]) -> Sequence[Sample]:
        """One sample for each request, in order."""
        async with self._endpoint.line():
            return await sample_all(requests, self._complete)

    async def _complete(self, request: SampleRequest) -> Sample:
        body = self._body(request)
        try:
            return await self._endpoint.post(ROUTE, body, lambda data: self._read(data, request), seed=request.seed)
        except EndpointError as error:
            if error.cause is EndpointCause.CONTEXT_TOO_LONG:
                return Sample(message=Message.assistant(""), finish=Finish.LENGTH)
            raise

    def _body(self, request: SampleRequest) -> dict[str, Any]:
        """The JSON of one request."""
        if not request.messages:
            raise ConfigError(
                f"request {request.key} has no messages; an endpoint takes messages, so the runner must pass them along"
            )
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [message_to_openai(message, self._load_image) for message in request.messages],
            "temperature": request.params.temperature,
            self._options.max_tokens_key: request.max_tokens,
        }
        if request.params.top_p < 1.0:
            body["top_p"] = request.params.top_p
        if request.params.top_k > 0:
            body["top_k"] = request.params.top_k
        if self._options.send_seed:
            body["seed"] = request.seed % 2**31
        if request.tools:
            body["tools"] = [tool.to_openai() for tool in request.tools]
        return body | dict(self._options.extra_body)

    def _read(self, data: Mapping[str, Any], request: SampleRequest) -> Sample:
        """The sample in a completion.  Raises `AttemptFailed` where it is not one."""
        self._endpoint.count(data.get("usage"))
        turn = sum(message.role is Role.ASSISTANT for message in request.messages)
        try:
            choice = data["choices"][0]
            message = message_from_openai(choice["message"], turn=turn)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise malformed(f"not a chat completion ({type(error).__name__}: {error})") from error
        finish = Finish.LENGTH if choice.get("finish_reason") == "length" else Finish.STOP
        return Sample(message=message, finish=finish)
