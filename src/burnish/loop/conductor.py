"""The conductor: takes a run through its phases, saves it, and brings it back after any interruption."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from burnish.core.errors import CheckpointError, RunStopped, StoreError
from burnish.core.finding import Act, Decision
from burnish.core.hashing import derive_seed
from burnish.core.images import SHELF
from burnish.core.served import PolicyServer
from burnish.core.task import Task
from burnish.core.tracked import Tracker
from burnish.evaluation.heldout import Mode
from burnish.loop import held_out, reinforce, warm_start
from burnish.loop.asynchronous import open_rollouts
from burnish.loop.canaries import Canaries
from burnish.loop.config import Recipe
from burnish.loop.following import check_trackers
from burnish.loop.fork_server import start_early
from burnish.loop.go_back import go_back
from burnish.loop.grading import open_world
from burnish.loop.heap import settled_heap
from burnish.loop.manifest import check_unchanged, machine_notice, make_manifest, source_notice, stored_recipe
from burnish.loop.oversight import Oversight
from burnish.loop.policy import Policy, create_policy, reopen_policy
from burnish.loop.preflight import bad_rows, check_recipe, check_server
from burnish.loop.progress import Progress, Watcher, silent
from burnish.loop.saving import REFERENCE, checkpoint_name, record_checkpoint, save
from burnish.loop.session import Session
from burnish.loop.setup import make_executor, make_own_shard, resolve_workers
from burnish.loop.state import LoopState
from burnish.loop.task_queue import TaskQueue
from burnish.loop.watchdog import Watchdog
from burnish.loop.worlds import World
from burnish.store.reader import RunReader
from burnish.store.rows import RunState
from burnish.store.writer import RunWriter
from burnish.tasks.cursor import TaskCursor
from burnish.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_latest,
)
from burnish.training.model_state import load_model_state, model_state
from burnish.training.optimizer import Optimizer
from burnish.training.random_state import restore_random_state

Stop = Callable[[], bool]


def never() -> bool:
    """The stop that is never requested."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """What a run has to do with beside its folder.  server: samples the policy in place of the workers, as the recipe's
    section `sampler` says.  trackers: hear of every step, as its section `track` says; closed when the run ends."""

    watch: Watcher = silent
    stop: Stop = never
    server: PolicyServer | None = None
    trackers: Sequence[Tracker] = ()


NOBODY = Outside()


def start_run(
    recipe: Recipe,
    folder: Path,
    *,
    watch: Watcher = silent,
    stop: Stop = never,
    server: PolicyServer | None = None,
    trackers: Sequence[Tracker] = (),
) -> None:
    """Create a run in `folder` and train it to the end of its recipe.

    Raises ConfigError before anything is written; RunStopped or InvariantViolation where the run ends early, with
    everything acknowledged stored and the status saying why.
    """
    recipe = resolve_workers(recipe)
    start_early(recipe)
    torch.set_num_threads(recipe.run.threads)
    world = open_world(recipe)
    check_recipe(recipe, world)
    check_server(recipe, server)
    check_trackers(recipe, trackers)
    manifest = make_manifest(recipe, world)
    with RunWriter.create(folder, manifest) as writer, recorded(writer):
        for event in bad_rows(world.problems):
            writer.event(event.kind, event.detail, event.data)
            watch(Progress(phase="prepare", message=event.detail))
        policy = create_policy(recipe, world, writer.layout.model, watch)
        outside = Outside(watch=watch, stop=stop, server=server, trackers=trackers)
        conduct(recipe, writer, world, policy, LoopState(), None, outside)


def resume_run(
    folder: Path,
    *,
    watch: Watcher = silent,
    stop: Stop = never,
    server: PolicyServer | None = None,
    trackers: Sequence[Tracker] = (),
) -> None:
    """Go on with a stored run from its newest usable checkpoint, exactly as if it had never stopped.

    A finished run is left as it is.  Raises StoreError, with nothing changed, where the tasks or graders are not those
    that the run was started with; other changes of the environment's source are said and recorded.
    """
    with RunWriter.open(folder) as writer:
        if RunReader(folder).status().state is RunState.FINISHED:
            watch(Progress(phase="prepare", message="the run is finished; there is nothing left to do"))
            return
        recipe = stored_recipe(folder)
        check_trackers(recipe, trackers)
        start_early(recipe)
        torch.set_num_threads(recipe.run.threads)
        world = open_world(recipe)
        check_unchanged(folder, world)
        with recorded(writer):
            writer.set_status(RunState.RUNNING)
            for kind, notice in (
                ("source_changed", source_notice(folder, recipe)),
                ("machine_changed", machine_notice(folder, recipe)),
            ):
                if notice:
                    writer.event(kind, notice)
                    watch(Progress(phase="prepare", message=notice))
            loaded = _newest(writer)
            state = LoopState()
            _require_own_checkpoint(folder, loaded)
            if loaded is None:
                writer.supersede_after({})
                policy = create_policy(recipe, world, writer.layout.model, watch)
            else:
                state = LoopState.from_json(dict(loaded.state))
                writer.supersede_after({"sft": state.sft_step, "rl": state.rl_step, "eval": state.evaluations})
                if loaded.ref.sha256 not in {row.sha256 for row in RunReader(folder).checkpoints()}:
                    # Killed between the checkpoint and its row.
                    record_checkpoint(writer, state, loaded.ref)
                policy = reopen_policy(recipe, writer.layout.model, base_weights=True)
            writer.event("resumed", f"from {loaded.ref.name if loaded else 'the start'}")
            outside = Outside(watch=watch, stop=stop, server=server, trackers=trackers)
            conduct(recipe, writer, world, policy, state, loaded, outside)


def _require_own_checkpoint(folder: Path, loaded: Checkpoint | None) -> None:
    """A fork goes on from a checkpoint of its own; from before its beginning it would become another run."""
    parent = RunReader(folder).manifest()["parent"]
    if parent and (loaded is None or loaded.state["rl_step"] < parent["rl_step"]):
        raise CheckpointError(f"fork {folder} has no usable checkpoint of its own; fork run {parent['run']} again")


def _newest(writer: RunWriter) -> Checkpoint | None:
    """The newest checkpoint that verifies, if any; corrupt ones are set aside, and an event says so."""
    try:
        loaded = load_latest(writer.layout.checkpoints)
    except CheckpointError as error:
        writer.event("no_checkpoint", str(error))
        return None
    if loaded.set_aside:
        writer.event("corrupt_checkpoints", ", ".join(loaded.set_aside), {"names": list(loaded.set_aside)})
    return loaded


@contextmanager
def recorded(writer: RunWriter) -> Iterator[None]:
    """Say in the store how the run ended."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, RunStopped):
            state, detail = RunState.STOPPED, f"{error.cause}: {error}"
        elif isinstance(error, KeyboardInterrupt):
            state, detail = RunState.STOPPED, "interrupted: stopped by a second Ctrl-C"
        else:
            state, detail = RunState.FAILED, f"{type(error).__name__}: {error}"
        # A full disk must not hide why the run ended.
        with suppress(StoreError):
            writer.set_status(state, detail)
        raise
    writer.set_status(RunState.FINISHED)


