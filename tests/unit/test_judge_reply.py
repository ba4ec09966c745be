"""A judge's reply is read strictly or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.judge import JudgeCause, JudgeError, Verdict
from burnish.core.judge_reply import is_quoted, read_reply
from burnish.testing.judge import ANSWER, CRITERIA, question

REQUEST = question(controls=False, nonce=lambda: "n" * 32)
"""Four criteria: yes or no twice, one with a needed quote, one with levels 0 to 4."""


def rows(**changes: Any) -> list[dict[str, Any]]:
    """A good reply; changes: of the third verdict."""
    found = [{"item": n, "quote": "", "reason": "because", "value": 1} for n in (1, 2, 3, 4)]
    found[2] |= {"quote": "The lamp costs 12 dollars"} | changes
    return found


def text(verdicts: Any, **changes: Any) -> str:
    return json.dumps({"nonce": REQUEST.nonce, "verdicts": verdicts} | changes)


def cause(reply: str) -> JudgeCause:
    with pytest.raises(JudgeError) as caught:
        read_reply(REQUEST, reply)
    return caught.value.cause


def test_values_are_shares_of_the_levels() -> None:
    verdicts = read_reply(REQUEST, text(rows()))
    assert [verdict.value for verdict in verdicts] == [1.0, 1.0, 1.0, 0.25]
    assert verdicts[2] == Verdict(
        criterion="names_price", value=1.0, quote="The lamp costs 12 dollars", reason="because"
    )


def test_a_fenced_reply_after_thinking_is_read() -> None:
    assert len(read_reply(REQUEST, f"<think>hm</think>\n```json\n{text(rows())}\n```\n")) == 4
    assert read_reply(REQUEST, text(rows(value=None)))[2].value is None


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "All criteria are met.",
        "[]",
        "NaN",
        text(rows()) + text(rows()),
        "Here it is: " + text(rows()),
        text(rows(), nonce="0" * 32),
        text(rows(), score=10),
        text(rows()[:3]),
        text([*rows(), rows()[0]]),
        text([*rows(), {"item": 5, "quote": "", "reason": "", "value": 1}]),
        text("met"),
        text(rows(value=2)),
        text(rows(value=-1)),
        text(rows(value=0.5)),
        text(rows(value="1")),
        text(rows(value=True)),
        text(rows(extra=1)),
        text(rows(quote=None)),
        text(rows(item="3")),
        text(rows()).replace('"value": 1', '"value": 1, "value": 0', 1),
        text(rows()).replace('"value": 1', '"value": NaN', 1),
        text(rows()).replace('"value": 1', '"value": 1e999', 1),
        "[" * 100_000,
        '{"a":' * 50_000,
        text(rows(reason="x" * 200_000)),
    ],
    ids=range(26),
)
def test_anything_else_is_malformed(reply: str) -> None:
    assert cause(reply) is JudgeCause.MALFORMED


def test_a_needed_quote_must_stand_in_the_judged_text() -> None:
    assert cause(text(rows(quote=""))) is JudgeCause.EVIDENCE_NOT_FOUND
    assert cause(text(rows(quote="It costs 13 dollars"))) is JudgeCause.EVIDENCE_NOT_FOUND
    assert cause(text(rows(quote="What does the lamp cost?"))) is JudgeCause.EVIDENCE_NOT_FOUND  # the task's words
    assert cause(text(rows(quote="12"))) is JudgeCause.EVIDENCE_NOT_FOUND  # too short to prove anything
    assert read_reply(REQUEST, text(rows(quote="", value=0)))[2].value == 0.0


@pytest.mark.parametrize(
    "quote", ["the lamp  costs\n12 DOLLARS", '"The lamp costs 12"', "Good morning. ... two days", ANSWER]
)
def test_white_space_case_quotation_marks_and_gaps_do_not_count(quote: str) -> None:
    assert is_quoted(REQUEST, quote)


def test_gaps_keep_their_order() -> None:
    assert not is_quoted(REQUEST, "two days ... Good morning")
    assert not is_quoted(REQUEST, "...")


KEYS = ["nonce", "verdicts", "item", "value", "quote"]
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=12,
)


@given(st.text() | JSON.map(json.dumps) | st.lists(JSON, max_size=4).map(lambda items: text(items)))
def test_any_text_is_verdicts_or_a_judge_error(reply: str) -> None:
    try:
        verdicts = read_reply(REQUEST, reply)
    except JudgeError:
        return
    assert [verdict.criterion for verdict in verdicts] == [item.id for item in CRITERIA]
