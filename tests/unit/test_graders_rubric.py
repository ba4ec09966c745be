"""Rubrics: files, rules, score, judges, and that what judging fails at is never 0."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.errors import ConfigError
from burnish.core.grade import Grade
from burnish.core.judge import Criterion, CriterionExample, JudgeCause, JudgeError
from burnish.core.message import Message, ToolCall
from burnish.core.outcome import Ending, Limit, Outcome, Owner
from burnish.core.task import Task
from burnish.graders.boundary import grade_trajectories
from burnish.graders.graph import graph_from
from burnish.graders.judge_cache import CachedJudge, JudgeCache
from burnish.graders.judge_calibration import Calibration, Curve
from burnish.graders.rubric import RubricGrader, _transcript
from burnish.graders.rubric_criteria import Judging, Polarity, Rubric, RubricCriterion, TextRule, rubric_score
from burnish.graders.rubric_file import load_rubric, rubric_from_jsonl, rubric_from_toml, rubric_to_jsonl
from burnish.testing.fakes import ScriptedJudge
from burnish.testing.grader import answered

MEMO = Path(__file__).resolve().parents[2] / "examples" / "memo_rubric.toml"
TASK = Task(prompt="Is the clause binding?", id="t1")
ANSWER = "Good morning. The clause binds because both sides performed."


def item(name: str, **changes: Any) -> RubricCriterion:
    kept = {key: changes.pop(key) for key in ("weight", "polarity", "rule", "tasks") if key in changes}
    return RubricCriterion(criterion=Criterion(id=name, text=f"It is {name}.", **changes), **kept)


def rubric(*items: RubricCriterion, **judging: Any) -> Rubric:
    return Rubric(name="r", criteria=items, judging=Judging(**judging))


def grade(grader: RubricGrader, answer: str = ANSWER, **changes: Any) -> Grade:
    return asyncio.run(grader.grade(TASK, answered(TASK, answer, **changes)))


# -- score -----------------------------------------------------------------------------------------------------------

values = st.floats(0.0, 1.0)
weights = st.floats(0.01, 100.0)


@given(st.lists(st.tuples(weights, st.sampled_from(Polarity), values), min_size=1, max_size=12), st.data())
def test_the_score_is_bounded_and_moves_the_right_way(rows: list[tuple[float, Polarity, float]], data: Any) -> None:
    items = [item(f"c{i}", weight=weight, polarity=polarity) for i, (weight, polarity, _) in enumerate(rows)]
    given_values = {f"c{i}": value for i, (_, _, value) in enumerate(rows)}
    score = rubric_score(items, given_values)
    assert 0.0 <= score <= 1.0
    index = data.draw(st.integers(0, len(rows) - 1))
    raised = rubric_score(items, given_values | {f"c{index}": 1.0})
    if rows[index][1] is Polarity.POSITIVE:
        assert raised >= score - 1e-12
    else:
        assert raised <= score + 1e-12
    doubled = [replace(one, weight=2 * one.weight) for one in items]
    assert rubric_score(doubled, given_values) == pytest.approx(score, abs=1e-9)


def test_the_best_answer_scores_one_and_blame_is_clipped_at_zero() -> None:
    items = [item("good", weight=3.0), item("bad", weight=5.0, polarity="negative"), item("fine", weight=1.0)]
    items[1] = replace(items[1], polarity=Polarity.NEGATIVE)
    assert rubric_score(items, {"good": 1.0, "bad": 0.0, "fine": 1.0}) == 1.0
    assert rubric_score(items, {"good": 1.0, "bad": 1.0, "fine": 1.0}) == 0.0
    assert rubric_score(items, {"good": 1.0, "bad": 0.2, "fine": 0.0}) == pytest.approx(0.5)
    blame = [replace(one, polarity=Polarity.NEGATIVE) for one in items]
    assert rubric_score(blame, {"good": 1.0, "bad": 0.0, "fine": 0.0}) == pytest.approx(2 / 3)
    with pytest.raises(KeyError):
        rubric_score(items, {"good": 1.0})
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        rubric_score(items, {"good": 2.0, "bad": 0.0, "fine": 0.0})


# -- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "text", "met"),
    [
        ({"any_of": ["brief answer"]}, "BRIEF\n answer: no", True),
        ({"any_of": ["an AI"]}, "this is an air", False),
        ({"all_of": ["to:", "from:"]}, "To: A\nFrom: B", True),
        ({"all_of": ["to:", "from:"]}, "To: A", False),
        ({"none_of": ["guarantee"]}, "We guarantee it", False),
        ({"none_of": ["guarantee"]}, "We guaranteed it", True),
        ({"headings": ["Facts", "Discussion"]}, "# Facts\nx\n## II. **Discussion:**\ny", True),
        ({"headings": ["Facts", "Discussion"]}, "# Discussion\nx\n# Facts\n", False),
        ({"headings": ["Facts"]}, "The facts are here", False),
        ({"min_words": 3, "max_words": 4}, "one two three", True),
        ({"min_words": 3, "max_words": 4}, "one two three four five", False),
        ({"max_words": 4, "any_of": ["two"]}, "one", False),
    ],
)
def test_rules_decide_by_what_stands_in_the_text(rule: dict[str, Any], text: str, met: bool) -> None:
    assert TextRule(**{key: tuple(v) if isinstance(v, list) else v for key, v in rule.items()}).met(text) is met


@given(st.text(max_size=300))
def test_rules_take_any_text(text: str) -> None:
    TextRule(any_of=("a b",), none_of=("x",), headings=("H",), min_words=1, max_words=9).met(text)


def test_criteria_with_rules_never_reach_the_judge_and_need_none() -> None:
    ruled = item("polite", rule=TextRule(any_of=("good morning",)), weight=3.0)
    assert grade(RubricGrader(rubric(ruled))).score == 1.0
    judge = ScriptedJudge(lambda criterion, text: 0)
    both = grade(RubricGrader(rubric(ruled, item("clear")), judge))
    assert both.score == 0.75
    assert both.evidence["criteria"]["polite"] == {"value": 1.0, "by": "rule"}
    assert not any("polite" in request.prompt for request in judge.requests)
    with pytest.raises(ConfigError, match="hand in a judge"):
        RubricGrader(rubric(ruled, item("clear")))


# -- files -----------------------------------------------------------------------------------------------------------


def test_the_example_memorandum_has_22_criteria_of_every_shape() -> None:
    memo = load_rubric(MEMO)
    assert len(memo.criteria) == 22
    assert sum(one.polarity is Polarity.NEGATIVE for one in memo.criteria) == 4
    assert sum(one.rule is not None for one in memo.criteria) == 5
    assert sum(one.criterion.needs_evidence for one in memo.criteria) >= 7
    assert any(one.criterion.levels > 1 for one in memo.criteria)
    assert any(one.criterion.examples for one in memo.criteria)
    judge = ScriptedJudge(lambda criterion, text: criterion.levels)
    memo_text = "To: A\nFrom: B\nRe: C\nPrivileged and confidential\n" + "\n".join(
        f"# {name}\n" + "The clause binds the parties. " * 30
        for name in ("Question Presented", "Brief Answer", "Facts", "Discussion", "Conclusion")
    )
    found = grade(RubricGrader(memo, judge), memo_text)
    most = sum(one.weight for one in memo.criteria if one.polarity is Polarity.POSITIVE)
    blamed = sum(one.weight for one in memo.criteria if one.polarity is Polarity.NEGATIVE and one.rule is None)
    assert found.score == pytest.approx((most - blamed) / most)
    assert len(judge.requests) == 3
    assert sorted(len(request.criteria) - 2 for request in judge.requests) == [1, 8, 8]


def test_jsonl_is_the_same_rubric() -> None:
    memo = load_rubric(MEMO)
    again = rubric_from_jsonl(rubric_to_jsonl(memo))
    assert again == memo
    assert again.version == memo.version
    changed = replace(memo, criteria=(replace(memo.criteria[0], weight=9.0), *memo.criteria[1:]))
    assert changed.version != memo.version


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[criteria]]\nid = 'a'\ntext = 'x'\nwieght = 2", "criterion a: unknown key wieght; did you mean 'weight'"),
        ("[[criteria]]\nid = 'a'\ntext = 'x'\nweight = -2", "polarity = 'negative'"),
        ("[[criteria]]\nid = 'a'\ntext = 'x'\nweight = nan", "weight"),
        ("[[criteria]]\nid = 'a b'\ntext = 'x'", "letters, digits"),
        ("[[criteria]]\nid = 'a'\ntext = ' '", "its text is empty"),
        ("[[criteria]]\nid = 'a'\ntext = 'x'\nlevels = 0", "levels lie in 1..10"),
        ("[[criteria]]\nid = 'a'\ntext = 'x'\nexamples = [{ text = 'y', value = 2 }]", "value lies in 0..1"),
        ("[[criteria]]\nid = 'a'\ntext = 'x'\nrule = {}", "a rule gives at least one"),
        ("[[criteria]]\nid = 'a'\ntext = 'x'\nrule = { any_off = ['y'] }", "did you mean 'any_of'"),
        ("[[criteria]]\nid = 'a'\ntext = 'x'\npolarity = 'bad'", "polarity"),
        ("[[criteria]]\nid = 'a'\ntext = 'x'\n[[criteria]]\nid = 'a'\ntext = 'y'", "two criteria with the id 'a'"),
        ("name = 'empty'", "no criteria"),
        ("[criteria]\na = 1", "criteria are a list"),
        ("criteria = [1]", "table of keys"),
        ("[judging]\nbatchsize = 2", "did you mean 'batch_size'"),
        ("[judging]\nshow = ['task']", "show names answer or transcript"),
        ("[judging]\nbatch_size = 0", "at least 1"),
        ("= 1", "not TOML"),
    ],
)
def test_a_wrong_file_says_where_and_what(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"r\.toml") as caught:
        load_rubric(path)
    assert message in str(caught.value)


def test_a_wrong_line_is_named() -> None:
    for text, message in (
        ('{"id": "a", "text": "x"}\nno', "line 2 is not JSON"),
        ('{"id": "a", "text": "x"}\n[1]', "line 2: a line is a JSON object"),
        ('{"id": "a", "text": "x"}\n{"rubric": "r"}', "stands in the first line"),
        ('{"id": "a"}', "line 1: text"),
        ("x" * 300_000, "at most 200000"),
        ("[" * 50_000, "not JSON"),
    ):
        with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
            rubric_from_jsonl(text)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_rubric("/nowhere/rubric.toml")


@given(st.text(max_size=200))
def test_any_text_is_a_rubric_or_a_config_error(text: str) -> None:
    for read in (rubric_from_toml, rubric_from_jsonl):
        with contextlib.suppress(ConfigError):
            read(text)


def test_criteria_for_some_tasks_only() -> None:
    judge = ScriptedJudge(lambda criterion, text: int(criterion.id == "mine"))
    both = rubric(item("mine", tasks=("t1",)), item("theirs", tasks=("t2",)))
    assert grade(RubricGrader(both, judge)).score == 1.0
    nothing = grade(RubricGrader(rubric(item("theirs", tasks=("t2",))), judge))
    assert (nothing.score, nothing.cause) == (None, "task_cannot_be_judged")


# -- judging ---------------------------------------------------------------------------------------------------------


def test_batches_have_the_stated_size_and_an_order_by_seed() -> None:
    items = [item(f"c{i}") for i in range(10)]

    def orders(seed: int) -> list[list[str]]:
        judge = ScriptedJudge()
        grade(RubricGrader(rubric(*items, batch_size=4, seed=seed, controls=False), judge))
        return [[one.id for one in request.criteria] for request in judge.requests]

    assert [len(batch) for batch in orders(0)] == [4, 4, 2]
    assert sorted(name for batch in orders(0) for name in batch) == [f"c{i}" for i in range(10)]
    assert orders(0) == orders(0)
    assert orders(0) != orders(1)
    assert orders(0) != [[f"c{i}" for i in range(4)], [f"c{i}" for i in range(4, 8)], ["c8", "c9"]]


def test_evidence_says_who_decided_what() -> None:
    judge = ScriptedJudge(lambda criterion, text: "both sides performed" if criterion.needs_evidence else 0)
    found = grade(RubricGrader(rubric(item("reasoned", needs_evidence=True), item("long")), judge))
    note = found.evidence["criteria"]["reasoned"]
    assert (note["value"], note["by"], note["quote"]) == (1.0, "judge", "both sides performed")
    assert note["votes"] == {"scripted": 1.0}
    assert found.evidence["judges"] == {"scripted": "scripted-1"}
    assert found.cost_tokens == 120
    assert found.score == 0.5
    json.dumps(dict(found.evidence))


def test_several_judges_vote_and_a_quorum_may_do() -> None:
    yes, no = ScriptedJudge(name="yes"), ScriptedJudge(lambda c, t: 0, name="no")
    mute = ScriptedJudge(name="mute", fail={n: JudgeError(JudgeCause.UNAVAILABLE, "down") for n in range(9)})
    one = item("clear")
    assert grade(RubricGrader(rubric(one), (yes, no))).score == 0.5
    found = grade(RubricGrader(rubric(one), (yes, no, mute)))
    assert (found.score, found.cause) == (None, "judge:unavailable")
    assert grade(RubricGrader(rubric(one, quorum=2), (yes, no, mute))).score == 0.5
    with pytest.raises(ConfigError, match="same name"):
        RubricGrader(rubric(one), (yes, ScriptedJudge(name="yes")))
    with pytest.raises(ConfigError, match="quorum of 3"):
        RubricGrader(rubric(one, quorum=3), (yes, no))


@pytest.mark.parametrize("cause", JudgeCause)
def test_every_failure_is_none_with_its_cause_and_never_zero(cause: JudgeCause) -> None:
    fail = {n: JudgeError(cause, "x") for n in range(9)}
    judge = ScriptedJudge(fail=fail)
    found = grade(RubricGrader(rubric(item("a"), item("b", rule=TextRule(any_of=("good",)))), judge))
    assert (found.score, found.cause) == (None, f"judge:{cause}")
    assert found.evidence["missing"] == {"a": f"judge:{cause}"}
    again = cause in (
        JudgeCause.MALFORMED, JudgeCause.CANARY_TRIPPED, JudgeCause.EVIDENCE_NOT_FOUND, JudgeCause.REFUSED,
    )  # fmt: skip
    assert len(judge.requests) == (2 if again else 1)


def test_an_abstaining_judge_gives_no_score() -> None:
    found = grade(RubricGrader(rubric(item("a"), item("b")), ScriptedJudge(lambda c, t: None if c.id == "a" else 1)))
    assert (found.score, found.cause) == (None, "judge:abstained")
    assert found.evidence["criteria"]["b"]["value"] == 1.0


def test_a_bad_reply_is_asked_again_with_another_nonce() -> None:
    judge = ScriptedJudge(raw=["score: 10"])
    found = grade(RubricGrader(rubric(item("a")), judge))
    assert found.score == 1.0
    assert judge.requests[0].nonce != judge.requests[1].nonce
    assert judge.requests[0].seed == judge.requests[1].seed


def test_a_judge_that_answers_another_question_is_not_believed() -> None:
    class Wrong(ScriptedJudge):
        async def judge(self, request: Any) -> Any:
            reply = await super().judge(request)
            return replace(reply, verdicts=tuple(replace(v, criterion="other") for v in reply.verdicts))

    assert grade(RubricGrader(rubric(item("a")), Wrong())).cause == "judge:malformed"


def test_a_hanging_judge_is_given_up() -> None:
    class Hanging(ScriptedJudge):
        async def judge(self, request: Any) -> Any:
            await asyncio.sleep(3600)

    found = grade(RubricGrader(rubric(item("a"), timeout_s=0.05), Hanging()))
    assert (found.score, found.cause) == (None, "judge:timeout")


def test_with_a_known_good_answer_exclusion_is_no_escape() -> None:
    """The judge refuses this text and can judge the known-good one: the model's fault, as everywhere in the house."""

    class Squeamish(ScriptedJudge):
        async def judge(self, request: Any) -> Any:
            if "poison" in request.prompt:
                self.requests.append(request)
                raise JudgeError(JudgeCause.REFUSED, "I cannot help with that")
            return await super().judge(request)

    class Down(ScriptedJudge):
        async def judge(self, request: Any) -> Any:
            raise JudgeError(JudgeCause.REFUSED, "I cannot help with that")

    asked = rubric(item("a"), known_good="The clause binds.")
    found = grade(RubricGrader(asked, Squeamish()), "poison")
    assert (found.score, found.cause) == (0.0, "model:judge_refused")
    assert grade(RubricGrader(asked, Down()), "poison").score is None
    assert grade(RubricGrader(rubric(item("a")), Squeamish()), "poison").score is None
    mixed = grade(RubricGrader(asked, (Squeamish(name="s"), Down(name="d"))), "poison")
    assert (mixed.score, mixed.cause) == (None, "judge:refused")


