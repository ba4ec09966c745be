"""Tools: a schema and an async function the policy may call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
