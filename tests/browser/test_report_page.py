"""The report and the live page in headless Chromium: no console error, curves drawn, trajectories opened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from ill_runs import FAULTS, ill_run
from synthetic_run import HOSTILE, SyntheticRun, finished_run

from burnish.reports.live import serve
from burnish.reports.page import write_report
from burnish.store.rows import Event, RunState

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402 - only where selenium is there
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

pytestmark = pytest.mark.browser

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900")
TABS = ("overview", "curves", "health", "trajectories", "run")
# Whether a canvas holds more than one colour.
PAINTED = """
const canvas = arguments[0].querySelector("canvas");
if (!canvas || !canvas.width) return false;
const pixels = new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer);
return pixels.some((pixel) => pixel !== pixels[0]);
"""
# Points of each series that is no helper; kinds and points of all.
POINTS = """
const series = echarts.getInstanceByDom(arguments[0]).getOption().series;
return series.filter((one) => !one.id.startsWith("helper:")).map((one) => [one.name, one.data.length]);
"""
KINDS = """
return echarts.getInstanceByDom(arguments[0]).getOption().series.map((one) => `${one.type} ${one.data.length}`);
"""


def find(*names: str) -> str:
    for name in names:
        if path := shutil.which(name):
            return path
    pytest.skip(f"no {' or '.join(names)} on this machine; install Chromium and its driver from the system's packages")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = find("chromium", "chromium-browser", "google-chrome")
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(find("chromedriver")))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(autouse=True)
def fresh(browser: Any) -> None:
    """Each test starts with an empty page, empty logs, a working network and a light, wide screen."""
    offline(browser, False)
    screen(browser, 1280)
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get_log("performance")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = finished_run(tmp_path_factory.mktemp("runs") / "first", rl_steps=8)
    run.writer.set_status(RunState.FINISHED)
    run.writer.close()
    return write_report(run.folder)


@pytest.fixture(scope="module")
def ill_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = ill_run(tmp_path_factory.mktemp("runs") / "drift", FAULTS["drift"])
    run.writer.set_status(RunState.FINISHED)
    run.writer.close()
    return write_report(run.folder)


def offline(browser: Any, is_offline: bool) -> None:
    browser.execute_cdp_cmd("Network.enable", {})
    conditions = {"offline": is_offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)


def screen(browser: Any, width: int, *, dark: bool = False) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})


def problems(browser: Any) -> list[str]:
    """Warnings and errors of the console, blocked resources among them."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]


def requests(browser: Any) -> list[str]:
    """Every address that the page asked for."""
    entries = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [entry["params"]["request"]["url"] for entry in entries if entry["method"] == "Network.requestWillBeSent"]


def until(browser: Any, condition: Callable[[], Any]) -> Any:
    return WebDriverWait(browser, 20, poll_frequency=0.05).until(lambda _: condition())


def css(browser: Any, selector: str) -> list[Any]:
    found: list[Any] = browser.find_elements(By.CSS_SELECTOR, selector)
    return found


def open_tab(browser: Any, address: str, tab: str) -> None:
    browser.get("about:blank")  # Another hash alone would not load the page again.
    browser.get(f"{address}#{tab}")
    until(browser, lambda: css(browser, f"#tab-{tab}")[0].is_displayed())


def rows(browser: Any) -> list[str]:
    """Ids in the list, once it has settled."""
    ids: list[str] = browser.execute_script(
        "return [...document.querySelectorAll('.row')].map((row) => row.dataset.id)"
    )
    return ids


def test_it_loads_offline_asks_for_nothing_and_logs_nothing(browser: Any, report: Path) -> None:
    offline(browser, True)
    for tab in TABS:
        open_tab(browser, report.as_uri(), tab)
        assert css(browser, f"#tab-{tab}")[0].text.strip()
    assert problems(browser) == []
    outside = [url for url in requests(browser) if urlsplit(url).scheme not in ("file", "data", "about")]
    assert outside == []
    assert css(browser, "#run-state")[0].text == "finished"


def test_the_checks_of_this_file_see_an_error_and_a_request(browser: Any, report: Path) -> None:
    browser.get(report.as_uri())
    browser.execute_script("console.error('broken'); new Image().src = 'http://127.0.0.1:9/x.png';")
    until(browser, lambda: len(browser.execute_script("return performance.getEntries()")) >= 0)
    found = problems(browser)
    assert any("broken" in message for message in found)
    assert any("Content Security Policy" in message for message in found), "a request out is blocked, and would be seen"


