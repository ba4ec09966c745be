"""People's word in the live page: added, shown, never changed, and refused without the token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import HOSTILE, finished_run

from burnish.cli import main
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


def opened(browser: Any, address: str, one: str = ONE) -> None:
    browser.get("about:blank")
    browser.get(f"{address}#trajectories/{one}")
    WebDriverWait(browser, 20).until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#detail .detail"))


def fill(browser: Any, form: str = "override", **values: str) -> None:
    for name, value in values.items():
        field = browser.find_element(By.ID, f"{form}-{name}")
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


def failed_one(run: Path) -> str:
    """A failed trajectory of the last step."""
    return next(row.trajectory.id for row in RunReader(run).trajectories("rl", 2) if row.reward == 0.0)


def diagnosis(browser: Any, address: str, one: str) -> Any:
    opened(browser, address, one)
    found = browser.find_elements(By.ID, "diagnosis")
    return found[0] if found else None


def say(browser: Any, **values: str) -> str:
    """Fill the form of a diagnosis and send it; what the page says once the server has answered."""
    fill(browser, "diagnosis", **values)
    browser.execute_script("document.getElementById('diagnosis-said').textContent = ''")
    browser.find_element(By.CSS_SELECTOR, "#diagnosis form button[type=submit]").click()
    said = browser.find_element(By.ID, "diagnosis-said")
    return str(WebDriverWait(browser, 20).until(lambda _: said.text))


def critical(browser: Any) -> list[str]:
    rows = browser.find_elements(By.CSS_SELECTOR, "#diagnosis tr.critical th")
    return [row.text.split()[0] for row in rows]


def test_a_diagnosis_is_corrected_in_the_page_and_measured_by_it(
    browser: Any, live: LiveServer, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = failed_one(run)
    shown = diagnosis(browser, live.url, one)
    assert "What went wrong" in shown.text
    assert "by Burnish, p" in shown.text
    assert main(["diagnose", str(run), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = next(row for row in rows if row.get("trajectory_id") == one)
    assert critical(browser) == [str(told["critical_step"])]
    assert told["category"] in shown.text
    log = {found["constraint"] for found in told["violations"]}
    assert log
    assert all(name in shown.text for name in log)

    assert browser.find_element(By.ID, "diagnosis-step").get_attribute("value") == str(told["critical_step"])
    assert "does not hold this server's token" in say(browser, by="Ann", reason=HOSTILE[:60], token="wrong")
    assert RunReader(run).overrides() == []
    for missing in ("by", "reason"):
        field = browser.find_element(By.ID, f"diagnosis-{missing}")
        assert field.get_attribute("required") is not None
    new = {"step": "2", "category": "guardrail", "owner": "user"}
    assert say(browser, token=live.token, reason=HOSTILE[:60], **new) == "Stored."
    assert critical(browser) == ["2"], "shown at once"
    assert "says Ann" in browser.find_element(By.ID, "diagnosis-word").text
    assert "by Burnish, p" in browser.find_element(By.ID, "diagnosis").text, "what was said before stays"
    assert browser.execute_script("return window.hacked") is None
    assert say(browser, reason="on second thoughts", category="invention", owner="agent") == "Stored."
    stored = [(row.trajectory_id, row.name, row.label, row.person) for row in RunReader(run).overrides()]
    assert stored == [(one, "diagnosis", f"2/{what}", "Ann") for what in ("guardrail/user", "invention/agent")]

    exported = tmp_path / "words.jsonl"
    assert main(["overrides", str(run), "--corrections", str(exported)]) == 0
    assert [json.loads(line)["category"] for line in exported.read_text().splitlines()] == ["guardrail", "invention"]
    capsys.readouterr()
    assert main(["diagnose", str(run), "--corrections", str(exported), "--json"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["overview"]["reviewed"]["n"] == 1
    assert last["overview"]["reviewed"]["step"][0] == float(told["critical_step"] == 2)


def test_a_step_that_is_no_message_is_refused(browser: Any, live: LiveServer, run: Path) -> None:
    diagnosis(browser, live.url, failed_one(run))
    browser.execute_script("document.getElementById('diagnosis-step').removeAttribute('max')")
    assert "has messages 1 to" in say(browser, step="99", by="Ann", reason="there", token=live.token)
    assert RunReader(run).overrides() == []


def test_a_page_that_takes_no_words_shows_a_diagnosis_without_a_form(browser: Any, run: Path) -> None:
    """The control, live and in a file, and what passed has none."""
    passed = next(row.trajectory.id for row in RunReader(run).trajectories("rl", 2) if row.reward == 1.0)
    with serve(run) as server:
        for address in (server.url, write_report(run).as_uri()):
            shown = diagnosis(browser, address, failed_one(run))
            assert shown.find_elements(By.CSS_SELECTOR, "tr.critical"), address
            assert "by Burnish, p" in shown.text
            assert not shown.find_elements(By.TAG_NAME, "form")
            assert diagnosis(browser, address, passed) is None


def test_a_hostile_trajectory_is_diagnosed_as_text(browser: Any, tmp_path: Path) -> None:
    made = finished_run(tmp_path / "hostile", rl_steps=2, spoil=HOSTILE)
    made.writer.close()
    with serve(made.folder, override=store_posted) as server:
        browser.set_window_size(420, 900)
        shown = diagnosis(browser, server.url, failed_one(made.folder))
        assert "window.hacked" in shown.text
        assert not shown.find_elements(By.CSS_SELECTOR, "img, script")
        assert browser.execute_script("return window.hacked") is None
        wide = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        browser.set_window_size(1280, 900)
        assert wide <= 0, "a narrow window scrolls the table, not the page"
