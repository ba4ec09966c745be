"""Rollback: a run returns to a checkpoint from before a fault began, and goes on from there with other knobs."""

from __future__ import annotations

import shutil
from dataclasses import asdict, fields

from burnish.core.finding import Decision
from burnish.loop.knobs import Knobs
from burnish.loop.reinforce import optimizer_spec
from burnish.loop.saving import save
from burnish.loop.session import Session
from burnish.loop.state import LoopState
from burnish.loop.task_queue import TaskQueue
from burnish.store.reader import RunReader
from burnish.training.checkpoint import list_checkpoints, load_checkpoint
from burnish.training.model_state import load_model_state
from burnish.training.optimizer import Optimizer
from burnish.training.random_state import restore_random_state

ROLLED_BACK = "rollback"
_OF_CONTROL = ("control", "knobs", "marks")
"""What stays as it is: control must not forget that it went back, nor which checkpoints it trusts."""


def go_back(session: Session, queue: TaskQueue, decision: Decision) -> None:
    """Carry out a rollback: weights, optimizer, random generators, order of tasks, ledger and monitors as they were in
    the checkpoint; control's memory, and the knobs that the decision names, as they are now.

    Steps after the checkpoint are superseded as on a resume, and the checkpoint is written anew before that, so that a
    kill at any moment leaves a run that goes on from here.  Raises CheckpointError where the checkpoint is corrupt.
    """
    session.settle()
    state, writer = session.state, session.writer
    name, from_step = str(decision.values["checkpoint"]), state.rl_step
    loaded = load_checkpoint(writer.layout.checkpoints, name)
    earlier = LoopState.from_json(dict(loaded.state))
    quarantined = _tasks_of(session, decision)
    incident = {
        **asdict(decision),
        "from_step": from_step,
        "to_step": earlier.rl_step,
        "quarantined_tasks": quarantined,
        "findings": [
            event.data
            for event in RunReader(writer.layout.root).events("finding")
            if event.phase == "rl" and event.step > earlier.rl_step
        ],
    }
    _restore_state(state, earlier)
    _turn(session, decision, quarantined)
    load_model_state(session.policy.model, loaded.model_state)
    session.optimizer = Optimizer(session.policy.model, optimizer_spec(session.recipe.rl))
    if state.rl_step > 0:
        session.optimizer.restore(loaded.optimizer_state)
    restore_random_state(loaded.rng)
    if state.task_cursor is not None:
        queue.restore(state.task_cursor)
    session.oversight.go_back()
    session.ending = None
    writer.event(ROLLED_BACK, f"from step {from_step} to {name}: {decision.reason}", incident)
    save(session)
    writer.supersede_after({"sft": state.sft_step, "rl": state.rl_step, "eval": state.evaluations})
    _forget_later(session)
    session.sync()


def _restore_state(state: LoopState, earlier: LoopState) -> None:
    for field in fields(LoopState):
        if field.name not in _OF_CONTROL:
            setattr(state, field.name, getattr(earlier, field.name))
    state.marks = [mark for mark in state.marks if mark.step <= state.rl_step]


def _turn(session: Session, decision: Decision, quarantined: list[str]) -> None:
    """Every knob as in the recipe, but for those that the decision names."""
    state, given = session.state, dict(decision.values.get("knobs", {}))
    last = state.rl_step + session.recipe.control.quarantine_steps
    barred = {**state.knobs.quarantine, **dict.fromkeys(quarantined, last)}
    state.knobs = Knobs(**given, quarantine=barred)


def _tasks_of(session: Session, decision: Decision) -> list[str]:
    """The tasks of the offending groups."""
    groups = set(decision.values.get("group_ids", ()))
    groups |= {str(key).rpartition("/")[0] for key in decision.values.get("trajectory_ids", ())}
    if not groups:
        return []
    reader = RunReader(session.writer.layout.root)
    known = {info.step for info in reader.steps("rl")}
    steps = {int(group.split("/")[1]) for group in groups} & known
    rows = [row for step in sorted(steps) for row in reader.trajectories("rl", step)]
    return sorted({row.trajectory.task_id for row in rows if row.trajectory.group_id in groups})


def _forget_later(session: Session) -> None:
    """Delete the checkpoints of the steps that were given up: one of the same name will stand for other weights."""
    folder, step = session.writer.layout.checkpoints, session.state.rl_step
    for ref in list_checkpoints(folder):
        phase, _, number = ref.name.rpartition("-")
        if phase == "rl" and int(number) > step:
            shutil.rmtree(ref.path)
