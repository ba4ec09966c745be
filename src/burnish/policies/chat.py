"""Messages to tokens and back, without ever re-encoding what was sampled.

With our own template the conversation only grows at its end, so a turn is rendered directly.  With a model's own
template each extension is proven at text level: the past, rendered again together with the new messages, must still
say what the policy saw and said.  Whitespace and an empty thinking block are no difference: the ids in the trajectory
stay as they were, only what follows the end of the turn is tokenised.  Any other difference is a named fork.
"""

from __future__ import annotations

import copy
import re
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from burnish.core.errors import ConfigError, RenderError
from burnish.core.images import ImageSpan
from burnish.core.message import ImagePart, Message, Role, TextPart, ToolCall
from burnish.core.sampling import Extension
from burnish.core.tool import ToolSpec
from burnish.policies.calls import CallStyle, format_action, parse_action
from burnish.policies.codec import ACTION_END, BREAK, TextGuard, TokenCodec, control_tokens
from burnish.policies.marks import ImageMarks, find_spans
from burnish.policies.template import (
    GENERATION,
    TEMPLATE,
    TURN_START,
    TemplateFacts,
    apply_template,
    examine_template,
    opening_text,
    own_template,
)

FORK_THINKING = "template_drops_thinking"
FORK_ACTION = "template_changes_action"
FORK_PAST = "template_changes_past"
FORK_END = "template_moves_turn_end"

MAX_OPENED = 256
MODE_BEGINS = {"auto": "", "think": "<think>", "direct": "<think></think>"}
_POLICY_MARKS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
_NO_CONTENT = re.compile(r"\s+|<think>\s*</think>")


