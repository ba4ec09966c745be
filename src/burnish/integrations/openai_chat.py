"""A sampler over any endpoint that speaks the OpenAI chat-completions protocol.

Such an endpoint takes messages and gives messages, no token ids: what it produces can be evaluated, never trained on.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from random import Random
from typing import Any, Literal

import anyio
import httpx

from burnish.core.errors import BurnishError, ConfigError
from burnish.core.message import ImagePart, Message, Part, Role, TextPart, ToolCall
from burnish.core.sampling import Finish, Sample, SampleRequest
from burnish.core.text import clean_text


class EndpointCause(StrEnum):
    """Why an endpoint gave no usable answer."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    MALFORMED_RESPONSE = "malformed_response"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    REFUSED = "refused"
    CONTEXT_TOO_LONG = "context_too_long"


_RETRIED = frozenset(
    {
        EndpointCause.UNREACHABLE,
        EndpointCause.TIMEOUT,
        EndpointCause.RATE_LIMITED,
        EndpointCause.SERVER_ERROR,
        EndpointCause.MALFORMED_RESPONSE,
    }
)

_ADVICE = {
    EndpointCause.UNREACHABLE: "check base_url and that the server runs",
    EndpointCause.TIMEOUT: "raise timeout_s or lower max_in_flight",
    EndpointCause.RATE_LIMITED: "lower max_in_flight or raise max_attempts",
    EndpointCause.SERVER_ERROR: "look at the server's log, or try again later",
    EndpointCause.MALFORMED_RESPONSE: "check that base_url ends where /chat/completions begins (often in /v1)",
    EndpointCause.UNAUTHORIZED: "check the API key",
    EndpointCause.NOT_FOUND: "check base_url and the model's name",
    EndpointCause.REFUSED: "the server names the reason above; options such as max_tokens_key may have to change",
    EndpointCause.CONTEXT_TOO_LONG: "lower the limits of the task",
}


class EndpointError(BurnishError):
    """An endpoint failed for good: after every attempt, or in a way that another attempt would not mend.

    `cause` is a code for counts, `status` the HTTP status (0 without a response), `attempts` how often it was tried.
    """

    def __init__(self, cause: EndpointCause, detail: str, *, status: int = 0, attempts: int = 1) -> None:
        self.cause = cause
        self.status = status
        self.attempts = attempts
        self.detail = detail
        tries = f" after {attempts} attempts" if attempts > 1 else ""
        super().__init__(f"endpoint {cause}{tries}: {detail}; {_ADVICE[cause]}")


