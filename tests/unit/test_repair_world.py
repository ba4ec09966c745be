"""The agent's world: files and tools, commands in a sandbox, and a model behind an endpoint."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from typing import Any

import httpx
import pytest
from tests.support.repair_runs import judged, make, one_each, options, play, task_of

from burnish.core.errors import ToolError
from burnish.environments.repair import rooms
from burnish.environments.repair.policies import POLICIES, gold_edits
from burnish.environments.repair.repair import Repair
from burnish.environments.repair.repository import load_repository
from burnish.environments.repair.rooms import command_words
from burnish.environments.repair.workspace import Workspace
from burnish.evaluation.heldout import EvalSpec, Mode
from burnish.integrations.openai_chat import OpenAIChatSampler
from burnish.loop.standalone import Subject, endpoint_recipe, evaluate_subject
from burnish.loop.worlds import load_world


async def opened(**more: Any) -> Repair:
    environment = make(**more)
    await environment.start(task_of("inikit", "hash_in_value"))
    return environment


def test_files_are_listed_read_and_searched() -> None:
    work = Workspace({"a/x.py": b"one\nTwo\nthree\n", ".git/HEAD": b"ref", "b.bin": b"\xff"})
    assert work.listing("") == "a/x.py\nb.bin"
    assert work.lines("./a/x.py", 2, 0) == "2\tTwo\n3\tthree"
    assert work.search("two", "") == "a/x.py:2: Two"
    for call in (
        lambda: work.lines("a/y.py", 1, 0),
        lambda: work.lines("../x", 1, 0),
        lambda: work.lines("/etc/passwd", 1, 0),
        lambda: work.lines("b.bin", 1, 0),
        lambda: work.lines("a/x.py", 9, 0),
        lambda: work.write(".git/HEAD", "x"),
        lambda: work.write("d/" * 20 + "x.py", "x"),
        lambda: work.write("\u00e9" * 150 + ".py", "x"),
        lambda: work.write("new\nline.py", "x"),
        lambda: work.write("a", "x"),
        lambda: work.write("a/x.py/z", "x"),
        lambda: work.edit("a/x.py", "e", "x"),
        lambda: work.edit("a/x.py", "", "x"),
        lambda: work.edit("a/x.py", "nothing", "x"),
        lambda: work.listing("nowhere"),
    ):
        with pytest.raises(ToolError):
            call()
    work.edit("a/x.py", "Two", "2")
    work.write("c.py", "new\n")
    assert work.changed() == {"a/x.py": "one\n2\nthree\n", "c.py": "new\n"}


def test_plain_python_is_forked_and_the_rest_goes_to_a_shell() -> None:
    assert command_words("python3 -m unittest -v") == ["python", "-m", "unittest", "-v"]
    assert command_words("python -c 'print(1)'")[0] == "sh"
    assert command_words("git log")[0] == "sh"


@pytest.mark.parametrize("warm", [True, False])
def test_edits_count_at_once_and_commands_change_files(warm: bool) -> None:
    """Same size, same second: a trusted cache of compiled code would run the old one."""

    async def scenario() -> None:
        environment = await opened(warm=warm)
        outcomes = []
        for value in "234":
            await environment.write_file(path="m.py", content=f"V = {value}\n")
            await environment.write_file(path="show.py", content="import m\nprint(m.V)\n")
            outcomes.append(await environment.run(command="python show.py"))
        assert outcomes == ["exit 0\n2", "exit 0\n3", "exit 0\n4"]
        assert await environment.run(command="sed -i s/4/5/ m.py && rm show.py && echo z > inikit/z.txt") == "exit 0"
        assert await environment.read_file(path="m.py") == "1\tV = 5"
        assert "show.py" not in (await environment.list_files())
        assert (await environment.run(command="git log --oneline | wc -l")).split() == ["exit", "0", "10"]
        state = environment.final_state()
        assert state["files"] == {"inikit/z.txt": "z\n", "m.py": "V = 5\n"}
        await environment.close()

    asyncio.run(scenario())


def test_ending_the_warm_python_is_no_way_out() -> None:
    async def scenario() -> None:
        environment = await opened()
        await environment.run(command="python -m unittest")
        await environment.write_file(path="k.py", content="import os\nos.kill(os.getppid(), 9)\nprint('alive')\n")
        said = await environment.run(command="python k.py")
        assert said.startswith(("exit", "ended"))
        assert (await environment.run(command="python -m unittest")).endswith("OK")
        await environment.close()

    asyncio.run(scenario())


def test_a_command_that_never_ends_is_ended_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "LIMITS", replace(rooms.LIMITS, wall_s=0.5))

    async def scenario() -> None:
        environment = await opened()
        assert "wall limit" in await environment.run(command="sleep 30")
        assert (await environment.run(command="python -m unittest")).endswith("OK")
        await environment.close()

    asyncio.run(scenario())


def test_an_episode_costs_little() -> None:
    """Opening the ladder is paid once; the best of three episodes is well under a second."""
    task = task_of("ledger", "half_even")
    play([task], POLICIES["expert"])
    took_s = []
    for _ in range(3):
        started_s = time.perf_counter()
        play([task], POLICIES["expert"])
        took_s.append(time.perf_counter() - started_s)
    assert min(took_s) < 0.7


def test_any_model_behind_an_endpoint_can_play() -> None:
    """A scripted model answers as OpenAI-compatible servers do; the environment comes by its name, as for `eval`."""
    world = load_world("repair", {"repositories": ["ledger"], **options()}, seed=0)
    task = world.tasks("heldout", 1)[0]
    repository = load_repository("ledger")
    path, old, new = gold_edits(repository, repository.bugs[task.setup["bug"]])[0]
    turns = [
        ("Step 1: I look.", ("read_file", {"path": path})),
        ("Step 2: I repair.", ("edit_file", {"path": path, "old": old, "new": new})),
        ("Step 3: I test.", ("run", {"command": "python -m unittest"})),
    ]
    asked: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        asked.append(body)
        index = sum(message["role"] == "assistant" for message in body["messages"])
        message: dict[str, Any] = {
            "role": "assistant",
            "content": f"Step 4: {path} was wrong. " + "All tests pass. " * 6,
        }
        if index < len(turns):
            text, (name, arguments) = turns[index]
            call = {"name": name, "arguments": json.dumps(arguments)}
            message = {
                "role": "assistant",
                "content": text,
                "tool_calls": [{"id": f"c{index}", "type": "function", "function": call}],
            }
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return httpx.Response(200, json={"choices": choices})

    sampler = OpenAIChatSampler("http://model.test/v1", "m", transport=httpx.MockTransport(answer))
    subject = Subject(name="m", sampler=sampler, renderer=None, recipe=endpoint_recipe([]))
    result = evaluate_subject(subject, world, EvalSpec(label="t", mode=Mode.GREEDY), 1)
    assert result.rate.share == 1.0, [dict(grade.evidence) for grade in result.grades[0]]
    assert {tool["function"]["name"] for tool in asked[0]["tools"]} == {
        "list_files", "read_file", "search", "edit_file", "write_file", "run",
    }  # fmt: skip
    assert "Step 3: run the tests" in asked[0]["messages"][0]["content"]


def test_the_rung_stands_in_every_trajectory_that_ran_something() -> None:
    chosen = one_each()[:1]
    played = play(chosen, POLICIES["expert"])
    _, grades = judged(chosen, played)
    assert played[0].final_state["sandbox"]["rung"]
    assert grades[0]["tests"].evidence["rung"]
