"""Rendering: exact prefixes or named forks, content that cannot forge, actions that come back as they were."""

from __future__ import annotations

import re
import time
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from burnish.core.errors import ConfigError, RenderError
from burnish.core.message import ImagePart, Message, Role, ToolCall
from burnish.core.sampling import Extension
from burnish.core.tool import ToolSpec
from burnish.policies.chat import FORK_ACTION, FORK_END, FORK_PAST, FORK_THINKING, ChatRenderer
from burnish.policies.template import TEMPLATE, conversation_text, supports_tools
from burnish.policies.tokenizer import train_tokenizer

QWEN3 = r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
    {{- "# Tools\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>" }}
    {%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\n</tools>\n\nReturn a json object within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\":" }}
    {{- " <name>, \"arguments\": <args>}\n</tool_call><|im_end|>\n" }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- if ns.searching and message.role == "user" %}
        {%- set ns.last = messages|length - 1 - loop.index0 %}{%- set ns.searching = false %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}{%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}{{- content }}{%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if (loop.first and content) or not loop.first %}{{- '\n' }}{%- endif %}
            {{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
LLAMA3 = r"""{{- bos_token }}{%- for m in messages %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}
{{- m.content | trim + '<|eot_id|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""
MISTRAL = r"""{{- bos_token }}{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate') }}{%- endif %}
{%- if m.role == 'user' %}{{- '[INST] ' + m.content + ' [/INST]' }}
{%- else %}{{- ' ' + m.content + eos_token }}{%- endif %}
{%- endfor %}"""
GEMMA = r"""{{- bos_token }}{%- if messages[0].role == 'system' %}{{- raise_exception('no system role') }}{%- endif %}
{%- for m in messages %}{%- set role = 'model' if m.role == 'assistant' else m.role %}
{{- '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}"""
SAMPLE = (
    "How many pears?\n\nsystem user assistant tool <tool_call> name arguments 0123456789 the answer is hello there " * 3
)
ADD = ToolSpec(
    name="add",
    description="Add <|im_end|> numbers.",
    parameters={"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
)


def finished(
    backend: Tokenizer, special: Sequence[str], added: Sequence[str], **options: Any
) -> PreTrainedTokenizerFast:
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    template = options.pop("template", None)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **options)
    tokenizer.chat_template = template
    return tokenizer


def byte_level(special: Sequence[str], added: Sequence[str] = (), **options: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [SAMPLE], trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    )
    return finished(backend, special, added, **options)


def sentencepiece(special: Sequence[str], *, prefix: bool, **options: Any) -> PreTrainedTokenizerFast:
    characters = sorted({*SAMPLE.replace(" ", "▁").replace("\n", ""), *"<|>[]/INST_"})
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), *characters, "▁t", "he", "▁the", "▁H", "ll"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "H"), ("l", "l")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True))
    steps: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    undo: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)] if prefix else undo)
    return finished(backend, special, (), **options)


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_ADDED = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
LLAMA_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
GEMMA_SPECIAL = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
BUILDERS = {
    "tiny": lambda: train_tokenizer([SAMPLE], vocab_size=400),
    "qwen3": lambda: byte_level(CHATML, QWEN_ADDED, eos_token="<|im_end|>", pad_token="<|endoftext|>", template=QWEN3),
    "llama": lambda: byte_level(
        LLAMA_SPECIAL, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", template=LLAMA3
    ),
    "mistral": lambda: sentencepiece(("<s>", "</s>"), prefix=True, bos_token="<s>", eos_token="</s>", template=MISTRAL),
    "gemma": lambda: sentencepiece(GEMMA_SPECIAL, prefix=False, bos_token="<bos>", eos_token="<eos>", template=GEMMA),
    "gpt2": lambda: byte_level(("<|endoftext|>",), bos_token="<|endoftext|>", eos_token="<|endoftext|>"),
}
TOKENIZERS = {name: build() for name, build in BUILDERS.items()}
RENDERERS = {name: ChatRenderer(tokenizer) for name, tokenizer in TOKENIZERS.items()}
EVERY = pytest.mark.parametrize("name", list(BUILDERS))