class _AttemptFailed(Exception):
    """One attempt gave no answer; `retry_after_s` is what the server asked for (None: nothing)."""

    def __init__(
        self, cause: EndpointCause, detail: str, *, status: int = 0, retry_after_s: float | None = None
    ) -> None:
        self.cause, self.detail, self.status, self.retry_after_s = cause, detail, status, retry_after_s
        super().__init__(detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How to talk to an endpoint.  `ChatOptions(max_in_flight=4, timeout_s=30.0)`

    timeout_s: of one attempt.  max_attempts: tries of one request, the first included.  The wait before try k is drawn
    uniformly from [0, min(max_backoff_s, backoff_s * 2**k)] (full jitter), or is what `Retry-After` asks for, up to
    max_retry_after_s.  max_in_flight: concurrent requests.  max_response_bytes: a longer body is malformed.
    max_tokens_key: some servers only know the second name.  extra_body: merged into every request.
    """

    timeout_s: float = 120.0
    max_attempts: int = 6
    backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    max_retry_after_s: float = 120.0
    max_in_flight: int = 16
    max_response_bytes: int = 8_000_000
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    send_seed: bool = True
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.max_in_flight < 1:
            raise ConfigError(
                f"max_attempts and max_in_flight are at least 1, got {self.max_attempts} and {self.max_in_flight}"
            )
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise ConfigError(f"timeout_s is a positive number of seconds, got {self.timeout_s}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointUsage:
    """What an endpoint was asked for so far.  `EndpointUsage(requests=10, retries=2, prompt_tokens=900)`"""

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


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
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(
                f"base_url is a http:// or https:// address such as http://127.0.0.1:8000/v1, got {base_url!r}"
            )
        if not model:
            raise ConfigError("model is empty; name the model that the endpoint serves")
        self.model = model
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._options = options or ChatOptions()
        self._load_image = load_image
        self._sleep = sleep
        self._transport = transport
        self._usage = EndpointUsage()
        self._resume_at_s = 0.0

    @property
    def usage(self) -> EndpointUsage:
        """Requests, retries and tokens so far, as the endpoint counts them."""
        return self._usage

    async def sample(self, requests: Sequence[SampleRequest]) -> Sequence[Sample]:
        """One sample for each request, in order."""
        samples: list[Sample | None] = [None] * len(requests)
        failures: list[EndpointError] = []
        bodies = [self._body(request) for request in requests]
        limiter = anyio.CapacityLimiter(self._options.max_in_flight)
        # The client lives for one batch: its connections belong to the running event loop, and loops come and go.
        async with (
            httpx.AsyncClient(
                headers=self._headers, timeout=self._options.timeout_s, transport=self._transport
            ) as client,
            anyio.create_task_group() as group,
        ):

            async def one(index: int, request: SampleRequest) -> None:
                async with limiter:
                    try:
                        samples[index] = await self._complete(client, request, bodies[index])
                    except EndpointError as error:
                        failures.append(error)
                        group.cancel_scope.cancel()

            for index, request in enumerate(requests):
                group.start_soon(one, index, request)
        if failures:
            raise failures[0]
        return [sample for sample in samples if sample is not None]

    async def _complete(self, client: httpx.AsyncClient, request: SampleRequest, body: Mapping[str, Any]) -> Sample:
        """Try one request until it is answered or has failed for good."""
        jitter = Random(request.seed)
        for attempt in range(1, self._options.max_attempts + 1):
            await self._wait_for_quota()
            try:
                return self._read(await self._post(client, body), request)
            except _AttemptFailed as failure:
                if failure.cause is EndpointCause.CONTEXT_TOO_LONG:
                    return Sample(message=Message.assistant(""), finish=Finish.LENGTH)
                if failure.cause not in _RETRIED or attempt == self._options.max_attempts:
                    raise EndpointError(
                        failure.cause, f"{self._url}: {failure.detail}", status=failure.status, attempts=attempt
                    ) from failure
                await self._back_off(failure, attempt, jitter)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _wait_for_quota(self) -> None:
        """A rate limit that one request met holds the others back too."""
        delay_s = self._resume_at_s - time.monotonic()
        if delay_s > 0:
            await self._sleep(delay_s)

    async def _back_off(self, failure: _AttemptFailed, attempt: int, jitter: Random) -> None:
        options = self._options
        self._usage = replace(self._usage, retries=self._usage.retries + 1)
        delay_s = jitter.uniform(0.0, min(options.max_backoff_s, options.backoff_s * 2.0**attempt))
        if failure.retry_after_s is not None:
            # A little jitter on top, so that the held-back requests do not come all at once.
            delay_s = min(failure.retry_after_s, options.max_retry_after_s) + jitter.uniform(0.0, options.backoff_s)
        if failure.cause is EndpointCause.RATE_LIMITED:
            self._resume_at_s = max(self._resume_at_s, time.monotonic() + delay_s)
            return
        await self._sleep(delay_s)

    async def _post(self, client: httpx.AsyncClient, body: Mapping[str, Any]) -> dict[str, Any]:
        """One attempt; the decoded JSON object.  Raises `_AttemptFailed`."""
        self._usage = replace(self._usage, requests=self._usage.requests + 1)
        content = bytearray()
        try:
            async with client.stream("POST", self._url, json=body) as response:
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > self._options.max_response_bytes:
                        raise _AttemptFailed(
                            EndpointCause.MALFORMED_RESPONSE,
                            f"the answer is longer than {self._options.max_response_bytes} bytes",
                            status=response.status_code,
                        )
        except httpx.TimeoutException as error:
            raise _AttemptFailed(EndpointCause.TIMEOUT, f"no answer within {self._options.timeout_s} s") from error
        except (httpx.RemoteProtocolError, httpx.DecodingError) as error:
            raise _AttemptFailed(EndpointCause.MALFORMED_RESPONSE, f"not HTTP as expected ({error})") from error
        except httpx.TransportError as error:
            raise _AttemptFailed(EndpointCause.UNREACHABLE, str(error) or type(error).__name__) from error
        if response.status_code != httpx.codes.OK:
            raise _status_failure(response, bytes(content))
        return _object(bytes(content))

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
        """The sample in a completion.  Raises `_AttemptFailed` where it is not one."""
        usage = data.get("usage")
        if isinstance(usage, Mapping):
            self._usage = replace(
                self._usage,
                prompt_tokens=self._usage.prompt_tokens + _count(usage.get("prompt_tokens")),
                completion_tokens=self._usage.completion_tokens + _count(usage.get("completion_tokens")),
            )
        turn = sum(message.role is Role.ASSISTANT for message in request.messages)
        try:
            choice = data["choices"][0]
            message = message_from_openai(choice["message"], turn=turn)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise _AttemptFailed(
                EndpointCause.MALFORMED_RESPONSE, f"not a chat completion ({type(error).__name__}: {error})", status=200
            ) from error
        finish = Finish.LENGTH if choice.get("finish_reason") == "length" else Finish.STOP
        return Sample(message=message, finish=finish)


def message_to_openai(message: Message, load_image: Callable[[ImagePart], bytes] | None = None) -> dict[str, Any]:
    """The chat-completions form of a message.

    >>> message_to_openai(Message.user("hi"))
    {'role': 'user', 'content': 'hi'}

    Raises ConfigError for an image where `load_image` is None.
    """
    if message.role is Role.TOOL:
        return {"role": "tool", "tool_call_id": message.tool_call_id, "content": message.text}
    if message.role is Role.ASSISTANT:
        data: dict[str, Any] = {"role": "assistant", "content": message.text or None}
        if message.tool_calls:
            data["tool_calls"] = [_call_to_openai(call) for call in message.tool_calls]
        elif not message.text:
            data["content"] = ""
        return data
    if message.images:
        return {"role": message.role.value, "content": [_part_to_openai(part, load_image) for part in message.parts]}
    return {"role": message.role.value, "content": message.text}


def message_from_openai(data: Mapping[str, Any], *, turn: int = 0) -> Message:
    """The assistant message in a completion; a call that cannot be read has `ToolCall.error` set.

    turn: index of this action in the episode, used to name calls that came without an id.

    >>> message_from_openai({"content": "4"}).text
    '4'

    Raises TypeError or ValueError where `data` is no such message.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"a message is an object, got {type(data).__name__}")
    content = data.get("content") or data.get("refusal") or ""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    if not isinstance(content, str):
        raise TypeError(f"the content of a message is text, got {type(content).__name__}")
    calls = data.get("tool_calls") or []
    if not isinstance(calls, list):
        raise TypeError(f"tool_calls is a list, got {type(calls).__name__}")
    return Message.assistant(
        clean_text(content), tuple(_call_from_openai(call, f"call_{turn}_{i}") for i, call in enumerate(calls))
    )