def test_nothing_personal_is_sent() -> None:
    judge = ScriptedJudge()
    answer = "Write to ann@example.org, key sk-proj-" + "aB3" * 14
    found = grade(RubricGrader(rubric(item("a")), judge), answer)
    assert "ann@" not in judge.requests[0].prompt
    assert "aB3aB3" not in judge.requests[0].prompt
    assert "[EMAIL_1]" in judge.requests[0].prompt
    assert found.evidence["scrubbed"] == {"EMAIL": 1, "SECRET": 1}
    grade(RubricGrader(rubric(item("a"), scrub=False), judge), answer)
    assert "ann@" in judge.requests[-1].prompt


def test_neither_weight_nor_polarity_nor_id_is_shown() -> None:
    judge = ScriptedJudge()
    blamed = item(
        "secretly_bad", weight=90210.5, polarity=Polarity.NEGATIVE, examples=(CriterionExample(text="Hm.", value=1),)
    )
    blamed = replace(blamed, criterion=replace(blamed.criterion, text="It rambles."))
    grade(RubricGrader(rubric(blamed), judge))
    shown = judge.requests[0].system + judge.requests[0].prompt
    assert "Example with value 1: Hm." in shown
    assert not any(word in shown for word in ("secretly_bad", "90210", "negative", "weight"))


