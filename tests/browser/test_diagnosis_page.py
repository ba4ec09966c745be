"""The page of a diagnosis in headless Chromium: nothing hostile runs, a correction becomes a line of a file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import HOSTILE

from burnish.diagnosis.corrections import read_corrections
from burnish.diagnosis.diagnose import Engine
from burnish.diagnosis.overview import Overview
from burnish.diagnosis.page import page
from burnish.diagnosis.record import Call, Item, Record

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402 - only where selenium is there
from selenium.webdriver.common.by import By  # noqa: E402

pytestmark = pytest.mark.browser
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900")


@pytest.fixture
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no chromium with its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(driver))
    yield found
    found.quit()


def failed(name: str) -> Record:
    items = (
        Item(index=1, role="user", text=HOSTILE),
        Item(index=2, role="assistant", calls=(Call(name="cancel", arguments={"order_id": "#Z9999", "x": HOSTILE}),)),
        Item(index=3, role="tool", text="ok"),
        Item(index=4, role="assistant", text="Done."),
    )
    return Record(id=name, items=items, passed=False)


def test_a_reader_corrects_a_diagnosis(browser: Any, tmp_path: Path) -> None:
    overview = Overview(name=HOSTILE)
    for name in ("one", HOSTILE):
        record = failed(name)
        overview.add(record, Engine().diagnose(record))
    path = tmp_path / "page.html"
    path.write_text(page(overview), encoding="utf-8")
    browser.get(path.as_uri())
    assert browser.execute_script("return window.hacked") is None
    assert not browser.find_elements(By.CSS_SELECTOR, "img")
    assert browser.find_elements(By.CSS_SELECTOR, "tr.critical")
    assert not browser.find_element(By.ID, "corrections").is_displayed()
    wide = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0
    for case in browser.find_elements(By.CSS_SELECTOR, "details"):
        browser.execute_script("arguments[0].open = true", case)
        form = case.find_element(By.CSS_SELECTOR, "form")
        step = form.find_element(By.NAME, "step")
        step.clear()
        step.send_keys("4")
        form.find_element(
            By.CSS_SELECTOR, "option[value='guardrail'], select[name=category] option:nth-child(8)"
        ).click()
        form.find_element(By.NAME, "by").send_keys("ann")
        form.find_element(By.NAME, "reason").send_keys("it said so")
        form.find_element(By.CSS_SELECTOR, "button").click()
    lines = browser.find_element(By.ID, "lines").text
    assert [json.loads(line)["step"] for line in lines.splitlines()] == [4, 4]
    words = tmp_path / "corrections.jsonl"
    words.write_text(lines + "\n", encoding="utf-8")
    found = list(read_corrections(words))
    first = found[0]
    assert (first.trajectory_id, first.index, str(first.category), first.by) == ("one", 4, "guardrail", "ann")
    assert found[1].trajectory_id.startswith("</script>")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