MARKS = sorted({*CHATML, *QWEN_ADDED, *LLAMA_SPECIAL, *GEMMA_SPECIAL, "</s>", "[INST]"})
plain = st.text(st.characters(codec="utf-8", exclude_characters="\x00▁"), max_size=15)
hostile = st.lists(plain | st.sampled_from([*MARKS, "<", "|im_end|>", "\ufdd0", "\ufdd1", "\ufdd20"]), max_size=5).map(
    "".join
)
unmarked = hostile.filter(lambda text: not re.search("tool_call>|</think>", text))


def call(index: int, name: str = "add", **arguments: Any) -> ToolCall:
    return ToolCall(id=f"call_{index}", name=name, arguments=arguments)


def play(renderer: Any, turns: Sequence[tuple[array[int], Sequence[Message]]]) -> tuple[array[int], list[str]]:
    """An episode as rollouts drive it: all ids of the last branch, and the forks.  Checks each extension."""
    messages: list[Message] = [Message.user("How many pears?")]
    ids, forks = renderer.open(messages, [ADD]), []
    for sampled, new in turns:
        ids = ids + sampled
        past = [*messages, renderer.parse(sampled)]
        extension = renderer.extend(past, new, [ADD])
        if extension.fork:
            forks.append(extension.fork)
            ids = extension.token_ids
        else:
            assert list(extension.token_ids) == added_ids(renderer, new), "an extension adds the new messages alone"
            ids = ids + extension.token_ids
        messages = [*past, *new]
    return ids, forks


def added_ids(renderer: ChatRenderer, new: Sequence[Message]) -> list[int]:
    """What follows the turn end of a fixed tiny past, from the whole conversation tokenised at once."""
    past = [Message.user("u"), Message.assistant("x")]
    whole = list(renderer.open([*past, *new], [ADD]))
    action = [*renderer.open(past[:1], [ADD]), *renderer.encode_action(past[1])]
    assert whole[: len(action)] == action
    return whole[len(action) :]


@EVERY
@settings(max_examples=60, deadline=None)
@given(text=unmarked, said=hostile)
def test_actions_come_back_as_they_were(name: str, text: str, said: str) -> None:
    renderer = RENDERERS[name]
    message = Message.assistant(text, (call(0, x=said), call(1, y=[said, 1.5, None])))
    ids = renderer.encode_action(message)
    assert ids[-1] in renderer.stop_ids
    assert not set(ids[:-1]) & set(renderer.stop_ids)
    assert renderer.parse(ids) == message
    assert renderer.parse(renderer.encode_action(Message.assistant(text))) == Message.assistant(text)


@EVERY
@settings(max_examples=60, deadline=None)
@given(content=hostile, role=st.sampled_from(["user", "tool", "system"]))
def test_content_cannot_forge_control_tokens(name: str, content: str, role: str) -> None:
    renderer, tokenizer = RENDERERS[name], TOKENIZERS[name]
    control = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())

    def rendered(text: str) -> list[int]:
        past = [Message.system("s"), Message.user("q"), Message.assistant("a")]
        new = Message(role=Role(role), parts=Message.user(text).parts)
        if role == "system":
            return list(renderer.open([new, Message.user("q")], [ADD]))
        return [*renderer.open([Message.user(text)], [ADD]), *renderer.extend(past, [new], [ADD]).token_ids]

    harmless = [i for i in rendered("hello") if i in control]
    ids = rendered(content)
    assert [i for i in ids if i in control] == harmless
    assert content.strip() in tokenizer.decode(ids, skip_special_tokens=False)


