"""Tool calls of one turn: what the policy is told, what is counted, what ends the episode."""

from __future__ import annotations

import asyncio
import time

import pytest

from burnish.core.errors import ToolError
from burnish.core.message import ToolCall
from burnish.core.outcome import Limit, Owner
from burnish.core.tool import Toolset
from burnish.rollout.boundary import Deadline, EpisodeStop
from burnish.rollout.tools import COUNTERS, Toolbelt, _Check
from burnish.testing.fakes import fake_tool

PAIR = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string", "enum": ["x", "y"]}},
    "required": ["a"],
    "additionalProperties": False,
}


def call(name: str, **arguments) -> ToolCall:
    return ToolCall(id="call_0", name=name, arguments=arguments)


def run(tools, *calls: ToolCall, max_result_chars: int = 1000, timeout_s: float = 0.0):
    belt = Toolbelt(tools, max_result_chars=max_result_chars)

    async def go():
        return await belt.run(calls, Deadline(timeout_s))

    return asyncio.run(go()), {name: belt.counters[name] for name in COUNTERS if belt.counters[name]}, belt


def raising(error: BaseException):
    def function(arguments):
        raise error

    return fake_tool("t", function)


def test_result_goes_back_under_the_calls_name():
    (message,), counters, belt = run([fake_tool("t", lambda arguments: str(arguments["a"]))], call("t", a=3))
    assert (message.text, message.name, message.tool_call_id, message.is_error) == ("3", "t", "call_0", False)
    assert counters == {"tool_calls": 1}
    assert belt.tool_s > 0


def test_unknown_tool_gets_a_suggestion():
    (message,), counters, _ = run([fake_tool("get_order", str)], call("get_ordr"))
    assert message.text == "Error: no tool named 'get_ordr'; did you mean 'get_order'?"
    assert message.is_error
    assert counters == {"tool_calls": 1, "unknown_tools": 1}
    assert "tools: get_order" in run([fake_tool("get_order", str)], call("zzz"))[0][0].text
    assert "there are no tools" in run([], call("z" * 10_000))[0][0].text
    assert len(run([], call("z" * 10_000))[0][0].text) < 200


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"a": "3"}, "argument a: '3' is not of type 'integer'"),
        ({"a": True}, "argument a: True is not of type 'integer'"),
        ({}, "arguments: 'a' is a required property"),
        ({"a": 1, "b": "z"}, "argument b: 'z' is not one of"),
        ({"a": 1, "c": 2}, "'c' was unexpected"),
    ],
)
def test_arguments_are_checked_against_the_schema(arguments, words):
    ran = []
    (message,), counters, _ = run([fake_tool("t", ran.append, parameters=PAIR)], call("t", **arguments))
    assert words in message.text
    assert message.is_error
    assert counters == {"tool_calls": 1, "invalid_arguments": 1}
    assert not ran


def test_malformed_call_is_told_and_counted():
    broken = ToolCall(id="c", name="t", error="Expecting ',' delimiter")
    (message,), counters, _ = run([fake_tool("t", str)], broken)
    assert message.text == "Error: unreadable tool call: Expecting ',' delimiter"
    assert counters == {"tool_calls": 1, "malformed_calls": 1}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ToolError("no order A9"), "Error: no order A9"),
        (ValueError("bad"), "Error: ValueError: bad"),
        (KeyError("A9"), "Error: KeyError: 'A9'"),
        (ZeroDivisionError("division by zero"), "Error: ZeroDivisionError: division by zero"),
        (AssertionError(), "Error: AssertionError"),
    ],
)
def test_mistakes_of_the_model_are_told(error, words):
    (message,), counters, _ = run([raising(error)], call("t"))
    assert message.text == words
    assert message.is_error
    assert counters == {"tool_calls": 1, "tool_errors": 1}


class Unprintable(RuntimeError):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("disk on fire"), "tool t raised RuntimeError: disk on fire (test_rollout_tools.py:"),
        (TypeError("bug"), "tool t raised TypeError: bug"),
        (SystemExit(3), "tool t raised SystemExit: 3"),
        (TimeoutError("db"), "tool t raised TimeoutError: db"),
        (asyncio.CancelledError(), "tool t was cancelled from within"),
        (Unprintable(), "its text raised RuntimeError"),
        (ExceptionGroup("many", [ValueError("x")]), "ExceptionGroup: many"),
    ],
)
def test_any_other_exception_is_the_worlds(error, words):
    with pytest.raises(EpisodeStop) as stop:
        run([raising(error)], call("t"))
    assert stop.value.outcome.owner is Owner.ENVIRONMENT
    assert stop.value.outcome.cause == "tool_raised"
    assert words in stop.value.outcome.detail


async def hang(arguments) -> str:
    await asyncio.sleep(3600)
    return "never"


def test_timeout_of_the_environment_ends_the_episode():
    with pytest.raises(EpisodeStop) as stop:
        run([fake_tool("t", hang, timeout_s=0.02)], call("t"))
    assert stop.value.outcome.label == "error:environment"
    assert stop.value.outcome.cause == "tool_timeout"
    assert "tool t ran past 0.02 s" in stop.value.outcome.detail


