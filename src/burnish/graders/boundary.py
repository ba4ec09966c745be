"""The one error boundary of grading: what a grader raises becomes a grade without a score, or the model's zero."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from burnish.core.grade import SKIPPED_BY_GATE, Grade, Grader
from burnish.core.outcome import COMPLETED
from burnish.core.task import Task
from burnish.core.text import cap_text, clean_text
from burnish.core.trajectory import Trajectory
from burnish.graders.isolation import Worker, WorkerFailure
from burnish.graders.node import GraderNode, as_nodes, running_order
from burnish.graders.wire import grade_from_json, grader_reference, task_to_json, trajectory_to_json

MAX_ARBITRATIONS = 16
SKIPPED_UNGRADED = "skipped:ungraded"
"""Cause of a grade whose grader requires one that could not be given; as unknown as that one."""

_DETAIL_CHARS = 300

Case = tuple[Task, Trajectory]
"""What a grader judges."""


async def grade_trajectories(
    tasks: Sequence[Task],
    trajectories: Sequence[Trajectory],
    graders: Sequence[Grader],
    *,
    timeout_s: float,
) -> list[tuple[Grade, ...]]:
    """The grades of each trajectory, in order, one for each grader; raises nothing that a grader raised.

    tasks[i] is the task of trajectories[i].  graders are a graph where some are `GraderNode`s: those that do not need
    each other run side by side, the others after what they require.  timeout_s bounds one grade, except of nodes and
    graders that keep a deadline of their own (`keeps_deadline`).  A grader that blocks the event loop cannot be
    interrupted here: one that runs foreign code goes into an `IsolatedGrader`.

    A trajectory that may not carry reward is not graded (cause "excluded:...").  What hangs on a closed gate is skipped
    (cause "skipped:gate"), what requires a grade that could not be given is too ("skipped:ungraded").  A grader that
    raises or runs out of time gives no score (cause "grader_error:..." or "grader_timeout"), unless `arbitrate` proves
    that the model is at fault.  At most 16 failures of a call are arbitrated; the others stay without a score.
    Raises ConfigError where the graders do not make a graph.
    """
    cases = list(zip(tasks, trajectories, strict=True))
    nodes = as_nodes(graders)
    columns: dict[str, asyncio.Task[list[Grade]]] = {}
    for node in running_order(nodes):
        required = [(other, columns[other.name]) for other in nodes if other.name in node.requires]
        columns[node.name] = asyncio.create_task(_grade_column(node, cases, required, timeout_s))
    done = await asyncio.gather(*(columns[node.name] for node in nodes))
    return list(zip(*done, strict=True)) if done else [() for _ in cases]


def arbitrate(
    grader: Grader, failures: Sequence[tuple[Case, Grade]], known_good: Case, *, timeout_s: float
) -> list[Grade]:
    """Whose fault are a grader's failures?  Exclusion is no escape, and yet a broken grader must not punish.

    In a fresh process, an equal grader judges the known-good case and then each failed one.
    Known-good fails too: the grader is broken; the failures stand, without a score.
    Known-good passes and a case fails in the same way again: the model's fault, score 0, cause "model:<cause>".
    Both pass: the failure was transient; the grade of the fresh process counts.
    A grader that cannot be made anew in another process keeps its failures.  The evidence says which it was.
    """
    reference = grader_reference(grader)
    if reference is None:
        return [_noted(failure, "not_reproducible") for _, failure in failures]
    allowed_s = getattr(grader, "arbitration_s", timeout_s)
    worker = Worker()
    try:
        good = _fresh(worker, reference, known_good, allowed_s)
        if isinstance(good, WorkerFailure) or good.score is None:
            return [_noted(failure, "known_good_fails") for _, failure in failures]
        return [_verdict(_fresh(worker, reference, case, allowed_s), failure) for case, failure in failures]
    finally:
        worker.close()


def _verdict(again: Grade | WorkerFailure, failure: Grade) -> Grade:
    """What the second look at a failure makes of it."""
    if not isinstance(again, WorkerFailure):
        return _noted(failure, "no_score") if again.score is None else _noted(again, "passed_in_fresh_process")
    if _cause(again) != failure.cause:
        return _noted(failure, f"fails_otherwise:{_cause(again)}")
    return _noted(dataclasses.replace(failure, score=0.0, cause=f"model:{failure.cause}"), "repeated")


async def _grade_column(
    node: GraderNode,
    cases: Sequence[Case],
    required: Sequence[tuple[GraderNode, asyncio.Task[list[Grade]]]],
    timeout_s: float,
) -> list[Grade]:
    """The node's grade of each case, once all that it requires has judged; its failures are arbitrated."""
    allowed_s = timeout_s if node.timeout_s is None else node.timeout_s
    judged = [(other, await column) for other, column in required]
    slots = asyncio.Semaphore(node.parallel or getattr(node.grader, "parallel", 0) or max(1, len(cases)))

    async def graded(index: int) -> Grade:
        skipped = _skipped(node, cases[index], [(other, column[index]) for other, column in judged])
        if skipped is not None:
            return skipped
        async with slots:
            return await _grade_one(cases[index], node, allowed_s)

    grades = list(await asyncio.gather(*(graded(index) for index in range(len(cases)))))
    if any(_is_failure(grade) for grade in grades):
        await asyncio.to_thread(_arbitrate_all, node, cases, grades, allowed_s)
    return grades


