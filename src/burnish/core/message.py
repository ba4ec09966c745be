"""Messages: what policy, user, system and tools say to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from burnish.core.pickling import quickly_pickled


class Role(StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """Plain text.  `TextPart(text="How many pears?")`"""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePart:
    """An image by content hash; the bytes live in the run's artefacts.

    `ImagePart(sha256="9f2c...", media_type="image/png", width_px=64, height_px=48)`
    """

    sha256: str
    media_type: str
    width_px: int
    height_px: int


Part = TextPart | ImagePart


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call that the policy asked for.  `ToolCall(id="call_0", name="add", arguments={"a": 1, "b": 2})`

    `error` is set when the text of the call could not be read; then `name` holds what could be found
    and `arguments` is empty.
    """

    id: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One chat item.  `Message.user("Where is order 12?")`

    `tool_calls` only on assistant messages; `tool_call_id`, `name` and `is_error` only on tool messages.
    """

    role: Role
    parts: tuple[Part, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    is_error: bool = False

    @property
    def text(self) -> str:
        """The text parts joined."""
        return "".join([part.text for part in self.parts if isinstance(part, TextPart)])

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """The image parts in order."""
        return tuple([part for part in self.parts if isinstance(part, ImagePart)])

    @staticmethod
    def system(text: str) -> Message:
        return Message(role=Role.SYSTEM, parts=(TextPart(text=text),))

    @staticmethod
    def user(text: str) -> Message:
        return Message(role=Role.USER, parts=(TextPart(text=text),))

    @staticmethod
    def assistant(text: str, tool_calls: tuple[ToolCall, ...] = ()) -> Message:
        parts = (TextPart(text=text),) if text else ()
        return Message(role=Role.ASSISTANT, parts=parts, tool_calls=tool_calls)

    @staticmethod
    def tool(text: str, *, call: ToolCall, is_error: bool = False) -> Message:
        return Message(
            role=Role.TOOL, parts=(TextPart(text=text),), tool_call_id=call.id, name=call.name, is_error=is_error
        )


def message_to_json(message: Message) -> dict[str, Any]:
    """The stored form; `message_from_json` is its inverse.

    >>> message_to_json(Message.user("hi"))
    {'role': 'user', 'parts': [{'text': 'hi'}]}
    """
    data: dict[str, Any] = {"role": message.role.value}
    data["parts"] = [
        {"text": part.text}
        if isinstance(part, TextPart)
        else {
            "sha256": part.sha256,
            "media_type": part.media_type,
            "width_px": part.width_px,
            "height_px": part.height_px,
        }
        for part in message.parts
    ]
    if message.tool_calls:
        data["tool_calls"] = [
            {"id": call.id, "name": call.name, "arguments": dict(call.arguments), "error": call.error}
            for call in message.tool_calls
        ]
    if message.role is Role.TOOL:
        data |= {"tool_call_id": message.tool_call_id, "name": message.name, "is_error": message.is_error}
    return data


def message_from_json(data: Mapping[str, Any]) -> Message:
    """Inverse of `message_to_json`.  Raises KeyError or ValueError where the record is not one of its results."""
    parts: list[Part] = [
        TextPart(text=part["text"]) if "text" in part else ImagePart(**part) for part in data.get("parts", ())
    ]
    return Message(
        role=Role(data["role"]),
        parts=tuple(parts),
        tool_calls=tuple(ToolCall(**call) for call in data.get("tool_calls", ())),
        tool_call_id=data.get("tool_call_id", ""),
        name=data.get("name", ""),
        is_error=data.get("is_error", False),
    )
