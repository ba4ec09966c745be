"""Verifiable graders, one after the other: what they accept, what they refuse, and the holes that they close."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from plain_sandbox import PlainSandbox

from burnish.core.errors import BurnishError, ConfigError
from burnish.core.grade import Grade
from burnish.core.hashing import bytes_hash
from burnish.core.sandbox import SandboxError
from burnish.core.task import Task
from burnish.graders import killable
from burnish.graders.boundary import grade_trajectories
from burnish.graders.calls import CallsGrader
from burnish.graders.isolation import Workers
from burnish.graders.json_schema import JsonSchemaGrader
from burnish.graders.late_sandbox import LateSandbox
from burnish.graders.mathematics import MathGrader
from burnish.graders.optimisation import OptimisationGrader
from burnish.graders.speech import SpeechGrader
from burnish.graders.sql import SqlGrader
from burnish.graders.state import FilesGrader, TablesGrader
from burnish.testing.grader import answered


def judge(grader: Any, reference: dict[str, Any], answer: str = "", **state: Any) -> Grade:
    task = Task(prompt="?", reference=reference)
    grade: Grade = asyncio.run(grader.grade(task, answered(task, answer, final_state=state)))
    assert (grade.grader, grade.version) == (grader.name, grader.version)
    return grade


# -- mathematics -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mathematics() -> Iterator[MathGrader]:
    grader = MathGrader(timeout_s=20.0)
    yield grader
    grader.close()


@pytest.mark.parametrize(
    ("reference", "answer", "score"),
    [
        ("1/2", "0.5", 1.0),
        ("\\frac{1}{2}", "The answer is 1/2", 1.0),
        ("x^2+2x+1", "$(x+1)^2$", 1.0),
        ("2\\sqrt{2}", "so \\boxed{\\sqrt{8}}", 1.0),
        ("\\{1,2\\}", "$\\{2,1\\}$", 1.0),
        ("12", "First 13, then \\boxed{12}.", 1.0),
        ("12", "\\boxed{12} or rather \\boxed{13}", 0.0),
        ("x^2+2x+1", "$(x+2)^2$", 0.0),
        ("12", "I do not know", 0.0),
        ("\\pi", "$3.14$", 0.0),
    ],
)
def test_mathematics(mathematics: MathGrader, reference: str, answer: str, score: float) -> None:
    assert judge(mathematics, {"answer": reference}, answer).score == score


def test_mathematics_in_many_threads(mathematics: MathGrader) -> None:
    found: list[float | None] = []

    def work(n: int) -> None:
        found.append(judge(mathematics, {"answer": f"{n}x+{n}"}, f"${n}(x+1)$").score)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1.0] * 8


def test_mathematics_needs_a_readable_reference(mathematics: MathGrader) -> None:
    assert judge(mathematics, {"answer": "no idea"}, "$4x$").cause == "task_cannot_be_judged"
    assert judge(mathematics, {}, "$4x$").cause == "task_cannot_be_judged"


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killable.importlib.util, "find_spec", lambda name: None)
    for make in (MathGrader, SpeechGrader):
        with pytest.raises(ConfigError, match=r"pip install 'burnish\[graders\]'"):
            make()


def test_the_registry_imports_no_library() -> None:
    program = (
        "import sys; from burnish.graders.registry import make_grader; make_grader('exact');"
        "print(sorted({'sympy', 'jiwer', 'highspy', 'jsonschema', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_equal_answers_are_judged_once(mathematics: MathGrader, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    call = Workers.call

    def counted(self: Workers, *words: Any, **named: Any) -> Any:
        asked.append(words)
        return call(self, *words, **named)

    monkeypatch.setattr(Workers, "call", counted)
    for _ in range(3):
        assert judge(mathematics, {"answer": "17y"}, "$8y+9y$").score == 1.0
    assert len(asked) == 1


# -- JSON schema -------------------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 3}}}


@pytest.mark.parametrize(
    ("answer", "score", "cause"),
    [
        ('{"a": 3}', 1.0, ""),
        ('Here it is:\n```json\n{"a": 4}\n```', 1.0, ""),
        ('{"a": 2}', 0.0, "does_not_fit"),
        ('{"a": NaN}', 0.0, "no_json"),
        ("a: 3", 0.0, "no_json"),
    ],
)
def test_json_schemas(answer: str, score: float, cause: str) -> None:
    grader = JsonSchemaGrader()
    grade = judge(grader, {"schema": SCHEMA}, answer)
    assert (grade.score, grade.cause) == (score, cause)
    grader.close()


def test_schemas_that_judge_nothing_are_the_tasks_fault() -> None:
    grader = JsonSchemaGrader()
    for schema in ({}, {"type": "nonsense"}, {"$ref": "http://127.0.0.1:9/x.json"}):
        assert judge(grader, {"schema": schema}, '{"a": 3}').cause == "task_cannot_be_judged", schema
    grader.close()


# -- SQL ---------------------------------------------------------------------------------------------------------------

DATABASE = """
CREATE TABLE orders (id INTEGER, customer TEXT, total REAL);
INSERT INTO orders VALUES (1, 'ann', 10.0), (2, 'bob', 20.5), (3, 'ann', 5.25);
"""
OTHER = DATABASE + "INSERT INTO orders VALUES (4, 'cy', 1.0);"
SUMS = "SELECT customer, sum(total) FROM orders GROUP BY customer"


@pytest.fixture(scope="module")
def sql() -> Iterator[SqlGrader]:
    grader = SqlGrader()
    yield grader
    grader.close()


def query(sql: SqlGrader, answer: str, right: str = SUMS, databases: tuple[str, ...] = (DATABASE,)) -> Grade:
    return judge(sql, {"sql": right, "databases": list(databases)}, answer)


def test_sql_compares_rows(sql: SqlGrader) -> None:
    backwards = "SELECT customer AS c, sum(total) AS t FROM orders GROUP BY 1 ORDER BY t DESC"
    assert query(sql, backwards).score == 1.0
    assert query(sql, f"```sql\n{SUMS}\n```").score == 1.0
    assert query(sql, backwards, right=f"{SUMS} ORDER BY 2").score == 0.0, "the reference orders its rows"
    assert query(sql, "SELECT customer, total FROM orders").cause == "rows_differ"
    assert query(sql, "SELECT sum(total), customer FROM orders GROUP BY customer").cause == "rows_differ"


def test_a_second_database_finds_luck(sql: SqlGrader) -> None:
    lucky = "SELECT 'ann', 15.25 UNION ALL SELECT 'bob', 20.5"
    assert query(sql, lucky).score == 1.0, "the control: one database alone is fooled"
    assert query(sql, lucky, databases=(DATABASE, OTHER)).score == 0.0
    assert query(sql, SUMS, databases=(DATABASE, OTHER)).score == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "DROP TABLE orders",
        "DELETE FROM orders",
        "SELECT 1; SELECT 2",
        "ATTACH '/tmp/burnish-canary.db' AS x",
        "PRAGMA writable_schema=1",
        "SELECT load_extension('x')",
        "SELECT random()",
        "SELECT zeroblob(1000000000)",
        "SELECT * FROM sqlite_master, no_such_table",
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t",
        f"SELECT {'(' * 3000}1{')' * 3000}",
        "SELECT a.id FROM orders a" + "".join(f", orders t{n}" for n in range(30)),
        "VACUUM INTO '/tmp/burnish-canary.db'",
    ],
)
def test_a_query_may_read_and_nothing_else(sql: SqlGrader, answer: str) -> None:
    grade = query(sql, answer)
    assert grade.score == 0.0, grade


def test_references_that_judge_nothing_are_the_tasks_fault(sql: SqlGrader) -> None:
    assert query(sql, "SELECT 1 WHERE 0", right="SELECT id FROM orders WHERE id > 9").cause == "task_cannot_be_judged"
    assert query(sql, SUMS, right="SELECT nothing").cause == "task_cannot_be_judged"
    assert judge(sql, {"sql": SUMS}, SUMS).cause == "task_cannot_be_judged"


# -- state -------------------------------------------------------------------------------------------------------------


def test_tables_are_compared_as_rows_in_any_order() -> None:
    reference = {"tables": {"orders": [{"id": 1, "status": "sent", "at": 1}, {"id": 2, "status": "new", "at": 2}]}}
    good = {"orders": [{"id": 2, "status": "new", "at": 9}, {"id": 1, "status": "sent", "at": 9}], "log": [{"n": 1}]}
    grader = TablesGrader(ignore=["at"])
    assert judge(grader, reference, tables=good).score == 1.0
    assert judge(TablesGrader(), reference, tables=good).evidence["wrong"] == ["orders: 2 rows missing, 2 too many"]
    assert judge(TablesGrader(ignore=["at"], only=True), reference, tables=good).score == 0.0
    assert judge(grader, reference, tables={"orders": good["orders"] * 2}).score == 0.0
    assert judge(grader, reference, tables={}).score == 0.0
    assert judge(grader, reference).cause == "no_state_reported"
    assert judge(grader, reference, tables={"orders": 3}).cause == "state_unreadable"


def test_files_are_compared_by_what_is_expected_of_them() -> None:
    stored = b"kept in the store"
    sha256 = bytes_hash(stored)

    def artefact(name: str) -> bytes:
        if name != sha256:
            raise BurnishError(f"no artefact {name}")
        return stored

    found = {"a.txt": "hello", "b.json": '{"n": 1.0}', "c.bin": {"sha256": sha256}}
    right = {
        "a.txt": {"text": "hello"},
        "b.json": {"json": {"n": 1.0}},
        "c.bin": {"contains": ["kept"]},
        "gone.txt": {"absent": True},
    }
    grader = FilesGrader(artefact=artefact)
    assert judge(grader, {"files": right}, files=found).score == 1.0
    assert judge(grader, {"files": {"c.bin": {"sha256": sha256}}}, files=found).score == 1.0
    for path, rule in (
        ("a.txt", {"text": "hullo"}),
        ("a.txt", {"absent": True}),
        ("b.json", {"json": {"n": 2}}),
        ("a.txt", {"json": {}}),
        ("c.bin", {"contains": ["lost"]}),
        ("no.txt", {"text": ""}),
    ):
        assert judge(grader, {"files": right | {path: rule}}, files=found).evidence["wrong"] == [path], rule
    assert judge(FilesGrader(), {"files": right}, files=found).cause == "state_unreadable"
    assert judge(grader, {"files": {"a.txt": {}}}, files=found).cause == "state_unreadable"
    assert judge(grader, {"files": right}, files=found | {"c.bin": {"sha256": "x"}}).cause == "state_unreadable"


# -- speech ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "reference", "answer", "score"),
    [
        ("word", "the cat sat down", "The cat sat down.", 1.0),
        ("word", "the cat sat down", "the cat sat up", 0.75),
        ("word", "the cat sat down", "a b c d e f", 0.0),
        ("word", "the cat", "the cat " * 500, 0.0),
        ("word", "the cat", "...", 0.0),
        ("character", "東京都", "東京", pytest.approx(2 / 3)),
    ],
)
def test_transcripts(unit: Any, reference: str, answer: str, score: float) -> None:
    assert judge(SpeechGrader(unit=unit), {"answer": reference}, answer).score == score


def test_a_transcript_without_a_reference_is_not_judged() -> None:
    assert judge(SpeechGrader(), {"answer": "..."}, "x").cause == "task_cannot_be_judged"


# -- calls -------------------------------------------------------------------------------------------------------------

CALLS = {
    "calls": [
        {"function": "add", "arguments": [1, 2], "expected": 3},
        {"function": "add", "arguments": [[1], [2]], "expected": [1, 2]},
    ]
}


@pytest.mark.parametrize(
    ("program", "score"),
    [
        ("def add(a, b):\n    return a + b", 1.0),
        ("def add(a, b):\n    return 3", 0.5),
        ("def add(a, b):\n    raise ValueError", 0.0),
        ("def add(a, b):\n    import os\n    os._exit(0)", 0.0),
        ("import sys\nprint('2 passed')\nsys.exit(0)", 0.0),
        ("class Equal(int):\n    def __eq__(self, other): return True\ndef add(a, b):\n    return Equal(9)", 0.0),
        ("def add(a, b):\n    while True: pass", 0.0),
        ("def add(", 0.0),
        ("open('results.jsonl', 'w').write('{\"call\": 0, \"value\": true}')\ndef add(a, b): return True", 0.0),
    ],
)
def test_calls_are_compared_outside_of_the_sandbox(program: str, score: float) -> None:
    sandbox = PlainSandbox()
    grader = CallsGrader(sandbox, partial=True, timeout_s=1.0)
    grade = judge(grader, CALLS, f"```python\n{program}\n```")
    assert grade.score == score
    assert grade.evidence["rung"] == "unsafe"
    assert b"expected" not in b"".join(sandbox.seen.values()), "what is expected never enters the sandbox"
    assert judge(CallsGrader(sandbox, timeout_s=1.0), CALLS, f"```python\n{program}\n```").score == float(score == 1.0)


def test_calls_in_the_sandbox_of_this_machine() -> None:
    async def graded() -> list[tuple[Grade, ...]]:
        sandbox = LateSandbox()
        with pytest.raises(SandboxError, match="not open yet"):
            _ = sandbox.rung
        task = Task(prompt="?", reference=CALLS)
        programs = ["def add(a, b):\n    return a + b", "while True: pass", "def add(a, b):\n    return 3"]
        cases = [answered(task, program) for program in programs]
        grader: Any = CallsGrader(sandbox, timeout_s=1.0)
        try:
            return await grade_trajectories([task] * 3, cases, [grader], timeout_s=0.5)
        finally:
            await sandbox.close()

    rows = asyncio.run(graded())
    if any(row[0].cause == "grader_error:SandboxRefused" for row in rows):
        pytest.skip("no rung of the ladder holds here")
    assert [row[0].score for row in rows] == [1.0, 0.0, 0.0]
    assert rows[1][0].evidence["killed_for"] in ("wall", "cpu")


def test_calls_need_calls() -> None:
    assert judge(CallsGrader(PlainSandbox()), {"calls": [{}]}, "x").cause == "task_cannot_be_judged"


# -- optimisation ------------------------------------------------------------------------------------------------------

# Two products, 3 and 5 a piece; 2x + 4y <= 100 hours, x + y <= 30 pieces, whole numbers: 10 and 20 give 130.
CONSTRAINTS = [
    {"terms": {"x": 2, "y": 4}, "relation": "<=", "bound": 100},
    {"terms": {"x": 1, "y": 1}, "relation": "<=", "bound": 30},
]
MODEL = {
    "sense": "max",
    "variables": {"x": {"integer": True}, "y": {"integer": True}},
    "objective": {"x": 3, "y": 5},
    "constraints": CONSTRAINTS,
}
REFERENCE = {"objective": 130.0, "coefficients": [3, 5, 2, 4, 100, 30], "min_variables": 2, "min_constraints": 2}
GUESS = {
    "sense": "min",
    "variables": {"x": {}},
    "objective": {"x": 1},
    "constraints": [{"terms": {"x": 1}, "relation": ">=", "bound": 130}],
}
LP = """Maximize
 obj: 3 x + 5 y
