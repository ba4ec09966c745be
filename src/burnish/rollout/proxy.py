"""The HTTP front of captures: an OpenAI-compatible server on this machine, one address for each episode.

It runs on the event loop that is there already, the one on which the sampler decodes.  Addresses hold a token that
cannot be guessed; a client may also use the bare address with the token as its API key.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from burnish.core.errors import ConfigError
from burnish.rollout.capture import Capture
from burnish.rollout.chat_api import (
    ChatRequest,
    Completion,
    Refusal,
    completion_body,
    completion_events,
    models_body,
    read_request,
)

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

MODEL = "policy"
MAX_BODY_BYTES = 16_000_000
STOP_TIMEOUT_S = 5.0
CLIENT_CLOSED = 499

_NO_RETRY = {"x-should-retry": "false"}
"""The header by which OpenAI's clients are told not to try again, whatever the status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where one episode's program finds its policy.

    `Address(base_url="http://127.0.0.1:40123/e/Xy.../v1", api_key="Xy...", model="policy")`
    """

    base_url: str
    api_key: str
    model: str = MODEL


class CaptureServer:
    """The server of one process: `async with CaptureServer() as server:`, then `with server.open(capture) as address:`.

    Port 0 takes a free one.  Only this machine can reach it, unless `host` says otherwise.  Raises ConfigError where
    the extra `proxy` is not installed or the address is taken.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._host = host
        self._port = port
        self._max_body_bytes = max_body_bytes
        self._captures: dict[str, Capture] = {}
        self._server: Any = None
        self._serving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> CaptureServer:
        uvicorn = _uvicorn()
        try:
            listener = socket.create_server((self._host, self._port), backlog=2048)
        except OSError as error:
            raise ConfigError(f"the proxy cannot listen on {self._host}:{self._port}: {error}") from error
        self._port = listener.getsockname()[1]
        config = uvicorn.Config(
            _application(self),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            http="h11",
            timeout_graceful_shutdown=1,
        )
        self._server = _Quiet.of(uvicorn)(config)
        self._serving = asyncio.ensure_future(self._server.serve(sockets=[listener]))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._serving is not None
        self._server.should_exit = True
        done, _pending = await asyncio.wait([self._serving], timeout=STOP_TIMEOUT_S)
        if not done:
            self._serving.cancel()

    @contextlib.contextmanager
    def open(self, capture: Capture) -> Iterator[Address]:
        """Serve an episode; its address is unknown again afterwards."""
        token = secrets.token_urlsafe(24)
        self._captures[token] = capture
        try:
            yield Address(base_url=f"http://{self._host}:{self._port}/e/{token}/v1", api_key=token)
        finally:
            del self._captures[token]

    # -- handlers ------------------------------------------------------------------------------------------------

    async def _completions(self, request: Request) -> Response:
        from starlette.responses import JSONResponse, Response, StreamingResponse

        capture: Capture | None = None
        try:
            capture = self._capture(request)
            asked = await self._read(request, capture)
            completion = await _answered(capture, asked, request)
        except Refusal as refusal:
            return _refused(refusal)
        if completion is None:
            return Response(status_code=CLIENT_CLOSED)
        created_s = int(time.time())
        if not asked.stream:
            return JSONResponse(completion_body(completion, model=asked.model, created_s=created_s))
        events = completion_events(
            completion, model=asked.model, created_s=created_s, include_usage=asked.include_usage
        )
        return StreamingResponse(_each(events), media_type="text/event-stream")

    async def _models(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        try:
            self._capture(request)
        except Refusal as refusal:
            return _refused(refusal)
        return JSONResponse(models_body([MODEL]))

    def _capture(self, request: Request) -> Capture:
        token = request.path_params.get("token") or request.headers.get("authorization", "").removeprefix("Bearer ")
        capture = self._captures.get(token.strip())
        if capture is None:
            message = "no episode is open under this address or API key; use the base_url that the program was given"
            raise Refusal(message, code="invalid_api_key", status=401)
        return capture

    async def _read(self, request: Request, capture: Capture) -> ChatRequest:
        """The request in the body.  Raises Refusal, counted."""
        try:
            return read_request(await self._body(request), capture.params)
        except Refusal as refusal:
            capture.note_refusal(refusal)
            raise

    async def _body(self, request: Request) -> bytes:
        from starlette.requests import ClientDisconnect

        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > self._max_body_bytes:
                    message = f"the body is longer than {self._max_body_bytes} bytes"
                    raise Refusal(message, code="request_too_large", status=413)
        except ClientDisconnect as error:
            raise Refusal("the client went away", code="client_closed", status=CLIENT_CLOSED) from error
        return bytes(body)


async def _answered(capture: Capture, asked: ChatRequest, request: Request) -> Completion | None:
    """The answer; None where the program went away first, then the request is given up and leaves no action."""
    work = capture.begin(asked)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return None
        if work.cancelled():
            raise Refusal("this episode is over", code="episode_over")
        return work.result()
    finally:
        work.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _each(events: Iterator[bytes]) -> AsyncIterator[bytes]:
    for event in events:
        yield event


def _refused(refusal: Refusal) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(refusal.body, status_code=refusal.status, headers=_NO_RETRY)


def _application(server: CaptureServer) -> Any:
    from starlette.applications import Starlette
    from starlette.routing import Route

    async def unknown(request: Request, error: Exception) -> Response:
        what = f"{request.method} {request.url.path.rpartition('/v1')[2] or request.url.path}"
        message = f"{what} is not served here; this proxy has POST /chat/completions and GET /models"
        return _refused(Refusal(message, code="unsupported_endpoint", status=404))

    routes = []
    for prefix in ("/e/{token}/v1", "/v1"):
        routes.append(Route(f"{prefix}/chat/completions", server._completions, methods=["POST"]))
        routes.append(Route(f"{prefix}/models", server._models, methods=["GET"]))
    return Starlette(routes=routes, exception_handlers={404: unknown, 405: unknown})


def _uvicorn() -> ModuleType:
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ConfigError(
            f'programs that are trained through the proxy need it installed ({error}): pip install "burnish[proxy]"'
        ) from error
    return uvicorn


class _Quiet:
    """A uvicorn server that leaves the process's signals alone: they are the run's."""

    @staticmethod
    def of(uvicorn: ModuleType) -> Any:
        class Server(uvicorn.Server):  # type: ignore[name-defined,misc]
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

        return Server