def test_an_opening_is_kept_for_the_very_same_tools_alone() -> None:
    """A spec of another tool that comes to stand at the address of one that is gone must not be taken for it."""
    renderer = ChatRenderer(TOKENIZERS["qwen3"])
    said = [Message.user("hi")]
    texts = set()
    for name in ("add", "sub", "mul"):
        ids = renderer.open(said, (replace(ADD, name=name),))
        assert ids == renderer.open(said, (replace(ADD, name=name),)) != renderer.open(said, ())
        texts.add(ids.tobytes())
    assert len(texts) == 3
    kept = renderer.open(said, (ADD,))
    kept.append(7)
    assert renderer.open(said, (ADD,)) == kept[:-1]


def test_without_the_guard_content_would_forge(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = ChatRenderer(TOKENIZERS["qwen3"])
    stop = renderer.stop_ids[0]
    before = list(renderer.open([Message.user("a<|im_end|>b")], [])).count(stop)
    unguarded = ChatRenderer(TOKENIZERS["qwen3"])
    monkeypatch.setattr(unguarded, "_guard", lambda text: text)
    assert list(unguarded.open([Message.user("a<|im_end|>b")], [])).count(stop) == before + 1


@EVERY
def test_an_episode_extends_the_exact_prefix(name: str) -> None:
    renderer = RENDERERS[name]
    calls = (call(0, a=1), call(1, a=2))
    acting = renderer.encode_action(Message.assistant("I add.", calls))
    results = [Message.tool("3 \n", call=calls[0]), Message.tool("<|im_end|> Grüße 😀", call=calls[1])]
    silent, more = renderer.encode_action(Message.assistant("")), [Message.user("Go on.")]
    ids, forks = play(
        renderer, [(acting, results), (silent, more), (renderer.encode_action(Message.assistant("5")), more)]
    )
    assert forks == []
    opening = renderer.open([Message.user("How many pears?")], [ADD])
    assert ids[: len(opening) + len(acting)] == opening + acting


@EVERY
def test_oddly_sampled_tokens_stay(name: str) -> None:
    """Another spelling of the same text, loose JSON and a broken call: the sampled ids are kept, never re-encoded."""
    renderer = RENDERERS[name]
    loose = '\n\n<tool_call>\n{ "name" :"add", "arguments": {"a":  1} }</tool_call> <tool_call>{oops</tool_call>'
    odd = array("i")
    for character in loose:
        odd.extend(renderer._codec.encode_action(character))
    odd.append(renderer.stop_ids[-1])
    parsed = renderer.parse(odd)
    assert [c.name for c in parsed.tool_calls if not c.error] == ["add"]
    ids, forks = play(renderer, [(odd, [Message.tool("2", call=c) for c in parsed.tool_calls])])
    assert forks == []
    start = len(renderer.open([Message.user("How many pears?")], [ADD]))
    assert ids[start : start + len(odd)] == odd


def test_a_renderer_that_re_encodes_is_caught() -> None:
    class ReEncoding(ChatRenderer):
        def extend(self, past: Sequence[Message], new: Sequence[Message], tools: Sequence[ToolSpec]) -> Extension:
            return Extension(token_ids=self.open([*past, *new], tools))

    broken = ReEncoding(TOKENIZERS["tiny"])
    with pytest.raises(AssertionError, match="new messages alone"):
        play(broken, [(broken.encode_action(Message.assistant("5")), [Message.user("no")])])


@pytest.mark.parametrize("show_tools", ["full", "none"])
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(unmarked, min_size=5, max_size=5), system=st.booleans())
def test_the_direct_path_equals_the_jinja_template(show_tools: Any, texts: list[str], system: bool) -> None:
    tokenizer = TOKENIZERS["tiny"]
    direct = ChatRenderer(tokenizer, show_tools=show_tools)
    by_jinja = ChatRenderer(tokenizer, show_tools=show_tools, template=TEMPLATE + "{# jinja #}")
    assert direct._facts is None
    assert by_jinja._facts is not None
    assert direct.stop_ids == by_jinja.stop_ids
    head = [Message.system(texts[0])] if system else []
    past = [*head, Message.user(texts[1]), Message.assistant(texts[2], (call(0, a=texts[3]),))]
    new = [Message.tool(texts[4], call=call(0)), Message.tool(texts[0], call=call(1)), Message.user(texts[3])]
    assert direct.open(past[:-1], [ADD]) == by_jinja.open(past[:-1], [ADD])
    assert direct.extend(past, new, [ADD]) == by_jinja.extend(past, new, [ADD])
    assert direct.encode_action(past[-1]) == by_jinja.encode_action(past[-1])
    assert direct.open([*past, *new], [ADD]) == by_jinja.open([*past, *new], [ADD])