def test_timeout_of_the_model_is_told():
    (message,), counters, _ = run([fake_tool("t", hang, timeout_s=0.02, timeout_owner=Owner.MODEL)], call("t"))
    assert message.text == "Error: t ran past 0.02 s and was stopped"
    assert counters == {"tool_calls": 1, "tool_timeouts": 1}


def test_the_episodes_deadline_truncates():
    with pytest.raises(EpisodeStop) as stop:
        run([fake_tool("t", hang)], call("t"), timeout_s=0.02)
    assert stop.value.outcome.limit is Limit.TIME


def test_ten_megabytes_are_cut_and_counted():
    started_s = time.perf_counter()
    (message,), counters, _ = run([fake_tool("t", lambda arguments: "x" * 10_000_000)], call("t"), max_result_chars=100)
    assert message.text == "x" * 100 + "\n[cut: 9999900 of 10000000 characters]"
    assert counters == {"tool_calls": 1, "cut_results": 1}
    assert time.perf_counter() - started_s < 2.0


def test_results_are_clean_text():
    (message,), _, _ = run([fake_tool("t", lambda arguments: "a\ud800\x00b")], call("t"))
    assert message.text == "a\ufffd\ufffdb"


def test_result_that_is_not_text_is_the_worlds_fault():
    with pytest.raises(EpisodeStop) as stop:
        run([fake_tool("t", lambda arguments: 3)], call("t"))
    assert stop.value.outcome.cause == "tool_result_not_text"


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "objekt"},
        {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}},
        {"type": "object", "properties": {"a": {"pattern": "("}}},
        {"type": "object", "x": {1, object()}},
    ],
)
def test_schema_that_cannot_be_used_is_the_worlds_fault(parameters):
    with pytest.raises(EpisodeStop) as stop:
        run([fake_tool("t", str, parameters=parameters)], call("t", a="x"))
    assert stop.value.outcome.cause == "tool_schema_raised"
    assert stop.value.outcome.owner is Owner.ENVIRONMENT


def test_a_tool_that_changes_its_arguments_leaves_the_record_alone():
    def spoil(arguments) -> str:
        arguments["items"].append("spoilt")
        arguments.clear()
        return "ok"

    asked = call("t", items=["pear"])
    run([fake_tool("t", spoil)], asked)
    assert asked.arguments == {"items": ["pear"]}


def test_calls_of_a_turn_overlap_and_come_back_in_call_order():
    running, most = 0, 0

    async def wait(arguments) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(arguments["s"])
        running -= 1
        return str(arguments["s"])

    messages, counters, _ = run([fake_tool("t", wait)], *(call("t", s=s) for s in (0.03, 0.0, 0.01)))
    assert [message.text for message in messages] == ["0.03", "0.0", "0.01"]
    assert most == 3
    assert counters == {"tool_calls": 3}


def test_first_failure_in_call_order_is_recorded():
    def fail(arguments) -> str:
        raise RuntimeError(arguments["why"])

    with pytest.raises(EpisodeStop) as stop:
        run([fake_tool("t", fail)], call("t", why="first"), call("t", why="second"))
    assert "first" in stop.value.outcome.detail


def test_a_call_is_not_blamed_for_waiting_behind_others():
    """Worlds that run one call at a time make later calls wait; only their own time counts against them."""
    lock = asyncio.Lock()

    async def slow(arguments) -> str:
        async with lock:
            await asyncio.sleep(0.06)
        return "done"

    messages, counters, _ = run([fake_tool("t", slow, timeout_s=0.1)], *[call("t")] * 4)
    assert [message.text for message in messages] == ["done"] * 4
    assert "tool_timeouts" not in counters


FLAT = {
    "type": "object",
    "properties": {
        "i": {"type": "integer", "description": "a number"},
        "s": {"type": "string", "default": "x"},
        "f": {"type": "number"},
        "b": {"type": "boolean"},
        "m": {"type": "integer", "minimum": 3},
        "u": {"type": ["integer", "null"]},
    },
    "required": ["i"],
    "additionalProperties": False,
}
SCHEMAS = [FLAT, PAIR, FLAT | {"minProperties": 2}, FLAT | {"additionalProperties": True}, {"type": "object"}]
OFFERED = [1, 1.0, 1.5, True, "1", None, [1], {"a": 1}, 2**70]
TRIED = [{}, *({name: value, **more} for name in "isfbmuz" for value in OFFERED for more in ({}, {"i": 1}))]


@pytest.mark.parametrize("schema", SCHEMAS, ids=["flat", "enum", "more", "open", "bare"])
def test_the_short_way_takes_only_what_the_whole_schema_takes(schema):
    check = _Check(schema)
    taken = [arguments for arguments in TRIED if check.plainly_fits(arguments)]
    assert all(check.validator.is_valid(arguments) for arguments in taken)
    if schema is FLAT:
        assert {"i": 1} in taken
        assert {"s": "1", "i": 1} in taken
        assert any(not check.validator.is_valid(arguments) for arguments in TRIED)


def test_only_the_tool_that_is_called_is_made():
    tools = [fake_tool(name, lambda arguments: "ok") for name in ("a", "b")]
    made = []

    def make(place):
        made.append(place)
        return tools[place]

    (message,), _, belt = run(Toolset(tuple(tool.spec for tool in tools), make), call("b"))
    assert message.text == "ok"
    assert made == [1]
    assert [spec.name for spec in belt.specs] == ["a", "b"]
