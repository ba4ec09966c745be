"""Faults in repositories to repair: the expert acts in turns of several calls, and says what it does."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from random import Random
from typing import Any

from burnish.core.environment import Script
from burnish.core.hashing import derive_seed
from burnish.core.message import Role, ToolCall
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.environments.repair import Repair
from burnish.environments.repair.policies import TESTS, expert, turn
from burnish.environments.repair.rooms import is_isolated
from burnish.graders.boundary import grade_trajectories
from burnish.graders.graph import graph_from
from burnish.sandbox.ladder import SandboxSpec
from diagnosis_runs.faults import TRUTH, Failing, Kind, corrupted, first_departure
from diagnosis_runs.worlds import Injected, _gold, labelled, play, record_of

WRITES = frozenset({"edit_file", "write_file"})
HELPERS = ("normalise_safely", "fix_up", "coerce_input", "checked_value", "repair_state")
UNTESTED = "Step 4: I changed the code as the issue asks. I did not run the tests."
STUCK = "Step 4: A tool did not work, so I leave it at what I could do. I did not finish the repair or its tests."
LOOK, EDIT, TEST = 0, 1, 2


@lru_cache(maxsize=1)
def options() -> Mapping[str, Any]:
    """Those of this machine: isolation by the best rung, or none where no rung holds."""
    return {} if is_isolated(SandboxSpec()) else {"unsafe": True}


def make() -> Repair:
    """A fresh environment."""
    return Repair(**options())


def rewards(tasks: Sequence[Task], runs: Sequence[Trajectory]) -> list[float | None]:
    """What the graders of the environment give."""
    graph = graph_from(make().grader_graph or {})
    return graph.aggregator.rewards(asyncio.run(grade_trajectories(tasks, runs, graph.graders, timeout_s=60.0)))


def trying(environment: Any) -> Script:
    """An expert who tries a repair that does not parse, tests, mends it and tests again."""
    script = expert(environment)
    look = next(script)
    edit = script.send((yield look))
    calls = [(call.name, dict(call.arguments)) for call in edit.tool_calls]
    name, first = calls[0]
    broken = first["new"].rstrip("\n") + " (\n"
    tried = [(name, first | {"new": broken}), *calls[1:]]
    test = script.send((yield turn(edit.text, *tried)))
    yield test
    yield turn("Step 2: that does not parse; I mend it.", (name, first | {"old": broken, "new": first["new"]}))
    heard = yield test
    try:
        script.send(heard)
    except StopIteration as end:
        return str(end.value)
    raise ValueError("the expert of repair has other steps than before")


def _misreading(environment: Any) -> Script:
    """The same expert, who takes the failed tests for passed ones and ends."""
    script = trying(environment)
    heard: Any = None
    for _ in range(3):
        heard = yield script.send(heard)
    return f"Step 4: The code did not do what the issue asks for, and now it does. I ran `{TESTS}`: all tests pass."


def _with_fault(environment: Any, kind: Kind, step: int, heard_by_turn: Sequence[list[str]], rng: Random) -> Script:
    """The expert with a fault in one of its steps."""
    script = expert(environment)
    heard: Any = None
    failed = False
    for number in range(3):
        said = script.send(heard)
        if number == step and kind in (Kind.DROP, Kind.INVENT) and not (kind is Kind.INVENT and step == EDIT):
            heard = list(heard_by_turn[number])
            continue
        if number == step and kind is not Kind.OUTAGE:
            said = replace(said, tool_calls=_changed(said.tool_calls, kind, rng))
        heard = yield said
        failed = failed or any(text.startswith(("Error", "exit 1")) for text in heard)
    try:
        script.send(heard)
    except StopIteration as end:
        honest = UNTESTED if kind is Kind.DROP and step == TEST else STUCK if failed else str(end.value)
        return honest
    raise ValueError("the expert of repair has other steps than before")


def _changed(calls: Sequence[ToolCall], kind: Kind, rng: Random) -> tuple[ToolCall, ...]:
    chosen = rng.choice([n for n, call in enumerate(calls) if call.arguments])
    call = calls[chosen]
    if kind is Kind.INVENT:
        made = replace(call, arguments={**call.arguments, "new": _calling(call.arguments["new"], rng)})
    else:
        exact = {key: value for key, value in call.arguments.items() if key != "new"}
        hit = corrupted(replace(call, arguments=exact), rng)
        kept = {"new": call.arguments["new"]} if "new" in call.arguments else {}
        made = replace(call, arguments={**hit.arguments, **kept})
    return tuple(made if n == chosen else other for n, other in enumerate(calls))


def _calling(code: str, rng: Random) -> str:
    """Code one of whose values is handed through a helper that does not exist; as it was where no line fits."""
    lines = code.splitlines(keepends=True)
    found = {n: re.match(r"(\s*(?:return|[\w.]+ =)) (\S.*[^:,(\[{\s])\s*$", line) for n, line in enumerate(lines)}
    fitting = [(n, match) for n, match in found.items() if match is not None]
    if fitting:
        at, match = rng.choice(fitting)
        lines[at] = f"{match[1]} {rng.choice(HELPERS)}({match[2]})\n"
    return "".join(lines)


def repair_runs(seed: int, n_tasks: int = 10) -> Iterator[Injected]:
    """Runs of one seed: `n_tasks` bugs, the kinds of fault in turn; those that fail, and the clean ones."""
    kinds = [kind for kind in Kind if kind is not Kind.CONTRADICT]
    bugs = [task for split in Repair.splits for task in make().tasks(split, Random(0))]
    rng = Random(derive_seed("inject", "repair", seed))
    for number, task in enumerate(rng.sample(bugs, n_tasks)):
        kind = kinds[(number + seed) % len(kinds)]
        name = f"repair/{seed}/{number}"
        run_rng = Random(derive_seed(name))
        policy = trying if kind is Kind.MISREAD else expert
        clean = play(task, make, policy)
        run = _faulted(task, clean, kind, run_rng)
        reward, faulted = rewards([task, task], [clean, run])
        world = make()
        asyncio.run(world.start(task))
        reference = _gold(clean, (), WRITES)
        passes = (reward or 0.0) >= PASSES
        if passes:
            yield Injected(world="repair", kind=None, record=record_of(task, clean, world, name, reference, True))
        index = first_departure(clean, run, TRUTH[kind][2])
        if passes and faulted is not None and faulted < PASSES and index is not None:
            record = record_of(task, run, world, f"{name}/{kind}", reference, False)
            yield Injected(world="repair", kind=kind, record=labelled(record, index, kind))


PASSES = 0.97
"""Reward from which on a repair counts as passed: above it lie those that were looked at, tested and told as asked."""


def _faulted(task: Task, clean: Trajectory, kind: Kind, rng: Random) -> Trajectory:
    if kind is Kind.MISREAD:
        return play(task, make, _misreading)
    turns: list[list[str]] = []
    for message in clean.messages:
        if message.role is Role.ASSISTANT and message.tool_calls:
            turns.append([])
        elif message.role is Role.TOOL:
            turns[-1].append(message.text)
    step = rng.choice(
        {Kind.DROP: (LOOK, EDIT, TEST), Kind.CORRUPT: (LOOK, EDIT), Kind.INVENT: (EDIT, TEST)}.get(kind, (LOOK,))
    )
    if kind is Kind.OUTAGE:
        at = rng.randrange(sum(map(len, turns)))
        return play(
            task,
            lambda: Failing(make(), at, rng),
            lambda world: _with_fault(world.inner, kind, step, turns, rng),
        )
    return play(task, make, lambda world: _with_fault(world, kind, step, turns, rng))