def _skipped(node: GraderNode, case: Case, required: Sequence[tuple[GraderNode, Grade]]) -> Grade | None:
    """The grade of a node that does not judge this case: excluded, behind a closed gate, or without what it needs."""
    outcome = case[1].outcome
    if not outcome.may_carry_reward:
        return _no_score(node, f"excluded:{outcome.label}")
    for other, grade in required:
        if grade.is_skipped:
            return _no_score(node, SKIPPED_BY_GATE, evidence=grade.evidence)
        if grade.score is not None and not other.is_open(grade):
            evidence = {"gate": other.name, "score": grade.score, "opens_at": other.gate}
            return _no_score(node, SKIPPED_BY_GATE, evidence=evidence)
    missing = [(other.name, grade.cause) for other, grade in required if grade.score is None]
    return _no_score(node, SKIPPED_UNGRADED, evidence=dict(missing)) if missing else None


def _arbitrate_all(node: GraderNode, cases: Sequence[Case], grades: list[Grade], timeout_s: float) -> None:
    """Replace the first failures in `grades` by what arbitration makes of them."""
    failed = [index for index, grade in enumerate(grades) if _is_failure(grade)][:MAX_ARBITRATIONS]
    good = _known_good(cases, grades, failed[0])
    if good is not None:
        failures = [(cases[index], grades[index]) for index in failed]
        for index, grade in zip(failed, arbitrate(node.grader, failures, good, timeout_s=timeout_s), strict=True):
            grades[index] = dataclasses.replace(grade, grader=node.name)


def _fresh(worker: Worker, reference: dict[str, Any], case: Case, timeout_s: float) -> Grade | WorkerFailure:
    arguments = {"grader": reference, "task": task_to_json(case[0]), "trajectory": trajectory_to_json(case[1])}
    try:
        return grade_from_json(worker.call("burnish.graders.worker:grade_once", arguments, timeout_s=timeout_s))
    except WorkerFailure as error:
        return error


async def _grade_one(case: Case, node: GraderNode, timeout_s: float) -> Grade:
    """One grade, or the reason why there is none; the error boundary itself."""
    started_s = time.perf_counter()
    clock = asyncio.timeout(None if getattr(node.grader, "keeps_deadline", False) else timeout_s)
    try:
        async with clock:
            grade = await node.grade(*case)
        return dataclasses.replace(grade, cost_s=time.perf_counter() - started_s)
    except Exception as error:  # noqa: BLE001 - the boundary of graders: any failure becomes a grade with its cause
        cause = "grader_timeout" if clock.expired() else _cause(error)
        detail = clean_text(cap_text(f"{type(error).__name__}: {error}", _DETAIL_CHARS)[0])
        return _no_score(node, cause, {"detail": detail}, time.perf_counter() - started_s)


def _cause(error: Exception) -> str:
    kind = error.cause if isinstance(error, WorkerFailure) else type(error).__name__
    return "grader_timeout" if kind in ("timeout", "TimeoutError") else f"grader_error:{kind}"


def _no_score(node: GraderNode, cause: str, evidence: Mapping[str, Any] | None = None, cost_s: float = 0.0) -> Grade:
    return Grade(
        grader=node.name, version=node.version, score=None, cause=cause, evidence=evidence or {}, cost_s=cost_s
    )


def _is_failure(grade: Grade) -> bool:
    return grade.score is None and grade.cause.startswith("grader_")


def _noted(grade: Grade, finding: str) -> Grade:
    return dataclasses.replace(grade, evidence={**grade.evidence, "arbitrated": finding})


def _known_good(cases: Sequence[Case], grades: Sequence[Grade], failed: int) -> Case | None:
    """An input that this grader judges: of the same task and right, else any that it judged, else the gold answer."""
    judged = [index for index, grade in enumerate(grades) if grade.score is not None]
    if judged:
        task_id = cases[failed][0].id
        return cases[max(judged, key=lambda index: (cases[index][0].id == task_id, grades[index].score or 0.0))]
    task, trajectory = cases[failed]
    gold = task.reference.get("answer")
    if gold is None or trajectory.answer == str(gold):
        return None
    return task, dataclasses.replace(trajectory, answer=str(gold), outcome=COMPLETED)
