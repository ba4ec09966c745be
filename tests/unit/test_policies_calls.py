"""Hermes-style calls: format and parse are inverse, and parsing is total."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.core.message import ToolCall
from burnish.policies.calls import MAX_DEPTH, CallStyle, format_action, format_call, parse_action

STYLES = list(CallStyle)


def clean(text: str) -> bool:
    return "<tool_call>" not in text and "</think>" not in text and "\x00" not in text


texts = st.text(st.characters(codec="utf-8"), max_size=20).filter(clean)
fragments = st.sampled_from(["<tool_call>", "</tool_call>", "</think>", '{"name":', '"a"', "{", "}", "\n", "\\ud800"])
leaves = st.none() | st.booleans() | st.integers(-(10**40), 10**40) | texts | fragments
leaves |= st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
names = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)
call_lists = st.lists(st.tuples(names, st.dictionaries(texts, values, max_size=3)), max_size=3)


def numbered(pairs: list[tuple[str, dict[str, object]]]) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(id=f"call_{i}", name=name, arguments=arguments) for i, (name, arguments) in enumerate(pairs))


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=150, deadline=None)
@given(text=texts, pairs=call_lists)
def test_parse_is_the_inverse_of_format(
    style: CallStyle, text: str, pairs: list[tuple[str, dict[str, object]]]
) -> None:
    calls = numbered(pairs)
    assert parse_action(format_action(text, calls, style=style), style=style) == (text, calls)


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(fragments | st.text(max_size=5), max_size=12), style=st.sampled_from(STYLES))
def test_parsing_is_total(pieces: list[str], style: CallStyle) -> None:
    text, calls = parse_action("".join(pieces), style=style)
    assert isinstance(text, str)
    assert [call.id for call in calls] == [f"call_{i}" for i in range(len(calls))]


def test_an_unescaped_marker_in_an_argument_would_be_caught() -> None:
    calls = (ToolCall(id="call_0", name="say", arguments={"text": "</tool_call>"}),)
    assert parse_action(format_action("", calls))[1] == calls
    unescaped = f"<tool_call>{format_call(calls[0], marks=re.compile('(?!)'))[11:]}"
    assert parse_action(unescaped)[1][0].error


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ('{"name":"f","arguments":{"x":NaN}}', "NaN is not JSON"),
        ('{"name":"f","arguments":{"x":1e999}}', "not finite"),
        ('{"name":"f","arguments":{"x":1,"x":2}}', "repeated key 'x'"),
        ('{"name":"f","arguments":{"x":' + "9" * 5000 + "}}", "integer of 5000"),
        ('{"name":"f","arguments":{"x":' + "[" * 200_000 + "}}", "longer than"),
        ('{"name":"f","arguments":{"x":' + "[" * 1000 + "]" * 1000 + "}}", f"deeper than {MAX_DEPTH}"),
        ('{"name":"f","arguments":"x"}', "must be a JSON object, got str"),
        ('{"name":"f"} {"name":"g"}', "Extra data"),
        ('{"name":"","arguments":{}}', "non-empty"),
        ('{"name":3}', "non-empty"),
        ('["f"]', "got list"),
        ("", "invalid JSON"),
    ],
)
def test_unreadable_calls_say_why_and_keep_their_text(body: str, error: str) -> None:
    raw = f"<tool_call>{body}</tool_call>"
    text, calls = parse_action(f"Hm. {raw}")
    assert len(calls) == 1
    assert error in calls[0].error
    assert not calls[0].arguments
    assert text == f"Hm. {raw}"


def test_the_name_is_found_in_a_broken_call() -> None:
    assert parse_action('<tool_call>{"name": "add", "arguments": {"a": }}</tool_call>')[1][0].name == "add"


def test_brackets_in_strings_are_no_depth() -> None:
    call = ToolCall(id="call_0", name="f", arguments={"x": "[" * 100})
    assert parse_action(format_call(call))[1] == (call,)


def test_several_calls_with_loose_whitespace() -> None:
    text = 'Two:\n<tool_call>\n {"name": "a", "arguments": {}} \n</tool_call> \n<tool_call>{"name":"b"}</tool_call>\n'
    said, calls = parse_action(text, style=CallStyle.SPACED)
    assert said == "Two:"
    assert [(call.name, call.error) for call in calls] == [("a", ""), ("b", "")]


def test_a_call_that_is_not_closed_is_an_error() -> None:
    text = '<tool_call>{"name":"a","arguments":{}}'
    said, calls = parse_action(text)
    assert said == text
    assert "not closed" in calls[0].error


def test_thoughts_are_not_calls() -> None:
    thought = '<think>maybe <tool_call>{"name":"a"}</tool_call></think>'
    assert parse_action(thought) == (thought, ())
    said, calls = parse_action(thought + '<tool_call>{"name":"b"}</tool_call>')
    assert said == thought
    assert [call.name for call in calls] == ["b"]


def test_escapes_cannot_smuggle_surrogates_or_nul() -> None:
    call = parse_action(r'<tool_call>{"name":"f","arguments":{"x":"a\ud800b\u0000"}}</tool_call>')[1][0]
    assert dict(call.arguments) == {"x": "a�b�"}


def test_calls_with_an_error_are_not_formatted_twice() -> None:
    text, calls = parse_action("<tool_call>{oops}</tool_call>")
    assert format_action(text, calls) == text
