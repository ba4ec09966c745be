"""The calculator's grammar: right on everything inside it, quick and typed on everything outside."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.errors import ToolError
from burnish.environments.shop.arithmetic import MAX_CHARS, MAX_DEPTH, MAX_VALUE, evaluate

numbers = st.integers(min_value=0, max_value=999)
expressions = st.recursive(
    numbers.map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", " + ", " * "]), inner).map("".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"-{text}"),
    ),
    max_leaves=6,
)


@given(expressions)
def test_agrees_with_python_inside_the_grammar(expression: str) -> None:
    expected = eval(expression, {"__builtins__": {}})
    try:
        assert evaluate(expression) == expected
    except ToolError:
        too_deep = expression.count("(") + expression.count("-") > MAX_DEPTH
        assert len(expression) > MAX_CHARS or too_deep or len(str(expected)) > 9


@given(st.text(max_size=400))
def test_any_text_gives_a_number_or_a_tool_error(text: str) -> None:
    with contextlib.suppress(ToolError):
        assert abs(evaluate(text)) <= MAX_VALUE


@given(st.text(alphabet="0123456789+-*() ", max_size=300))
def test_any_text_over_the_alphabet_gives_a_number_or_a_tool_error(text: str) -> None:
    with contextlib.suppress(ToolError):
        assert abs(evaluate(text)) <= MAX_VALUE


@pytest.mark.parametrize(
    "hostile",
    [
        "9**9**9",
        "9**999999999",
        "(" * 10_000,
        "(" * 40 + "1" + ")" * 40,
        "-" * 90 + "1",
        "9" * 1_000_000,
        "9" * 50,
        "999999999*999999999*9",
        "1/0",
        "7//2",
        "1e9",
        "0x10",
        "__import__('os')",
        "",
        "   ",
        "1+",
        "*1",
        "1 + ()",
        "(1",
        "1)",
        "2(3)",
        "٣+٤",
        "1\ud8002",
        "1\x00",
    ],
)
def test_hostile_input_is_refused_at_once(hostile: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ToolError):
        evaluate(hostile)
    assert time.perf_counter() - start < 0.2


def test_spaces_do_not_join_digits() -> None:
    with pytest.raises(ToolError):
        evaluate("1 2")
