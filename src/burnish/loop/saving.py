"""Checkpoints of a run: what is saved when, under which name, and which are kept."""

from __future__ import annotations

from burnish.loop.session import Session
from burnish.loop.state import LoopState, Mark
from burnish.store.writer import RunWriter
from burnish.training.checkpoint import CheckpointRef, keep_newest, save_checkpoint
from burnish.training.model_state import model_state
from burnish.training.random_state import capture_random_state

REFERENCE = "rl-000000"
FINAL = "final"


def save(session: Session) -> None:
    """Write a checkpoint of everything, note it in the store, and delete old ones beyond what the recipe keeps."""
    state, writer, recipe = session.state, session.writer, session.recipe
    # A checkpoint must not know of a step that the store does not have.
    session.settle()
    session.oversight.remember()
    if state.phase == "rl":
        _mark(session)
    ref = save_checkpoint(
        writer.layout.checkpoints,
        checkpoint_name(state),
        model_state=model_state(session.policy.model),
        optimizer_state=session.optimizer.state() if session.optimizer else {},
        rng=capture_random_state(),
        state=state.to_json(),
    )
    record_checkpoint(writer, state, ref)
    kept = {REFERENCE, FINAL, f"sft-{recipe.warm_start.steps:06d}"}
    if session.oversight.acts:
        kept |= {mark.name for mark in state.ways_back()}
    keep_newest(writer.layout.checkpoints, recipe.checkpoint.keep, keep=frozenset(kept))


def _mark(session: Session) -> None:
    """Note a checkpoint that is due; it is verified once the run was seen to be well there.

    Those of a stop on request are left out: a resumed run must decide as one that was never stopped.
    """
    state = session.state
    if state.rl_step % session.recipe.checkpoint.every == 0:
        earlier = [mark for mark in state.marks if mark.step < state.rl_step]
        same = [mark for mark in state.marks if mark.step == state.rl_step]
        state.marks = [*earlier, *(same or [Mark(name=checkpoint_name(state), step=state.rl_step)])]


def record_checkpoint(writer: RunWriter, state: LoopState, ref: CheckpointRef) -> None:
    phase, step = ("sft", state.sft_step) if state.phase == "sft" else ("rl", state.rl_step)
    writer.record_checkpoint(ref.name, phase=phase, step=step, sha256=ref.sha256)


def checkpoint_name(state: LoopState) -> str:
    """Such as "sft-000400", "rl-000020", or "final"."""
    if state.phase == "done":
        return FINAL
    return f"sft-{state.sft_step:06d}" if state.phase == "sft" else f"rl-{state.rl_step:06d}"
