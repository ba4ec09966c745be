"""Trajectories of a Burnish run, straight from its store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from burnish.core.message import Message
from burnish.core.trajectory import Trajectory
from burnish.diagnosis.record import Call, Item, Record
from burnish.store.reader import RunReader
from burnish.store.rows import StoredTrajectory


def read_run(folder: Path, phase: str = "rl") -> Iterator[Record]:
    """Every trajectory of a phase, one step in memory at a time.  Raises StoreError where the run cannot be read."""
    reader = RunReader(folder)
    for info in reader.steps(phase):
        for stored in reader.trajectories(phase, info.step):
            yield record_of(stored)


def record_of(stored: StoredTrajectory) -> Record:
    """A stored trajectory as a record; its reward passes at 1."""
    return trajectory_record(stored.trajectory, reward=stored.reward, phase=stored.phase, step=stored.step)


def trajectory_record(trajectory: Trajectory, *, reward: float | None, phase: str = "rl", step: int = 0) -> Record:
    """A trajectory of a running or of a stored run as a record."""
    messages = trajectory.messages
    return Record(
        id=trajectory.id,
        task_id=trajectory.task_id,
        items=tuple(_item(message, number) for number, message in enumerate(messages, start=1)),
        source="burnish",
        reward=reward,
        passed=None if reward is None else reward >= 1.0 - 1e-9,
        outcome=trajectory.outcome.label,
        extra={"phase": phase, "step": step, "tags": dict(trajectory.tags)},
    )


def _item(message: Message, number: int) -> Item:
    is_tool = message.role == "tool"
    return Item(
        index=number,
        role=str(message.role),
        text=message.text,
        calls=tuple(
            Call(
                id=call.id,
                name=call.name,
                arguments=None if call.error else dict(call.arguments),
                raw=call.error,
            )
            for call in message.tool_calls
        ),
        call_id=message.tool_call_id,
        name=message.name,
        is_error=message.is_error if is_tool else None,
    )
