"""A renderer for policies that take and give messages and never show a token."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from burnish.core.errors import RenderError
from burnish.core.message import Message
from burnish.core.sampling import Extension
from burnish.core.tool import ToolSpec


class MessageRenderer:
    """Renders nothing: prompts and actions have no ids, so such trajectories are graded but never trained on.

    For endpoints whose samples carry a message instead of tokens, and for scripts that run without a tokenizer.
    Limits counted in tokens do not bind; turns and time do.

    >>> MessageRenderer().open([Message.user("hi")], [])
    array('i')
    """

    def __init__(self) -> None:
        self.stop_ids: tuple[int, ...] = ()

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> array[int]:
        return array("i")

    def extend(self, past: Sequence[Message], new: Sequence[Message], tools: Sequence[ToolSpec]) -> Extension:
        return Extension(token_ids=array("i"))

    def encode_action(self, message: Message) -> array[int]:
        return array("i")

    def parse(self, token_ids: array[int]) -> Message:
        """Raises RenderError: ids cannot be read without a tokenizer."""
        raise RenderError(f"got an action of {len(token_ids)} token ids without a tokenizer; hand in a real renderer")