def test_every_curve_is_drawn_from_data(browser: Any, report: Path) -> None:
    for tab, at_least in (("overview", 4), ("curves", 14)):
        open_tab(browser, report.as_uri(), tab)
        shown = [chart for chart in css(browser, f"#tab-{tab} .chart") if chart.is_displayed()]
        assert len(shown) >= at_least
        for chart in shown:
            assert browser.execute_script(PAINTED, chart), chart.get_attribute("id")
            series = browser.execute_script(POINTS, chart)
            assert series
            assert all(count > 0 for _, count in series), (chart.get_attribute("id"), series)


def test_reward_has_a_band_and_held_out_success_has_intervals(browser: Any, report: Path) -> None:
    open_tab(browser, report.as_uri(), "overview")
    assert dict(browser.execute_script(POINTS, css(browser, "#chart-reward")[0])) == {
        "mean reward, band: 95% interval over groups": 8
    }
    assert browser.execute_script(KINDS, css(browser, "#chart-reward")[0]).count("line 8") >= 2
    held_out = css(browser, "#chart-held-out")[0]
    assert dict(browser.execute_script(POINTS, held_out)) == {
        "greedy": 2, "sampled": 2, "unseen templates, greedy": 2, "before SFT": 2,
    }  # fmt: skip
    assert browser.execute_script(KINDS, held_out).count("custom 2") == 3
    assert "91.7%" in css(browser, "#tab-overview .figure")[-3].text


def test_success_stands_against_length(browser: Any, report: Path) -> None:
    open_tab(browser, report.as_uri(), "curves")
    assert dict(browser.execute_script(POINTS, css(browser, "#chart-tradeoff")[0])) == {
        "training episodes": 8, "greedy": 2, "sampled": 2, "unseen templates, greedy": 2,
    }  # fmt: skip
    [[name, bins]] = browser.execute_script(POINTS, css(browser, "#chart-length-bins")[0])
    assert (name, bins > 1) == ("RL steps 1 to 8", True)
    for chart in ("staleness", "ratios"):
        assert not css(browser, f"#chart-{chart}")[0].is_displayed(), "nothing is stale in a synchronous run"


def test_an_asynchronous_run_shows_its_staleness_and_its_pool(browser: Any, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "stale", rl_steps=8, is_asynchronous=True)
    run.writer.set_status(RunState.FINISHED)
    run.writer.close()
    open_tab(browser, write_report(run.folder).as_uri(), "curves")
    shown = [chart for chart in css(browser, "#tab-curves .chart") if chart.is_displayed()]
    ids = {chart.get_attribute("id").removeprefix("chart-") for chart in shown}
    assert {
        "staleness", "staleness-histogram", "async-fates", "async-dropped", "async-time", "async-depth", "async-pool",
        "async-waited", "async-workers", "cost-charge", "ratios", "ratio-moments", "sample-sizes", "corrected",
    } <= ids  # fmt: skip
    for chart in shown:
        assert browser.execute_script(PAINTED, chart), chart.get_attribute("id")
    assert problems(browser) == []


def test_an_ill_run_shows_what_was_found_and_what_it_looks_like(browser: Any, ill_report: Path) -> None:
    open_tab(browser, ill_report.as_uri(), "health")
    charts = [chart for chart in css(browser, "#tab-health .chart") if chart.is_displayed()]
    assert len(charts) > 15
    for chart in charts:
        assert browser.execute_script(PAINTED, chart), chart.get_attribute("id")
    timeline = "return echarts.getInstanceByDom(arguments[0]).getOption()"
    drawn = browser.execute_script(timeline, css(browser, "#chart-timeline")[0])
    assert len(drawn["series"][0]["data"]) == 8, "four findings and four decisions"
    assert drawn["yAxis"][0]["data"][0] == "post_tool/log_ratio_behaviour_p95"
    [mark] = drawn["series"][0]["markLine"]["data"]
    assert (mark["name"], mark["xAxis"]) == ("held-out success fell", 100)
    tails = browser.execute_script(timeline, css(browser, "#chart-health-behaviour-p95")[0])["series"]
    assert [one["name"] for one in tails] == ["text", "after a tool"]
    assert [mark["xAxis"] for mark in tails[0]["markArea"]["data"][0]] == [61, 68]
    text = css(browser, "#tab-health")[0].text
    for part in (
        "tool results drifted",
        "32 steps before held-out success fell",
        "would have been",
        "Success by horizon",
    ):
        assert part in text
    css(browser, "#tab-health .causes a")[0].click()
    until(browser, lambda: css(browser, "#detail h2") and css(browser, "#detail h2")[0].text == "rl/000068/0000/00")
    assert problems(browser) == []


def test_a_run_that_was_not_watched_says_so(browser: Any, report: Path) -> None:
    open_tab(browser, report.as_uri(), "health")
    assert "Health was not watched" in css(browser, "#tab-health")[0].text
    assert not [chart for chart in css(browser, "#tab-health .chart") if chart.is_displayed()]


