"""What a diagnosis adds to a trajectory of a run: tags to filter by, a near-miss measure, whether it leaves the loss.

A trajectory is never edited: these are rows of their own, keyed by its id, one JSON object a line.

    near_miss = turns of the agent before the critical step / turns that the task takes

The turns that a task takes are those of its shortest trajectory that passed, where there is one, else the
trajectory's own.  It is None where the agent is not at fault: nobody can say how far it would have come.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from burnish.diagnosis.diagnose import Engine
from burnish.diagnosis.overview import Case
from burnish.diagnosis.record import Record
from burnish.diagnosis.taxonomy import Fault

TYPED_OWNERS = ("environment", "grader", "infrastructure")


def agent_turns(record: Record, before: int | None = None) -> int:
    """Messages of the agent before a position, or all."""
    return sum(item.role == "assistant" for item in record.items[:before])


def near_miss(case: Case, turns_to_pass: int | None = None) -> float | None:
    """How far it came before its critical step, in [0, 1).

    turns_to_pass: of the shortest passing trajectory of the same task.  With 6 turns of which the fifth is the critical
    one, and no passing trajectory, 4 / 6.
    """
    if case.critical.owner is not Fault.AGENT:
        return None
    done, own = agent_turns(case.record, case.critical.position), agent_turns(case.record)
    needed = max(1, turns_to_pass or own)
    return round(min(done / needed, 1.0 - 1.0 / (needed + 1)), 4)


def near_misses(engine: Engine, records: Sequence[Record]) -> dict[str, float]:
    """Trajectory id -> near-miss measure of the failed members of a group whose critical step is the agent's.

    For worlds whose graders say nothing of progress: what `control.reservoir.Candidate.progress` takes.
    """
    needed = _turns_to_pass(records)
    measures = {case.record.id: near_miss(case, needed) for case in _failed(engine, records)}
    return {key: measure for key, measure in measures.items() if measure is not None}


FAR = 0.5
"""What a failure of the agent teaches that went wrong at once; one that came all the way teaches 1."""


def lessons(engine: Engine, records: Sequence[Record]) -> tuple[float, int]:
    """(how much the failures of a group can teach, how many are put down to somebody else than the agent).

    A failure of the agent teaches from `FAR` to 1 with how near it came: one at once and one half way are worth
    0.5 + 0.75.  A member without a reward is somebody else's; a failure of which nobody can say whose it is is neither.
    """
    needed = _turns_to_pass(records)
    taught, others = 0.0, sum(record.passed is None for record in records)
    for case in _failed(engine, records):
        near = near_miss(case, needed)
        taught += 0.0 if near is None else FAR + (1.0 - FAR) * near
        others += case.critical.owner not in (Fault.AGENT, Fault.UNKNOWN)
    return taught, others


def _turns_to_pass(records: Sequence[Record]) -> int | None:
    return min((agent_turns(record) for record in records if record.passed), default=None)


def _failed(engine: Engine, records: Sequence[Record]) -> Iterator[Case]:
    """The failed members of a group that have a critical step."""
    for record in records:
        if record.passed is False:
            diagnosis = engine.diagnose(record)
            if diagnosis.critical is not None:
                yield Case(record=record, diagnosis=diagnosis, critical=diagnosis.critical)


def leaves_loss(record: Record, proven: bool = False) -> bool:
    """Whether a trajectory is left out of the loss: its outcome is an error typed as another's, or a replay has proven
    one.  An owner that diagnosis infers never does that.

    >>> leaves_loss(Record(id="a", items=(), outcome="error:environment")), leaves_loss(Record(id="b", items=()))
    (True, False)
    """
    ending, _, owner = record.outcome.partition(":")
    return proven or (ending == "error" and owner in TYPED_OWNERS)


def tag_row(case: Case, turns_to_pass: int | None = None) -> dict[str, Any]:
    """The row of a trajectory."""
    record, critical = case.record, case.critical
    tags = record.extra.get("tags")
    return {
        "trajectory_id": record.id,
        "task_id": record.task_id,
        "step": record.extra.get("step"),
        "tags": {
            **(dict(tags) if isinstance(tags, Mapping) else {}),
            "diagnosis.category": str(critical.category),
            "diagnosis.owner": str(critical.owner),
        },
        "critical_step": critical.index,
        "p": round(critical.p, 4),
        "near_miss": near_miss(case, turns_to_pass),
        "leaves_loss": leaves_loss(record),
    }


def selects(row: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    """Whether a row has all of these tags; `category` and `owner` stand for those of the diagnosis.

    >>> selects({"tags": {"diagnosis.owner": "user", "skill": "lookup"}}, {"owner": "user", "skill": "lookup"})
    True
    """
    short = {"category": "diagnosis.category", "owner": "diagnosis.owner"}
    return all(row["tags"].get(short.get(name, name)) == value for name, value in wanted.items())