@pytest.mark.parametrize("name", ["tiny", "qwen3"])
def test_elsewhere_the_template_gives_the_same_ids(name: str) -> None:
    """What `apply_chat_template` makes of structured calls is what the policy was trained on."""
    tokenizer, renderer = TOKENIZERS[name], RENDERERS[name]
    tool = ToolSpec(name="add", description="Add numbers.", parameters={"type": "object", "properties": {}})
    calls = (call(0, a=1, b="ü"), call(1))
    messages = [Message.system("Be brief."), Message.user("How?"), Message.assistant("So:", calls)]
    new = [Message.tool("3", call=calls[0]), Message.tool("4", call=calls[1])]
    functions = [{"type": "function", "function": {"name": c.name, "arguments": dict(c.arguments)}} for c in calls]
    chat: list[dict[str, Any]] = [{"role": m.role.value, "content": m.text} for m in [*messages, *new]]
    chat[2]["tool_calls"] = functions
    expected = tokenizer.apply_chat_template(
        chat, tools=[tool.to_openai()], add_generation_prompt=True, return_dict=False
    )
    ids = renderer.open(messages[:2], [tool]) + renderer.encode_action(messages[2])
    assert list(ids + renderer.extend(messages, new, [tool]).token_ids) == list(expected)


def test_a_template_that_drops_earlier_thinking_forks() -> None:
    renderer = RENDERERS["qwen3"]
    thinking = renderer.encode_action(Message.assistant("<think>\nhm\n</think>\n\nIt is 5.", (call(0, a=1),)))
    result, again = Message.tool("3", call=call(0)), Message.user("Are you sure?")
    assert play(renderer, [(thinking, [result])])[1] == []
    ids, forks = play(renderer, [(thinking, [again])])
    assert forks == [FORK_THINKING]
    text = TOKENIZERS["qwen3"].decode(ids)
    assert "hm" not in text
    assert text.count("Are you sure?") == 1
    later = [(thinking, [result]), (renderer.encode_action(Message.assistant("6")), [again])]
    assert play(renderer, later)[1] == [FORK_THINKING]


def test_an_empty_thought_is_no_difference() -> None:
    renderer = RENDERERS["qwen3"]
    empty = renderer.encode_action(Message.assistant("<think>\n\n</think>\n\nIt is 5."))
    assert play(renderer, [(empty, [Message.user("Sure?")])])[1] == []


@pytest.mark.parametrize(
    ("old", "new", "fork"),
    [
        ("{%- if message.content %}{{- message.content }}", "{%- if 0 %}", FORK_ACTION),
        ("{%- if message.content %}{{- message.content }}", "{{- message.content | upper }}{%- if 0 %}", FORK_ACTION),
        ("{%- set start = 0 %}", "{%- set start = 0 %}{{- messages|length ~ ' messages' }}", FORK_PAST),
        ("{{- eos_token }}\n{%- endfor %}", "{{- '.' + eos_token }}\n{%- endfor %}", FORK_END),
    ],
)
def test_templates_that_change_the_past_fork_by_name(old: str, new: str, fork: str) -> None:
    assert old in TEMPLATE
    renderer = ChatRenderer(TOKENIZERS["tiny"])
    changed = ChatRenderer(TOKENIZERS["tiny"], template=TEMPLATE + "{# jinja #}")
    assert changed._facts is not None
    object.__setattr__(changed._facts, "source", TEMPLATE.replace(old, new))
    messages = [Message.user("q"), Message.assistant("a")]
    extension = changed.extend(messages, [Message.user("r")], [])
    assert extension.fork == fork
    assert extension.token_ids == changed.open([*messages, Message.user("r")], [])
    assert not renderer.extend(messages, [Message.user("r")], []).fork


