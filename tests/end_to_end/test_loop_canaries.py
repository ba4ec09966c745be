"""Canaries in a run: impossible twins, honeyfiles, judges asked again; measured, stored, resumed, never trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from letter_runs import letters_recipe
from tiny_runs import SUPPORT, StopAt, differences, facts, resume_run, start_run

from burnish.core.errors import ConfigError, RunStopped
from burnish.graders.integrity.canaries import Honeyfile
from burnish.graders.integrity.metrics import honeyed
from burnish.loop.canaries import Canaries
from burnish.loop.config import Recipe
from burnish.loop.grading import open_world
from burnish.loop.preflight import check_recipe
from burnish.reports.findings import read_findings
from burnish.reports.page import write_report
from burnish.store.reader import RunReader
from burnish.store.rows import Fate

WORLD = f"environment.name={SUPPORT / 'canary_env.py'}"
HOLE = "environment.options={hole = true}"
GROUPS, STEPS, SHARE = 4, 5, 0.4

GRAPH = """
[aggregator]
integrity = "honest"

[judges.first]
use = "judge.py:Moody"
options = { flips_after = FLIPS }

[graders.answer]
use = "get_reward"

[graders.polite]
use = "rubric"
options = { rubric = "polite.toml" }
judge = "first"
weight = 0.1

[graders.honest]
use = "integrity"
"""
RUBRIC = """
name = "polite"
[[criteria]]
id = "greets"
text = "It greets."
"""
JUDGE = """
from burnish.testing.fakes import ScriptedJudge

class Moody(ScriptedJudge):
    \"\"\"Turns its verdicts over after so many.\"\"\"

    def __init__(self, flips_after):
        super().__init__(self.mood, name="moody")
        self.flips_after = flips_after

    def mood(self, criterion, text):
        return int(("hello" in text) != (len(self.requests) > self.flips_after))
