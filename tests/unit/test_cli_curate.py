"""`burnish curate`: every stage alone on files, from an environment's tasks or a user's pictures to a file for SFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from burnish.cli import main
from burnish.core.images import png_bytes
from burnish.core.message import Message
from burnish.core.sampling import Sample
from burnish.loop.standalone import Subject, endpoint_recipe

pytest.importorskip("PIL")

SPOT = '''
from burnish.core.detector import Detection


class Spots:
    """Dark pixels are one spot."""

    name, version = "spots", "1"
    true_positive_rate = false_positive_rate = None

    def knows(self, label):
        return label == "spot"

    def detect(self, image, labels):
        dark = [i for i in range(image.width_px * image.height_px) if image.rgb[3 * i] < 128]
        xs, ys = [i % image.width_px for i in dark], [i // image.width_px for i in dark]
        if not dark:
            return []
        return [Detection(label="spot", left_px=min(xs), top_px=min(ys), right_px=max(xs) + 1, bottom_px=max(ys) + 1)]
'''


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def curate(*words: object) -> int:
    return main(["curate", *(str(word) for word in words)])


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curated")
    words = ["--tasks", 12, "kinds=['where','when']", "look={size_px=32}"]
    assert curate("find", "scenes:heldout", "--out", folder / "references.jsonl", *words) == 0
    assert curate("overlay", folder / "references.jsonl", "--out", folder / "overlaid.jsonl") == 0
    assert curate("trace", folder / "overlaid.jsonl", "--out", folder / "traces.jsonl") == 0
    return folder / "traces.jsonl"


def test_stages_read_each_others_files(traces: Path) -> None:
    found, drawn, written = (lines(traces.parent / f"{n}.jsonl") for n in ("references", "overlaid", "traces"))
    assert len(found) == len(drawn) == len(written) == 12
    assert [len(row["messages"]) for row in (found[0], drawn[0], written[0])] == [1, 1, 2]
    assert found[0]["by"] == "truth"
    assert "overlays" in drawn[0]
    assert written[0]["messages"][1]["content"].endswith(f"</think>{written[0]['answer']}")
    names = {path.name for path in (traces.parent / "images").glob("*/*")}
    assert {part["sha256"] for row in written for part in row["messages"][0]["content"] if "sha256" in part} <= names


def test_the_filter_drops_with_reasons_and_draws_a_sheet(traces: Path, tmp_path: Path, capsys: Any) -> None:
    rows = lines(traces)
    rows[0]["messages"][1]["content"] = "<think>red circle (0, 0)</think><b>top left</b>"
    rows[1]["messages"][1]["content"] = rows[1]["messages"][1]["content"].replace("frames ", "frames 1-4, frame ")
    mixed = write(traces.parent / "mixed.jsonl", *rows, "{broken", {"messages": []})
    out, dropped, page = (tmp_path / "b" / name for name in ("kept.jsonl", "dropped.jsonl", "sheet.html"))
    words = ["--teacher", "shapes", "--answers", "teacher", "--out", out, "--dropped", dropped, "--report", page]
    assert curate("filter", mixed, *words) == 0
    told = capsys.readouterr().out
    assert "kept 10 of 12 traces" in told
    assert "mixed.jsonl:13: not JSON" in told
    kept, gone = lines(out), lines(dropped)
    assert len(kept) == 10
    assert [set(row["verdict"]["faults"]) >= {fault} for row, fault in zip(gone, ("place", "span"), strict=True)] == [
        True,
        True,
    ]
    assert all(row["verdict"]["kept"] and row["verdict"]["by"] == "shapes 1" for row in kept)
    assert (tmp_path / "b" / "images").is_dir()
    text = page.read_text()
    assert "10 of 12 traces were kept" in text
    assert "Dropped: answer" in text
    assert text.count("<svg") == text.count("data:image/png;base64,") >= 12
    assert "&lt;b&gt;top left&lt;/b&gt;" in text
    assert "<b>top left</b>" not in text
    again = tmp_path / "again.html"
    assert curate("sheet", out, "--out", again) == 0
    assert "10 of 10 traces were kept" in again.read_text()


def test_a_users_own_pictures_and_detector(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "spots.py").write_text(SPOT)
    pixels = bytearray(b"\xff" * 3 * 64)
    for x, y in ((2, 3), (3, 3), (2, 4), (3, 4)):
        pixels[3 * (8 * y + x) : 3 * (8 * y + x) + 3] = bytes(3)
    (tmp_path / "a.png").write_bytes(png_bytes(8, 8, bytes(pixels)))
    (tmp_path / "blank.png").write_bytes(png_bytes(8, 8, b"\xff" * 192))

    def row(name: str) -> dict[str, Any]:
        content = [{"type": "image_url", "image_url": {"url": name}}, {"type": "text", "text": "How many spots?"}]
        return {"messages": [{"role": "user", "content": content}], "answer": 1, "labels": ["spot"]}

    tasks = write(tmp_path / "tasks.jsonl", row("a.png"), row("blank.png"))
    teacher = ["--teacher", f"{tmp_path}/spots.py:Spots"]
    assert curate("find", tasks, "--out", tmp_path / "found.jsonl", *teacher) == 0
    assert "left out 1: spots finds no spot" in capsys.readouterr().out
    assert curate("trace", tmp_path / "found.jsonl", "--out", tmp_path / "traces.jsonl") == 0
    assert curate("filter", tmp_path / "traces.jsonl", "--out", tmp_path / "kept.jsonl", *teacher) == 0
    (kept,) = lines(tmp_path / "kept.jsonl")
    assert kept["messages"][1]["content"] == "<think>spot (3, 4)</think>1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["find", "nowhere", "--out", "{new}"], "unknown environment"),
        (["find", "calculator", "--out", "{new}"], "says nothing about grounding"),
        (["find", "{chats}", "--out", "{new}"], "name a --teacher"),
        (["find", "scenes", "--out", "{chats}"], "exists; name a new file"),
        (["overlay", "{empty}", "--out", "{new}"], "is empty"),
        (["trace", "{chats}", "--out", "{new}"], "it has no references; find them first"),
        (["trace", "{chats}", "--out", "{new}", "size=3"], "only find takes options"),
        (["trace", "{chats}", "--out", "{new}", "--writer", "openai:x"], "give the endpoint"),
        (["filter", "{chats}", "--out", "{new}", "--teacher", "oracle"], "unknown teacher"),
        (["filter", "{chats}", "--out", "{new}", "--report", "{page}"], "--dropped"),
        (["sheet", "{chats}", "--out", "{page}"], "no verdict"),
    ],
)
def test_what_cannot_be_done_is_said(
    words: list[str], said: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    (tmp_path / "a.png").write_bytes(png_bytes(2, 1, bytes(6)))
    content = [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "What?"}]
    files = {
        "chats": write(tmp_path / "chats.jsonl", {"messages": [{"role": "user", "content": content}]}),
        "empty": write(tmp_path / "empty.jsonl"),
        "new": tmp_path / "new.jsonl",
        "page": tmp_path / "page.html",
    }
    assert curate(*(word.format(**files) for word in words)) != 0
    told = capsys.readouterr()
    assert said in told.err + told.out
    assert not files["new"].exists() or not files["new"].read_text()
    assert not list(tmp_path.glob("*.part"))


class _Replies:
    """An endpoint's answers, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def sample(self, requests: Any) -> list[Sample]:
        self.asked += requests
        said = f"<think>red circle ({len(self.asked)}, 4)</think>top left"
        return [Sample(message=Message.assistant(said)) for _ in requests]


def test_an_endpoint_is_shown_the_overlays_and_its_traces_go_with_the_originals(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _Replies()
    subject = Subject(name="m", sampler=model, renderer=None, recipe=endpoint_recipe([]))
    monkeypatch.setattr("burnish.cli.curate.policy_subject", lambda *_: (subject, None))
    out = tmp_path / "traces.jsonl"
    words = ["--out", out, "--writer", "openai:m", "--samples", 2]
    assert curate("trace", traces.parent / "overlaid.jsonl", *words) == 0
    rows, before = lines(out), lines(traces.parent / "overlaid.jsonl")
    assert len(rows) == 24
    assert {row["writer"] for row in rows} == {"m"}
    assert rows[0]["messages"][0] == before[0]["messages"][0]
    assert rows[0]["messages"][1]["content"].startswith("<think>red circle (")
    shown = {image.sha256 for request in model.asked for message in request.messages for image in message.images}
    assert shown == {part["sha256"] for row in before for part in row["overlays"]}
