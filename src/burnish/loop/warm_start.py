"""The SFT phase: expert traces (or a user's chats) -> demonstrations -> optimizer steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from random import Random

from burnish.core.errors import ConfigError
from burnish.core.grade import Grade
from burnish.core.hashing import derive_seed
from burnish.core.outcome import Ending
from burnish.core.trajectory import Trajectory
from burnish.loop.chats import read_chats
from burnish.loop.grading import is_success
from burnish.loop.policy import fit_limits, merged_limits
from burnish.loop.preflight import PROBLEMS_TOLD, bad_rows
from burnish.loop.session import Session, plan
from burnish.loop.shard import DemonstrationOrder, GradientOrder
from burnish.rollout.samples import demonstration_samples
from burnish.store.reader import RunReader
from burnish.store.rows import Event, Fate, StepRecord, StoredTrajectory
from burnish.tasks.cursor import TaskCursor
from burnish.training.optimizer import OptimizerSpec, Schedule

COMMIT_EVERY = 10


def optimizer_spec(session: Session) -> OptimizerSpec:
    """The optimizer settings of this phase."""
    settings = session.recipe.warm_start
    return OptimizerSpec(
        learning_rate=settings.lr,
        schedule=Schedule(settings.schedule),
        warmup_steps=min(settings.warmup_steps, max(0, settings.steps - 1)),
        total_steps=settings.steps,
        weight_decay=settings.weight_decay,
        beta2=settings.beta2,
        max_grad_norm=settings.grad_clip,
    )


def make_demonstrations(session: Session) -> None:
    """Generate the warm-start set and commit it as step sft/0; a resumed run reads it from there."""
    settings, aggregator, started_s = session.recipe.warm_start, session.world.aggregator, time.perf_counter()
    pairs, events = _user_chats(session) if settings.data else (_expert_traces(session), [])
    failed = [t for t, _ in pairs if t.outcome.ending is not Ending.COMPLETED]
    kept = [pair for pair in pairs if pair[0].outcome.ending is Ending.COMPLETED]
    if settings.keep == "correct":
        kept = [pair for pair in kept if is_success(aggregator, pair[1])]
    if not kept:
        detail = failed[0].outcome.detail if failed else "none was correct"
        raise ConfigError(f"no usable warm-start trace among {len(pairs)}: {detail}")
    rows = [
        StoredTrajectory(
            trajectory=trajectory, phase="sft", step=0, policy_version=0, grades=grades, fate=Fate.DEMONSTRATION
        )
        for trajectory, grades in kept
    ]
    scalars = {
        "demonstrations/kept": float(len(kept)),
        "demonstrations/failed": float(len(failed)),
        "demonstrations/tokens_mean": sum(len(n.token_ids) for t, _ in kept for n in t.nodes) / len(kept),
        "time/phase_s": time.perf_counter() - started_s,
    }
    if not settings.data:
        right = sum(1 for _, grades in kept if is_success(aggregator, grades))
        scalars["demonstrations/correct_share"] = right / len(kept)
    session.store(StepRecord(phase="sft", step=0, rows=rows, scalars=scalars, events=events))


def _user_chats(session: Session) -> tuple[list[tuple[Trajectory, tuple[Grade, ...]]], list[Event]]:
    """The chats of the user's file, ungraded, and an event for the lines that were left out."""
    path = session.recipe.warm_start.data
    session.tell("prepare", message=f"reading warm-start chats from {path}")
    positions = getattr(session.policy.model.config, "max_position_embeddings", None)
    max_tokens = fit_limits(merged_limits(session.recipe, session.world.limits), positions).max_context_tokens
    chats = read_chats(path, session.policy.renderer, max_tokens=max_tokens)
    for problem in chats.problems[:PROBLEMS_TOLD]:
        session.tell("prepare", message=f"left out {problem}")
    return [(chat, ()) for chat in chats.trajectories], bad_rows(chats.problems)


def load_demonstrations(session: Session) -> int:
    """Hand the stored warm-start set to the shards; returns its number of samples."""
    rows = RunReader(session.writer.layout.root).trajectories("sft", 0)
    samples = [sample for row in rows for sample in demonstration_samples(row.trajectory)]
    session.executor.load_demonstrations(samples)
    return len(samples)


