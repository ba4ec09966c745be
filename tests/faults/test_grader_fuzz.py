"""Hostile input to every grader, through the boundary: nothing hangs past its limit, runs, raises, or wins by failing.

`GRADER_FUZZ_EXAMPLES=2000 pytest tests/faults/test_grader_fuzz.py` fuzzes longer.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_sandbox import PlainSandbox

from burnish.core.grade import Grade, Grader
from burnish.core.sandbox import SandboxResult
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.graders.boundary import grade_trajectories
from burnish.graders.calls import CallsGrader
from burnish.graders.json_schema import JsonSchemaGrader
from burnish.graders.mathematics import MathGrader
from burnish.graders.optimisation import OptimisationGrader
from burnish.graders.rules import ChoiceGrader, ExactGrader, NumericGrader, StateGrader
from burnish.graders.speech import SpeechGrader
from burnish.graders.sql import SqlGrader
from burnish.graders.state import FilesGrader, TablesGrader
from burnish.testing.grader import HOSTILE_ANSWERS, answered

EXAMPLES = int(os.environ.get("GRADER_FUZZ_EXAMPLES", "40"))
LIMIT_S = 3.0
SHORT_LIMIT_S = 1.0
"""For answers whose judging would never end: they run into any limit, once more in a fresh process."""

ALLOWED = [HealthCheck.function_scoped_fixture]
CANARY = "/tmp/burnish-grader-canary"

MODEL = {
    "variables": {"x": {}},
    "objective": {"x": 2},
    "constraints": [{"terms": {"x": 1}, "relation": ">=", "bound": 7}],
}
DATABASE = "CREATE TABLE t (a INTEGER, b TEXT); INSERT INTO t VALUES (1, 'x'), (2, 'y'), (3, 'x');"
COUNTED = "SELECT b, count(*) FROM t"
SCHEMA = {
    "type": "object",
    "required": ["a"],
    "properties": {"a": {"type": "string", "pattern": "^(b+)+c$"}},
    "additionalProperties": {"$ref": "#"},
}
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "exact": ({"answer": "Paris"}, "Paris"),
    "numeric": ({"answer": "12.5"}, "12.5"),
    "last_number": ({"answer": "12.5"}, "it is 12.5"),
    "choice": ({"answer": "B", "choices": ["Rome", "Paris"]}, "B"),
    "math": ({"answer": "\\frac{x+1}{2}"}, "$\\frac{2x+2}{4}$"),
    "json_schema": ({"schema": SCHEMA}, '{"a": "bbc"}'),
    "sql": ({"sql": f"{COUNTED} GROUP BY b", "databases": [DATABASE]}, "SELECT b, sum(1) FROM t GROUP BY b"),
    "optimisation": ({"objective": 14.0, "coefficients": [2, 7]}, json.dumps(MODEL)),
    "wer": ({"answer": "the cat sat down"}, "the cat sat down"),
    "cer": ({"answer": "the cat sat down"}, "the cat sat down"),
}  # fmt: skip
"""Reference and a right answer, by grader."""

OWN_HOSTILE: dict[str, tuple[str, ...]] = {
    "math": (
        "$9^{9^{9^{9}}}$",
        "$\\int_0^{\\infty} e^{-x^{2}} \\sin(x^{x}) dx$",
        "$" + "+".join(f"x^{{{n}}}" for n in range(120)) + "$",
        "$\\sum_{n=1}^{10^{12}} \\frac{1}{n^{n}}$",
        "$" + "\\frac{1}{" * 60 + "x" + "}" * 60 + "$",
        "$" + "\\left(" * 80 + "x" + "\\right)" * 80 + "$",
        "$\\text{__import__('os').system('touch " + CANARY + "')}$",
        f"__import__('os').system('touch {CANARY}')",
        f"$\\operatorname{{eval}}(open('{CANARY}', 'w'))$",
        "$1000000!$",
        "\\boxed{" + "\\sqrt{" * 200 + "2" + "}" * 200 + "}",
    ),
    "json_schema": (
        '{"a": "' + "b" * 60 + '"}',
        '{"a":' * 900 + "1" + "}" * 900,
        "[" * 9000 + "]" * 9000,
        '{"a": ' + "9" * 9000 + "}",
        '{"a": "bbc", "$ref": "file:///etc/passwd"}',
    ),
    "sql": (
        f"ATTACH '{CANARY}' AS c",
        f"VACUUM INTO '{CANARY}'",
        f"SELECT writefile('{CANARY}', 'x')",
        "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n FROM c",
        "WITH RECURSIVE c(s) AS (SELECT 'x' UNION ALL SELECT s || s FROM c) SELECT s FROM c",
        "SELECT " + "||".join(["hex(zeroblob(50000))"] * 20),
        "SELECT * FROM " + ", ".join(f"t t{n}" for n in range(40)),
        "SELECT replace(printf('%.*c', 90000, 'a'), 'a', printf('%.*c', 90000, 'b'))",
        "SELECT b FROM t WHERE b LIKE '" + "%a" * 4000 + "'",
        "SELECT printf('%.100000000f', 1.0)",
    ),
    "optimisation": (
        json.dumps(MODEL | {"constraints": [{"terms": {"x": 1e-300}, "relation": ">=", "bound": 1e12}] * 50}),
        json.dumps(MODEL | {"variables": {f"x{n}": {"integer": True} for n in range(300)}, "objective": {}}),
        '{"variables": {"x": {"low": 1e999}}}',
        '{"variables": ' + '{"x":' * 900 + "{}" + "}" * 900 + "}",
        "NAME x\nROWS\n" + " N COST\n" * 900,
        f"Minimize\n obj: x\nSubject To\n c: x >= 1\n\\ {CANARY}\nEnd\nEnd",
        "min\n" + "+ x" * 4000,
    ),
    "wer": ("the " * 4900, "the cat sat down " * 1100),
    "cer": ("t" * 19_000,),
}


ENDLESS = ("$9^", "$\\int", "$\\sum", "$1000000!", "[[[[", "((((", '{"a": "bbbb')
"""What such answers begin with."""


@pytest.fixture(scope="module")
def graders() -> Iterator[dict[str, Any]]:
    made: dict[str, Any] = {
        "exact": ExactGrader(),
        "numeric": NumericGrader(),
        "last_number": NumericGrader(take="last"),
        "choice": ChoiceGrader(),
        "math": MathGrader(timeout_s=LIMIT_S),
        "json_schema": JsonSchemaGrader(timeout_s=LIMIT_S),
        "sql": SqlGrader(timeout_s=LIMIT_S),
        "optimisation": OptimisationGrader(timeout_s=LIMIT_S),
        "wer": SpeechGrader(),
        "cer": SpeechGrader(unit="character"),
    }
    for name, grader in made.items():  # The workers have started before anything is timed.
        assert judged(grader, *CASES[name])[0].score == 1.0, name
    for name in ("math", "json_schema"):
        made[f"{name} short"] = replace(made[name], timeout_s=SHORT_LIMIT_S)
    yield made
    for grader in made.values():
        if hasattr(grader, "close"):
            grader.close()


def judged(grader: Grader, reference: Mapping[str, Any], *answers: str) -> list[Grade]:
    """The boundary's grade of each answer; a right one is among the cases of every call that needs arbitration."""
    task = Task(prompt="?", reference=reference)
    cases = [answered(task, answer) for answer in answers]
    rows = asyncio.run(grade_trajectories([task] * len(cases), cases, [grader], timeout_s=LIMIT_S))
    return [row[0] for row in rows]


