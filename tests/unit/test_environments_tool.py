"""`@tool`: schemas, conversion, threads."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import subprocess
import sys
import threading
import time
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.core.errors import ConfigError, ToolError
from burnish.core.message import ToolCall
from burnish.core.outcome import Owner
from burnish.environments.base import Environment
from burnish.environments.schema import compact_json, convert, schema_of
from burnish.environments.tool import result_text, schema_problems, tool, tool_methods


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Box(TypedDict):
    width: int
    label: NotRequired[str]


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


class World(Environment):
    @tool
    def google(self, shelf: str, n: int = 3) -> int:
        """Count things.

        In detail.

        Args:
            shelf: which shelf
            n: how many
        """
        return len(shelf) * n

    @tool
    def numpy(self, shelf: str) -> None:
        """Count things.

        Parameters
        ----------
        shelf : str
            which shelf
        """

    @tool
    def rest(self, shelf: str) -> str:
        """Count things.

        :param shelf: which shelf
        """
        return shelf

    @tool(inline=True)
    def rich(
        self,
        colour: Colour,
        box: Box,
        point: Point,
        kind: Literal["a", "b"],
        sizes: list[int],
        note: str | None = None,
        prices: dict[str, float] | None = None,
        length: Annotated[int, "metres"] = 1,
    ) -> dict[str, Any]:
        """Take everything."""
        return {"colour": colour, "point": point, "box": box, "sizes": sizes, "note": note, "prices": prices}

    @tool(timeout_s=5, on_timeout="model")
    async def waits(self, seconds: float) -> str:
        """Wait."""
        await asyncio.sleep(seconds)
        return "done"

    @tool
    def fails(self) -> str:
        """Fail."""
        raise KeyError("nothing here")


def call(name: str, arguments: dict[str, Any], world: Environment | None = None) -> str:
    world = world or World()
    tools = {item.spec.name: item for item in world.tools()}
    return asyncio.run(tools[name].call(arguments))


@pytest.mark.parametrize("name", ["google", "numpy", "rest"])
def test_descriptions_come_from_three_docstring_styles(name: str) -> None:
    spec = tool_methods(World)[name].spec
    assert spec.description.startswith("Count things.")
    assert spec.parameters["properties"]["shelf"] == {"type": "string", "description": "which shelf"}


def test_schema_of_a_signature() -> None:
    assert World.google.spec.description == "Count things. In detail."
    assert World.google.spec.parameters == {
        "type": "object",
        "properties": {
            "shelf": {"type": "string", "description": "which shelf"},
            "n": {"type": "integer", "default": 3, "description": "how many"},
        },
        "required": ["shelf"],
        "additionalProperties": False,
    }


def test_schema_of_every_kind_of_hint() -> None:
    properties = World.rich.spec.parameters["properties"]
    assert properties["colour"] == {"type": "string", "enum": ["red", "blue"]}
    assert properties["kind"] == {"type": "string", "enum": ["a", "b"]}
    assert properties["sizes"] == {"type": "array", "items": {"type": "integer"}}
    assert properties["note"] == {"type": ["string", "null"]}
    assert properties["prices"]["anyOf"][0] == {"type": "object", "additionalProperties": {"type": "number"}}
    assert properties["length"] == {"type": "integer", "description": "metres", "default": 1}
    assert properties["box"]["required"] == ["width"]
    assert properties["point"]["required"] == ["x"]
    jsonschema.Draft202012Validator.check_schema(dict(World.rich.spec.parameters))


def test_arguments_become_what_the_hints_promise() -> None:
    arguments = {"colour": "red", "box": {"width": 2}, "point": {"x": 1}, "kind": "a", "sizes": [1, 2.0]}
    jsonschema.validate(arguments, dict(World.rich.spec.parameters))
    assert call("rich", arguments) == (
        '{"colour":"red","point":{"x":1.0,"y":0.0},"box":{"width":2},"sizes":[1,2],"note":null,"prices":null}'
    )


@pytest.mark.parametrize(
    "arguments",
    [{}, {"shelf": "A", "m": 1}, {"n": 2}],
)
def test_arguments_that_do_not_fit_are_told_to_the_policy(arguments: dict[str, Any]) -> None:
    with pytest.raises(ToolError):
        call("google", arguments)


def test_an_unknown_enum_member_is_told_with_the_known_ones() -> None:
    with pytest.raises(ToolError, match="red, blue"):
        convert(Colour, "green")


def test_what_a_tool_raises_goes_through() -> None:
    with pytest.raises(KeyError):
        call("fails", {})


def test_a_decorated_method_still_runs_and_makes_calls() -> None:
    world = World()
    assert world.google("AB", n=2) == 4
    assert world.google.call("AB", n=2) == ToolCall(id="call_0", name="google", arguments={"shelf": "AB", "n": 2})
    assert world.rich.call(Colour.RED, {"width": 1}, Point(1), "a", []).arguments["point"] == {"x": 1, "y": 0.0}
    with pytest.raises(TypeError):
        world.google.call("AB", wrong=1)


@pytest.mark.parametrize(
    ("value", "text"),
    [("as is", "as is"), (None, "ok"), (True, "true"), (3, "3"), (0.5, "0.5"), ([1, (2,)], "[1,[2]]"), ("é", "é")],
)
def test_results_become_text(value: Any, text: str) -> None:
    assert result_text(value) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, object(), b"bytes", [float("nan")]])
def test_results_without_a_json_form_are_the_environments_fault(value: Any) -> None:
    with pytest.raises(TypeError, match="return text, a number"):
        result_text(value)


def test_wrong_definitions_are_said_at_once() -> None:
    with pytest.raises(ConfigError, match="needs a type hint, such as x: str"):

        @tool
        def no_hint(self, x):  # type: ignore[no-untyped-def]
            """Nothing."""

    with pytest.raises(ConfigError, match="name each parameter"):

        @tool
        def star(self, *x: int) -> None:  # type: ignore[no-untyped-def]
            """Nothing."""

    with pytest.raises(ConfigError, match="first parameter is self"):

        @tool  # type: ignore[arg-type]
        def no_self() -> None:
            """Nothing."""

    with pytest.raises(ConfigError, match="on_timeout"):

        @tool(on_timeout="nobody")  # type: ignore[arg-type]
        def owner(self) -> None:  # type: ignore[no-untyped-def]
            """Nothing."""

    with pytest.raises(ConfigError, match="plain method"):
        tool(staticmethod(lambda: None))  # type: ignore[call-overload]


def test_a_hint_without_a_json_form_is_said_when_the_class_is_made() -> None:
    with pytest.raises(ConfigError, match=r"tool .*Bad\.pick: parameter x: type hint set\[int\] has no JSON form"):

        class Bad(Environment):
            @tool
            def pick(self, x: set[int]) -> None:
                """Pick."""


def test_a_hint_that_cannot_be_read_is_said_at_first_use() -> None:
    class Later(Environment):
        @tool
        def pick(self, x: NotDefinedAnywhere) -> None:  # type: ignore[name-defined]  # noqa: F821
            """Pick."""

    with pytest.raises(ConfigError, match="define the type at module level"):
        Later().tools()


def test_options_reach_the_tool() -> None:
    waits = World.waits.bind(World())
    assert (waits.timeout_s, waits.timeout_owner) == (5, Owner.MODEL)
    assert World.google.bind(World()).timeout_owner is Owner.ENVIRONMENT


def test_schema_problems_are_listed() -> None:
    class Sloppy(Environment):
        @tool
        def bare(self, x: int) -> None: ...

        @tool
        def stale(self, x: int) -> None:
            """Do it.

            Args:
                x: a number
                y: gone
            """

    assert len(schema_problems(Sloppy.bare)) == 2
    assert schema_problems(Sloppy.stale)[0].endswith("describes y, which is no parameter")
    assert schema_problems(World.google) == []


def test_tools_are_inherited_and_can_be_taken_away() -> None:
    class Child(World):
        rest = None  # type: ignore[assignment]

        @tool
        def google(self, shelf: str) -> str:  # type: ignore[override]
            """Another one."""
            return "child"

    names = list(tool_methods(Child))
    assert "rest" not in names
    assert names.index("google") == 0
    assert Child().google("A") == "child"


class Slow(Environment):
    def __init__(self) -> None:
        self.order: list[str] = []

    @tool
    def block(self, name: str, seconds: float) -> str:
        """Block a thread."""
        time.sleep(seconds)
        self.order.append(name)
        return threading.current_thread().name

    @tool(parallel=True)
    def block_together(self, name: str, seconds: float) -> str:
        """Block a thread beside others."""
        time.sleep(seconds)
        self.order.append(name)
        return name

    @tool(inline=True)
    def quick(self) -> str:
        """Stay on the event loop."""
        return threading.current_thread().name


async def _gather(*calls: tuple[Slow, str, dict[str, Any]]) -> tuple[list[str], float]:
    started_s = time.perf_counter()
    tools = [({item.spec.name: item for item in slow.tools()}[name], arguments) for slow, name, arguments in calls]
    return list(await asyncio.gather(*(item.call(arguments) for item, arguments in tools))), (
        time.perf_counter() - started_s
    )


def test_a_blocking_tool_stalls_no_other_episode() -> None:
    worlds = [Slow() for _ in range(8)]
    _, took_s = asyncio.run(_gather(*((slow, "block", {"name": "a", "seconds": 0.2}) for slow in worlds)))
    assert took_s < 1.0


def test_sync_calls_of_one_episode_run_in_order() -> None:
    slow = Slow()
    calls = [(slow, "block", {"name": "a", "seconds": 0.05}), (slow, "block", {"name": "b", "seconds": 0.0})]
    asyncio.run(_gather(*calls))
    assert slow.order == ["a", "b"]


def test_parallel_calls_of_one_episode_run_together() -> None:
    slow = Slow()
    calls = [
        (slow, "block_together", {"name": "a", "seconds": 0.2}),
        (slow, "block_together", {"name": "b", "seconds": 0.0}),
    ]
    asyncio.run(_gather(*calls))
    assert slow.order == ["b", "a"]


def test_inline_stays_on_the_event_loop() -> None:
    names, _ = asyncio.run(_gather((Slow(), "quick", {}), (Slow(), "block", {"name": "a", "seconds": 0.0})))
    assert names == [threading.current_thread().name, "burnish-tool"]


def test_a_tool_that_hangs_keeps_neither_the_wait_nor_the_process() -> None:
    program = """
import asyncio, time
from burnish.environments.base import Environment
from burnish.environments.tool import tool
class Hangs(Environment):
    @tool
    def hang(self) -> str:
        "Hang."
        time.sleep(1000)
async def main():
    try:
        async with asyncio.timeout(0.2):
            await Hangs().tools()[0].call({})
    except TimeoutError:
        print("timed out")
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout.strip(), done.returncode) == ("timed out", 0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(json_values)
@settings(max_examples=60, deadline=None)
def test_any_json_value_passes_through_any_hint_without_a_crash(value: Any) -> None:
    for hint in (int, float, str, list[int], dict[str, float], int | str | None, Colour, Point, Box, Any):
        try:
            convert(hint, value)
        except ToolError:
            continue
    assert isinstance(compact_json(value), str)


def test_nested_hints_are_walked() -> None:
    assert convert(list[Colour], ["red"]) == [Colour.RED]
    assert convert(Colour | None, "red") is Colour.RED
    assert convert(int | str, "5") == "5"
    assert convert(dict[str, Point], {"a": {"x": 1}}) == {"a": Point(1.0)}
    assert schema_of(list[Box])["items"]["properties"]["width"] == {"type": "integer"}
