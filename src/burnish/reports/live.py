"""The live page of a run: a small server on this machine alone."""

from __future__ import annotations

import json
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


class LiveServer:
    """Serves one run on 127.0.0.1; bound when made, answers within `serve_forever` or after `start`."""

    def __init__(self, run_dir: Path | str, port: int = 0, *, metrics: MetricsPage | None = None) -> None:
        try:
            self._server = _Server(RunData(run_dir), port, metrics)
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


def serve(run_dir: Path | str, port: int = 0, *, metrics: MetricsPage | None = None) -> LiveServer:
    """A server for the live page of a run, bound to 127.0.0.1 (port 0: any free one); not yet answering.

    The page follows the run while it goes on, and lists and opens every trajectory; `metrics` answers /metrics.
    Raises StoreError where there is no run, ConfigError for a port that cannot be used.
    """
    return LiveServer(run_dir, port, metrics=metrics)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, data: RunData, port: int, metrics: MetricsPage | None) -> None:
        self.data, self.metrics = data, metrics
        super().__init__(("127.0.0.1", port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    """GET / (page), /api/overview?revision=, /api/trajectories?phase=&step=&..., /api/trajectory?id=, /metrics"""

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

    def _answer(self, path: str, values: Mapping[str, str]) -> None:
        data = self.server.data
        if path == "/":
            page = render_page({"mode": "live"}, title=data.root.resolve().name)
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