def test_what_cannot_be_judged_is_settled_without_a_judge() -> None:
    judge = ScriptedJudge()
    grader = RubricGrader(rubric(item("a"), max_answer_chars=500), judge)
    lost = Outcome(ending=Ending.ERROR, owner=Owner.ENVIRONMENT, cause="crash")
    cut = Outcome(ending=Ending.TRUNCATED, limit=Limit.TURNS)
    assert grade(grader, outcome=lost).score is None
    assert grade(grader, outcome=cut).score == 0.0
    assert grade(grader, "").cause == "empty_answer"
    assert grade(grader, "<think>long</think>  ").score == 0.0
    assert grade(grader, "x" * 501).cause == "answer_too_long"
    assert not judge.requests


def test_a_transcript_can_be_shown() -> None:
    call = ToolCall(id="c", name="add", arguments={"a": 1})
    text = _transcript(
        [Message.user("2?"), Message.assistant("", (call,)), Message.tool("no", call=call, is_error=True)]
    )
    assert text == '[user]\n2?\n\n[assistant]\ncall add {"a": 1}\n\n[tool add (error)]\nno'
    judge = ScriptedJudge()
    grade(RubricGrader(rubric(item("a"), show=("transcript", "answer")), judge))
    assert [part.name for part in judge.requests[0].parts] == ["transcript", "answer"]


