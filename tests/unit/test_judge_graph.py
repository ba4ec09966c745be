"""Judges in grader graphs: named in the file, built by every process, replayed from their cache."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from judge_endpoint import judge_endpoint

from burnish.core.errors import ConfigError, StoreError
from burnish.core.grade import Grade
from burnish.core.message import Message
from burnish.core.sampling import Sample, SampleRequest
from burnish.core.task import Task
from burnish.graders.graph import GraderGraph, load_graph
from burnish.graders.graph_files import GraphFiles
from burnish.graders.judge_policy import judging_policy
from burnish.graders.judge_spec import JudgeSpec, make_judge, replayed
from burnish.testing.fakes import ScriptedSampler
from burnish.testing.grader import answered

RUBRIC = """
name = "polite"

[[criteria]]
id = "greets"
text = "It greets."

[[criteria]]
id = "short"
text = "It is short."
rule = { max_words = 5 }
"""
JUDGE = """
from pathlib import Path
from burnish.testing.fakes import ScriptedJudge

class Counting(ScriptedJudge):
    def __init__(self, word="hello", log=""):
        super().__init__(lambda criterion, text: int(word in text.lower()), name=f"counts-{word}")
        self._log = log

    async def judge(self, request):
        if self._log:
            with Path(self._log).open("a") as file:
                print(1, file=file)
        return await super().judge(request)
"""
GRAPH = """
[judges.first]
use = "judge.py:Counting"
options = { log = "LOG" }
cache = "kept.jsonl"

