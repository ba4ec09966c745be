"""Runs that are judged by a grader graph, and runs that are held by an entropy floor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import StopAt, differences, facts, resume_run, start_run, tiny_recipe

from burnish.cli import main
from burnish.core.errors import RunStopped, StoreError
from burnish.core.grade import SKIPPED_BY_GATE
from burnish.loop.fork import fork_run, forked_recipe
from burnish.loop.replay import replay_step
from burnish.store.reader import RunReader

WORDS = ("evaluation.before=false", "rl.steps=4", "rl.filter_zero_signal=false")
GRAPH = """
[graders.short]
use = "mine.py:short"
gate = 1.0
weight = 0.0

[graders.answer]
use = "get_reward"
requires = ["short"]

[graders.taste]
use = "mine.py:taste"
weight = [[0.5, 0.0], [0.75, 0.5]]
preference = true
"""
MINE = """
def short(task, trajectory):
    return float(trajectory.action_tokens <= 6)

def taste(task, trajectory):
    return min(1.0, len(trajectory.answer) / 10)
"""


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    path = tmp_path / "graders.toml"
    path.write_text(GRAPH, encoding="utf-8")
    return path


def rows(folder: Path, step: int):
    return RunReader(folder).trajectories("rl", step)


def expected(row, weight: float) -> float | None:
    by_name = {grade.grader: grade for grade in row.grades}
    return (by_name["answer"].score or 0.0) + weight * by_name["taste"].score


@pytest.mark.parametrize("in_process", ["true", "false"])
def test_a_run_is_judged_by_its_graph_at_the_weights_of_the_moment(
    graph: Path, tmp_path: Path, in_process: str
) -> None:
    folder = tmp_path / "runs" / "graph"
    start_run(tiny_recipe(*WORDS, f"graders.file={graph}", f"run.in_process={in_process}"), folder)
    for step, weight in ((1, 0.0), (2, 0.0), (3, 0.5), (4, 0.5)):
        for row in rows(folder, step):
            assert row.reward == pytest.approx(expected(row, weight))
    causes = {grade.cause for step in (1, 2) for row in rows(folder, step) for grade in row.grades}
    assert SKIPPED_BY_GATE in causes
    stored = RunReader(folder).manifest()["environment"]
    assert stored["graders"].keys() == {"short", "answer", "taste"}
    assert stored["graph"]["text"] == GRAPH
    held_out = RunReader(folder).trajectories("eval", 1)
    for row in held_out:
        assert row.reward == pytest.approx(expected(row, 0.0)), "the preference is no part of success"


def test_a_graph_that_changed_stops_a_resume_and_no_regrade(graph: Path, tmp_path: Path, capsys) -> None:
    folder, recipe = tmp_path / "runs" / "graph", tiny_recipe(*WORDS, f"graders.file={graph}")
    ask = StopAt("rl", 2)
    with pytest.raises(RunStopped, match="stopped on request"):
        start_run(recipe, folder, watch=ask.watch, stop=ask.stop)
    graph.write_text(GRAPH.replace("0.75, 0.5", "0.75, 0.9"), encoding="utf-8")
    with pytest.raises(StoreError, match=r"grader graph .* has changed"):
        resume_run(folder)
    graph.write_text(GRAPH, encoding="utf-8")
    resume_run(folder)
    start_run(recipe, tmp_path / "whole")
    assert differences(facts(folder), facts(tmp_path / "whole")) == []
    graph.unlink()
    assert main(["regrade", str(folder), "--phase", "rl", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reward"]["changed"] == 0
    assert found["reward"]["n"] > 0
    other = tmp_path / "other.toml"
    other.write_text('[graders.answer]\nuse = "get_reward"\n', encoding="utf-8")
    assert main(["regrade", str(folder), "--phase", "rl", "--graders", str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reward"]["changed"] > 0


def test_a_fork_may_be_judged_otherwise(graph: Path, tmp_path: Path) -> None:
    start_run(tiny_recipe(*WORDS), tmp_path / "runs" / "plain")
    recipe = forked_recipe(tmp_path / "runs" / "plain", [f"graders.file={graph}", "rl.steps=6"])
    fork_run(tmp_path / "runs" / "plain", recipe, tmp_path / "runs" / "fork")
    assert {grade.grader for row in rows(tmp_path / "runs" / "fork", 5) for grade in row.grades} == {
        "short",
        "answer",
        "taste",
    }


def test_the_entropy_floor_pulls_below_the_floor_and_resumes_and_replays(tmp_path: Path) -> None:
    # A share of nearly 1 makes the floor what the entropy falls under at once.
    floor = ("rl.entropy_floor=2.0", "rl.entropy_floor_steps=1", "rl.entropy_floor_share=0.999", "rl.lr=3e-3")
    recipe = tiny_recipe(*WORDS, *floor, "rl.entropy_floor_ramp=0.01")
    start_run(recipe, tmp_path / "held")
    reader = RunReader(tmp_path / "held")
    weights = [reader.step_scalars("rl", step)["entropy_floor/kl_weight"] for step in (1, 2, 3, 4)]
    entropies = [reader.step_scalars("rl", step)["entropy_nats_mean"] for step in (1, 2, 3, 4)]
    assert weights[:1] == [0.0]
    assert max(weights) > 0.0, entropies
    for before, weight in zip(entropies, weights[1:], strict=False):
        assert (weight > 0.0) == (before < 0.999 * entropies[0])
    for step in (1, 2, 3, 4):
        assert replay_step(tmp_path / "held", step, lambda text: None).bit_equal
    ask = StopAt("rl", 2)
    with pytest.raises(RunStopped, match="stopped on request"):
        start_run(recipe, tmp_path / "stopped", watch=ask.watch, stop=ask.stop)
    resume_run(tmp_path / "stopped")
    assert differences(facts(tmp_path / "stopped"), facts(tmp_path / "held")) == []


def test_correct_traces_are_those_that_an_evaluation_calls_a_success(graph: Path, tmp_path: Path) -> None:
    """The expert is right and hardly to anybody's taste."""
    graph.write_text(GRAPH.replace("gate = 1.0\n", ""), encoding="utf-8")
    words = ("warm_start.keep=correct", "rl.steps=0", "evaluation.before=false")
    start_run(tiny_recipe(*words, f"graders.file={graph}"), tmp_path / "run")
    scalars = RunReader(tmp_path / "run").step_scalars("sft", 0)
    assert scalars["demonstrations/kept"] == 96.0
    assert scalars["demonstrations/correct_share"] == 1.0