def test_the_version_names_rubric_judges_settings_and_calibration() -> None:
    curve = Calibration(rubric="x", curves={"scripted": {"a": Curve(x=(0.0, 1.0), y=(0.2, 0.9))}})
    base = RubricGrader(rubric(item("a")), ScriptedJudge())
    graders = [
        base,
        RubricGrader(rubric(item("b")), ScriptedJudge()),
        RubricGrader(rubric(item("a")), ScriptedJudge(name="other")),
        RubricGrader(rubric(item("a")), ScriptedJudge(), judging=Judging(batch_size=2)),
        RubricGrader(rubric(item("a")), ScriptedJudge(), calibration=curve),
    ]
    assert len({grader.version for grader in graders}) == 5
    assert RubricGrader(rubric(item("a")), ScriptedJudge()).version == base.version
    assert grade(graders[-1]).score == pytest.approx(0.9)


def test_it_is_a_node_of_a_graph_and_stands_behind_the_boundary(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('name = "style"\n[[criteria]]\nid = "a"\ntext = "It is clear."\n')
    section = {"use": "burnish.graders.rubric:RubricGrader", "options": {"rubric": str(path)}}
    graph = graph_from({"graders": {"style": section}}, resources={"judge": ScriptedJudge()})
    trajectory = answered(TASK, ANSWER)
    ((found,),) = asyncio.run(grade_trajectories([TASK], [trajectory], graph.graders, timeout_s=5.0))
    assert (found.grader, found.score, found.cost_tokens) == ("style", 1.0, 120)

    class Broken(ScriptedJudge):
        async def judge(self, request: Any) -> Any:
            raise RuntimeError("a bug")

    broken = RubricGrader(load_rubric(path), Broken())
    ((found,),) = asyncio.run(grade_trajectories([TASK], [trajectory], [broken], timeout_s=5.0))
    assert (found.score, found.cause) == (None, "grader_error:RuntimeError")


def test_a_stored_run_is_judged_again_without_a_judge(tmp_path: Path) -> None:
    asked = rubric(*(item(f"c{i}") for i in range(5)), batch_size=2)
    judge = ScriptedJudge(lambda criterion, text: int(criterion.id in ("c1", "c3")), raw=["garbage"])
    cached = CachedJudge(judge, JudgeCache(tmp_path / "judge.jsonl"))
    online = grade(RubricGrader(asked, cached))
    assert online.score == pytest.approx(0.4)
    assert online.cost_tokens == 360
    replay = CachedJudge.offline(cached.version, JudgeCache(tmp_path / "judge.jsonl", read_only=True), judge.name)
    offline = grade(RubricGrader(asked, replay))
    assert offline.score == online.score
    assert offline.version == online.version
    assert (offline.cost_tokens, offline.evidence["cached"]) == (0, 3)
    other = grade(RubricGrader(asked, replay), "Another answer.")
    assert (other.score, other.cause) == (None, "judge:not_in_cache")
    assert dataclasses.is_dataclass(other)
