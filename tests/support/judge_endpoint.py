"""A server that speaks the chat-completions protocol and judges as its prompt asks, by a function."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Says = Callable[[str, str], int]
"""The value of a criterion, by its line in the prompt, for the material."""


@dataclass
class JudgeEndpoint:
    """`url`; the bodies and keys that came; `raw` is said in place of a judgement where it is set."""

    says: Says
    raw: str = ""
    url: str = ""
    keys: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def text(self, body: dict[str, Any]) -> str:
        """The reply to a question, its control statements answered rightly."""
        schema = body["response_format"]["json_schema"]["schema"]
        material, _, listed = body["messages"][1]["content"].rpartition("\n\nCriteria:\n")
        rows = []
        for number, line in enumerate(listed.split("\n"), start=1):
            is_control = line.startswith(f'{number}. The word "')
            value = int(line.split('"')[1] in material) if is_control else self.says(line, material)
            rows.append({"item": number, "quote": "", "reason": f"reason {number}", "value": value})
        return json.dumps({"nonce": schema["properties"]["nonce"]["enum"][0], "verdicts": rows})


@contextmanager
def judge_endpoint(says: Says = lambda line, material: 1, raw: str = "") -> Iterator[JudgeEndpoint]:
    """Serves until the block ends."""
    served = JudgeEndpoint(says=says, raw=raw)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.keys.append(self.headers["Authorization"])
            served.bodies.append(body)
            choice = {"message": {"content": served.raw or served.text(body)}, "finish_reason": "stop"}
            data = json.dumps({"model": body["model"], "choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