def _call_to_openai(call: ToolCall) -> dict[str, Any]:
    # A call that could not be read goes back without arguments: servers reject a history with invalid JSON in it.
    function = {"name": call.name or "unreadable", "arguments": json.dumps(dict(call.arguments), allow_nan=False)}
    return {"id": call.id, "type": "function", "function": function}


def _call_from_openai(data: Any, default_id: str) -> ToolCall:
    if not isinstance(data, Mapping):
        return ToolCall(id=default_id, name="", error="the call is not an object")
    given_id, function = data.get("id"), data.get("function")
    call_id = clean_text(given_id) if isinstance(given_id, str) and given_id else default_id
    if not isinstance(function, Mapping):
        return ToolCall(id=call_id, name="", error="the call has no function")
    given_name = function.get("name")
    name = clean_text(given_name) if isinstance(given_name, str) else ""
    if not name:
        return ToolCall(id=call_id, name="", error="the call has no name")
    try:
        arguments = _arguments(function.get("arguments"))
    except (ValueError, RecursionError) as error:
        return ToolCall(id=call_id, name=name, error=f"the arguments cannot be read: {error}")
    return ToolCall(id=call_id, name=name, arguments=arguments)


def _arguments(raw: Any) -> dict[str, Any]:
    """Arguments as an object.  Raises ValueError for anything else, RecursionError for absurd nesting."""
    if raw in (None, ""):
        return {}
    # Some servers send the object itself instead of its text; it must be as strict.
    value = _strict_json(raw if isinstance(raw, str) else json.dumps(raw, allow_nan=False))
    if not isinstance(value, dict):
        raise ValueError(f"arguments are a JSON object, got {type(value).__name__}")
    return value