@pytest.mark.parametrize("dark", [False, True])
def test_the_health_tab_fits_a_narrow_screen(browser: Any, ill_report: Path, dark: bool) -> None:
    screen(browser, 400, dark=dark)
    open_tab(browser, ill_report.as_uri(), "health")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 400


def test_any_scalar_can_be_searched_and_plotted(browser: Any, report: Path) -> None:
    open_tab(browser, report.as_uri(), "curves")
    css(browser, "#tab-curves input[type=search]")[0].send_keys("entropy")
    names = [option.text for option in Select(css(browser, "#scalar")[0]).options]
    assert names == ["rl: entropy_nats_mean"]
    assert browser.execute_script(POINTS, css(browser, "#chart-scalar")[0]) == [["rl: entropy_nats_mean", 8]]


def test_a_trajectory_opens_turn_by_turn_and_token_by_token(browser: Any, report: Path) -> None:
    open_tab(browser, report.as_uri(), "trajectories")
    css(browser, ".row")[0].click()
    until(browser, lambda: css(browser, ".turn"))
    assert [turn.get_attribute("class").split()[-1] for turn in css(browser, ".turn")] == [
        "role-system", "role-assistant", "role-tool", "role-assistant", "role-error", "role-assistant",
    ]  # fmt: skip
    call = css(browser, ".call")[0].text
    assert "get_order" in call
    assert "order_id" in call
    detail = css(browser, "#detail")[0].text
    for part in (
        "fork: template drops thinking",
        "How it ended",
        "shop 1",
        '"expected": "shipped"',
        "advantage",
        "Zoë 🙂",
    ):
        assert part in detail
    css(browser, ".switch button")[1].click()
    tokens = css(browser, ".tokens .token")
    sampled = [token for token in tokens if "shown" not in token.get_attribute("class")]
    assert sampled[0].text == "<tool_call>"
    assert len({token.value_of_css_property("background-color") for token in sampled}) > 2
    assert "log-probability -" in sampled[0].get_attribute("title")
    assert "version 3" in sampled[0].get_attribute("title")
    grey = next(token for token in tokens if "shown" in token.get_attribute("class"))
    assert grey.value_of_css_property("background-color") in ("rgba(0, 0, 0, 0)", "transparent")
    assert problems(browser) == []


def test_a_link_to_a_trajectory_opens_it_and_group_members_are_one_click_away(browser: Any, report: Path) -> None:
    open_tab(browser, report.as_uri(), "trajectories")
    first = rows(browser)[0]
    browser.get("about:blank")
    browser.get(f"{report.as_uri()}#trajectories/{first}")
    until(browser, lambda: css(browser, "#detail h2") and css(browser, "#detail h2")[0].text == first)
    css(browser, ".members button")[1].click()
    other = first[:-2] + "01"
    until(browser, lambda: css(browser, "#detail h2")[0].text == other)
    assert browser.current_url.endswith(f"#trajectories/{other}")


def test_filters_narrow_the_list(browser: Any, report: Path) -> None:
    open_tab(browser, report.as_uri(), "trajectories")
    everything = rows(browser)
    assert "in this file, which carries a sample of all" in css(browser, ".list > p")[0].text
    Select(css(browser, "#filter-phase")[0]).select_by_value("eval")
    until(browser, lambda: rows(browser) and all(one.startswith("eval/") for one in rows(browser)))
    labels = [option.text for option in Select(css(browser, "#filter-step")[0]).options]
    assert "1: before heldout greedy" in labels
    Select(css(browser, "#filter-phase")[0]).select_by_value("")
    Select(css(browser, "#filter-fate")[0]).select_by_value("failed")
    until(browser, lambda: len(rows(browser)) < len(everything))
    assert rows(browser)
    assert all("no reward" in row.text for row in css(browser, ".row"))
    Select(css(browser, "#filter-fate")[0]).select_by_value("")
    css(browser, "#filter-text")[0].send_keys('"customer":"Zoë')
    until(browser, lambda: len(rows(browser)) == len(everything))
    css(browser, "#filter-text")[0].send_keys("no such text")
    until(browser, lambda: rows(browser) == [])
    assert "0 of" in css(browser, ".list > p")[0].text