def test_which_template_is_used_is_said() -> None:
    used = {name: renderer._facts is None for name, renderer in RENDERERS.items()}
    assert used == {"tiny": True, "qwen3": False, "llama": True, "mistral": True, "gemma": True, "gpt2": True}
    assert RENDERERS["tiny"].notice == RENDERERS["qwen3"].notice == ""
    assert "no chat template" in RENDERERS["gpt2"].notice
    assert all("does not show" in RENDERERS[name].notice for name in ("llama", "mistral", "gemma"))
    assert [supports_tools(TOKENIZERS[name]) for name in BUILDERS] == [True, True, False, False, False, False]


def test_stop_ids_end_turns() -> None:
    ids = {name: TOKENIZERS[name].convert_ids_to_tokens(list(RENDERERS[name].stop_ids)) for name in BUILDERS}
    assert ids["tiny"] == ids["qwen3"] == ["<|im_end|>"]
    assert (ids["llama"], ids["gpt2"]) == (["<|end_of_text|>"], ["<|endoftext|>"])
    own = ChatRenderer(TOKENIZERS["llama"], needs_tools=False)
    assert TOKENIZERS["llama"].convert_ids_to_tokens(list(own.stop_ids)) == ["<|eot_id|>", "<|end_of_text|>"]


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma"])
def test_worlds_without_tools_keep_the_models_own_template(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    renderer = ChatRenderer(tokenizer, needs_tools=False)
    assert renderer.notice == ""
    past = [Message.user("How many?"), Message.assistant("the answer")]
    extension = renderer.extend(past, [Message.user("Really?")], [])
    ids = renderer.open(past[:1], []) + renderer.encode_action(past[1]) + extension.token_ids
    chat = [{"role": m.role.value, "content": m.text} for m in [*past, Message.user("Really?")]]
    whole = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    said = tokenizer.decode(ids, skip_special_tokens=False)
    assert re.sub(r"\s+", "", said) == re.sub(r"\s+", "", whole)
    assert extension.fork == ""
    assert renderer.parse(renderer.encode_action(past[1])) == past[1]


def test_a_system_text_survives_templates_without_the_role() -> None:
    renderer = ChatRenderer(TOKENIZERS["gemma"], needs_tools=False)
    ids = renderer.open([Message.system("Be brief."), Message.user("How?")], [])
    assert "Be brief.\n\nHow?" in TOKENIZERS["gemma"].decode(ids)


def test_pad_equal_to_eos_loses_nothing() -> None:
    tokenizer = BUILDERS["gpt2"]()
    tokenizer.pad_token = tokenizer.eos_token
    renderer = ChatRenderer(tokenizer)
    ids = renderer.encode_action(Message.assistant("hello"))
    assert ids[-1] == tokenizer.pad_token_id
    assert ids == RENDERERS["gpt2"].encode_action(Message.assistant("hello"))
    assert renderer.parse(ids) == Message.assistant("hello")


@EVERY
def test_empty_and_exact_fit_responses(name: str) -> None:
    renderer = RENDERERS[name]
    assert list(renderer.encode_action(Message.assistant(""))) == [renderer.stop_ids[0]]
    assert renderer.parse(array("i")) == renderer.parse(array("i", renderer.stop_ids[:1])) == Message.assistant("")
    ids = renderer.encode_action(Message.assistant("hello 12"))
    assert renderer.parse(ids[:-1]) == Message.assistant("hello 12")


@EVERY
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_sampled_ids_parse_and_extend(name: str, data: st.DataObject) -> None:
    renderer, size = RENDERERS[name], len(TOKENIZERS[name])
    # Models often have more outputs than the tokenizer has entries.
    sampled = array("i", data.draw(st.lists(st.integers(0, size + 7), max_size=12)))
    message = renderer.parse(sampled)
    assert "\ud800" not in message.text
    renderer.extend([Message.user("q"), message], [Message.user("r")], [ADD])


@EVERY
def test_lone_surrogates_are_replaced(name: str) -> None:
    renderer = RENDERERS[name]
    action = Message.assistant("a\ud800b", (call(0, x="c\udfffd"),))
    cleaned = Message.assistant("a�b", (call(0, x="c�d"),))
    assert renderer.parse(renderer.encode_action(action)) == cleaned
    assert len(renderer.open([Message.user("\ud83d 😀")], [ADD])) > 0


def test_leftover_truncation_and_padding_do_not_reach_prompts() -> None:
    tokenizer = BUILDERS["qwen3"]()
    renderer = ChatRenderer(tokenizer)
    expected = renderer.open([Message.user("How many pears are there?")], [])
    tokenizer(["a", "b c d e"], truncation=True, max_length=2, padding="max_length")
    assert ChatRenderer(tokenizer).open([Message.user("How many pears are there?")], []) == expected


def test_results_are_the_callers_to_keep() -> None:
    renderer = ChatRenderer(TOKENIZERS["tiny"])
    past = [Message.user("q"), Message.assistant("a")]
    for make in (lambda: renderer.open(past[:1], []), lambda: renderer.extend(past, [], []).token_ids):
        first = make()
        first.append(0)
        assert len(make()) == len(first) - 1


def test_refusals_say_what_to_do() -> None:
    renderer = RENDERERS["tiny"]
    image = Message(role=Role.USER, parts=(ImagePart(sha256="0", media_type="image/png", width_px=1, height_px=1),))
    with pytest.raises(RenderError, match="image"):
        renderer.open([image], [])
    with pytest.raises(RenderError, match="after the policy's turn"):
        renderer.extend([Message.user("q")], [], [])
    with pytest.raises(RenderError, match="assistant message"):
        renderer.encode_action(Message.user("q"))
    with pytest.raises(RenderError, match="not JSON"):
        renderer.encode_action(Message.assistant("", (call(0, x=float("nan")),)))
    with pytest.raises(RenderError, match="roles must alternate"):
        ChatRenderer(TOKENIZERS["mistral"], needs_tools=False).open([Message.user("a"), Message.user("b")], [])
    with pytest.raises(ConfigError, match="given chat template does not show"):
        ChatRenderer(TOKENIZERS["tiny"], template=LLAMA3.replace("<|eot_id|>", "<|im_end|>"))
    with pytest.raises(ConfigError, match="show_tools"):
        ChatRenderer(TOKENIZERS["tiny"], show_tools="some")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        ChatRenderer(byte_level(("<s>",), bos_token="<s>"))


def test_it_is_fast_enough_to_run_in_every_turn() -> None:
    tokenizer = train_tokenizer([conversation_text([Message.user(SAMPLE), Message.assistant("", (call(0, a=1),))])] * 2)
    renderer = ChatRenderer(tokenizer, show_tools="none")
    acting = renderer.encode_action(Message.assistant("", (call(0, a=1),)))
    past = [Message.user("How many pears?"), renderer.parse(acting)]
    news = [[Message.tool(f"the answer is {index}", call=call(0))] for index in range(200)]

    def seconds(work: Any) -> float:
        started = time.perf_counter()
        for new in news:
            work(new)
        return (time.perf_counter() - started) / len(news)

    assert min(seconds(lambda _: renderer.parse(acting)) for _ in range(5)) < 150e-6
    assert seconds(lambda new: renderer.extend(past, new, [])) < 500e-6
    assert min(seconds(lambda new: renderer.extend(past, new, [])) for _ in range(5)) < 150e-6
