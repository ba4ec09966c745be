"""Our chat template, the same in plain Python, and what a model's own template can do.

The template is ChatML in Hermes style.  Every message is `<|im_start|>ROLE`, a newline, its content, the
end-of-turn token; nothing stands between messages.  The end-of-turn token is the tokenizer's `eos_token`, so it works
with any tokenizer that has one.  It keeps earlier thinking, hence a conversation only ever grows at its end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jinja2

from burnish.core.errors import RenderError
from burnish.core.message import Message, Role, TextPart
from burnish.core.tool import ToolSpec
from burnish.policies.calls import CALL_CLOSE, CALL_OPEN, CallStyle, format_action

TURN_START = "<|im_start|>"
GENERATION = f"{TURN_START}assistant\n"
DEFAULT_END = "<|im_end|>"
ROLE_HEADERS = tuple(f"{role}\n" for role in Role)

_TOOLS_INTRO = "# Tools\n\nYou may call these functions:\n<tools>"
_TOOLS_OUTRO = (
    '\n</tools>\n\nTo call one, write a JSON object with its name and arguments:\n<tool_call>{"name":"<name>",'
    '"arguments":{<arguments>}}</tool_call>'
)

TEMPLATE = """\
{%- if bos_token is defined and bos_token and bos_token != eos_token %}{{ bos_token }}{% endif %}
{%- set start = 0 %}
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages and messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% set start = 1 %}{% endif %}
{{- INTRO }}
{%- for tool in tools %}{{- '\\n' + tool | tojson(separators=(',', ':')) }}{% endfor %}
{{- OUTRO + eos_token }}
{%- endif %}
{%- for message in messages[start:] %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content %}{{- message.content }}{% endif %}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}
{%- set function = call.function if call.function else call %}
{{- '<tool_call>{"name":' + function.name | tojson + ',"arguments":' }}
{%- if function.arguments is string %}{{- function.arguments }}
{%- else %}{{- function.arguments | tojson(separators=(',', ':')) }}{% endif %}
{{- '}</tool_call>' }}
{%- endfor %}
{%- endif %}
{{- eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
""".replace("INTRO", json.dumps(_TOOLS_INTRO)).replace("OUTRO", json.dumps(_TOOLS_OUTRO))


def message_content(message: Message) -> str:
    """What stands between header and end marker.  Raises RenderError for images: these templates are text only."""
    if message.images:
        raise RenderError(f"a {message.role} message holds an image; this renderer is for text models only")
    return format_action(message.text, message.tool_calls) if message.tool_calls else message.text


def opening_text(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, end: str, bos: str = "") -> str:
    """TEMPLATE in Python: a whole conversation without the header of the next turn.

    tools are OpenAI-style dictionaries.  end: the end-of-turn token.

    >>> opening_text([Message.user("hi")], [], end="<|im_end|>")
    '<|im_start|>user\\nhi<|im_end|>'
    """
    parts = [bos] if bos else []
    if tools:
        system = ""
        if messages and messages[0].role is Role.SYSTEM:
            system, messages = message_content(messages[0]) + "\n\n", messages[1:]
        listed = "".join("\n" + json.dumps(tool, ensure_ascii=False, separators=(",", ":")) for tool in tools)
        parts.append(f"{TURN_START}system\n{system}{_TOOLS_INTRO}{listed}{_TOOLS_OUTRO}{end}")
    parts.extend(f"{TURN_START}{message.role.value}\n{message_content(message)}{end}" for message in messages)
    return "".join(parts)


def conversation_text(messages: Sequence[Message], tools: Sequence[ToolSpec] = (), *, end: str = DEFAULT_END) -> str:
    """A conversation in our template as text, for training a tokenizer before there is one; images are left out.

    >>> conversation_text([Message.user("hi"), Message.assistant("ho")])
    '<|im_start|>user\\nhi<|im_end|><|im_start|>assistant\\nho<|im_end|>'
    """
    words = [
        replace(m, parts=tuple(p for p in m.parts if isinstance(p, TextPart))) if m.images else m for m in messages
    ]
    return opening_text(words, [spec.to_openai() for spec in tools], end=end)


def apply_template(
    tokenizer: Any,
    source: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    generation: bool,
) -> str:
    """Render chat dictionaries by a jinja template as transformers does, to text.

    Raises RenderError where the template refuses them (such as roles that do not alternate).
    """
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) or None,
            chat_template=source,
            add_generation_prompt=generation,
            tokenize=False,
        )
        return text
    except (jinja2.TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:
        roles = [message.get("role") for message in messages]
        raise RenderError(f"the chat template refuses a conversation with roles {roles}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateFacts:
    """What a chat template can do, found by rendering probes.

    `TemplateFacts(source="{%- for ...", turn_end="<|im_end|>", lead="", reads_tools=True, has_system=True,
    style=CallStyle.SPACED)`

    turn_end: the token that ends a policy turn, "" where there is none.  lead: whitespace that it writes before
    the text of a policy turn.  reads_tools: lists tools, writes Hermes-style
    calls and shows tool results.  has_system: accepts a system message.
    """

    source: str
    turn_end: str
    lead: str
    reads_tools: bool
    has_system: bool
    style: CallStyle


_USER = {"role": "user", "content": "probe-question"}
_ANSWER = {"role": "assistant", "content": "probe-answer"}
_SPEC = ToolSpec(name="probe_tool", description="Probe.", parameters={"type": "object", "properties": {}}).to_openai()
_CALL = {"id": "probe0000", "type": "function", "function": {"name": "probe_call", "arguments": {"x": 1}}}
_RESULT = {"role": "tool", "name": "probe_call", "tool_call_id": "probe0000", "content": "probe-result"}

_PROBED_CALL = re.compile(
    rf"{CALL_OPEN}(\s*)(\{{(?:(?!{CALL_OPEN}).)*?probe_call(?:(?!{CALL_OPEN}).)*?\}})\s*{CALL_CLOSE}", re.DOTALL
)


def own_template(tokenizer: Any) -> str | None:
    """The tokenizer's chat template as text (the tool variant where it has several), None where it has none."""
    try:
        source = tokenizer.get_chat_template(None, tools=[_SPEC])
    except ValueError:
        return None
    return source or None


def examine_template(tokenizer: Any, source: str) -> TemplateFacts:
    """Probe a template; never raises for what the template cannot do."""

    def probe(messages: list[dict[str, Any]], *, tools: bool = False, generation: bool = False) -> str:
        try:
            return apply_template(tokenizer, source, messages, [_SPEC] if tools else [], generation=generation)
        except RenderError:
            return ""

    before_answer, _, after_answer = probe([_USER, _ANSWER]).partition(_ANSWER["content"])
    asked = probe([_USER], generation=True)
    lead = before_answer.removeprefix(asked) if before_answer.startswith(asked) else ""
    called = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
    used = probe([_USER, called, _RESULT], tools=True)
    listed = probe([_USER], tools=True)
    call = _PROBED_CALL.search(used)
    is_hermes = call is not None and {"name", "arguments"} <= set(_loads_object(call.group(2)))
    return TemplateFacts(
        source=source,
        turn_end=_turn_end(tokenizer, after_answer),
        lead="" if lead.strip() else lead,
        reads_tools=is_hermes and "probe-result" in used and "probe_tool" in listed,
        has_system="probe-system" in probe([{"role": "system", "content": "probe-system"}, _USER]),
        style=CallStyle.COMPACT if call is not None and not call.group(1) else CallStyle.SPACED,
    )


def _loads_object(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _turn_end(tokenizer: Any, after_answer: str) -> str:
    tail = after_answer.lstrip()
    ends = [token for token in tokenizer.get_added_vocab() if token.strip() and tail.startswith(token)]
    return max(ends, key=len, default="")


def supports_tools(tokenizer: Any) -> bool:
    """Whether the tokenizer's own chat template lists tools, writes Hermes-style calls and shows their results."""
    source = own_template(tokenizer)
    return source is not None and examine_template(tokenizer, source).reads_tools
