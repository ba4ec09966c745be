"""The SFT phase: expert traces (or a user's chats) -> demonstrations -> optimizer steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from random import Random

from burnish.algorithms.loss import LossSums
from burnish.core.errors import ConfigError
from burnish.core.grade import Grade
from burnish.core.hashing import derive_seed
from burnish.core.outcome import Ending
from burnish.core.trajectory import Trajectory
from burnish.loop.chats import read_chats
from burnish.loop.session import Session, plan
from burnish.loop.shard import DemonstrationOrder
from burnish.rollout.samples import demonstration_samples
from burnish.store.reader import RunReader
from burnish.store.rows import Fate, StepRecord, StoredTrajectory
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
        max_grad_norm=settings.grad_clip,
    )


def make_demonstrations(session: Session) -> None:
    """Generate the warm-start set and commit it as step sft/0; a resumed run reads it from there."""
    settings = session.recipe.warm_start
    session.tell("prepare", message=f"making {settings.traces} warm-start traces")
    if settings.data:
        pairs: list[tuple[Trajectory, tuple[Grade, ...]]] = [
            (trajectory, ()) for trajectory in read_chats(settings.data, session.policy.renderer)
        ]
    else:
        pairs = _expert_traces(session)
    failed = [t for t, _ in pairs if t.outcome.ending is not Ending.COMPLETED]
    kept = [pair for pair in pairs if pair[0].outcome.ending is Ending.COMPLETED]
    if settings.keep == "correct":
        kept = [pair for pair in kept if pair[1] and all(grade.score == 1.0 for grade in pair[1])]
    if not kept:
        detail = failed[0].outcome.detail if failed else "none was correct"
        raise ConfigError(f"no usable warm-start trace among {len(pairs)}: {detail}")
    rows = [
        StoredTrajectory(
            trajectory=trajectory, phase="sft", step=0, policy_version=0, grades=grades, fate=Fate.DEMONSTRATION
        )
        for trajectory, grades in kept
    ]
    right = sum(1 for _, grades in kept if grades and all(grade.score == 1.0 for grade in grades))
    scalars = {
        "demonstrations/kept": float(len(kept)),
        "demonstrations/failed": float(len(failed)),
        "demonstrations/correct_share": right / len(kept),
        "demonstrations/tokens_mean": sum(len(n.token_ids) for t, _ in kept for n in t.nodes) / len(kept),
    }
    session.writer.commit_step(StepRecord(phase="sft", step=0, rows=rows, scalars=scalars))


def load_demonstrations(session: Session) -> int:
    """Hand the stored warm-start set to the shards; returns its number of samples."""
    rows = RunReader(session.writer.layout.root).trajectories("sft", 0)
    samples = [sample for row in rows for sample in demonstration_samples(row.trajectory)]
    session.executor.load_demonstrations(samples)
    return len(samples)


def _expert_traces(session: Session) -> list[tuple[Trajectory, tuple[Grade, ...]]]:
    recipe, settings = session.recipe, session.recipe.warm_start
    if session.world.expert is None:
        raise ConfigError(
            f"warm_start.steps is {settings.steps} but environment {session.world.name} has no expert; "
            "write a solve method, give warm_start.data=CHATS.jsonl, or set warm_start.steps=0"
        )
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
    unknown = sorted(set(shares) - set(session.world.mistakes))
    if unknown:
        known = ", ".join(session.world.mistakes) or "none"
        raise ConfigError(f"the expert of {session.world.name} makes no mistake {unknown[0]!r}; it knows: {known}")
    if sum(shares.values()) > 1.0 + 1e-9 or any(share < 0 for share in shares.values()):
        raise ConfigError(f"warm_start.mistakes are shares of all traces and add up to at most 1, got {dict(shares)}")
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


def run_phase(session: Session, cursor: TaskCursor, checkpoint_due: Sequence[int]) -> bool:
    """Take SFT steps until the phase ends (True) or a checkpoint is due (False); scalars are committed every ten."""
    settings, state = session.recipe.warm_start, session.state
    pending: list[dict[str, float]] = []
    first_s, first_step = time.perf_counter(), state.sft_step
    while state.sft_step < settings.steps:
        figures = _step(session, cursor)
        state.sft_step += 1
        pending.append(figures)
        done = state.sft_step >= settings.steps
        due = state.sft_step in checkpoint_due
        if done or due or state.sft_step % COMMIT_EVERY == 0 or session.stop_requested():
            _commit(session, pending)
            pending = []
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
    sums: LossSums = session.executor.gradients("sft", normaliser)
    figures = sums.metrics() | session.step_optimizer()
    return figures | {"time/step_s": time.perf_counter() - started}


def _commit(session: Session, pending: Sequence[dict[str, float]]) -> None:
    """One stored step for the optimizer steps since the last: means, with the step number of the newest."""
    keys = pending[-1].keys()
    means = {key: sum(item[key] for item in pending) / len(pending) for key in keys}
    state = session.state
    session.writer.commit_step(
        StepRecord(phase="sft", step=state.sft_step, policy_version=state.version, scalars=means)
    )
