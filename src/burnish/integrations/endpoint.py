"""Requests to a model server over HTTP: attempts, waits between them, and typed failures.

One `Endpoint` stands for one server.  It bounds what is in flight, tries again what may pass by itself, holds all
requests back while the server asks for it (`Retry-After`), and raises `EndpointError` once one has failed for good.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from random import Random
from typing import Any, TypeVar

import anyio
import httpx

from burnish.core.errors import BurnishError, ConfigError, SamplerError
from burnish.core.sampling import Sample, SampleRequest

T = TypeVar("T")


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
    EndpointCause.MALFORMED_RESPONSE: "check that base_url ends where the server's route begins (often in /v1)",
    EndpointCause.UNAUTHORIZED: "check the API key",
    EndpointCause.NOT_FOUND: "check base_url and the model's name",
    EndpointCause.REFUSED: "the server names the reason above; options such as max_tokens_key may have to change",
    EndpointCause.CONTEXT_TOO_LONG: "lower the limits of the task",
}


class EndpointError(SamplerError):
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


class AttemptFailed(Exception):
    """One attempt gave no answer; `retry_after_s` is what the server asked for (None: nothing)."""

    def __init__(
        self, cause: EndpointCause, detail: str, *, status: int = 0, retry_after_s: float | None = None
    ) -> None:
        self.cause, self.detail, self.status, self.retry_after_s = cause, detail, status, retry_after_s
        super().__init__(detail)


def malformed(detail: str) -> AttemptFailed:
    """What came with status 200 is not an answer."""
    return AttemptFailed(EndpointCause.MALFORMED_RESPONSE, detail, status=200)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointOptions:
    """How to talk to an endpoint.  `EndpointOptions(max_in_flight=4, timeout_s=30.0)`

    timeout_s: of one attempt.  max_attempts: tries of one request, the first included.  The wait before try k is drawn
    uniformly from [0, min(max_backoff_s, backoff_s * 2**k)] (full jitter), or is what `Retry-After` asks for, up to
    max_retry_after_s.  max_in_flight: concurrent requests.  max_response_bytes: a longer body is malformed.
    """

    timeout_s: float = 120.0
    max_attempts: int = 6
    backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    max_retry_after_s: float = 120.0
    max_in_flight: int = 16
    max_response_bytes: int = 8_000_000

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


@dataclass(slots=True)
class Line:
    """The connections of one event loop; they belong to it, and loops come and go.  setup: held by whoever finds out
    about the server first."""

    client: httpx.AsyncClient
    limiter: anyio.CapacityLimiter
    setup: anyio.Lock
    users: int = 0


class Endpoint:
    """One server.  `Endpoint("http://127.0.0.1:8000/v1", api_key="...")`.  sleep and transport are seams for tests.

    Connections are kept while anything is in flight, or inside `async with endpoint.line():`.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str = "",
        *,
        options: EndpointOptions | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(
                f"base_url is a http:// or https:// address such as http://127.0.0.1:8000/v1, got {base_url!r}"
            )
        self.base_url = base_url.rstrip("/")
        self.usage = EndpointUsage()
        self.options = options or EndpointOptions()
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._sleep = sleep
        self._transport = transport
        # Made once: reading the certificates takes longer than a request.
        self._trust = httpx.create_ssl_context() if base_url.startswith("https://") else False
        self._lines: dict[asyncio.AbstractEventLoop, Line] = {}
        self._resume_at_s = 0.0

    @asynccontextmanager
    async def line(self) -> AsyncIterator[Line]:
        """Keep connections open."""
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is None:
            most = self.options.max_in_flight
            client = httpx.AsyncClient(
                headers=self._headers,
                timeout=self.options.timeout_s,
                transport=self._transport,
                verify=self._trust,
                limits=httpx.Limits(max_connections=most + 1, max_keepalive_connections=most + 1),
            )
            line = self._lines[loop] = Line(client, anyio.CapacityLimiter(most), anyio.Lock())
        line.users += 1
        try:
            yield line
        finally:
            line.users -= 1
            if not line.users:
                del self._lines[loop]
                with anyio.CancelScope(shield=True):
                    await line.client.aclose()

    async def post(
        self, path: str, body: Mapping[str, Any], read: Callable[[dict[str, Any]], T], *, seed: int = 0
    ) -> T:
        """`read` of what the server answers; tried until it succeeds or has failed for good (`EndpointError`).

        path: below base_url, such as "/completions".  seed: of the jitter.
        """
        return await self._ask("POST", path, body, read, seed)

    async def get(self, path: str, read: Callable[[dict[str, Any]], T]) -> T:
        """As `post`."""
        return await self._ask("GET", path, None, read, 0)

    def count(self, usage: Any) -> None:
        """Add the `usage` of an answer."""
        if isinstance(usage, Mapping):
            self.usage = replace(
                self.usage,
                prompt_tokens=self.usage.prompt_tokens + _count(usage.get("prompt_tokens")),
                completion_tokens=self.usage.completion_tokens + _count(usage.get("completion_tokens")),
            )

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, read: Callable[[dict[str, Any]], T], seed: int
    ) -> T:
        jitter = Random(seed)
        url = self.base_url + path
        async with self.line() as line, line.limiter:
            for attempt in range(1, self.options.max_attempts + 1):
                await self._wait_for_quota()
                try:
                    return read(await self._attempt(line.client, method, url, body))
                except AttemptFailed as failure:
                    if failure.cause not in _RETRIED or attempt == self.options.max_attempts:
                        raise EndpointError(
                            failure.cause, f"{url}: {failure.detail}", status=failure.status, attempts=attempt
                        ) from failure
                    await self._back_off(failure, attempt, jitter)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _wait_for_quota(self) -> None:
        """A rate limit that one request met holds the others back too."""
        delay_s = self._resume_at_s - time.monotonic()
        if delay_s > 0:
            await self._sleep(delay_s)

    async def _back_off(self, failure: AttemptFailed, attempt: int, jitter: Random) -> None:
        options = self.options
        self.usage = replace(self.usage, retries=self.usage.retries + 1)
        delay_s = jitter.uniform(0.0, min(options.max_backoff_s, options.backoff_s * 2.0**attempt))
        if failure.retry_after_s is not None:
            # A little jitter on top, so that the held-back requests do not come all at once.
            delay_s = min(failure.retry_after_s, options.max_retry_after_s) + jitter.uniform(0.0, options.backoff_s)
        if failure.cause is EndpointCause.RATE_LIMITED:
            self._resume_at_s = max(self._resume_at_s, time.monotonic() + delay_s)
            return
        await self._sleep(delay_s)

    async def _attempt(
        self, client: httpx.AsyncClient, method: str, url: str, body: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """One attempt; the decoded JSON object.  Raises `AttemptFailed`."""
        self.usage = replace(self.usage, requests=self.usage.requests + 1)
        content = bytearray()
        try:
            async with client.stream(method, url, json=body) as response:
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > self.options.max_response_bytes:
                        raise AttemptFailed(
                            EndpointCause.MALFORMED_RESPONSE,
                            f"the answer is longer than {self.options.max_response_bytes} bytes",
                            status=response.status_code,
                        )
        except httpx.TimeoutException as error:
            raise AttemptFailed(EndpointCause.TIMEOUT, f"no answer within {self.options.timeout_s} s") from error
        except (httpx.RemoteProtocolError, httpx.DecodingError) as error:
            raise AttemptFailed(EndpointCause.MALFORMED_RESPONSE, f"not HTTP as expected ({error})") from error
        except httpx.TransportError as error:
            raise AttemptFailed(EndpointCause.UNREACHABLE, str(error) or type(error).__name__) from error
        if response.status_code != httpx.codes.OK:
            raise _status_failure(response, bytes(content))
        return _object(bytes(content))


async def sample_all(
    requests: Sequence[SampleRequest], one: Callable[[SampleRequest], Awaitable[Sample]]
) -> list[Sample]:
    """Ask for every request at once; samples in the order of the requests.

    Where one fails with a `BurnishError`, the others are cancelled and it is raised.
    """
    samples: list[Sample | None] = [None] * len(requests)
    failures: list[BurnishError] = []
    async with anyio.create_task_group() as group:

        async def ask(index: int, request: SampleRequest) -> None:
            try:
                samples[index] = await one(request)
            except BurnishError as error:
                failures.append(error)
                group.cancel_scope.cancel()

        for index, request in enumerate(requests):
            group.start_soon(ask, index, request)
    if failures:
        raise failures[0]
    return [sample for sample in samples if sample is not None]


def _object(content: bytes) -> dict[str, Any]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise malformed(f"the answer is not JSON: {_excerpt(content)}") from error
    if not isinstance(data, dict):
        raise malformed(f"the answer is not a JSON object: {_excerpt(content)}")
    return data


def _status_failure(response: httpx.Response, content: bytes) -> AttemptFailed:
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
    return AttemptFailed(
        cause, detail, status=status, retry_after_s=retry_after_s(response.headers.get("Retry-After", ""))
    )


def _says_context_too_long(content: bytes) -> bool:
    # The code is OpenAI's; the phrases are what vLLM (the last for a prompt that fills the context exactly), SGLang and
    # llama.cpp write.
    text = content[:4000].lower()
    return any(
        phrase in text
        for phrase in (
            b"context_length_exceeded",
            b"maximum context length",
            b"exceeds the available context size",
            b"max_tokens must be at least 1, got 0",
        )
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