def _strict_json(text: str) -> Any:
    """JSON without what Python's parser lets pass: NaN, infinities, repeated keys, lone surrogates."""

    def no_constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    def finite(literal: str) -> float:
        value = float(literal)
        if not math.isfinite(value):
            raise ValueError(f"{literal} is too large")
        return value

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is repeated")
        return dict(pairs)

    return _clean(json.loads(text, parse_constant=no_constant, parse_float=finite, object_pairs_hook=unique))


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {clean_text(key): _clean(item) for key, item in value.items()}
    return value


def _part_to_openai(part: Part, load_image: Callable[[ImagePart], bytes] | None) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if load_image is None:
        raise ConfigError(f"a message holds image {part.sha256[:12]}; give OpenAIChatSampler load_image to send images")
    data = base64.b64encode(load_image(part)).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:{part.media_type};base64,{data}"}}


def _object(content: bytes) -> dict[str, Any]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _AttemptFailed(
            EndpointCause.MALFORMED_RESPONSE, f"the answer is not JSON: {_excerpt(content)}", status=200
        ) from error
    if not isinstance(data, dict):
        raise _AttemptFailed(
            EndpointCause.MALFORMED_RESPONSE, f"the answer is not a JSON object: {_excerpt(content)}", status=200
        )
    return data


def _status_failure(response: httpx.Response, content: bytes) -> _AttemptFailed:
    status = response.status_code
    detail = f"HTTP {status}: {_excerpt(content)}"
    if status == 429:
        cause = EndpointCause.RATE_LIMITED
    elif status >= 500 or status in (408, 409, 425):
        cause = EndpointCause.SERVER_ERROR
    elif status in (401, 403):
        cause = EndpointCause.UNAUTHORIZED
    elif status == 404:
        cause = EndpointCause.NOT_FOUND
    elif status in (400, 413, 422) and _says_context_too_long(content):
        cause = EndpointCause.CONTEXT_TOO_LONG
    else:
        cause = EndpointCause.REFUSED
    return _AttemptFailed(
        cause, detail, status=status, retry_after_s=retry_after_s(response.headers.get("Retry-After", ""))
    )


def _says_context_too_long(content: bytes) -> bool:
    # The code is OpenAI's; the phrases are what vLLM, SGLang and llama.cpp write.
    text = content[:4000].lower()
    return any(
        phrase in text
        for phrase in (b"context_length_exceeded", b"maximum context length", b"exceeds the available context size")
    )


def retry_after_s(header: str, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110 section 10.2.3: seconds or a date); None if unreadable.

    >>> retry_after_s("3"), retry_after_s("soon")
    (3.0, None)
    """
    try:
        seconds = float(header)
    except ValueError:
        pass
    else:
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


def _excerpt(content: bytes) -> str:
    text = "".join(c if c.isprintable() else " " for c in content[:200].decode("utf-8", "replace"))
    return text if len(content) <= 200 else text + "..."


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
