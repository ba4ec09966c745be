"""People's word in the live page: added, shown, never changed, and refused without the token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import HOSTILE, finished_run

from burnish.cli.overrides import store_posted
from burnish.reports.live import LiveServer, serve
from burnish.reports.page import write_report
from burnish.store.reader import RunReader
from burnish.store.rows import RunState

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402 - only where selenium is there
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

pytestmark = pytest.mark.browser
ONE = "rl/000002/0001/02"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    binary, driver_path = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not binary or not driver_path:
        pytest.skip("no Chromium or no driver for it on this machine")
    options.binary_location = binary
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(driver_path))
    yield driver
    driver.quit()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    made = finished_run(tmp_path / "judged", rl_steps=2)
    made.writer.set_status(RunState.FINISHED)
    made.writer.close()
    return made.folder


@pytest.fixture
def live(run: Path) -> Iterator[LiveServer]:
    with serve(run, override=store_posted) as server:
        yield server


def opened(browser: Any, address: str) -> None:
    browser.get("about:blank")
    browser.get(f"{address}#trajectories/{ONE}")
    WebDriverWait(browser, 20).until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#detail .detail"))


def fill(browser: Any, **values: str) -> None:
    for name, value in values.items():
        field = browser.find_element(By.ID, f"override-{name}")
        if field.tag_name == "select":
            Select(field).select_by_value(value)
        else:
            field.clear()
            field.send_keys(value)


def added(browser: Any) -> str:
    """What the page says once the server has answered."""
    browser.execute_script("document.getElementById('override-said').textContent = ''")
    browser.find_element(By.CSS_SELECTOR, "form.override button").click()
    said = browser.find_element(By.ID, "override-said")
    return str(WebDriverWait(browser, 20).until(lambda _: said.text))


def test_a_grade_and_a_label_are_overridden_in_the_page(browser: Any, live: LiveServer, run: Path) -> None:
    grader = RunReader(run).trajectory(ONE).grades[0]
    opened(browser, live.url)
    assert "Nobody has said otherwise" in browser.find_element(By.ID, "overrides").text
    fill(browser, kind="grade", name=grader.grader, score="0.25", by="Ann", reason=HOSTILE[:60], token="wrong")
    assert "does not hold this server's token" in added(browser)
    assert RunReader(run).overrides() == []
    fill(browser, token=live.token)
    assert added(browser) == "Stored."
    fill(browser, kind="label", label="owner=environment", reason="the tool lied")
    assert added(browser) == "Stored."
    fill(browser, kind="grade", name=grader.grader, score="0.5", reason="second thoughts")
    assert added(browser) == "Stored."
    stored = [(row.kind, row.name, row.score, row.label, row.before) for row in RunReader(run).overrides()]
    assert stored == [
        ("grade", grader.grader, 0.25, "", grader.score),
        ("label", "owner", None, "environment", None),
        ("grade", grader.grader, 0.5, "", grader.score),
    ]
    table = browser.find_elements(By.CSS_SELECTOR, "#overrides tbody tr")
    assert len(table) == 3, "words are added, none is replaced"
    assert browser.execute_script("return window.hacked") is None
    address = write_report(run).as_uri()
    opened(browser, address)
    shown = browser.find_element(By.ID, "overrides")
    assert "second thoughts" in shown.text
    assert not shown.find_elements(By.TAG_NAME, "form"), "a file takes no words"


def test_a_page_that_takes_no_words_offers_none(browser: Any, run: Path) -> None:
    """The control: the form above is there because the server takes what it sends."""
    with serve(run) as server:
        opened(browser, server.url)
        assert not browser.find_elements(By.CSS_SELECTOR, "form.override")
        assert not browser.find_elements(By.ID, "overrides")


def test_a_flag_is_offered_by_its_family_alone(browser: Any, live: LiveServer) -> None:
    opened(browser, live.url)
    offered = [option.text for option in Select(browser.find_element(By.ID, "override-kind")).options]
    assert offered == ["grade", "label"], "nothing of this episode was flagged"
    flag = json.dumps([{"grader": "integrity", "score": 0, "evidence": {"flags": [{"family": "tests"}, 3]}}])
    browser.execute_script(
        f"const one = {{ id: 'x', grades: {flag} }};"
        "document.getElementById('detail').replaceChildren(overridesView.render(one));"
    )
    fill(browser, kind="flag")
    assert [option.text for option in Select(browser.find_element(By.ID, "override-name")).options] == ["tests"]
