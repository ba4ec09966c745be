"""The report is one safe file: nothing outside it is asked for, nothing inside it is read as markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_run import HOSTILE, SyntheticRun, finished_run

from burnish.core.errors import StoreError
from burnish.reports.page import SCRIPTS, asset, embedded_json, render_page, write_report
from burnish.store.rows import RunState


class Elements(HTMLParser):
    """Start tags with attributes, and the text of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and self.lasttag == "script" and self.cdata_elem == "script":
            self.scripts.append((self.tags[-1][1], data))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = finished_run(tmp_path_factory.mktemp("runs") / "a&b", rl_steps=3, spoil=HOSTILE)
    run.writer.set_status(RunState.STOPPED, f"no_signal: {HOSTILE}")
    run.writer.close()
    return write_report(run.folder)


def test_it_lies_in_the_run_and_replaces_an_older_one(hostile: Path) -> None:
    assert hostile.name == "report.html"
    assert hostile.parent.name == "a&b"
    assert not list(hostile.parent.glob("*.tmp"))


def test_hostile_text_opens_no_element(hostile: Path) -> None:
    page = hostile.read_text(encoding="utf-8")
    elements = Elements(page)
    assert len(elements.scripts) == len(SCRIPTS) + 1
    tags = [tag for tag, _ in elements.tags]
    assert tags.count("script") == len(SCRIPTS) + 1
    assert "img" not in tags
    assert "\x1b" not in page
    assert "\u2028" not in page
    assert "<!--" not in page
    assert "\u202e" not in page
    assert "{{title}}" in json.dumps(_data(page)), "hostile text is in the file, and was not taken for a slot"
    assert "<title>a&amp;b" in page


def _data(page: str) -> Any:
    return next(json.loads(text) for attributes, text in Elements(page).scripts if attributes.get("id") == "data")


def test_the_parser_of_this_test_sees_an_attack_that_is_not_escaped() -> None:
    page = render_page({"mode": "live"}, title="x").replace('{"mode":"live"}', f'{{"text":"{HOSTILE}"}}')
    assert "img" in [tag for tag, _ in Elements(page).tags]


def test_the_data_comes_back_whole(hostile: Path) -> None:
    data = _data(hostile.read_text(encoding="utf-8"))
    assert data["mode"] == "file"
    assert HOSTILE in data["overview"]["status"]["detail"]
    assert HOSTILE in data["sample"]["trajectories"][0]["answer"]
    assert data["overview"]["browse"]["total"] > len(data["sample"]["trajectories"]) > 0


@settings(max_examples=80, deadline=None)
@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_embedded_json_is_ascii_without_markup_and_comes_back(value: object) -> None:
    text = embedded_json(value)
    assert text.isascii()
    assert not set("<>&") & set(text)
    assert json.loads(text) == value


def test_nothing_outside_the_file_is_referred_to(hostile: Path) -> None:
    for tag, attributes in Elements(hostile.read_text(encoding="utf-8")).tags:
        for name in ("src", "href", "action", "data", "poster"):
            value = attributes.get(name) or ""
            assert not value or value.startswith(("#", "data:")), (tag, value)
    style = asset("page.css")
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_allows_exactly_the_scripts_of_the_page(hostile: Path) -> None:
    elements = Elements(hostile.read_text(encoding="utf-8"))
    policy = next(a["content"] for _, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy") or ""
    digests = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for attributes, text in elements.scripts
        if "type" not in attributes
    ]
    assert len(digests) == len(SCRIPTS)
    scripts = re.search(r"script-src ([^;]*)", policy)
    assert scripts is not None
    assert scripts[1].split() == digests
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert "unsafe" not in policy


def test_a_live_page_may_talk_to_its_server_alone() -> None:
    page = render_page({"mode": "live"}, title="run")
    assert "connect-src &#x27;self&#x27;" in page


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    path = write_report(run.folder, tmp_path / "out.html")
    run.writer.close()
    data = _data(path.read_text(encoding="utf-8"))
    assert data["sample"]["trajectories"] == []
    assert data["overview"]["status"]["state"] == "running"


def test_the_sample_is_bounded(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", rl_steps=3)
    run.writer.close()
    small = write_report(run.folder, tmp_path / "small.html", max_bytes=50_000).stat().st_size
    large = write_report(run.folder, tmp_path / "large.html").stat().st_size
    assert small < large - 50_000
    assert large < 3_000_000 + 1_500_000


def test_missing_segments_leave_a_report_that_says_so(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", rl_steps=3)
    run.writer.close()
    next(iter(run.writer.layout.segments.glob("rl-*"))).unlink()
    data = _data(write_report(run.folder).read_text(encoding="utf-8"))
    assert any("no trajectories are shown" in problem for problem in data["overview"]["problems"])
    assert data["overview"]["headline"]["rows"]


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    run.writer.close()
    with pytest.raises(StoreError, match="cannot be written"):
        write_report(run.folder, tmp_path / "no" / "such" / "folder.html")


def test_the_charting_library_comes_with_its_licence() -> None:
    assert "Apache License" in asset("echarts/LICENSE")
    assert "Apache ECharts" in asset("echarts/NOTICE")
    assert "Mike Bostock" in asset("echarts/LICENSE-d3")
    assert "Licensed to the Apache Software Foundation" in asset("echarts/echarts.min.js")[:400]
