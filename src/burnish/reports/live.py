"""The live page of a run: a small server on this machine alone."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from burnish.core.errors import ConfigError, StoreError
from burnish.reports.data import RunData
from burnish.reports.page import content_policy, render_page
from burnish.reports.trajectories import Filter

HOSTS = ("127.0.0.1", "localhost")
"""Names in the Host header that are answered.  Any other name was made to point here by somebody else's DNS."""
_IDLE_S = 30.0

MetricsPage = Callable[[Path], tuple[bytes, str]]
"""What /metrics answers for a run, and its content type; handed in, since it is somebody else's format."""

OverrideSink = Callable[[Path, Mapping[str, Any]], None]
"""Takes a person's word on a trajectory and stores it; handed in, since this room only reads."""

TOKEN_HEADER = "X-Burnish-Token"
_MAX_BODY = 20_000


class LiveServer:
    """Serves one run on 127.0.0.1; bound when made, answers within `serve_forever` or after `start`."""

    def __init__(
        self,
        run_dir: Path | str,
        port: int = 0,
        *,
        metrics: MetricsPage | None = None,
        override: OverrideSink | None = None,
    ) -> None:
        try:
            self._server = _Server(RunData(run_dir), port, metrics, override)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"port {port} of 127.0.0.1 cannot be used: {error}; choose another, or 0 for any"
            ) from error
        self._serving = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where the page is, such as "http://127.0.0.1:8765/"."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    @property
    def token(self) -> str:
        """What a request that adds an override has to carry; fresh for each server."""
        return self._server.token

    def serve_forever(self) -> None:
        """Answer requests until `close` is called from another thread, or Ctrl-C."""
        self._serving.set()
        self._server.serve_forever(poll_interval=0.2)

    def start(self) -> Self:
        """Answer requests in a background thread."""
        self._serving.set()
        self._thread = threading.Thread(target=self.serve_forever, name="burnish-live-page", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop answering and give the port back."""
        if self._serving.is_set():
            self._server.shutdown()
        if self._thread is not None:
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(
    run_dir: Path | str, port: int = 0, *, metrics: MetricsPage | None = None, override: OverrideSink | None = None
) -> LiveServer:
    """A server for the live page of a run, bound to 127.0.0.1 (port 0: any free one); not yet answering.

    The page follows the run while it goes on, and lists and opens every trajectory; `metrics` answers /metrics;
    `override` takes what is posted to /api/override with the server's token.
    Raises StoreError where there is no run, ConfigError for a port that cannot be used.
    """
    return LiveServer(run_dir, port, metrics=metrics, override=override)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, data: RunData, port: int, metrics: MetricsPage | None, override: OverrideSink | None) -> None:
        self.data, self.metrics, self.override = data, metrics, override
        self.token = secrets.token_urlsafe(24)
        super().__init__(("127.0.0.1", port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    """GET / (page), /api/overview?revision=, /api/trajectories?phase=&step=&..., /api/trajectory?id=, /metrics;
    POST /api/override with the token"""

    # One request on each connection: none is left open that would be answered after `close`.
    protocol_version = "HTTP/1.0"
    timeout = _IDLE_S
    server: _Server

    def do_GET(self) -> None:
        if self._host() not in HOSTS:
            self._send_error(HTTPStatus.FORBIDDEN, "this page is for 127.0.0.1 and localhost")
            return
        address = urlsplit(self.path)
        values = dict(parse_qsl(address.query, keep_blank_values=True))
        try:
            self._answer(address.path, values)
        except ConfigError as error:
            self._send_error(HTTPStatus.BAD_REQUEST, str(error))
        except StoreError as error:
            is_one = address.path == "/api/trajectory"
            self._send_error(HTTPStatus.NOT_FOUND if is_one else HTTPStatus.SERVICE_UNAVAILABLE, str(error))

    def do_POST(self) -> None:
        sink = self.server.override
        if self._host() not in HOSTS:
            self._send_error(HTTPStatus.FORBIDDEN, "this page is for 127.0.0.1 and localhost")
        elif sink is None:
            self._send_error(HTTPStatus.NOT_IMPLEMENTED, "nothing can be changed here")
        elif urlsplit(self.path).path != "/api/override":
            self._send_error(HTTPStatus.NOT_FOUND, "there is no such page")
        elif not secrets.compare_digest(self.headers.get(TOKEN_HEADER, "").encode(), self.server.token.encode()):
            self._send_error(HTTPStatus.FORBIDDEN, f"the header {TOKEN_HEADER} does not hold this server's token")
        else:
            try:
                sink(self.server.data.root, self._body())
                self._send_json({"stored": True})
            except (ConfigError, StoreError) as error:
                self._send_error(HTTPStatus.BAD_REQUEST, str(error))

    def _body(self) -> dict[str, Any]:
        """The object that was posted.  Raises ConfigError where it is none."""
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > _MAX_BODY:
            raise ConfigError(f"an override has at most {_MAX_BODY} bytes, and says how many")
        try:
            value = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"an override is a JSON object: {error}") from error
        if not isinstance(value, dict):
            raise ConfigError("an override is a JSON object")
        return value

    def _answer(self, path: str, values: Mapping[str, str]) -> None:
        data = self.server.data
        if path == "/":
            writable = {} if self.server.override is None else {"token_header": TOKEN_HEADER}
            page = render_page({"mode": "live", **writable}, title=data.root.resolve().name)
            self._send(HTTPStatus.OK, page.encode(), "text/html; charset=utf-8")
        elif path == "/api/overview":
            if values.get("revision") == data.revision():
                self._send_json({"unchanged": True})
            else:
                self._send_json(data.overview())
        elif path == "/api/trajectories":
            self._send_json(data.list(Filter.parse(values)))
        elif path == "/api/trajectory":
            self._send_json(data.trajectory(values.get("id", "")))
        elif path == "/metrics" and self.server.metrics is not None:
            self._send(HTTPStatus.OK, *self.server.metrics(data.root))
        else:
            self._send_error(HTTPStatus.NOT_FOUND, "there is no such page")

    def _host(self) -> str:
        """The name in the Host header.  The port may be another one, as with a forwarded port."""
        return (self.headers.get("Host") or "").partition(":")[0].lower()

    def _send_json(self, value: Mapping[str, Any]) -> None:
        body = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
        self._send(HTTPStatus.OK, body, "application/json")

    def _send_error(self, status: HTTPStatus, text: str) -> None:
        self._send(status, json.dumps({"error": text}).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Security-Policy", content_policy(is_live=True) + "; frame-ancestors 'none'")
            self.send_header("Cross-Origin-Resource-Policy", "same-origin")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Referrer-Policy", "no-referrer")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged: only the command line prints."""
