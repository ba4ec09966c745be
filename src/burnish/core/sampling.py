"""The protocol between rollouts and whatever produces tokens."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

from burnish.core.images import ImageSpan
from burnish.core.kept import KeptSets
from burnish.core.message import ImagePart, Message
from burnish.core.tool import ToolSpec


class Finish(StrEnum):
    """Why sampling of one action stopped."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to draw tokens.  `SamplingParams(temperature=0.0)` is greedy.

    temperature >= 0; top_p in (0, 1]; top_k >= 0 with 0 for all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """Ask for one action.

    prompt_ids: array('i') of every token so far.  seed: draws depend on it and on the position alone, never on what
    else is in the batch.  stop_ids: sampling ends after one of them (it is part of the action).  messages and tools:
    the same conversation for endpoints that take messages instead of tokens.  images: which tokens of the prompt show
    which image.
    """

    key: str
    prompt_ids: array[int]
    params: SamplingParams
    max_tokens: int
    seed: int
    stop_ids: tuple[int, ...]
    messages: tuple[Message, ...] = ()
    tools: tuple[ToolSpec, ...] = ()
    images: tuple[ImageSpan, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One action.  token_ids: array('i') of T ids; logprobs: array('f') of T natural logarithms under the distribution
    sampled from; versions: array('i') of T, of the policy that drew each token (weights may change while an action is
    being sampled).  kept: the sets that top-k and top-p left, None where nothing was cut.

    An endpoint that gives no tokens sets `message`, and leaves the arrays empty; such an action cannot be trained on.
    """

    token_ids: array[int] = field(default_factory=lambda: array("i"))
    logprobs: array[float] = field(default_factory=lambda: array("f"))
    versions: array[int] = field(default_factory=lambda: array("i"))
    kept: KeptSets | None = None
    finish: Finish = Finish.STOP
    message: Message | None = None


class Sampler(Protocol):
    """Produces actions from a policy version: token ids in; token ids, log-probabilities and version out."""

    async def sample(self, requests: Sequence[SampleRequest]) -> Sequence[Sample]:
        """One sample for each request, in order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """What a renderer adds to a conversation.

    token_ids: the ids to add.  fork: empty where the old ids stay an exact prefix; otherwise the reason why the model's
    template would render the past differently, and `token_ids` is the whole conversation rendered anew.  images: which
    of these ids show which image.
    """

    token_ids: array[int]
    fork: str = ""
    images: tuple[ImageSpan, ...] = ()


class Renderer(Protocol):
    """Turns messages into tokens and actions back into messages, never re-encoding what was sampled."""

    stop_ids: tuple[int, ...]

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> array[int]:
        """Ids of the first prompt, the marker that opens the policy's turn included."""
        ...

    def extend(self, past: Sequence[Message], new: Sequence[Message], tools: Sequence[ToolSpec]) -> Extension:
        """Ids that follow the last action of `past` (which ends with the policy's turn) for the messages `new`, the
        marker that opens the next turn included."""
        ...

    def encode_action(self, message: Message) -> array[int]:
        """Ids of an assistant message as the policy would have sampled it, its stop id included (experts, SFT)."""
        ...

    def parse(self, token_ids: array[int]) -> Message:
        """The assistant message in sampled ids; unreadable tool calls come back with `ToolCall.error` set."""
        ...


@runtime_checkable
class ImageRenderer(Renderer, Protocol):
    """A renderer that can show images; one that cannot raises RenderError for them."""

    def image_spans(self, token_ids: array[int], images: Sequence[ImagePart]) -> tuple[ImageSpan, ...]:
        """Where in ids of `open` these images stand, the images in the order of the messages."""
        ...


def opened(
    renderer: Renderer, messages: Sequence[Message], tools: Sequence[ToolSpec]
) -> tuple[array[int], tuple[ImageSpan, ...]]:
    """Ids of the first prompt and where its images stand."""
    ids = renderer.open(messages, tools)
    images = [part for message in messages for part in message.images]
    return ids, renderer.image_spans(ids, images) if images and isinstance(renderer, ImageRenderer) else ()
