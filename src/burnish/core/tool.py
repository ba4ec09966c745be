"""Tools: a schema and an async function the policy may call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from burnish.core.message import ImagePart
from burnish.core.outcome import Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """What the policy is told about a tool.

    `ToolSpec(name="add", description="Add two numbers.", parameters={"type": "object", "properties":
    {"a": {"type": "number"}, "b": {"type": "number"}}, "required": ["a", "b"]})`

    `parameters` is a JSON Schema of type object.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]

    def to_openai(self) -> dict[str, Any]:
        """The `{"type": "function", ...}` form that chat templates and endpoints expect."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


class ShownResult(str):
    """The text of a tool's result with images that stand before it; everywhere else it is its text.

    >>> ShownResult("zoomed", images=()).images, ShownResult("zoomed") == "zoomed"
    ((), True)
    """

    images: tuple[ImagePart, ...]

    def __new__(cls, text: str, images: tuple[ImagePart, ...] = ()) -> ShownResult:
        made = super().__new__(cls, text)
        made.images = images
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A schema and an async function from validated arguments to the text of the result.

    `call` may raise `ToolError` (shown to the policy), and give a `ShownResult` to show images. `timeout_s` bounds
    one call; who answers for a call that runs past it is `timeout_owner`: `Owner.MODEL` means that the policy is
    told and the episode goes on (tools that run what the model wrote), `Owner.ENVIRONMENT` that the episode is an
    environment error.
    """

    spec: ToolSpec
    call: Callable[[Mapping[str, Any]], Awaitable[str]]
    timeout_s: float = 30.0
    timeout_owner: Owner = Owner.ENVIRONMENT


class Toolset(Sequence[Tool]):
    """Tools that are made when they are asked for: an episode calls few of those that it is offered.

    `Toolset(specs, make)`: `make(2)` makes the tool of `specs[2]`.  A tool that is asked for twice may be made twice.
    """

    __slots__ = ("_make", "specs")

    def __init__(self, specs: tuple[ToolSpec, ...], make: Callable[[int], Tool]) -> None:
        self.specs = specs
        self._make = make

    def __len__(self) -> int:
        return len(self.specs)

    @overload
    def __getitem__(self, place: int) -> Tool: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Tool, ...]: ...
    def __getitem__(self, place: int | slice) -> Tool | tuple[Tool, ...]:
        places = range(len(self.specs))[place]
        return self._make(places) if isinstance(places, int) else tuple(self._make(each) for each in places)


def specs_of(tools: Sequence[Tool]) -> tuple[ToolSpec, ...]:
    """What the policy is told of each tool, in order."""
    return tools.specs if isinstance(tools, Toolset) else tuple(tool.spec for tool in tools)
