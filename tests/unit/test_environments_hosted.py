"""Hosted environments behave as they do in the process that trains."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from wild_env import Wild

from burnish.core.errors import ConfigError, HostLost, RelayedError, ToolError, WorldFault
from burnish.core.hashing import canonical_json
from burnish.core.message import Message, Role, ToolCall, message_to_json
from burnish.core.outcome import COMPLETED, Owner
from burnish.core.sampling import SamplingParams
from burnish.core.task import Limits, Task
from burnish.environments.base import EnvironmentFault, expert_policy
from burnish.environments.blame import Blame
from burnish.environments.hosted import HostPool
from burnish.environments.process import HostProcess
from burnish.environments.question import Question
from burnish.environments.shop import Shop
from burnish.environments.source import EnvironmentSource
from burnish.environments.wire import (
    Channel,
    FrameError,
    error_from_json,
    error_to_json,
    from_frame,
    to_frame,
    tools_from_json,
    tools_to_json,
)
from burnish.loop.worlds import load_world
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.group import plan_groups
from burnish.rollout.runner import run_episodes, run_scripted
from burnish.tasks.taskset import GeneratedTaskset
from burnish.testing.fakes import FakeRenderer, ScriptedSampler

WAREHOUSE = Path(__file__).parents[2] / "examples" / "warehouse.py"
WAREHOUSE_SOURCE = EnvironmentSource(module="burnish_user_warehouse", attribute="Warehouse", file=str(WAREHOUSE))
LIMITS = Limits(max_turns=4, max_turn_tokens=20_000, max_episode_tokens=100_000, max_context_tokens=1_000_000)


@pytest.fixture(scope="module")
def pool():
    with HostPool(EnvironmentSource.of(Wild), hosts=1, limits=Wild.limits) as pool:
        yield pool


def calling(name, **arguments):
    return Message.assistant("", (ToolCall(id="x", name=name, arguments=arguments),))


def record(trajectory):
    """What must be equal; never times."""
    messages = [message_to_json(message) for message in trajectory.messages]
    return canonical_json(
        (messages, trajectory.outcome, trajectory.answer, trajectory.final_state, trajectory.counters)
    )


def roll(make, script, *, n=1, limits=LIMITS):
    """Scripted turns through real episodes; `script` gives the turns of every episode."""
    tasks = [Task(prompt="go", id=f"t{index}", reference={"answer": "done"}) for index in range(n)]
    return asyncio.run(
        run_episodes(
            plan_groups(tasks, phase="rl", step=0, group_size=1, run_seed=0),
            make_environment=make,
            renderer=FakeRenderer(),
            sampler=ScriptedSampler(script),
            params=SamplingParams(),
            limits=limits,
        )
    )


def both(pool, *turns):
    """The same turns here and in a host."""
    here = roll(lambda task: Wild(), [*turns, "done"])[0]
    there = roll(pool.make, [*turns, "done"])[0]
    return here, there


def expert_beside(make):
    """The script of an environment in this process, which is not the one that is played."""

    def policy(environment, task, rng):
        twin = make()
        twin.task = task
        return expert_policy(twin, task, rng)

    return policy


@pytest.mark.parametrize(
    ("source", "make"),
    [
        (EnvironmentSource.of(Shop, {"level": 2}), partial(Shop, level=2)),
        (EnvironmentSource.of(Shop, {"level": 3}), partial(Shop, level=3)),
        (WAREHOUSE_SOURCE, WAREHOUSE_SOURCE.load()),
    ],
    ids=["shop 2", "shop 3", "a file"],
)
def test_same_trajectories_hosted_and_here(source, make):
    sample = make()
    tasks = GeneratedTaskset(sample.name, 0.0, sample.splits, lambda split, rng: make().tasks(split, rng), 0)
    plans = [
        EpisodePlan(id=f"e/{index}", group_id=task.id, task=task, sample_index=0, seed=index)
        for index, task in enumerate(tasks.tasks("train")[:24])
    ]
    policy = expert_beside(make)
    with HostPool(source, hosts=2) as pool:
        there = asyncio.run(run_scripted(plans, make_environment=pool.make, policy=policy))
        counts = pool.counts
    here = asyncio.run(run_scripted(plans, make_environment=lambda task: make(), policy=policy))
    assert [record(one) for one in there] == [record(one) for one in here]
    assert all(one.outcome == COMPLETED for one in there)
    assert counts.started == counts.live == 2
    assert counts.environments == len(plans)


@pytest.mark.parametrize(
    "kind",
    [
        *("ToolError", "ValueError", "KeyError", "NoSuchShelf", "ZeroDivisionError", "AssertionError"),
        *("UnicodeDecodeError", "RuntimeError", "OSError", "SystemExit", "CancelledError"),
    ],
)
@pytest.mark.parametrize("tool", ["fail", "fail_later"])
def test_errors_of_tools_are_the_same(pool, kind, tool):
    here, there = both(pool, calling(tool, kind=kind))
    assert record(there) == record(here)


def test_the_place_of_an_error_arrives(pool):
    there = both(pool, calling("fail", kind="RuntimeError"))[1]
    assert there.outcome.cause == "tool_raised"
    assert "tool fail raised RuntimeError: the database is gone (wild_env.py:" in there.outcome.detail


def test_text_that_encoders_refuse(pool):
    here, there = both(pool, calling("odd_text"), calling("echo", text="\ud800\x00ü\U0001f600"))
    assert record(there) == record(here)
    assert there.final_state["text"] == "a\ufffd"


def test_raw_text_arrives_unchanged(pool):
    async def play():
        environment = pool.make(Task(prompt="go"))
        await environment.start(environment.task)
        by_name = {tool.spec.name: tool for tool in environment.tools()}
        said = await by_name["odd_text"].call({})
        echoed = await by_name["echo"].call({"text": said})
        await environment.close()
        return said, echoed

    assert asyncio.run(play()) == ("a\ud800b\x00c\udfff\ud83d\ude00",) * 2


def test_a_reply_and_the_calls_of_one_turn_in_order(pool):
    many = Message.assistant("", tuple(ToolCall(id=f"c{i}", name="count", arguments={}) for i in range(5)))
    here, there = both(pool, many, "more")
    assert record(there) == record(here)
    assert [message.text for message in there.messages if message.role is Role.TOOL] == ["1", "2", "3", "4", "5"]


def test_ten_megabytes_are_cut_as_here(pool):
    here, there = both(pool, calling("long_text", length=10_000, text="x" * 500 + "é" * 500))
    assert record(there) == record(here)
    assert there.counters["cut_results"] == 1


def test_what_no_frame_holds_is_cut_or_refused():
    with HostPool(EnvironmentSource.of(Wild), max_frame_bytes=2**16) as pool:
        cut = roll(pool.make, [calling("long_text", length=200_000), "done"])[0]
        assert cut.outcome == COMPLETED, "a tool's text is cut, as a long one always is"
        assert cut.messages[2].text.endswith("characters]")
        task = Task(prompt="go", setup={"text": "x" * 2**17})
        with pytest.raises(EnvironmentFault, match="at most 65536 are carried"):
            asyncio.run(pool.make(task).start(task))
    with pytest.raises(EnvironmentFault, match=r"the reply is 104 bytes, at most 100 are carried"):
        to_frame(["x" * 100], "the reply", 100)


def test_constructor_that_raises():
    with HostPool(EnvironmentSource.of(Wild, {"broken": "constructor"})) as pool:
        outcome = roll(pool.make, ["done"])[0].outcome
    assert (outcome.owner, outcome.cause) == (Owner.ENVIRONMENT, "make_environment_raised")
    assert "OSError: no such database (wild_env.py:" in outcome.detail


def test_file_that_cannot_be_imported(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("import burnish\nraise RuntimeError('not today')\n")
    source = EnvironmentSource(module="burnish_user_broken", attribute="X", file=str(file))
    with HostPool(source) as pool:
        with pytest.raises(ConfigError, match=r"RuntimeError: not today \(broken.py:2"):
            asyncio.run(pool.ready())
        outcome = roll(pool.make, ["done"])[0].outcome
        assert (outcome.owner, outcome.cause) == (Owner.ENVIRONMENT, "make_environment_raised")
        assert pool.counts.started == 1, "it is not tried again"


def test_one_pool_serves_one_event_loop_after_another(pool):
    started = pool.counts.started
    for _ in range(3):
        assert roll(pool.make, [calling("count"), "done"])[0].outcome == COMPLETED
    assert pool.counts.started == max(started, 1)


def test_two_loops_at_a_time_are_refused(pool):
    async def outer():
        pool.attach()
        return await asyncio.to_thread(asyncio.run, inner())

    async def inner():
        pool.attach()

    with pytest.raises(RuntimeError, match="one event loop at a time"):
        asyncio.run(outer())


def test_limits_are_the_environments(pool):
    assert pool.make(Task(prompt="x")).limits == Wild.limits


def test_after_the_close():
    pool = HostPool(EnvironmentSource.of(Wild))
    pool.close()
    pool.close()
    with pytest.raises(HostLost, match="was closed"):
        asyncio.run(pool.make(Task(prompt="x")).start(Task(prompt="x")))


def test_calls_out_of_order(pool):
    async def play():
        environment = pool.make(Task(prompt="x"))
        await environment.close()
        with pytest.raises(EnvironmentFault, match="before start"):
            await environment.reply(Message.assistant("x"))
        assert list(environment.tools()) == []
        await environment.start(environment.task)
        with pytest.raises(RelayedError, match="serves one episode"):
            await environment.start(environment.task)
        await environment.close()
        with pytest.raises(WorldFault, match="was closed"):
            await environment.finish("x")
        await environment.close()

    asyncio.run(play())


def test_a_pool_has_hosts():
    with pytest.raises(ConfigError, match="at least one host"):
        HostPool(EnvironmentSource.of(Wild), hosts=0)


def test_hosts_are_light():
    """No torch, and up in half a second (three tries, since the machine is shared)."""

    async def started_s(pool):
        loop = asyncio.get_running_loop()
        zero_s = loop.time()
        await pool.ready()
        return loop.time() - zero_s

    times_s = []
    for _ in range(3):
        with HostPool(EnvironmentSource.of(Shop)) as pool:
            times_s.append(asyncio.run(started_s(pool)))
            maps = Path(f"/proc/{pool.pids[0]}/maps").read_text()
            assert "torch" not in maps
            assert "numpy" not in maps
    assert min(times_s) < 0.5


def test_standard_streams_lead_nowhere(pool, capfd):
    here = roll(pool.make, [calling("flood", megabytes=20), calling("count"), "done"])[0]
    assert here.outcome == COMPLETED
    assert [message.text for message in here.messages if message.role is Role.TOOL] == ["printed", "1"]
    assert capfd.readouterr() == ("", "")


def test_sources():
    assert EnvironmentSource.of(Shop).file == ""
    assert EnvironmentSource.of(Question, {"graders": ("exact",), "limits": Limits()}).load()().limits == Limits()

    imported_by_path = type(load_world(str(WAREHOUSE), {}, seed=0).make())
    assert EnvironmentSource.of(imported_by_path) == WAREHOUSE_SOURCE

    class Local(Wild):
        pass

    with pytest.raises(ConfigError, match="at the top level of its file"):
        EnvironmentSource.of(Local)
    with pytest.raises(ConfigError, match="at the top level of its file"):
        EnvironmentSource.of(lambda: Wild())


def test_a_script_can_host_its_own_class(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "import asyncio\n"
        "from burnish import Environment, Task\n"
        "from burnish.environments.hosted import HostPool\n"
        "from burnish.environments.source import EnvironmentSource\n"
        "class Mine(Environment):\n"
        "    def observe(self): return 'hello'\n"
        "async def main():\n"
        "    with HostPool(EnvironmentSource.of(Mine)) as pool:\n"
        "        world = pool.make(Task(prompt='x'))\n"
        "        print((await world.start(world.task))[0].text)\n"
        "        await world.close()\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("hello\n", "")


# -- the wire ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xff", b"[" * 100_000, b"{}", b"[1,2]", b'["a","ok",1]', b"9" * 5000, b"null"]
)
def test_frames_that_are_none(data):
    with pytest.raises(FrameError):
        from_frame(data)


def test_errors_keep_kind_text_and_base():
    def there(error):
        try:
            raise error
        except BaseException as raised:  # noqa: BLE001 - any kind of exception is the subject here
            return error_from_json(error_to_json(raised))

    assert str(there(KeyError("A"))) == "'A'"
    assert isinstance(there(ToolError("x")), ToolError)
    assert type(there(ToolError("x"))).__name__ == "ToolError"
    assert isinstance(there(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")), ValueError)
    assert not isinstance(there(TypeError("x")), ValueError)
    assert not isinstance(there(HostLost("x")), WorldFault), "a host cannot speak for the pool"
    assert isinstance(there(KeyboardInterrupt()), Exception)
    assert there(ValueError("x")).place.startswith("test_environments_hosted.py:")  # type: ignore[attr-defined]


def test_forged_errors_are_exceptions():
    error = error_from_json({"kind": "\ud800" * 1000, "base": "os.system"})
    assert type(error).__mro__[1:3] == (RelayedError, Exception)
    assert len(type(error).__name__) <= 80


def test_tools_travel_whole():
    tools = Wild().tools()
    back = tools_from_json(tools_to_json(tools))
    assert [(spec, timeout_s, owner) for spec, timeout_s, owner in back] == [
        (tool.spec, tool.timeout_s, tool.timeout_owner) for tool in tools
    ]


def test_full_buffers_both_ways_do_not_block():
    """Each side sends 24 MB before it reads anything: more than the sockets hold."""
    frame, count = b"x" * 2**20, 24

    async def play():
        got = {"one": 0, "two": 0}
        finished = asyncio.Event()

        def take(side, data):
            got[side] += len(data)
            if all(total == count * len(frame) for total in got.values()):
                finished.set()

        ends = []
        for side, sock in zip(got, socket.socketpair(), strict=True):
            end = Channel(sock, on_frame=partial(take, side), on_end=lambda why: None, max_bytes=2**24)
            end.attach(asyncio.get_running_loop())
            ends.append(end)
        for _ in range(count):
            for end in ends:
                end.send(frame)
        await asyncio.wait_for(finished.wait(), 20)
        for end in ends:
            end.close()

    asyncio.run(play())


def test_too_large_a_frame_ends_the_channel():
    async def play():
        one, two = socket.socketpair()
        ended = []
        channel = Channel(one, on_frame=lambda data: None, on_end=ended.append, max_bytes=100)
        channel.attach(asyncio.get_running_loop())
        two.send((2**31).to_bytes(4, "big"))
        await asyncio.sleep(0.05)
        two.close()
        return ended

    assert asyncio.run(play()) == ["a frame of 2147483648 bytes was announced, at most 100 are allowed"]


def test_blame():
    blame = Blame()
    for _ in range(5):
        assert blame.died(["a", "b"]) == frozenset(), "who it was cannot be known"
    assert blame.died(["a"]) == frozenset(), "once may be the machine"
    assert blame.is_suspect("b")
    blame.cleared("b")
    assert not blame.is_suspect("b")
    assert blame.died(["a"]) == {"a"}


def test_a_process_says_how_it_ended():
    process = HostProcess()
    assert process.kill() == "is running"
    assert process.kill() == ""