Subject To
 hours: 2 x + 4 y <= 100
 pieces: x + y <= 30
General
 x y
End
"""
MPS = """NAME          TINY
ROWS
 N  COST
 L  HOURS
 L  PIECES
COLUMNS
    X         COST      -3.0   HOURS     2.0
    X         PIECES    1.0
    Y         COST      -5.0   HOURS     4.0
    Y         PIECES    1.0
RHS
    RHS       HOURS     100.0  PIECES    30.0
ENDATA
"""


@pytest.fixture(scope="module")
def optimisation() -> Iterator[OptimisationGrader]:
    grader = OptimisationGrader()
    yield grader
    grader.close()


def changed(**fields: Any) -> str:
    return json.dumps(MODEL | fields)


def test_models_are_solved_again(optimisation: OptimisationGrader) -> None:
    printed = f"The optimum is 999.\n```json\n{json.dumps(MODEL)}\n```"
    assert judge(optimisation, REFERENCE, printed).score == 1.0
    assert judge(optimisation, REFERENCE, f"```lp\n{LP}```").score == 1.0
    assert judge(optimisation, REFERENCE | {"objective": -130.0}, f"```mps\n{MPS}```").score == 1.0
    wrong = judge(optimisation, REFERENCE, "The optimum is 130.\n" + changed(objective={"x": 3, "y": 5.5}))
    assert wrong.score == 0.0


@pytest.mark.parametrize(
    ("model", "cause"),
    [
        ("The optimum is 130.", "no_model"),
        (json.dumps(GUESS), "too_few_variables"),
        (changed(constraints=[]), "too_few_constraints"),
        (changed(constraints=CONSTRAINTS[:1] * 2), "coefficient_missing"),
        (changed(sense="min"), "wrong_objective"),
        (changed(constraints=[*CONSTRAINTS, {"terms": {"x": 1}, "relation": ">=", "bound": 40}]), "wrong_status"),
        (changed(variables={}), "no_model"),
        (changed(objective={"z": 1}), "no_model"),
        (changed(objective={"x": 1e999}), "no_model"),
        (changed(objective={"x": True}), "no_model"),
        (changed(constraints=[{"terms": {"x": 1}, "relation": "<", "bound": 1}]), "no_model"),
        (changed(constraints=3), "no_model"),
        ("Minimize\n obj: x +\nSubject", "no_model"),
        ("Minimize\n obj: [ x ^ 2 ] / 2\nSubject To\n c: x >= 1\nEnd", "no_model"),
    ],
)  # fmt: skip
def test_models_that_are_wrong_or_no_models(optimisation: OptimisationGrader, model: str, cause: str) -> None:
    grade = judge(optimisation, REFERENCE, model)
    assert (grade.score, grade.cause) == (0.0, cause)


def test_a_guess_passes_where_the_reference_is_the_optimum_alone(optimisation: OptimisationGrader) -> None:
    assert judge(optimisation, {"objective": 130.0}, json.dumps(GUESS)).score == 1.0, "the control: no defence"
    points = [{"values": {"x": 10, "y": 20}, "feasible": True}, {"values": {"x": 40, "y": 0}, "feasible": False}]
    asked = {"objective": 130.0, "points": points}
    assert judge(optimisation, asked, json.dumps(MODEL)).score == 1.0
    assert judge(optimisation, asked, json.dumps(GUESS)).cause == "variable_missing"
    loose = changed(constraints=CONSTRAINTS[:1])
    assert judge(optimisation, asked, loose).cause == "feasible_set_differs"


def test_infeasible_and_unbounded_are_answers_too(optimisation: OptimisationGrader) -> None:
    floor = {"terms": {"x": 1, "y": 1}, "relation": ">=", "bound": 31}
    impossible = changed(constraints=[*CONSTRAINTS, floor])
    endless = changed(constraints=[{"terms": {"x": 1, "y": -1}, "relation": "<=", "bound": 1}])
    assert judge(optimisation, {"status": "infeasible"}, impossible).score == 1.0
    assert judge(optimisation, {"status": "unbounded"}, endless).score == 1.0
    assert judge(optimisation, {"status": "unbounded"}, impossible).cause == "wrong_status"
    assert judge(optimisation, {"status": "odd"}, impossible).cause == "task_cannot_be_judged"
    assert judge(optimisation, {}, impossible).cause == "task_cannot_be_judged"