[graders.polite]
use = "rubric"
options = { rubric = "polite.toml" }
judge = "first"
"""
TASK = Task(prompt="Greet me.", reference={"answer": "hello"})


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    (tmp_path / "polite.toml").write_text(RUBRIC, encoding="utf-8")
    (tmp_path / "judge.py").write_text(JUDGE, encoding="utf-8")
    path = tmp_path / "graders.toml"
    path.write_text(GRAPH.replace("LOG", str(tmp_path / "asked")), encoding="utf-8")
    return path


def grade(graph: GraderGraph, answer: str) -> Grade:
    return asyncio.run(graph.graders[0].grade(TASK, answered(TASK, answer)))


def asked(graph: Path) -> int:
    log = graph.parent / "asked"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_a_graph_names_a_judge_and_files_beside_it(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    loaded = load_graph(graph)
    assert grade(loaded, "Hello there").score == 1.0
    assert grade(loaded, "Go away").score == 0.5
    assert asked(graph) == 2
    assert (graph.parent / "kept.jsonl").exists()


def test_an_equal_judge_in_another_process_replays_what_the_first_one_said(graph: Path) -> None:
    first = grade(load_graph(graph), "Hello there")
    again = grade(load_graph(graph), "Hello there")
    assert asked(graph) == 1
    assert (again.score, again.version) == (first.score, first.version)
    assert again.evidence["cached"] == 1


def test_offline_nobody_is_asked(graph: Path) -> None:
    grade(load_graph(graph), "Hello there")
    offline = load_graph(graph, judges=replayed)
    assert grade(offline, "Hello there").score == 1.0
    new = grade(offline, "Hello, somebody else")
    assert (new.score, new.cause) == (None, "judge:not_in_cache")
    assert asked(graph) == 1
    graph.write_text(graph.read_text().replace('cache = "kept.jsonl"', 'cache = "kept.jsonl"\noffline = true'))
    assert grade(load_graph(graph), "Hello, somebody else").cause == "judge:not_in_cache"
    (graph.parent / "kept.jsonl").unlink()
    with pytest.raises(StoreError, match="there is no judge cache"):
        load_graph(graph, judges=replayed)


def test_several_judges_and_a_budget(graph: Path) -> None:
    text = graph.read_text().replace('judge = "first"', 'judge = ["first", "second"]')
    second = '[judges.second]\nuse = "judge.py:Counting"\noptions = { word = "there" }\nmax_requests = 1\n'
    graph.write_text(second + text)
    loaded = load_graph(graph)
    both = grade(loaded, "Hello you")
    assert both.evidence["criteria"]["greets"]["votes"] == {"counts-hello": 1.0, "counts-there": 0.0}
    assert grade(loaded, "Hello there").cause == "judge:budget_exhausted"


def by_policy(graph: Path, more: str = "") -> GraderGraph:
    """The graph with the policy as its judge."""
    text = graph.read_text()
    graph.write_text(f'[judges.first]\nuse = "policy"\n{more}\n' + text[text.index("[graders.polite]") :])
    return load_graph(graph)


def policy_says(version: int, word: str) -> ScriptedSampler:
    """A policy of that version, which finds what it is asked about where a word stands."""

    def answer(request: SampleRequest) -> Sample:
        system, prompt = (message.text for message in request.messages)
        return Sample(message=Message.assistant(verdicts(system, prompt, word)))

    return ScriptedSampler(answer, version=version)


def verdicts(system: str, prompt: str, word: str) -> str:
    nonce = re.search(r"<<<answer (\w+)>>>", prompt)[1]  # type: ignore[index]
    material, _, listed = prompt.rpartition("\n\nCriteria:\n")
    rows = []
    for number, line in enumerate(listed.split("\n"), start=1):
        is_control = line.startswith(f'{number}. The word "')
        met = line.split('"')[1] in material if is_control else word in material.lower()
        rows.append({"item": number, "quote": "", "reason": "", "value": int(met)})
    return json.dumps({"nonce": nonce, "verdicts": rows})


def test_the_policy_judges_where_grading_says_which_it_is(graph: Path) -> None:
    loaded = by_policy(graph)
    with judging_policy(policy_says(3, "hello"), None):
        early = grade(loaded, "Hello there")
        with judging_policy(policy_says(4, "there"), None):
            late = grade(loaded, "Hello you")
    assert (early.score, early.evidence["judges"]) == (1.0, {"policy": "policy@3"})
    assert (late.score, late.evidence["judges"]) == (0.5, {"policy": "policy@4"})
    assert early.version == late.version, "one graph all along; who judged stands in the evidence"


def test_elsewhere_the_policy_gives_no_score(graph: Path) -> None:
    """The control: what judged above was what the grading named.  Offline it is the same."""
    loaded = by_policy(graph)
    assert (grade(loaded, "Hello").score, grade(loaded, "Hello").cause) == (None, "judge:unavailable")
    assert grade(load_graph(graph, judges=replayed), "Hello").cause == "judge:unavailable"


def test_a_policy_is_not_kept(graph: Path) -> None:
    with pytest.raises(ConfigError, match="leave its cache out"):
        by_policy(graph, 'cache = "kept.jsonl"')


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('judge = "first"', 'judge = "frist"', r"no judge 'frist' in the file; did you mean 'first'\?"),
        ('judge = "first"', "", "judges.first is named by no grader"),
        ('cache = "kept.jsonl"', 'cash = "kept.jsonl"', r"unknown key judges.first.cash; did you mean 'cache'\?"),
        ("judge.py:Counting", "judge.py:Couting", r"judges.first: judge.py has no 'Couting'; did you mean 'Counting'"),
        ("judge.py:Counting", "counting", "use is policy, package.module:attribute"),
        ("judge.py:Counting", "builtins:dict", "gives no judge"),
        ("{ log =", "{ lgo =", r"judges.first: judge.py:Counting cannot be made with options"),
        ('cache = "kept.jsonl"', "offline = true", "offline and has no cache"),
        ('use = "rubric"\noptions = { rubric = "polite.toml" }', 'use = "exact"', "grader exact takes no judge"),
        ('options = { rubric = "polite.toml" }\njudge = "first"', "", "needs a value for its option rubric"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(graph: Path, old: str, new: str, said: str) -> None:
    text = graph.read_text()
    assert old in text
    if "needs a value" in said:
        text = text.partition("[graders.polite]")[1] + text.partition("[graders.polite]")[2]
    graph.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=said) as found:
        load_graph(graph)
    assert str(graph) in str(found.value)


def test_a_rubric_without_its_judge_is_refused(graph: Path) -> None:
    """The control: the judge of the file is what lets the rubric be made."""
    text = graph.read_text()
    graph.write_text(text[text.index("[graders.polite]") :].replace('judge = "first"', ""))
    with pytest.raises(ConfigError, match="1 criteria have no rule, such as greets; hand in a judge"):
        load_graph(graph)


def test_an_endpoint_is_a_judge_of_a_graph_and_its_replies_outlive_it(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sesame")
    with judge_endpoint() as endpoint:
        options = f'{{ url = "{endpoint.url}", model = "m", key_variable = "JUDGE_KEY", max_attempts = 1 }}'
        judge = f'use = "burnish.integrations.openai_judge:judge_at"\noptions = {options}\n'
        text = graph.read_text()
        head = text[: text.index("use =")] + judge + text[text.index("cache =") :]
        graph.write_text(head)
        assert "sesame" not in head
        assert grade(load_graph(graph), "Hello there").score == 1.0
        assert endpoint.keys == ["Bearer sesame"]
    gone = load_graph(graph)
    assert grade(gone, "Hello there").score == 1.0
    assert grade(gone, "Something new").cause == "judge:unavailable"


def test_a_judge_is_made_without_being_asked(tmp_path: Path) -> None:
    spec = JudgeSpec(use="burnish.integrations.openai_judge:judge_at", options={"url": "http://nowhere/v1"})
    with pytest.raises(ConfigError, match="cannot be made with options"):
        make_judge(spec, GraphFiles(tmp_path))
