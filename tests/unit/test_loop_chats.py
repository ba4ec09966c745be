"""A user's chats as a warm start: every assistant turn is trained, malformed lines are named, good ones kept."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.errors import TaskError
from burnish.core.message import Role
from burnish.loop.chats import read_chats
from burnish.policies.chat import ChatRenderer
from burnish.policies.tokenizer import train_tokenizer
from burnish.rollout.samples import demonstration_samples

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
        },
    }
]
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
PLAIN = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
LONG = {
    "tools": TOOLS,
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "name": "add", "content": "4"},
        {"role": "assistant", "content": "It is 4."},
        {"role": "user", "content": "Thanks"},
    ],
}


@pytest.fixture(scope="module")
def renderer() -> ChatRenderer:
    return ChatRenderer(train_tokenizer(["<|im_start|>user\n2 + 2?<|im_end|><|im_start|>assistant\n4<|im_end|>"] * 3))


@pytest.fixture
def write(tmp_path):
    def _write(*items: object) -> str:
        path = tmp_path / "chats.jsonl"
        path.write_text("".join(f"{item if isinstance(item, str) else json.dumps(item)}\n" for item in items))
        return str(path)

    return _write


def test_every_assistant_turn_is_an_action(write, renderer) -> None:
    chats = read_chats(write(PLAIN, LONG), renderer, max_tokens=4096)
    assert chats.problems == ()
    plain, long = chats.trajectories
    assert [node.is_action for node in plain.nodes] == [False, True]
    assert [node.is_action for node in long.nodes] == [False, True, False, True]
    assert [m.role for m in long.messages] == [Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL, Role.ASSISTANT]
    assert long.messages[1].text == "2 + 2?"
    assert dict(long.messages[2].tool_calls[0].arguments) == {"a": 2}
    assert long.answer == "It is 4."


def test_what_is_trained_is_what_the_assistant_said(write, renderer) -> None:
    [chat] = read_chats(write(LONG), renderer, max_tokens=4096).trajectories
    [sample] = demonstration_samples(chat)
    decode = renderer._tokenizer.decode
    trained = [token for token, mask in zip(sample.token_ids, sample.loss_mask, strict=True) if mask]
    said = renderer.encode_action(chat.messages[2]) + renderer.encode_action(chat.messages[4])
    assert trained == list(said)
    assert '"name":"add"' in decode(trained)
    assert "Be brief" in decode(list(sample.token_ids))
    assert "Be brief" not in decode(trained)


def test_tools_of_a_row_are_shown_where_the_renderer_shows_tools(write) -> None:
    tokenizer = train_tokenizer(["a"])
    texts = []
    for show in ("full", "none"):
        renderer = ChatRenderer(tokenizer, show_tools=show)  # type: ignore[arg-type]
        [chat] = read_chats(write(LONG), renderer, max_tokens=4096).trajectories
        texts.append(tokenizer.decode(list(chat.nodes[0].token_ids)))
    assert '"description":"Add."' in texts[0]
    assert '"description"' not in texts[1]


BAD = [
    ("{broken", "not JSON"),
    ("[1, 2]", "expected an object"),
    ("{}", 'expected {"messages": [...]}'),
    ({"messages": []}, "at least one message"),
    ({"messages": "hello"}, 'expected {"messages": [...]}'),
    ({"messages": ["hello"]}, "a message is an object, got str"),
    ({"messages": [{"content": "x"}]}, "one of system, user, assistant, tool, got None"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "got 'robot'"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "got ['user']"),
    ({"messages": [{"role": "user", "content": 3}]}, "must be text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "an image is"),
    ({"messages": [{"role": "user", "content": "x"}]}, "at least one assistant message"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "starts with another role"),
    ({"messages": [*PLAIN["messages"], {"role": "assistant", "content": "x"}]}, "two assistant messages"),
    ({"messages": [{"role": "user", "tool_calls": [CALL]}, PLAIN["messages"][1]]}, "a user message cannot call"),
    ({"messages": [PLAIN["messages"][0], {"role": "assistant", "tool_calls": "add"}]}, "'tool_calls' must be a list"),
    ({"messages": [PLAIN["messages"][0], {"role": "assistant", "tool_calls": ["add"]}]}, "a tool call must be"),
    ({"messages": [PLAIN["messages"][0], {"role": "assistant", "tool_calls": [{"function": None}]}]}, "a tool call"),
    (
        {
            "messages": [
                PLAIN["messages"][0],
                {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": "{"}}]},
            ]
        },
        "Expecting",
    ),
    (
        {
            "messages": [
                PLAIN["messages"][0],
                {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": "[1]"}}]},
            ]
        },
        "arguments of tool call 'add' must be an object",
    ),
    (PLAIN | {"tools": {"a": 1}}, "'tools' must be a list"),
    (PLAIN | {"tools": ["add"]}, "a tool must be an object"),
    (PLAIN | {"tools": [{"name": "add", "parameters": 3}]}, "parameters of tool 'add'"),
    (
        {"messages": [{"role": "user", "content": "long " * 200}, PLAIN["messages"][1]]},
        "limits.max_context_tokens is 99",
    ),
]


@pytest.mark.parametrize(("bad", "reason"), BAD, ids=[reason[:24] for _, reason in BAD])
def test_a_malformed_line_is_named_and_the_others_kept(write, renderer, bad, reason: str) -> None:
    good = [{"messages": [{"role": "user", "content": f"{n}?"}, PLAIN["messages"][1]]} for n in range(10)]
    path = write(*good[:3], bad, *good[3:])
    chats = read_chats(path, renderer, max_tokens=99)
    assert len(chats.trajectories) == 10
    [problem] = chats.problems
    assert problem.startswith(f"{path}:4: ")
    assert reason in problem


def test_more_than_a_tenth_of_malformed_lines_is_an_error(write, renderer) -> None:
    path = write(*[PLAIN] * 8, "{", "{}")
    with pytest.raises(TaskError, match=r"2 of 10 lines are unusable: .*chats\.jsonl:9: .*; .*chats\.jsonl:10: "):
        read_chats(path, renderer, max_tokens=99)


def test_an_empty_or_missing_file_is_an_error(write, renderer, tmp_path) -> None:
    with pytest.raises(TaskError, match="the file is empty"):
        read_chats(write(), renderer, max_tokens=99)
    with pytest.raises(TaskError, match=r"nowhere\.jsonl cannot be read"):
        read_chats(str(tmp_path / "nowhere.jsonl"), renderer, max_tokens=99)


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["user", "assistant", "tool"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "tool_calls", "tools", "function", "name", "arguments"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(JSONISH, JSONISH)
def test_any_line_is_a_demonstration_or_a_named_problem(tmp_path_factory, renderer, item, messages) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps(item) + "\n" + json.dumps({"messages": messages}) + "\n" + json.dumps(PLAIN) + "\n")
    # Good lines enough for the file as a whole to be usable.
    with path.open("a") as file:
        file.write(f"{json.dumps(PLAIN)}\n" * 20)
    chats = read_chats(str(path), renderer, max_tokens=99)
    assert len(chats.trajectories) + len(chats.problems) == 23
    assert all(problem.startswith((f"{path}:1: ", f"{path}:2: ")) for problem in chats.problems)