def test_hostile_text_is_shown_and_does_nothing(browser: Any, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", rl_steps=2, spoil=HOSTILE)
    found = {"monitor": HOSTILE, "kind": HOSTILE, "summary": HOSTILE, "evidence": {HOSTILE: HOSTILE}, "onset_step": 1}
    decided = {"act": "stop", "reason": HOSTILE, "values": {HOSTILE: HOSTILE}, "findings": [HOSTILE]}
    events = [
        Event(kind="finding", detail=HOSTILE, data={**found, "trajectory_ids": [HOSTILE]}),
        Event(kind="decision", detail=HOSTILE, data=decided),
    ]
    run.commit_rl_step(events=events)
    run.writer.set_status(RunState.STOPPED, HOSTILE)
    run.writer.close()
    address = write_report(run.folder).as_uri()
    for tab in TABS:
        open_tab(browser, address, tab)
        if tab == "trajectories":
            css(browser, ".row")[0].click()
            until(browser, lambda: css(browser, ".turn"))
            assert "<script>window.hacked = 1</script>" in css(browser, "#detail")[0].text
            assert "⟨U+202E⟩" in css(browser, "#detail")[0].text
            css(browser, ".switch button")[1].click()
        for chart in css(browser, f"#tab-{tab} .chart"):
            show_tip = (
                "const c = echarts.getInstanceByDom(arguments[0]); c?.dispatchAction({type: 'showTip', x: 200, y: 100})"
            )
            browser.execute_script(show_tip, chart)
        assert browser.execute_script("return [window.hacked, document.querySelectorAll('main img').length]") == [
            None,
            0,
        ]
    assert problems(browser) == []


def test_the_policy_keeps_a_script_that_got_in_from_running(browser: Any, report: Path) -> None:
    browser.get(report.as_uri())
    inject = "const s = document.createElement('script'); s.textContent = 'window.hacked = 1'; document.body.append(s);"
    browser.execute_script(inject)
    assert browser.execute_script("return window.hacked") is None
    assert any("Content Security Policy" in message for message in problems(browser))


@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_screen_needs_no_sideways_scrolling(browser: Any, report: Path, dark: bool) -> None:
    screen(browser, 400, dark=dark)
    for tab in TABS:
        open_tab(browser, report.as_uri(), tab)
        if tab == "trajectories":
            css(browser, ".row")[0].click()
            until(browser, lambda: css(browser, ".turn"))
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
    red = int(css(browser, "body")[0].value_of_css_property("background-color").split("(")[1].split(",")[0])
    assert (red < 60) == dark


def test_charts_follow_the_colour_scheme(browser: Any, report: Path) -> None:
    open_tab(browser, report.as_uri(), "overview")
    colour = "return echarts.getInstanceByDom(arguments[0]).getOption().series.at(-1).color"
    light = browser.execute_script(colour, css(browser, "#chart-reward")[0])
    screen(browser, 1280, dark=True)
    until(browser, lambda: browser.execute_script(colour, css(browser, "#chart-reward")[0]) != light)


def test_the_live_page_follows_a_run_and_opens_any_trajectory(browser: Any, tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "live")
    run.commit_sft()
    run.commit_rl_step()
    with serve(run.folder) as server:
        open_tab(browser, server.url, "overview")
        reward = until(browser, lambda: css(browser, "#chart-reward")[0])
        until(browser, lambda: browser.execute_script("return !!echarts.getInstanceByDom(arguments[0])", reward))
        assert css(browser, "#run-state")[0].text == "running"
        browser.execute_script("window.still = 'the same page'")
        run.commit_rl_step()
        until(browser, lambda: browser.execute_script(POINTS, reward)[0][1] == 2)
        run.writer.set_status(RunState.STOPPED, "no_signal: nothing to learn")
        until(browser, lambda: css(browser, "#reason") and "no_signal" in css(browser, "#reason")[0].text)
        browser.execute_script("location.hash = 'trajectories'")
        until(browser, lambda: len(rows(browser)) == 50)
        Select(css(browser, "#filter-outcome")[0]).select_by_value("error:environment")
        until(browser, lambda: set(rows(browser)) == {"rl/000002/0000/03", "rl/000001/0000/03"})
        css(browser, ".row")[0].click()
        until(browser, lambda: css(browser, ".turn"))
        run.commit_rl_step()
        until(browser, lambda: len(rows(browser)) == 3)
        assert css(browser, "#detail h2")[0].text == "rl/000002/0000/03"
        assert browser.execute_script("return window.still") == "the same page"
        assert problems(browser) == []
        assert {urlsplit(url).netloc for url in requests(browser) if url.startswith("http")} == {
            urlsplit(server.url).netloc
        }
    run.writer.close()


def test_the_live_page_says_when_its_server_is_gone(browser: Any, tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "live")
    run.commit_rl_step()
    server = serve(run.folder).start()
    open_tab(browser, server.url, "overview")
    until(browser, lambda: css(browser, "#connection")[0].text == "following")
    server.close()
    until(browser, lambda: "not updating" in css(browser, "#connection")[0].text)
    run.writer.close()
