"""Images in the report: shown from the file alone, with the evidence of graders drawn where it points."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from eyes_env import SIDE, Eyes
from synthetic_run import finished_run

from burnish.core.grade import Grade
from burnish.core.images import SHELF
from burnish.reports.page import write_report
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.runner import run_scripted
from burnish.store.rows import Fate, RunState, StepRecord, StoredTrajectory

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402 - only where selenium is there
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

pytestmark = pytest.mark.browser

EVIDENCE = {
    "points": [["red", 4.0, 5.0, 0], {"x": 2.0, "y": 3.0, "label": "<b>blue</b>", "frame": 1, "ok": False}],
    "boxes": [{"x1": 1, "y1": 2, "x2": 9, "y2": 12, "label": "all", "frame": 0, "ok": True}, "no box"],
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    binary, driver_path = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not binary or not driver_path:
        pytest.skip("no Chromium or no driver for it on this machine")
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_path))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = finished_run(tmp_path_factory.mktemp("runs") / "eyes", rl_steps=1)
    plan = EpisodePlan(
        id="rl/000002/0000/00", group_id="rl/000002/0000", task=Eyes().task_of(3), sample_index=0, seed=1
    )
    (done,) = asyncio.run(run_scripted([plan], make_environment=lambda _: Eyes(), policy=Eyes.expert))
    for message in done.messages:
        for part in message.images:
            made.writer.put_artefact(SHELF.get(part.sha256))
    row = StoredTrajectory(
        trajectory=done,
        phase="rl",
        step=2,
        policy_version=1,
        grades=(Grade(grader="pointing", version="1", score=0.5, evidence=EVIDENCE),),
        fate=Fate.TRAINED,
        reward=0.5,
        advantage=0.0,
    )
    made.writer.commit_step(StepRecord(phase="rl", step=2, policy_version=2, rows=[row], scalars={}))
    made.writer.set_status(RunState.FINISHED)
    made.writer.close()
    return write_report(made.folder)


def test_images_are_drawn_with_their_marks(browser: Any, report: Path) -> None:
    browser.get(f"{report.as_uri()}#trajectories/rl/000002/0000/00")
    figures = WebDriverWait(browser, 20).until(lambda _: browser.find_elements(By.CSS_SELECTOR, "figure.image"))
    assert len(figures) == 2, "the prompt's and the tool's"
    for figure, side in zip(figures, (SIDE, 8), strict=True):
        image = figure.find_element(By.TAG_NAME, "img")
        WebDriverWait(browser, 20).until(lambda _, image=image: image.get_property("complete"))
        assert image.get_property("naturalWidth") == side
        svg = figure.find_element(By.TAG_NAME, "svg")
        assert svg.get_dom_attribute("viewBox") == f"0 0 {side} {side}"
        assert svg.rect["width"] == pytest.approx(image.rect["width"], abs=1), "marks lie over the pixels"
    marks = [
        [(one.tag_name, one.get_attribute("class")) for one in figure.find_elements(By.CSS_SELECTOR, ".mark")]
        for figure in figures
    ]
    assert marks == [[("circle", "mark claimed"), ("rect", "mark right")], [("circle", "mark wrong")]]
    circle = figures[0].find_element(By.TAG_NAME, "circle")
    assert (circle.get_dom_attribute("cx"), circle.get_dom_attribute("cy")) == ("4", "5")
    assert "<b>blue</b> (2, 3), wrong" in figures[1].text, "what a policy wrote is text"
    assert not [entry for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]
