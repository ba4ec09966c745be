"""The live page's server: this machine alone, GET alone, always the newest step."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from synthetic_run import HOSTILE, SyntheticRun

from burnish.core.errors import ConfigError, StoreError
from burnish.reports.live import LiveServer, serve
from burnish.store.rows import RunState


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyntheticRun]:
    made = SyntheticRun(tmp_path_factory.mktemp("runs") / "live", spoil=HOSTILE)
    made.commit_sft()
    made.commit_rl_step()
    yield made
    made.writer.close()


@pytest.fixture(scope="module")
def server(run: SyntheticRun) -> Iterator[LiveServer]:
    with serve(run.folder) as running:
        yield running


def get(
    server: LiveServer, path: str, *, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=20)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def get_json(server: LiveServer, path: str) -> Any:
    status, headers, body = get(server, path)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    return json.loads(body)


def test_metrics_are_answered_only_where_they_are_handed_in(server: LiveServer, run: SyntheticRun) -> None:
    assert get(server, "/metrics")[0] == 404
    with serve(run.folder, metrics=lambda folder: (folder.name.encode(), "text/plain; version=1")) as other:
        status, headers, body = get(other, "/metrics")
        assert (status, headers["Content-Type"], body) == (200, "text/plain; version=1", b"live")
        assert get(other, "/metrics", headers={"Host": "evil.example"})[0] == 403


def test_the_page_is_the_same_page_in_live_mode(server: LiveServer) -> None:
    status, headers, body = get(server, "/")
    assert status == 200
    assert headers["Content-Type"].startswith("text/html")
    assert b'{"mode":"live"}' in body
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_it_listens_on_this_machine_alone(server: LiveServer) -> None:
    assert urlsplit(server.url).hostname == "127.0.0.1"
    assert server._server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1]:80", "localhost@evil"]
)
@pytest.mark.parametrize("path", ["/", "/api/overview", "/api/trajectory?id=rl/000001/0001/00"])
def test_another_name_for_this_machine_gets_nothing(server: LiveServer, host: str, path: str) -> None:
    status, _, body = get(server, path, headers={"Host": host})
    assert status == 403
    assert b"urgent" not in body


@pytest.mark.parametrize("host", ["localhost:9999", "127.0.0.1", "LOCALHOST"])
def test_the_usual_names_are_answered_also_through_a_forwarded_port(server: LiveServer, host: str) -> None:
    assert get(server, "/api/overview", headers={"Host": host})[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(server: LiveServer, method: str) -> None:
    assert get(server, "/api/overview", method=method)[0] == 501


def test_a_new_step_is_a_new_revision(run: SyntheticRun, server: LiveServer) -> None:
    first = get_json(server, "/api/overview")
    assert get_json(server, f"/api/overview?revision={first['revision']}") == {"unchanged": True}
    run.commit_rl_step()
    second = get_json(server, f"/api/overview?revision={first['revision']}")
    assert second["scalars"]["rl"]["steps"] == [*first["scalars"]["rl"]["steps"], run.rl_step]
    run.writer.event("finding", "entropy fell")
    third = get_json(server, f"/api/overview?revision={second['revision']}")
    assert third["events"][-1]["detail"] == "entropy fell"
    run.writer.set_status(RunState.STOPPED, "for a while")
    assert get_json(server, f"/api/overview?revision={third['revision']}")["status"]["state"] == "stopped"


def test_any_trajectory_is_listed_and_opened(server: LiveServer) -> None:
    page = get_json(server, "/api/trajectories?phase=rl&step=1&limit=5&offset=5")
    assert (page["total"], page["offset"], len(page["rows"])) == (24, 5, 5)
    whole = get_json(server, f"/api/trajectory?id={page['rows'][0]['id']}")
    assert whole["id"] == page["rows"][0]["id"]
    assert whole["texts"][str(whole["nodes"][1]["ids"][0])] == "<tool_call>"
    assert HOSTILE in whole["answer"]


@pytest.mark.parametrize(
    ("path", "status", "word"),
    [
        ("/nothing", 404, "no such page"),
        ("/../manifest.json", 404, "no such page"),
        ("/api/trajectory?id=rl/000009", 404, "no trajectory"),
        ("/api/trajectory", 404, "no trajectory"),
        ("/api/trajectories?step=x", 400, "whole numbers"),
        ("/api/trajectories?reward=big", 400, "reward is one of"),
    ],
)
def test_errors_are_answers(server: LiveServer, path: str, status: int, word: str) -> None:
    found, _, body = get(server, path)
    assert found == status
    assert word in json.loads(body)["error"]


def test_many_readers_at_once_get_the_same(server: LiveServer) -> None:
    bodies: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: bodies.append(get(server, "/api/trajectories?phase=rl")[2])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bodies) == 8
    assert len(set(bodies)) == 1


def test_a_client_that_hangs_up_harms_nobody(server: LiveServer) -> None:
    address = urlsplit(server.url)
    for _ in range(3):
        with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert get(server, "/api/overview")[0] == 200


def test_a_damaged_run_is_an_answer_too(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    run.commit_rl_step()
    run.writer.close()
    next(iter(run.writer.layout.segments.glob("rl-*"))).unlink()
    with serve(run.folder) as server:
        status, _, body = get(server, "/api/trajectories")
        assert status == 503
        assert "missing" in json.loads(body)["error"]
        assert get_json(server, "/api/overview")["problems"]


def test_closing_gives_the_port_back_whether_or_not_it_answered(run: SyntheticRun) -> None:
    server = serve(run.folder)
    port = urlsplit(server.url).port
    assert port is not None
    server.close()
    again = serve(run.folder, port)
    thread = threading.Thread(target=again.serve_forever)
    thread.start()
    assert get(again, "/")[0] == 200
    again.close()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_no_run_and_no_port_are_clear_errors(run: SyntheticRun, server: LiveServer, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        serve(tmp_path)
    port = urlsplit(server.url).port
    assert port is not None
    with pytest.raises(ConfigError, match=f"port {port}"):
        serve(run.folder, port)
    with pytest.raises(ConfigError, match="port 99999"):
        serve(run.folder, 99999)
