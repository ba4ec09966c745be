"""The files that a run's grader graph names: kept with the run, compared on resume, read by a regrade elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_runs import StopAt, resume_run, start_run, tiny_recipe

from burnish.cli import main
from burnish.core.errors import RunStopped, StoreError
from burnish.store.reader import RunReader
from burnish.store.rows import RunState

WORDS = ("evaluation.before=false", "rl.filter_zero_signal=false", "stop.max_excluded_share=1")
JUDGED = """
[judges.first]
use = "judge.py:Judge"
cache = "kept.jsonl"

[graders.answer]
use = "get_reward"

[graders.polite]
use = "rubric"
options = { rubric = "polite.toml" }
judge = "first"
weight = 0.5
"""
RUBRIC = """
name = "polite"

[[criteria]]
id = "digit"
text = "It has a digit."

[[criteria]]
id = "short"
text = "It is short."
rule = { max_words = 1 }
"""
JUDGE = """
from burnish.testing.fakes import ScriptedJudge

class Judge(ScriptedJudge):
    def __init__(self):
        super().__init__(lambda criterion, text: int(any(one.isdigit() for one in text)))
"""


def judged_graph(folder: Path) -> Path:
    (folder / "polite.toml").write_text(RUBRIC, encoding="utf-8")
    (folder / "judge.py").write_text(JUDGE, encoding="utf-8")
    path = folder / "graders.toml"
    path.write_text(JUDGED, encoding="utf-8")
    return path


def changed_by_regrade(folder: Path, capsys, *words: str) -> dict[str, int]:
    assert main(["regrade", str(folder), "--phase", "rl", "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reward"]["n"] > 0
    return {name: found["graders"][name]["changed"] for name in ("answer", "polite")}


def test_what_grading_depended_on_is_kept_with_the_run(tmp_path: Path, capsys) -> None:
    (tmp_path / "graph").mkdir()
    graph, folder = judged_graph(tmp_path / "graph"), tmp_path / "runs" / "judged"
    words = (*WORDS, f"graders.file={graph}", "rl.steps=2")
    start_run(tiny_recipe(*words, "run.in_process=false"), folder)
    scores = {
        grade.score
        for row in RunReader(folder).trajectories("rl", 2)
        for grade in row.grades
        if grade.grader == "polite"
    }
    assert len(scores) > 1
    kept = RunReader(folder).manifest()["environment"]["graph"]["files"]
    assert {name: row["text"] for name, row in kept.items()} == {"polite.toml": RUBRIC, "judge.py": JUDGE}
    assert changed_by_regrade(folder, capsys) == {"answer": 0, "polite": 0}
    # Other files of the same names, or none, are not what the run was graded by.
    (graph.parent / "polite.toml").write_text(RUBRIC.replace("max_words = 1", "min_words = 90"), encoding="utf-8")
    (graph.parent / "judge.py").write_text(JUDGE.replace("any(", "not any("), encoding="utf-8")
    (graph.parent / "kept.jsonl").rename(tmp_path / "kept.jsonl")
    assert changed_by_regrade(folder, capsys) == {"answer": 0, "polite": 0}
    assert changed_by_regrade(folder, capsys, "--graders", str(graph))["polite"] > 0
    shutil.rmtree(graph.parent)
    elsewhere = tmp_path / "elsewhere" / "judged"
    shutil.copytree(folder, elsewhere)
    found = changed_by_regrade(elsewhere, capsys, "--offline", "--beside", str(tmp_path))
    assert found == {"answer": 0, "polite": 0}


def test_a_regrade_reads_the_texts_that_were_kept(tmp_path: Path, capsys) -> None:
    """The control: other texts in the manifest are other grades."""
    graph, folder = judged_graph(tmp_path), tmp_path / "runs" / "judged"
    start_run(tiny_recipe(*WORDS, f"graders.file={graph}", "rl.steps=1"), folder)
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace("max_words = 1", "min_words = 90"), encoding="utf-8")
    assert changed_by_regrade(folder, capsys)["polite"] > 0


@pytest.mark.parametrize(
    ("name", "old", "new"), [("polite.toml", "It is short", "It is brief"), ("judge.py", "any(", "not any(")]
)
def test_a_file_of_the_graph_that_changed_stops_a_resume(tmp_path: Path, name: str, old: str, new: str) -> None:
    graph, folder = judged_graph(tmp_path), tmp_path / "runs" / "judged"
    ask, words = StopAt("rl", 1), (*WORDS, f"graders.file={graph}", "rl.steps=3")
    with pytest.raises(RunStopped, match="stopped on request"):
        start_run(tiny_recipe(*words), folder, watch=ask.watch, stop=ask.stop)
    text = (tmp_path / name).read_text()
    (tmp_path / name).write_text(text.replace(old, new) + "\n", encoding="utf-8")
    with pytest.raises(StoreError, match=rf"grader graph .*: {name} has changed"):
        resume_run(folder)
    (tmp_path / name).write_text(text, encoding="utf-8")
    resume_run(folder)
    assert RunReader(folder).status().state is RunState.FINISHED