def check(name: str, grade: Grade, answer: str) -> None:
    """A verdict on the model, in bounds; a failure to judge would be an escape."""
    assert grade.score is not None, f"{name}: {answer[:80]!r} escapes with {grade.cause} {dict(grade.evidence)}"
    assert 0.0 <= grade.score <= 1.0
    json.dumps(dict(grade.evidence), allow_nan=False)
    assert not Path(CANARY).exists(), f"{name}: {answer[:80]!r} was executed"


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_hostile_answers_are_judged_in_time_and_gain_nothing(name: str, graders: dict[str, Any]) -> None:
    reference, right = CASES[name]
    for answer in (*HOSTILE_ANSWERS, *OWN_HOSTILE.get(name, ())):
        started_s = time.perf_counter()
        grader = graders.get(f"{name} short", graders[name]) if answer.startswith(ENDLESS) else graders[name]
        # One call alone: the failure is arbitrated against the right answer, in a fresh process.
        grade = judged(grader, reference, answer, right)[0]
        took_s = time.perf_counter() - started_s
        check(name, grade, answer)
        assert grade.score is not None
        assert grade.score < 1.0, f"{name}: {answer[:80]!r} passes"
        assert took_s < 2 * LIMIT_S + 15, f"{name}: {answer[:80]!r} took {took_s:.1f} s"


SQL_WORDS = ("SELECT", "FROM", "WITH", "UNION", "ORDER BY", "t", "a", "1", "*", "(", ")", ",", "--", "/*", "'", ";")
TEXTS = st.one_of(
    st.text(max_size=200),
    st.text(alphabet="\\{}$^_()[]0123456789x+-*/=.,frac sqrt", max_size=120),
    st.text(alphabet='{}[]":,0123456789.eE+-truefalsn \\u', max_size=120),
    st.lists(st.sampled_from(SQL_WORDS), max_size=30).map(" ".join),
    st.binary(max_size=100).map(lambda data: data.decode("utf-8", "surrogateescape")),
)  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=ALLOWED)
@given(text=TEXTS, inside=st.booleans())
def test_any_text_gets_a_verdict(name: str, graders: dict[str, Any], text: str, inside: bool) -> None:
    reference, right = CASES[name]
    answer = f"{right[: len(right) // 2]}{text}{right[len(right) // 2 :]}" if inside else text
    check(name, judged(graders[name], reference, answer, right)[0], answer)


