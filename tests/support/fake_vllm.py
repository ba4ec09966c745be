"""A small server on 127.0.0.1 that answers like vLLM, and misbehaves on request.

It draws from a table of 8 tokens that depends on the token before alone; its "weights" are one number, the mean of the
vectors in the file that it was told to load.
"""

from __future__ import annotations

import hashlib
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

from safetensors.numpy import load_file

VOCAB = 8
PROBE = list(range(1, 8))
STOP = 0

Fault = Callable[["Handler", dict[str, Any]], bool]
"""Spoils an answer, given the JSON that would have been sent; true where it has answered (or hung up) by itself."""


class FakeVllm:
    """What the server holds and was asked for.

    faults: each spoils one completion, in the order of arrival.  delay_s: for each token.  processed: log-probabilities
    after temperature and filters.  withheld: weight updates are acknowledged and not made.
    """

    def __init__(self) -> None:
        self.url = ""
        self.faults: list[Fault] = []
        self.bodies: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.delay_s = 0.0
        self.processed = True
        self.withheld = False
        self.max_model_len: int | None = 64
        self.missing: set[str] = set()
        self.shift = 0.0
        self.version = "default"
        self.sums: dict[str, str] = {}
        self.running = 0
        self.most_running = 0
        self.open = threading.Event()
        self.open.set()
        self.lock = threading.Lock()

    @property
    def drawn(self) -> list[dict[str, Any]]:
        """Bodies of the requests for actions, without those by which a sampler finds out what the server is."""
        return [body for body in self.bodies if body["prompt"] != PROBE]

    def weights(self, last: int) -> list[float]:
        """Scores of the next token."""
        return [1.0 + (last * 7 + token * 3 + round(self.shift * 1000)) % 11 for token in range(VOCAB)]

    def distribution(self, last: int, body: dict[str, Any]) -> list[float]:
        """Probabilities of the next token under the request's settings."""
        temperature = body["temperature"] or 1.0
        scores = [math.log(weight) / temperature for weight in self.weights(last)]
        order = sorted(range(VOCAB), key=lambda token: -scores[token])
        top_k = 1 if body["temperature"] == 0 else body["top_k"] or VOCAB
        kept, mass, total = set(), 0.0, sum(math.exp(scores[token]) for token in order[:top_k])
        for token in order[:top_k]:
            if kept and mass >= body["top_p"]:
                break
            kept.add(token)
            mass += math.exp(scores[token]) / total
        chances = [math.exp(score) if token in kept else 0.0 for token, score in enumerate(scores)]
        return [chance / sum(chances) for chance in chances]

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Draw an action."""
        rng, last = Random(body.get("seed")), body["prompt"][-1]
        ids: list[int] = []
        logprobs: list[float] = []
        tops: list[dict[str, float]] = []
        reason = "length"
        while len(ids) < body["max_tokens"]:
            if ids and not self.open.is_set():
                reason = "abort"
                break
            self.open.wait()
            time.sleep(self.delay_s)
            drawn_from = self.distribution(last, body)
            shown = drawn_from if self.processed else self.distribution(last, body | PLAIN)
            last = rng.choices(range(VOCAB), drawn_from)[0]
            ids.append(last)
            logs = [math.log(chance) if chance else -9999.0 for chance in shown]
            logprobs.append(logs[last])
            best = sorted(range(VOCAB), key=lambda token, logs=logs: -logs[token])[: body["logprobs"]]
            tops.append({f"token_id:{token}": logs[token] for token in {last, *best}})
            if last in body["stop_token_ids"]:
                reason = "stop"
                break
        choice = {
            "token_ids": ids,
            "prompt_token_ids": body["prompt"],
            "finish_reason": reason,
            "logprobs": {"token_logprobs": logprobs, "top_logprobs": tops},
        }
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(ids)}
        return {"choices": [choice], "usage": usage}

    def load(self, path: str) -> None:
        """Read new weights."""
        if self.withheld:
            return
        vectors = {
            name: tensor for name, tensor in load_file(Path(path) / "model.safetensors").items() if tensor.ndim == 1
        }
        self.sums = {
            f"dp0:tp0:{name}": hashlib.sha256(vector.tobytes()).hexdigest() for name, vector in vectors.items()
        }
        self.shift = float(sum(vector.mean() for vector in vectors.values()))

    def manage(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The routes outside /v1."""
        route = path.partition("?")[0]
        if route == "/pause":
            self.open.clear()
        elif route == "/resume":
            self.open.set()
        elif route == "/collective_rpc":
            self.load(body["kwargs"]["weights_path"])
        elif route == "/update_weight_version":
            self.version = body["new_version"]
        return {"success": True, "weight_version": self.version, "checksums": self.sums}


PLAIN = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}


class Handler(BaseHTTPRequestHandler):
    fake: FakeVllm
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.answer(200, {"data": [{"id": "policy", "max_model_len": self.fake.max_model_len}]})
        else:
            self._manage({})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/completions":
            self._manage(body)
            return
        fake = self.fake
        with fake.lock:
            fake.bodies.append(body)
            fault = fake.faults.pop(0) if fake.faults and body["prompt"] != PROBE else None
            fake.running += 1
            fake.most_running = max(fake.running, fake.most_running)
        data = fake.complete(body)
        with fake.lock:
            fake.running -= 1
        if fault is None or not fault(self, data):
            self.answer(200, data)

    def _manage(self, body: dict[str, Any]) -> None:
        self.fake.calls.append(self.path)
        if self.path.partition("?")[0] in self.fake.missing:
            self.answer(404, {"detail": "Not Found"})
        else:
            self.answer(200, self.fake.manage(self.path, body))

    def answer(self, status: int, content: dict[str, Any] | bytes, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def hang_up(self, content: bytes, promised: int) -> None:
        """Send less than was promised and drop the connection."""
        self.send_response(200)
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


def status(code: int, content: dict[str, Any] | bytes = b"broken", **headers: str) -> Fault:
    """Answer with this instead."""

    def fault(handler: Handler, _: dict[str, Any]) -> bool:
        handler.answer(code, content, **headers)
        return True

    return fault


def drop(handler: Handler, data: dict[str, Any]) -> bool:
    """Break off in the middle of the answer."""
    content = json.dumps(data).encode()
    handler.hang_up(content[: len(content) // 2], len(content))
    return True


def edit(change: Callable[[dict[str, Any]], Any]) -> Fault:
    """Change the choice before it is sent."""

    def fault(_: Handler, data: dict[str, Any]) -> bool:
        change(data["choices"][0])
        return False

    return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up in these tests."""


@contextmanager
def fake_vllm() -> Iterator[FakeVllm]:
    fake = FakeVllm()
    server = _Server(("127.0.0.1", 0), type("Bound", (Handler,), {"fake": fake}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        fake.open.set()
        server.shutdown()
        server.server_close()