def conduct(
    recipe: Recipe,
    writer: RunWriter,
    world: World,
    policy: Policy,
    state: LoopState,
    loaded: Checkpoint | None,
    outside: Outside,
) -> None:
    """Take a run from `state` to the end of its recipe; `loaded` is the checkpoint that the state came from."""
    watch = outside.watch
    if loaded is not None:
        load_model_state(policy.model, loaded.model_state)
        restore_random_state(loaded.rng)
    watch(Progress(phase="prepare", message=f"starting {recipe.run.workers} worker{'s' * (recipe.run.workers != 1)}"))
    executor = make_executor(recipe, policy, world, writer.layout.model, outside.server)
    # Twice the patience that is had with a worker: the conductor waits for those.
    watchdog = Watchdog(2 * recipe.stop.stall_s, writer.layout.logs / "conductor.stacks.txt")
    executor.on_progress = watchdog.pet
    own = make_own_shard(recipe, policy, world)
    with watchdog, closing(executor), closing(own), settled_heap(), SHELF.kept_in(writer.layout.artefacts):
        SHELF.keep(part.sha256 for part in world.images())
        session = Session(
            recipe=recipe,
            writer=writer,
            world=world,
            policy=policy,
            executor=executor,
            own=own,
            state=state,
            oversight=Oversight(recipe, world, state),
            watch=watch,
            stop_requested=outside.stop,
            trackers=outside.trackers,
        )
        try:
            session.calibrate()
            session.sync()
            _phases(session, loaded)
        finally:
            try:
                session.settle()
                session.tell_notices()
            finally:
                session.close_trackers()


def _phases(session: Session, loaded: Checkpoint | None) -> None:
    """start -> sft -> rl -> done.  Every arrow is crossed at a checkpoint, so that resume enters in the middle."""
    state, recipe = session.state, session.recipe
    if state.phase == "start":
        if recipe.evaluation.before:
            _evaluate_fully(session, "before")
        state.phase = "sft"
    if state.phase == "sft":
        if recipe.warm_start.steps > 0:
            _sft_phase(session, loaded)
            _evaluate_fully(session, "after_sft")
        state.phase = "rl"
        loaded = None
    if state.phase == "rl":
        _rl_phase(session, loaded)
        if recipe.rl.steps > 0:
            _evaluate_fully(session, "after_rl")
        state.phase = "done"
        save(session)


def _evaluate_quickly(session: Session) -> None:
    settings, label = session.recipe.evaluation, f"rl-{session.state.rl_step:06d}"
    held_out.evaluate_policy(session, label, mode=Mode(settings.quick_mode), tasks=settings.quick_tasks)