class ChatRenderer:
    """The core Renderer for one tokenizer.

    show_tools: "full" lists the tools' schemas in the first prompt, "none" leaves them out (tiny models that learn the
    tools from traces).  template: a jinja chat template to use instead of the tokenizer's.  needs_tools: False lets a
    model's own template without tools be used, for worlds that have none.  images: how the model is shown images; None
    for one that reads text alone.

    Where the tokenizer has no template, or one that cannot show Hermes-style tool calls and their results, our own is
    used and `notice` says so ("" otherwise).  Our markers are then plain text for a tokenizer that does not know
    them; turns still end with its `eos_token`, which no content can forge.

    `stop_ids`: the end-of-turn token, then the end-of-sequence token where that is another.  `extend` takes for
    granted that the last action ended with one of them.  Raises ConfigError for a tokenizer without an end token and
    for a given template that cannot be used.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        show_tools: Literal["full", "none"] = "full",
        template: str | None = None,
        needs_tools: bool = True,
        images: ImageMarks | None = None,
    ) -> None:
        if show_tools not in ("full", "none"):
            raise ConfigError(f'show_tools is "full" or "none", got {show_tools!r}')
        self._tokenizer = tokenizer
        self._images = images
        self._lists_tools = show_tools == "full"
        self._facts, self.notice = _choose(tokenizer, template, needs_tools)
        end = self._facts.turn_end if self._facts else tokenizer.eos_token
        if not end:
            raise ConfigError("the tokenizer has no end-of-sequence token; set tokenizer.eos_token")
        self._codec = TokenCodec(tokenizer, end)
        eos_id = tokenizer.eos_token_id
        others = (eos_id,) if eos_id is not None and eos_id != self._codec.end_id else ()
        self.stop_ids: tuple[int, ...] = (self._codec.end_id, *others)
        self._style = self._facts.style if self._facts else CallStyle.COMPACT
        self._lead = self._facts.lead if self._facts else ""
        bos = tokenizer.bos_token or ""
        self._bos = bos if bos != end else ""
        tokens = control_tokens(tokenizer, self._facts.source if self._facts else TEMPLATE)
        self._guard = TextGuard(tokens)
        self._policy_guard = TextGuard(tokens, allowed=_POLICY_MARKS)
        self._call_marks = TextGuard({*tokens, *_POLICY_MARKS}).marks
        self._opened: dict[str, array[int]] = {}
        self._begun: dict[tuple[tuple[Message, ...], tuple[int, ...]], tuple[array[int], tuple[ToolSpec, ...]]] = {}
        self._begins, self._begins_ids = "", array("i")

    def forced(self, mode: str) -> ChatRenderer:
        """A renderer whose every policy turn begins with what `mode` says, shown and never sampled: "think" opens a
        thinking block, "direct" shows an empty one, "auto" leaves the choice to the policy.  ConfigError for others."""
        if mode not in MODE_BEGINS:
            raise ConfigError(f"a mode is one of {', '.join(MODE_BEGINS)}, got {mode!r}")
        other = copy.copy(self)
        other._begins = MODE_BEGINS[mode]
        other._begins_ids = self._codec.encode_action(other._begins)
        return other

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> array[int]:
        """Ids of the first prompt, the header of the policy's turn included.

        Raises RenderError for images that the model cannot see and for conversations that the template refuses.
        """
        if any(message.tool_calls for message in messages):
            return self._opened_ids(messages, tools) + self._begins_ids
        # The members of a group begin alike, with the very same specs; these are held, so that no others can come to
        # stand at their addresses.
        key = (tuple(messages), tuple([id(spec) for spec in tools]))
        held = self._begun.get(key)
        if held is None:
            if len(self._begun) >= MAX_OPENED:
                self._begun.clear()
            held = self._begun[key] = (self._opened_ids(messages, tools), tuple(tools))
        return held[0] + self._begins_ids

    def _opened_ids(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> array[int]:
        if self._facts is not None:
            text = self._render(self._facts, messages, tools)
        else:
            text = self._opening(messages, tools) + GENERATION
        cached = self._opened.get(text)
        if cached is None:
            if len(self._opened) >= MAX_OPENED:
                self._opened.clear()
            cached = self._opened[text] = self._codec.encode(text)
        return cached

    def extend(self, past: Sequence[Message], new: Sequence[Message], tools: Sequence[ToolSpec]) -> Extension:
        """Ids for `new` after the last action of `past`, or the whole conversation anew as a named fork.

        Raises RenderError where `past` does not end with the policy's turn, and as `open` does.
        """
        if not past or past[-1].role is not Role.ASSISTANT:
            raise RenderError("a conversation is extended after the policy's turn; the last past message is not one")
        if self._facts is None:
            turns = [f"{TURN_START}{m.role.value}\n{self._content(m)}{self._codec.end}" for m in new]
            ids = self._codec.encode_after_end("".join(turns) + GENERATION)
            return Extension(token_ids=ids + self._begins_ids, images=self._spans(ids, new))
        return self._extend_proven(self._facts, past, new, tools)

    def image_spans(self, token_ids: array[int], images: Sequence[ImagePart]) -> tuple[ImageSpan, ...]:
        """Where in rendered ids these images stand.  Raises RenderError where there are more or fewer placeholders."""
        if self._images is None:
            raise RenderError(f"{len(images)} images are to be shown; this renderer is for text models only")
        return find_spans(token_ids, images, self._images)

    def _spans(self, token_ids: array[int], messages: Sequence[Message]) -> tuple[ImageSpan, ...]:
        parts = [part for message in messages for part in message.images]
        return self.image_spans(token_ids, parts) if parts else ()

    def encode_action(self, message: Message) -> array[int]:
        """Ids of an assistant message as the policy would have sampled it, its stop id included."""
        if message.role is not Role.ASSISTANT:
            raise RenderError(f"an action is an assistant message, got a {message.role} message")
        said = self._content(message)
        said = said.removeprefix(self._begins) if self._begins else self._lead + said
        return self._codec.encode_action(said + self._codec.end)

    def parse(self, token_ids: array[int]) -> Message:
        """The assistant message in sampled ids; a stop id at the end is not part of the text.  Total."""
        sampled = token_ids[:-1] if token_ids and token_ids[-1] in self.stop_ids else token_ids
        said = self._begins + self._codec.decode(sampled).removeprefix(self._lead)
        text, calls = parse_action(said, style=self._style)
        return Message(role=Role.ASSISTANT, parts=(TextPart(text=text),) if text else (), tool_calls=calls)

    def _content(self, message: Message) -> str:
        """Guarded content; the policy may write its own call and thinking markers, nobody else."""
        if message.images:
            return self._shown(message)
        if message.role is not Role.ASSISTANT:
            return self._guard(message.text)
        if not message.tool_calls:
            return self._policy_guard(message.text)
        return self._policy_guard(self._action_text(message.text, message.tool_calls))

    def _shown(self, message: Message) -> str:
        """Guarded text with the marks of images, which no text can forge, in their places."""
        if self._images is None or message.role is Role.ASSISTANT:
            raise RenderError(
                f"a {message.role} message holds an image; "
                + ("this renderer is for text models only" if self._images is None else "policies write text alone")
            )
        pieces, text = [], ""
        for part in message.parts:
            if isinstance(part, TextPart):
                # text is guarded in one piece: a control token must not be put together from two parts
                text += part.text
                continue
            pieces += [self._guard(text), self._images.text(part)]
            text = ""
        return "".join([*pieces, self._guard(text)])

    def _action_text(self, text: str, calls: Sequence[ToolCall]) -> str:
        try:
            return format_action(text, calls, style=self._style, marks=self._call_marks)
        except (TypeError, ValueError) as error:
            names = ", ".join(call.name for call in calls)
            raise RenderError(f"arguments of a call to {names} are not JSON: {error}") from error

    def _opening(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> str:
        guarded = [Message(role=m.role, parts=(TextPart(text=self._content(m)),)) for m in messages]
        return opening_text(guarded, self._listed(tools), end=self._codec.end, bos=self._bos)

    def _listed(self, tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
        if not self._lists_tools:
            return []
        return [_map_strings(spec.to_openai(), self._guard) for spec in tools]

    def _render(
        self, facts: TemplateFacts, messages: Sequence[Message], tools: Sequence[ToolSpec], *, marked: int = -1
    ) -> str:
        """The conversation by the model's own template, up to the header of the next turn.

        Actions are handed over as text, calls included, so that the template cannot lay them out anew.  ACTION_END
        follows the content of message `marked`.
        """
        items: list[dict[str, Any]] = []
        for index, message in enumerate(messages):
            item: dict[str, Any] = {"role": message.role.value, "content": self._content(message)}
            if index == marked:
                item["content"] += ACTION_END
            if message.role is Role.TOOL:
                item |= {"name": message.name, "tool_call_id": message.tool_call_id}
            items.append(item)
        if not facts.has_system:
            items = _fold_system(items)
        return apply_template(self._tokenizer, facts.source, items, self._listed(tools), generation=True)

    def _extend_proven(
        self, facts: TemplateFacts, past: Sequence[Message], new: Sequence[Message], tools: Sequence[ToolSpec]
    ) -> Extension:
        seen = self._render(facts, past[:-1], tools)
        whole = self._render(facts, [*past, *new], tools, marked=len(past) - 1)
        said, mark, rest = whole.partition(ACTION_END)
        fork = self._difference(seen, self._content(past[-1]), said if mark else whole)
        after = rest.lstrip()
        if not fork and not after.startswith(self._codec.end):
            fork = FORK_END
        if fork:
            ids = self._codec.encode(whole.replace(ACTION_END, ""))
            return Extension(token_ids=ids + self._begins_ids, fork=fork, images=self._spans(ids, [*past, *new]))
        ids = self._codec.encode_after_end(after[len(self._codec.end) :])
        return Extension(token_ids=ids + self._begins_ids, images=self._spans(ids, new))

    def _difference(self, seen: str, action: str, said: str) -> str:
        """Why `said` (prompt and action as the template renders them now) is not what the policy saw and said."""
        before, now = _squash(seen + action), _squash(said)
        if before == now:
            return ""
        if now.count("</think>") < before.count("</think>"):
            return FORK_THINKING
        return FORK_ACTION if now.startswith(_squash(seen)) else FORK_PAST


def _squash(text: str) -> str:
    # Twice: taking whitespace out can leave an empty thinking block behind.
    return _NO_CONTENT.sub("", _NO_CONTENT.sub("", text.replace(BREAK, "")))


def _fold_system(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For templates without a system role: its text goes to the head of the first user message."""
    if len(items) < 2 or items[0]["role"] != "system" or items[1]["role"] != "user":
        return items
    merged = {**items[1], "content": f"{items[0]['content']}\n\n{items[1]['content']}"}
    return [merged, *items[2:]]


def _map_strings(value: Any, change: TextGuard) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(str(key)): _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_strings(item, change) for item in value]
    return value


def _choose(tokenizer: Any, template: str | None, needs_tools: bool) -> tuple[TemplateFacts | None, str]:
    """Facts of the template to use, None for ours, and what to tell the user."""
    source = template or own_template(tokenizer)
    if source == TEMPLATE:
        return None, ""
    if source is None:
        return None, "the tokenizer has no chat template: the Burnish template is used"
    facts = examine_template(tokenizer, source)
    if not facts.turn_end:
        problem = "ends the policy's turn without a token of its own"
    elif needs_tools and not facts.reads_tools:
        problem = "does not show Hermes-style tool calls and their results"
    else:
        return facts, ""
    if template:
        raise ConfigError(f"the given chat template {problem}")
    return None, f"the model's chat template {problem}: the Burnish template is used"