@pytest.mark.parametrize("mode", ["greedy", "sampled"])
def test_quick_evaluations_act_as_the_recipe_says(tmp_path: Path, mode: str) -> None:
    start_run(tiny_recipe(*WORDS, f"evaluation.quick_mode={mode}", "evaluation.every=2"), tmp_path / "run")
    quick = [row.mode for row in RunReader(tmp_path / "run").evaluations() if row.label.startswith("rl-")]
    assert quick == [mode]


JUDGED = """
[judges.first]
use = "judge.py:Judge"
options = { log = "LOG" }
cache = "kept.jsonl"

[graders.answer]
use = "get_reward"

[graders.style]
use = "rubric"
options = { rubric = "style.toml" }
judge = "first"
weight = 0.5
"""
JUDGE = """
import os
from pathlib import Path
from burnish.core.judge import JudgeCause, JudgeError
from burnish.testing.fakes import ScriptedJudge

class Judge(ScriptedJudge):
    def __init__(self, log):
        super().__init__(lambda criterion, text: len(text) % 2)
        self._log = Path(log)

    async def judge(self, request):
        if self._log.with_name("down").exists():
            raise JudgeError(JudgeCause.UNAVAILABLE, "the judge is down")
        with self._log.open("a") as file:
            print(os.getpid(), file=file)
        return await super().judge(request)
"""


def test_workers_build_the_judge_of_a_graph_and_a_regrade_needs_none(tmp_path: Path, capsys) -> None:
    (tmp_path / "judge.py").write_text(JUDGE, encoding="utf-8")
    (tmp_path / "style.toml").write_text('[[criteria]]\nid = "odd"\ntext = "Its length is odd."\n', encoding="utf-8")
    path, log = tmp_path / "judged.toml", tmp_path / "asked"
    path.write_text(JUDGED.replace("LOG", str(log)), encoding="utf-8")
    folder = tmp_path / "runs" / "judged"
    start_run(tiny_recipe(*WORDS, f"graders.file={path}", "run.in_process=false"), folder)
    assert len(set(log.read_text().split())) == 2, "both workers judged"
    given = [grade for step in (1, 2, 3, 4) for row in rows(folder, step) for grade in row.grades]
    assert {grade.score for grade in given if grade.grader == "style"} == {0.0, 1.0}
    asked = log.read_text()
    scalars = [RunReader(folder).step_scalars("rl", step) for step in (1, 2, 3, 4)]
    assert sum(one["judge/requests"] for one in scalars) == sum(g.evidence["requests"] for g in given if g.cost_tokens)
    assert scalars[0]["judge/tokens"] > 0
    assert {one["judge/no_score_share"] for one in scalars} == {0.0}

    def regraded(*more: str) -> dict:
        assert main(["regrade", str(folder), "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)

    (tmp_path / "down").touch()
    for words in ((), ("--offline",)):
        found = regraded(*words)
        assert found["graders"]["style"]["changed"] == found["reward"]["changed"] == 0
        assert found["graders"]["style"]["n"] == found["graders"]["style"]["n_new"] > 0
    assert log.read_text() == asked

    kept = (tmp_path / "kept.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "kept.jsonl").write_text("".join(kept[1:]), encoding="utf-8")
    for words, cause in (((), "judge:unavailable"), (("--offline",), "judge:not_in_cache")):
        lost = regraded(*words)["graders"]["style"]
        assert lost["n_new"] < lost["n"], "the control: without its reply in the cache, a grade cannot be given"
        assert set(lost["causes"]) == {cause}