def _evaluate_fully(session: Session, label: str) -> None:
    session.sync()
    settings, splits = session.recipe.evaluation, session.world.taskset.splits
    for mode in settings.modes:
        held_out.evaluate_policy(session, label, mode=Mode(mode), tasks=settings.tasks)
    if "unseen" in splits and label != "before":
        held_out.evaluate_policy(session, label, split="unseen", mode=Mode.GREEDY, tasks=settings.tasks)


def _sft_phase(session: Session, loaded: Checkpoint | None) -> None:
    recipe, state = session.recipe, session.state
    session.optimizer = Optimizer(session.policy.model, warm_start.optimizer_spec(session))
    if loaded is None or state.sample_cursor is None:
        warm_start.make_demonstrations(session)
    since_s = time.perf_counter()
    samples = warm_start.load_demonstrations(session)
    cursor = TaskCursor(samples, derive_seed(recipe.run.seed, "sft order"))
    if state.sample_cursor is not None:
        cursor.restore(state.sample_cursor)
    if loaded is not None and state.sft_step > 0:
        session.optimizer.restore(loaded.optimizer_state)
    due = range(recipe.checkpoint.every_sft, recipe.warm_start.steps, recipe.checkpoint.every_sft)
    finished = state.sft_step >= recipe.warm_start.steps
    while not finished:
        finished = warm_start.run_phase(session, cursor, due, since_s)
        since_s = time.perf_counter()
        state.sample_cursor = cursor.state()
        save(session)
        session.check_stop()


def _rl_phase(session: Session, loaded: Checkpoint | None) -> None:
    recipe, state = session.recipe, session.state
    tasks = session.world.tasks("train")
    queue = TaskQueue(tasks, derive_seed(recipe.run.seed, "rl order"), recipe.curriculum.tag)
    session.optimizer = Optimizer(session.policy.model, reinforce.optimizer_spec(recipe.rl))
    if state.task_cursor is not None:
        queue.restore(state.task_cursor)
    if recipe.keeps_reference:
        _freeze_reference(session)
    if loaded is not None and state.rl_step > 0:
        session.optimizer.restore(loaded.optimizer_state)
    state.task_cursor = queue.state()
    canaries = Canaries(recipe, session.world)
    canaries.begin(session)
    _save_once(session)
    session.sync()
    while decision := _rl_steps(session, queue, tasks, canaries):
        if decision.act is Act.STOP:
            if decision.values.get("checkpoint", True):
                save(session)
            raise RunStopped("control", decision.reason)
        go_back(session, queue, decision)


def _rl_steps(session: Session, queue: TaskQueue, tasks: Sequence[Task], canaries: Canaries) -> Decision | None:
    """Take steps to the end of the recipe, or until control decides otherwise; its decision then."""
    recipe, state = session.recipe, session.state
    first_s, first_step = time.perf_counter(), state.rl_step
    with _stepper(session, queue, tasks) as take_step:
        while state.rl_step < recipe.rl.steps:
            session.check_stop()
            scalars = take_step()
            if scalars is None:
                _save_once(session)
                continue
            state.task_cursor = queue.state()
            per_step = (time.perf_counter() - first_s) / (state.rl_step - first_step)
            # Not before the step is stored: what a user was told of survives a kill.
            told = {
                "step": state.rl_step,
                "steps": recipe.rl.steps,
                "reward": scalars["reward/mean"],
                "tokens_per_s": scalars["rate/sampled_tokens_per_s"],
                "eta_s": per_step * (recipe.rl.steps - state.rl_step),
            }
            session.later(partial(session.tell, "rl", **told))
            canaries.after_step(session)
            if session.ending is not None:
                return session.ending
            every = recipe.evaluation.every
            if every and state.rl_step % every == 0 and state.rl_step < recipe.rl.steps:
                _evaluate_quickly(session)
            if state.rl_step % recipe.checkpoint.every == 0 or session.stop_requested():
                save(session)
        session.settle()
        if session.stop_requested():
            _save_once(session)
            session.check_stop()
    return None


@contextmanager
def _stepper(
    session: Session, queue: TaskQueue, tasks: Sequence[Task]
) -> Iterator[Callable[[], dict[str, float] | None]]:
    """How the recipe takes a step: with rollouts of its own, or beside rollouts that go on."""
    if session.recipe.rollout.mode == "sync":
        yield lambda: reinforce.rl_step(session, queue, tasks)
    else:
        with open_rollouts(session, queue, tasks) as rollouts:
            yield rollouts.step


def _save_once(session: Session) -> None:
    if not (session.writer.layout.checkpoints / checkpoint_name(session.state)).exists():
        save(session)


def _freeze_reference(session: Session) -> None:
    """Make the weights at the start of RL the reference of the KL term, also in a run that was resumed later on."""
    if session.state.rl_step == 0:
        session.executor.freeze_reference()
        return
    model = session.policy.model
    present = {name: tensor.clone() for name, tensor in model_state(model).items()}
    start = load_checkpoint(session.writer.layout.checkpoints, REFERENCE)
    load_model_state(model, start.model_state)
    session.executor.freeze_reference()
    load_model_state(model, present)
