"""Overrides: added to any run, never changed, and what they say about graders."""

from __future__ import annotations

import http.client
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from burnish.cli import main
from burnish.cli.overrides import store_posted
from burnish.core.errors import ConfigError, StoreError
from burnish.reports.live import LiveServer, serve
from burnish.reports.overrides import labelled, reviewed
from burnish.store.overrides import Override, OverrideKind
from burnish.store.reader import RunReader
from burnish.store.rows import RunState
from burnish.store.writer import RunWriter


def row(key: str, score: float, *, before: float | None = 0.0, kind: OverrideKind = OverrideKind.GRADE) -> Override:
    return Override(
        trajectory_id=key, kind=kind, name="tests", score=score, person="Ann", reason="looked at it", before=before
    )


def finished(folder: Path) -> Path:
    with RunWriter.create(folder / "run", {}) as writer:
        writer.set_status(RunState.FINISHED)
    return folder / "run"


def test_overrides_are_added_to_a_finished_run(tmp_path: Path) -> None:
    run = finished(tmp_path)
    assert RunReader(run).overrides() == []
    with RunWriter.open(run) as writer:
        writer.override(row("a", 1.0))
        writer.override(row("a", 0.0))
    assert [item.score for item in RunReader(run).overrides()] == [1.0, 0.0]
    assert RunReader(run).status().state is RunState.FINISHED
    assert [event.kind for event in RunReader(run).events("override")] == ["override", "override"]


@pytest.mark.parametrize("statement", ["UPDATE overrides SET score = 0", "DELETE FROM overrides"])
def test_the_database_refuses_to_change_one(tmp_path: Path, statement: str) -> None:
    run = finished(tmp_path)
    with RunWriter.open(run) as writer:
        writer.override(row("a", 1.0))
    with sqlite3.connect(run / "control.sqlite") as connection, pytest.raises(sqlite3.DatabaseError, match="only ever"):
        connection.execute(statement)
    assert len(RunReader(run).overrides()) == 1


def test_one_without_a_reason_or_out_of_range_is_refused() -> None:
    for change in ({"reason": " "}, {"person": ""}, {"score": 1.5}, {"score": None}):
        values = {
            "trajectory_id": "a",
            "kind": OverrideKind.GRADE,
            "name": "t",
            "person": "A",
            "reason": "r",
            "score": 1,
        }
        with pytest.raises(StoreError):
            Override(**{**values, **change})  # type: ignore[arg-type]


def test_rates_count_the_last_word() -> None:
    flag = OverrideKind.FLAG
    rows = [row("a", 1.0, kind=flag), row("b", 0.0, kind=flag), row("b", 1.0, kind=flag), row("c", 0.0, kind=flag)]
    rows += [
        row("d", 0.0, before=1.0),
        row("e", 1.0, before=1.0),
        row("f", 1.0, before=0.0),
        row("g", 1.0, before=None),
    ]
    found = {item.kind: item for item in reviewed(rows)}
    assert (found["flag"].n, found["flag"].false_positives) == (3, 2)
    assert (found["grade"].n, found["grade"].wrong, found["grade"].positives) == (4, 2, 2)
    assert found["grade"].to_json()["false_positive_rate"][0] == 0.5
    assert labelled(rows, {"d": ("task", "text")}) == [
        {"id": "d", "task_id": "task", "answer": "text", "labels": {"tests": 0.0}}
    ]


def test_command_names_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(tmp_path)
    words = ["override", str(run), "rl/9", "--grade", "tests", "--score", "1", "--by", "Ann", "--reason", "r"]
    assert main(words) == 1
    assert "has no trajectory" in capsys.readouterr().err
    assert main(["overrides", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == []


def posted(server: LiveServer, body: bytes, token: str, host: str = "127.0.0.1") -> int:
    port = int(server.url.rstrip("/").rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"X-Burnish-Token": token, "Host": host, "Content-Length": str(len(body))}
    connection.request("POST", "/api/override", body=body, headers=headers)
    status = connection.getresponse().status
    connection.close()
    return status


def test_the_viewer_takes_overrides_with_its_token_alone(tmp_path: Path) -> None:
    run = finished(tmp_path)
    taken: list[dict[str, Any]] = []
    body = json.dumps({"trajectory": "a"}).encode()
    with serve(run, override=lambda root, values: taken.append(dict(values))) as server:
        assert posted(server, body, "wrong") == 403
        assert posted(server, body, server.token, host="evil.example") == 403
        assert posted(server, b"[1]", server.token) == 400
        assert taken == []
        assert posted(server, body, server.token) == 200
    assert taken == [{"trajectory": "a"}]
    with serve(run) as server:
        assert posted(server, body, server.token) == 501


@pytest.mark.parametrize("values", [{"score": True}, {"grade": 1}, {"grade": "a", "flag": "b"}, {}])
def test_what_is_posted_is_checked(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        store_posted(finished(tmp_path), values)