REFERENCES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(-1e300, 1e300), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=max(10, EXAMPLES // 4), deadline=None, suppress_health_check=ALLOWED)
@given(data=st.data())
def test_no_reference_brings_the_boundary_down(name: str, graders: dict[str, Any], data: st.DataObject) -> None:
    """A spoilt task is nobody's zero by way of a crash: any grade will do, as long as there is one."""
    reference, right = CASES[name]
    spoilt = {key: data.draw(REFERENCES) for key in reference}
    grade = judged(graders[name], spoilt, right)[0]
    assert grade.score is None or 0.0 <= grade.score <= 1.0


STATES = st.dictionaries(st.sampled_from(["state", "tables", "files", "x"]), REFERENCES, max_size=3)


@pytest.mark.parametrize("grader", [TablesGrader(), FilesGrader(), StateGrader()], ids=lambda grader: grader.name)
@settings(max_examples=EXAMPLES, deadline=None)
@given(state=STATES)
def test_any_state_gets_a_grade(grader: Any, state: dict[str, Any]) -> None:
    references = {"tables": {"t": [{"a": 1}]}, "files": {"a": {"text": "x"}}, "state": {"a": 1}}
    task = Task(prompt="?", reference=references)
    grade = asyncio.run(grade_trajectories([task], [answered(task, "", final_state=state)], [grader], timeout_s=1))[0][
        0
    ]
    assert grade.score in (None, 0.0)
    assert not grade.cause.startswith("grader_"), grade


class Forging(PlainSandbox):
    """A sandbox in which the program wrote whatever it liked."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data

    async def run(self, *_: Any, **__: Any) -> SandboxResult:
        return SandboxResult(
            exit=0, stdout=b"2 passed", stderr=b"", rung=self.rung, files_out={"results.jsonl": self.data}
        )


@given(st.one_of(st.binary(max_size=200), REFERENCES.map(lambda value: json.dumps(value).encode())))
@settings(max_examples=2 * EXAMPLES, deadline=None)
def test_forged_results_of_calls_gain_nothing(data: bytes) -> None:
    reference = {"calls": [{"function": "f", "arguments": [], "expected": "a value that nobody guesses"}]}
    grade = judged(CallsGrader(Forging(data)), reference, "def f(): pass")[0]
    assert grade.score == 0.0


def test_a_result_deep_enough_to_break_the_reader_gains_nothing() -> None:
    reference = {"calls": [{"function": "f", "arguments": [], "expected": 1}]}
    data = b'{"call": 0, "value": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert judged(CallsGrader(Forging(data)), reference, "def f(): pass")[0].score == 0.0


# -- negative controls: these tests would notice -----------------------------------------------------------------------


class Escaping:
    """Gives no score where it does not like the answer: the hole that `check` is there for."""

    name = "escaping"
    version = "1"

    async def grade(self, task: Task, trajectory: Trajectory) -> Grade:
        return Grade(grader="escaping", version="1", score=None, cause="no")


class Executing(Escaping):
    """Runs what it is given."""

    async def grade(self, task: Task, trajectory: Trajectory) -> Grade:
        exec(trajectory.answer, {})
        return Grade(grader="escaping", version="1", score=0.0)


def test_the_checks_notice_an_escape_and_an_execution() -> None:
    with pytest.raises(AssertionError, match="escapes"):
        check("escaping", judged(Escaping(), {}, "x")[0], "x")
    try:
        with pytest.raises(AssertionError, match="was executed"):
            check("executing", judged(Executing(), {}, f"open({CANARY!r}, 'w').close()")[0], "x")
    finally:
        Path(CANARY).unlink(missing_ok=True)


def test_a_grader_that_hangs_is_the_models_fault_only_where_another_answer_passes(graders: dict[str, Any]) -> None:
    reference, right = CASES["json_schema"]
    hangs = OWN_HOSTILE["json_schema"][0]
    proven = judged(graders["json_schema short"], reference, hangs, right)[0]
    assert (proven.score, proven.cause) == (0.0, "model:grader_timeout")
    assert proven.evidence["arbitrated"] == "repeated"
    unproven = judged(graders["json_schema short"], reference, hangs)[0]
    assert (unproven.score, unproven.cause) == (None, "grader_timeout"), "failed is not zero without a proof"
    assert math.isfinite(unproven.cost_s)
