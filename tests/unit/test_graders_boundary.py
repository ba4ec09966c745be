"""The error boundary of grading, arbitration in a fresh process, and what travels there."""

from __future__ import annotations

import asyncio
import importlib
import math
import os
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from burnish.core.errors import ConfigError
from burnish.core.grade import Grade, Grader
from burnish.core.hashing import canonical_json
from burnish.core.message import ImagePart, Message, TextPart, ToolCall
from burnish.core.outcome import COMPLETED, Ending, Limit, Outcome, Owner
from burnish.core.task import Limits, Task
from burnish.core.trajectory import Node, Trajectory
from burnish.graders.boundary import grade_trajectories
from burnish.graders.function import FunctionGrader
from burnish.graders.isolated import IsolatedGrader
from burnish.graders.isolation import Worker, WorkerFailure
from burnish.graders.rules import ExactGrader, NumericGrader
from burnish.graders.wire import (
    grade_from_json,
    grade_to_json,
    grader_from_reference,
    grader_reference,
    task_from_json,
    task_to_json,
    trajectory_from_json,
    trajectory_to_json,
)
from burnish.testing.grader import answered

TASK = Task(prompt="2 + 2?", reference={"answer": "4"})

SOURCE = '''
import os, sys, time
from dataclasses import dataclass
from pathlib import Path
from burnish.core.grade import Grade

def verdict(score):
    return Grade(grader="fragile", version="1", score=score)

@dataclass(frozen=True)
class Fragile:
    """Breaks on answers that are no number."""
    name: str = "fragile"
    version: str = "1"
    async def grade(self, task, trajectory):
        return verdict(float(int(trajectory.answer) == int(task.reference["answer"])))

@dataclass(frozen=True)
class Broken(Fragile):
    async def grade(self, task, trajectory):
        raise ValueError("always")

@dataclass(frozen=True)
class Moody(Fragile):
    """Breaks in the process it was made in, never in another one."""
    pid: int = 0
    async def grade(self, task, trajectory):
        if os.getpid() == self.pid and trajectory.answer != "4":
            raise ValueError("bad day")
        return verdict(0.25)

def slow(task, trajectory):
    if trajectory.answer != "4":
        time.sleep(60)
    return 1.0

def prints(task, trajectory):
    print('{"value": {"score": 1.0}}')
    os.write(1, b'{"value": 1.0}\\n')
    return 0.0

def dies(task, trajectory):
    os._exit(0)

def echo(**arguments):
    return arguments
'''


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of the user's own."""
    (tmp_path / "user_graders.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("user_graders")
    sys.modules.pop("user_graders", None)


def graded(grader: Grader, *answers: str, timeout_s: float = 20.0) -> list[Grade]:
    cases = [answered(TASK, answer) for answer in answers]
    rows = asyncio.run(grade_trajectories([TASK] * len(cases), cases, [grader], timeout_s=timeout_s))
    return [row[0] for row in rows]


def test_grades_come_in_order_with_their_cost() -> None:
    cases = [answered(TASK, answer) for answer in ("4", "5")]
    rows = asyncio.run(grade_trajectories([TASK, TASK], cases, [ExactGrader(), NumericGrader()], timeout_s=1))
    assert [[grade.score for grade in row] for row in rows] == [[1.0, 1.0], [0.0, 0.0]]
    assert all(grade.cost_s > 0 for row in rows for grade in row)
    assert asyncio.run(grade_trajectories([TASK], cases[:1], [], timeout_s=1)) == [()]
    assert asyncio.run(grade_trajectories([], [], [ExactGrader()], timeout_s=1)) == []


def test_what_may_not_carry_reward_is_not_even_shown_to_graders() -> None:
    def never(task: Task, trajectory: Trajectory) -> float:
        raise AssertionError("shown")

    outcome = Outcome(ending=Ending.ERROR, owner=Owner.INFRASTRUCTURE, cause="lost")
    case = answered(TASK, "4", outcome=outcome)
    row = asyncio.run(grade_trajectories([TASK], [case], [FunctionGrader(never)], timeout_s=1))[0]
    assert (row[0].score, row[0].cause) == (None, "excluded:error:infrastructure")


def test_a_failure_that_repeats_while_known_good_passes_is_the_models(user: Any) -> None:
    good, bad = graded(user.Fragile(), "4", "four")
    assert good.score == 1.0
    assert (bad.score, bad.cause) == (0.0, "model:grader_error:ValueError")
    assert bad.evidence["arbitrated"] == "repeated"


def test_the_gold_answer_serves_as_known_good(user: Any) -> None:
    assert graded(user.Fragile(), "four")[0].score == 0.0


def test_a_broken_grader_punishes_nobody(user: Any) -> None:
    for grade in graded(user.Broken(), "4", "5"):
        assert (grade.score, grade.cause) == (None, "grader_error:ValueError")
    assert graded(user.Broken(), "5")[0].evidence["arbitrated"] == "known_good_fails"


def test_a_passing_mood_is_judged_by_the_fresh_process(user: Any) -> None:
    grade = graded(user.Moody(pid=os.getpid()), "5")[0]
    assert (grade.score, grade.evidence["arbitrated"]) == (0.25, "passed_in_fresh_process")


def test_what_cannot_be_made_anew_stays_without_a_score() -> None:
    def local(task: Task, trajectory: Trajectory) -> float:
        return float(int(trajectory.answer))

    grade = graded(FunctionGrader(local), "four")[0]
    assert (grade.score, grade.evidence["arbitrated"]) == (None, "not_reproducible")


@pytest.mark.parametrize("value", [2.0, float("nan"), None, "x"])
def test_scores_out_of_range_are_grader_failures(value: Any) -> None:
    grade = graded(FunctionGrader(lambda task, trajectory: value), "4")[0]
    assert grade.score is None
    assert grade.cause.startswith("grader_error:")


def test_a_grade_that_is_none_is_a_failure() -> None:
    class Wrong:
        name = "wrong"
        version = "1"

        async def grade(self, task: Task, trajectory: Trajectory) -> Any:
            return 1.0

    assert graded(Wrong(), "4")[0].cause == "grader_error:TypeError"


def test_a_grader_that_waits_too_long_is_cut() -> None:
    async def waits(task: Task, trajectory: Trajectory) -> float:
        await asyncio.sleep(60)
        return 1.0

    started_s = time.perf_counter()
    assert graded(FunctionGrader(waits), "4", timeout_s=0.1)[0].cause == "grader_timeout"
    assert time.perf_counter() - started_s < 5


def test_an_isolated_grader_that_hangs_is_killed_and_the_model_answers_for_it(user: Any) -> None:
    grader = IsolatedGrader(FunctionGrader(user.slow), timeout_s=1.0)
    hang, good = graded(grader, "5", "4")
    assert (hang.score, hang.cause) == (0.0, "model:grader_timeout")
    assert good.score == 1.0
    grader.close()


def test_what_a_grader_prints_is_no_verdict(user: Any) -> None:
    assert graded(IsolatedGrader(FunctionGrader(user.prints)), "4")[0].score == 0.0


def test_a_grader_that_ends_its_process_gives_no_score(user: Any) -> None:
    assert graded(IsolatedGrader(FunctionGrader(user.dies)), "4")[0].cause == "grader_error:died"


def test_only_importable_graders_can_be_isolated() -> None:
    with pytest.raises(ConfigError, match="module level"):
        IsolatedGrader(FunctionGrader(lambda task, trajectory: 1.0))


def test_a_worker_survives_failures_and_sees_no_secrets(user: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "s3cret")
    worker = Worker()
    assert worker.call("user_graders:echo", {"a": [1, "é"]}, timeout_s=10) == {"a": [1, "é"]}
    for function, arguments, cause in (
        ("user_graders:missing", {}, "AttributeError"),
        ("math:sqrt", {}, "TypeError"),
        ("time:sleep", {}, "TypeError"),
        ("os:abort", {}, "died"),
        ("user_graders:slow", {"task": None, "trajectory": None}, "AttributeError"),
    ):
        with pytest.raises(WorkerFailure) as failure:
            worker.call(function, arguments, timeout_s=10)
        assert failure.value.cause == cause
    environment = worker.call("os:getenv", {"key": "SECRET_KEY"}, timeout_s=10)
    assert environment is None
    worker.close()


def test_a_worker_stops_c_code_at_its_deadline(user: Any) -> None:
    worker = Worker()
    started_s = time.perf_counter()
    with pytest.raises(WorkerFailure) as failure:
        worker.call("re:fullmatch", {"pattern": "(a+)+b", "string": "a" * 40}, timeout_s=0.5)
    assert failure.value.cause == "timeout"
    assert time.perf_counter() - started_s < 10
    worker.close()


def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    program = """
import os, sys
from burnish.graders.isolation import Worker
worker = Worker()
print(worker.call("os:getpid", {}, timeout_s=10), flush=True)
worker.call("re:fullmatch", {"pattern": "(a+)+b", "string": "a" * 40}, timeout_s=1.0)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.2)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end_s = time.monotonic() + 20
    while _runs(child) and time.monotonic() < end_s:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_tasks_trajectories_and_grades_travel_unchanged() -> None:
    image = ImagePart(sha256="ab" * 32, media_type="image/png", width_px=2, height_px=3)
    task = Task(
        prompt=(TextPart(text="look"), image),
        system="s",
        setup={"a": [1, {"b": None}]},
        reference={"answer": "x"},
        tags={"k": "v"},
        limits=Limits(max_turns=2),
        tools=("a",),
        id="t",
    )
    assert task_from_json(task_to_json(task)) == task
    assert task_from_json(task_to_json(TASK)) == TASK
    call = ToolCall(id="c", name="count", arguments={"shelf": "A"})
    node = Node(
        parent=-1,
        messages=(Message.assistant("hm", (call,)), Message.tool("3", call=call)),
        token_ids=array("i", [1, 2]),
        action_mask=array("b", [0, 1]),
        logprobs=array("f", [math.nan, -0.5]),
        versions=array("i", [-1, 3]),
        is_action=True,
    )
    outcome = Outcome(ending=Ending.TRUNCATED, limit=Limit.TURNS, detail="d")
    trajectory = Trajectory(
        id="x",
        task_id="t",
        task_hash=task.content_hash,
        group_id="g",
        sample_index=1,
        seed=2**62,
        nodes=(node,),
        outcome=outcome,
        answer="a",
        final_state={"s": [1]},
        counters={"forks": 1},
        tags={"k": "v"},
        tool_s=0.5,
        total_s=1.5,
    )
    data = trajectory_to_json(trajectory)
    back = trajectory_from_json(data)
    assert canonical_json(trajectory_to_json(back)) == canonical_json(data)
    assert (back.outcome, back.nodes[0].messages, back.seed) == (outcome, node.messages, 2**62)
    assert math.isnan(back.nodes[0].logprobs[0])
    grade = Grade(grader="g", version="1", score=0.5, evidence={"a": 1})
    assert grade_from_json(grade_to_json(grade)) == grade


def test_graders_are_described_by_what_makes_them() -> None:
    grader = NumericGrader(tolerance=0.5, take="last")
    reference = grader_reference(grader)
    assert reference is not None
    assert grader_from_reference(reference) == grader
    assert COMPLETED.ending is Ending.COMPLETED