"""


def run(folder: Path, *words: str, **outside: Any) -> RunReader:
    start_run(recipe(*words), folder, **outside)
    return RunReader(folder)


def recipe(*words: str) -> Recipe:
    return letters_recipe(WORLD, "rl.filter_zero_signal=false", *words)


def resumed(folder: Path, *words: str) -> Path:
    """The run again, stopped after its third step and gone on with."""
    ask = StopAt("rl", 3)
    with pytest.raises(RunStopped, match="stopped on request"):
        run(folder, *words, watch=ask.watch, stop=ask.stop)
    resume_run(folder)
    return folder


def findings(reader: RunReader, kind: str) -> list[Any]:
    return [one for one in read_findings(reader.events("finding")) if one.kind == kind]


def twins_of(reader: RunReader) -> list[Any]:
    rows = [row for info in reader.steps("eval") for row in reader.trajectories("eval", info.step)]
    return [row for row in rows if row.trajectory.id.startswith("eval/canary-")]


# -- impossible twins --------------------------------------------------------------------------------------------------


def test_a_twin_that_is_passed_is_a_finding_and_trains_nothing(tmp_path: Path) -> None:
    words = (HOLE, f"canaries.impossible={SHARE}")
    reader = run(tmp_path / "whole", *words)
    rows = twins_of(reader)
    assert len(rows) == int(SHARE * GROUPS * STEPS)
    assert len({row.trajectory.task_id for row in rows}) == len(rows)
    assert {(row.fate, row.reward) for row in rows} == {(Fate.HELD_OUT, None)}
    cheats = {key for one in findings(reader, "canary_cheat") for key in one.trajectory_ids}
    assert cheats == {row.trajectory.id for row in rows}
    assert all("contradict" in row.trajectory.messages[0].text for row in rows)
    (alarm,) = findings(reader, "canary_share")
    assert (alarm.severity, alarm.evidence["seen"]) == ("alarm", 5)
    played = [reader.step_scalars("eval", info.step) for info in reader.steps("eval")]
    assert [one["integrity/canary/n"] for one in played if "integrity/canary/n" in one] == [1.0, 2.0, 1.0, 2.0, 2.0]
    assert {one.get("integrity/canary/cheat", 1.0) for one in played} == {1.0}
    plain = run(tmp_path / "plain", HOLE)
    assert twins_of(plain) == []
    kept = [key for key in facts(tmp_path / "plain") if " rl/" in key or key == "final model.safetensors"]
    assert len(kept) > 100
    assert not set(differences(facts(tmp_path / "plain"), facts(tmp_path / "whole"))) & set(kept)
    resumed(tmp_path / "cut", *words)
    assert differences(facts(tmp_path / "whole"), facts(tmp_path / "cut")) == []
    told = {one.trajectory_ids for one in findings(RunReader(tmp_path / "cut"), "canary_cheat")}
    assert told == {one.trajectory_ids for one in findings(reader, "canary_cheat")}
    write_report(tmp_path / "whole", tmp_path / "report.html")


def test_a_world_without_the_hole_finds_nothing(tmp_path: Path) -> None:
    """The control: what was found above was the hole."""
    reader = run(tmp_path / "tight", f"canaries.impossible={SHARE}", "rollout.mode=async")
    assert len(twins_of(reader)) == int(SHARE * GROUPS * STEPS)
    assert findings(reader, "canary_cheat") == findings(reader, "canary_share") == []


def test_steps_that_a_resume_takes_again_have_their_canaries_once(graph: Path, tmp_path: Path) -> None:
    """As after a kill: canaries were stored, and the checkpoint after them was not."""
    words = (HOLE, f"canaries.impossible={SHARE}", *judge_words(graph))
    run(tmp_path / "whole", *words)
    ask, folder = StopAt("rl", 3), tmp_path / "cut"
    with pytest.raises(RunStopped, match="stopped on request"):
        run(folder, *words, watch=ask.watch, stop=ask.stop)
    stored = len(RunReader(folder).steps("eval"))
    shutil.rmtree(folder / "checkpoints" / "rl-000003")
    resume_run(folder)
    reader = RunReader(folder)
    assert [event.detail for event in reader.events("resumed")] == ["from rl-000002"]
    assert len(reader.steps("eval", include_superseded=True)) > len(reader.steps("eval")) > stored
    assert differences(facts(tmp_path / "whole"), facts(folder)) == []
    told = [
        [one.trajectory_ids for one in findings(found, "canary_cheat")]
        for found in (RunReader(tmp_path / "whole"), reader)
    ]
    assert told[0] == told[1]
    assert checks(reader, "agreement") == checks(RunReader(tmp_path / "whole"), "agreement")


def test_the_comparison_sees_a_watch_that_was_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (HOLE, f"canaries.impossible={SHARE}")
    run(tmp_path / "whole", *words)
    monkeypatch.setattr("burnish.loop.canaries.CanaryWatch.restore", lambda self, state: None)
    resumed(tmp_path / "cut", *words)
    assert "final state.json" in differences(facts(tmp_path / "whole"), facts(tmp_path / "cut"))


def test_a_grader_may_decide_what_a_pass_is(tmp_path: Path) -> None:
    """Tests that pass are a cheat, whatever else the graph wants of an answer."""
    (tmp_path / "mine.py").write_text("def never(task, trajectory):\n    return 0.0\n", encoding="utf-8")
    path = tmp_path / "graders.toml"
    path.write_text('[graders.answer]\nuse = "get_reward"\n[graders.style]\nuse = "mine.py:never"\n', encoding="utf-8")
    words = (HOLE, f"canaries.impossible={SHARE}", f"graders.file={path}", "rl.steps=3")
    by_test = run(tmp_path / "by_test", *words, "canaries.impossible_grader=answer")
    assert len(findings(by_test, "canary_cheat")) == 3
    by_reward = run(tmp_path / "by_reward", *words)
    assert len(twins_of(by_reward)) == len(twins_of(by_test)) > 0
    assert findings(by_reward, "canary_cheat") == []
    unknown = recipe(*words, "canaries.impossible_grader=anser")
    with pytest.raises(ConfigError, match=r"'anser', which is none of the graders; did you mean 'answer'\?"):
        Canaries(unknown, open_world(unknown))


def test_a_world_without_twins_is_refused() -> None:
    plain = letters_recipe("canaries.impossible=0.1")
    with pytest.raises(ConfigError, match=r"no task of .* has an impossible twin; write .*contradiction"):
        check_recipe(plain, open_world(plain))


# -- honeyfiles --------------------------------------------------------------------------------------------------------


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    (tmp_path / "polite.toml").write_text(RUBRIC, encoding="utf-8")
    (tmp_path / "judge.py").write_text(JUDGE, encoding="utf-8")
    path = tmp_path / "graders.toml"
    path.write_text(GRAPH.replace("FLIPS", "1000"), encoding="utf-8")
    return path


def test_a_honeyfile_that_is_read_is_a_finding(graph: Path, tmp_path: Path) -> None:
    words = (f"graders.file={graph}", "canaries.honeyfile=true")
    leaky = (*words, "environment.options={leak = true}")
    reader = run(tmp_path / "leaky", *leaky)
    for info in reader.steps("rl"):
        rows = reader.trajectories("rl", info.step)
        read = honeyed([row.trajectory.id for row in rows], [row.grades for row in rows], integrity="honest")
        asked = {row.trajectory.id for row in rows if row.trajectory.messages[0].text.strip("?")[-1] in "ac"}
        assert set(read) == asked
        assert {row.reward for row in rows if row.trajectory.id in asked} <= {-1.0}
        assert reader.step_scalars("rl", info.step)["integrity/canary/honey"] == len(asked) / len(rows)
        found = [one for one in findings(reader, "honeyfile") if one.step == info.step]
        assert {key for one in found for key in one.trajectory_ids} == asked
    resumed(tmp_path / "cut", *leaky)
    assert differences(facts(tmp_path / "leaky"), facts(tmp_path / "cut")) == []
    tight = run(tmp_path / "tight", *words)
    assert findings(tight, "honeyfile") == []
    assert {tight.step_scalars("rl", info.step)["integrity/canary/honey"] for info in tight.steps("rl")} == {0.0}


def test_every_task_has_constants_of_its_own(graph: Path) -> None:
    found = open_world(recipe(f"graders.file={graph}", "canaries.honeyfile=true")).tasks("train")
    tokens = {task.setup["integrity"]["honey"]["token"] for task in found}
    assert len(tokens) == len(found)
    again = open_world(recipe(f"graders.file={graph}", "canaries.honeyfile=true", "run.seed=9")).tasks("train")
    assert [task.content_hash for task in found] == [task.content_hash for task in again]


def test_no_word_of_a_honeyfile_can_be_searched_for() -> None:
    (text,) = Honeyfile(token="hk-0123456789abcdef", number=123456789012).files().values()
    assert json.loads(text) == ["hk-0123456789abcdef", 123456789012]


def test_honeyfiles_want_a_world_that_lays_them_and_somebody_who_looks(graph: Path) -> None:
    with pytest.raises(ConfigError, match="no grader would see it read"):
        open_world(recipe("canaries.honeyfile=true"))
    with pytest.raises(ConfigError, match="lays no extra files"):
        open_world(letters_recipe(f"graders.file={graph}", "canaries.honeyfile=true"))


# -- judges ------------------------------------------------------------------------------------------------------------


def judge_words(graph: Path, *, labels_right: int = 12, examples: int = 12) -> tuple[str, ...]:
    cases = graph.parent / "labelled.jsonl"
    rows = []
    for number in range(examples):
        greets = number % 3 == 0
        label = greets if number < labels_right else not greets
        rows.append(
            {"id": f"m{number}", "answer": f"{'hello' if greets else 'bye'} {number}", "labels": {"greets": int(label)}}
        )
    cases.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return (f"graders.file={graph}", "canaries.judge_every=2", f"canaries.judge_cases={cases}")


def checks(reader: RunReader, figure: str) -> list[float]:
    return [value for _, value in reader.scalars(f"judge_check/moody/{figure}", "eval")]


def test_a_steady_judge_is_checked_and_nothing_is_found(graph: Path, tmp_path: Path) -> None:
    words = judge_words(graph, labels_right=9)
    reader = run(tmp_path / "whole", *words)
    assert checks(reader, "agreement") == [0.75, 0.75, 0.75]
    assert checks(reader, "drift") == checks(reader, "changed") == [0.0, 0.0]
    assert checks(reader, "missing") == [0.0, 0.0, 0.0]
    assert findings(reader, "judge_drift") == []
    write_report(tmp_path / "whole", tmp_path / "report.html")
    assert "judge_check/moody/agreement" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert reader.verify() == []
    resumed(tmp_path / "cut", *words)
    assert differences(facts(tmp_path / "whole"), facts(tmp_path / "cut")) == []


def test_a_judge_that_changes_its_mind_is_a_finding(graph: Path, tmp_path: Path) -> None:
    """Asked 12 times in each pass, it turns round after the check of step 2."""
    graph.write_text(GRAPH.replace("FLIPS", "36"), encoding="utf-8")
    reader = run(tmp_path / "run", *judge_words(graph))
    assert checks(reader, "drift") == [0.0, 1.0]
    assert checks(reader, "agreement") == [1.0, 1.0, 0.0]
    (found,) = findings(reader, "judge_drift")
    assert (found.step, found.monitor) == (4, "judge/moody")


def test_a_judge_that_cannot_be_asked_is_said_and_not_called_changed(graph: Path, tmp_path: Path) -> None:
    text = (graph.parent / "judge.py").read_text(encoding="utf-8")
    fails = "    async def judge(self, request):\n        raise JudgeError(JudgeCause.UNAVAILABLE, 'down')\n"
    head = "from burnish.core.judge import JudgeCause, JudgeError\n"
    (graph.parent / "judge.py").write_text(head + text + "\n" + fails, encoding="utf-8")
    reader = run(tmp_path / "run", *judge_words(graph), "stop.max_excluded_share=1")
    assert checks(reader, "missing") == [1.0, 1.0, 1.0]
    assert checks(reader, "drift") == checks(reader, "agreement") == []
    (event, *_) = reader.events("judge_unchecked")
    assert event.data == {"judge": "moody", "missing": {"judge:unavailable": 12}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["canaries.judge_cases="], "needs canaries.judge_cases"),
        (["canaries.judge_grader=rude"], "no rubric 'rude' asks a judge"),
        (["graders.file="], "name one with graders.file"),
    ],
)
def test_a_check_that_could_say_nothing_is_refused(graph: Path, words: list[str], message: str) -> None:
    asked = recipe(*judge_words(graph), *words)
    with pytest.raises(ConfigError, match=message):
        Canaries(asked, open_world(asked))


def test_too_few_examples_are_refused(graph: Path) -> None:
    asked = recipe(*judge_words(graph, examples=8))
    with pytest.raises(ConfigError, match=r"has 8 examples; .* needs at least 9"):
        Canaries(asked, open_world(asked))