def _expert_traces(session: Session) -> list[tuple[Trajectory, tuple[Grade, ...]]]:
    recipe, settings = session.recipe, session.recipe.warm_start
    session.tell("prepare", message=f"making {settings.traces} warm-start traces")
    tasks = session.world.tasks("train")
    mistakes = _mistakes(session, settings.traces)
    order = TaskCursor(len(tasks), derive_seed(recipe.run.seed, "demonstrations")).next(settings.traces)
    plans = [plan(tasks[index], "sft", 0, number, 0, recipe.run.seed) for number, index in enumerate(order)]
    parts = session.deal_plans(plans)
    orders = [
        DemonstrationOrder(
            plans=tuple(plans[index] for index in part), mistakes=tuple(mistakes[index] for index in part)
        )
        for part in parts
    ]
    found: dict[int, tuple[Trajectory, tuple[Grade, ...]]] = {}
    for part, rolled in zip(parts, session.executor.demonstrate(orders), strict=True):
        found.update(zip(part, zip(rolled.trajectories, rolled.grades, strict=True), strict=True))
    return [found[index] for index in range(len(plans))]


def _mistakes(session: Session, count: int) -> list[str | None]:
    """Which mistake the expert makes in each trace, in the shares that the recipe names."""
    shares = session.recipe.warm_start.mistakes
    rng = Random(derive_seed(session.recipe.run.seed, "mistakes"))
    drawn: list[str | None] = []
    for _ in range(count):
        point, chosen = rng.random(), None
        for name, share in shares.items():
            if point < share:
                chosen = name
                break
            point -= share
        drawn.append(chosen)
    return drawn


def run_phase(session: Session, cursor: TaskCursor, checkpoint_due: Sequence[int], since_s: float) -> bool:
    """Take SFT steps until the phase ends (True) or a checkpoint is due (False); scalars are committed every ten.

    since_s: the clock when the work that is not yet in a stored time/phase_s began.
    """
    settings, state = session.recipe.warm_start, session.state
    first_s, first_step = time.perf_counter(), state.sft_step
    while state.sft_step < settings.steps:
        figures = _step(session, cursor)
        state.sft_step += 1
        # Part of the state: a run that was stopped between two commits goes on to store the same means.
        state.sft_pending.append(figures)
        done = state.sft_step >= settings.steps
        due = state.sft_step in checkpoint_due
        if done or due or state.sft_step % COMMIT_EVERY == 0:
            now_s = time.perf_counter()
            _commit(session, now_s - since_s)
            since_s = now_s
        per_step = (time.perf_counter() - first_s) / (state.sft_step - first_step)
        session.tell(
            "sft",
            step=state.sft_step,
            steps=settings.steps,
            loss=figures["loss"],
            tokens_per_s=figures["tokens"] / max(figures["time/step_s"], 1e-9),
            eta_s=per_step * (settings.steps - state.sft_step),
        )
        if not done and (due or session.stop_requested()):
            return False
    return True


def _step(session: Session, cursor: TaskCursor) -> dict[str, float]:
    started = time.perf_counter()
    size = session.executor.size
    indices = cursor.next(session.recipe.warm_start.batch_size)
    parts = [indices[shard::size] for shard in range(size)]
    normaliser = session.executor.prepare_demonstrations(parts)
    losses = session.executor.gradients(GradientOrder(phase="sft", normaliser=normaliser)).losses
    figures = losses.metrics() | session.step_optimizer()
    return figures | {"time/step_s": time.perf_counter() - started}


def _commit(session: Session, phase_s: float) -> None:
    """One stored step for the optimizer steps since the last: means, with the step number of the newest."""
    state = session.state
    pending = state.sft_pending
    means = {key: sum(item[key] for item in pending) / len(pending) for key in pending[-1]}
    means["time/phase_s"] = phase_s
    session.store(StepRecord(phase="sft", step=state.sft_step, policy_version=state.version, scalars=means))
    state.sft_pending = []
