"""The shop's grader: answers and exact rows, nothing else; failed is not zero."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.hashing import canonical_json
from burnish.core.outcome import COMPLETED, Ending, Limit, Outcome, Owner
from burnish.core.task import Task
from burnish.environments.shop import ShopGrader
from burnish.environments.shop.database import added, updated
from burnish.environments.shop.grader import normalised_answer
from burnish.testing.grader import answered

READ = Task(prompt="What is the price of lamp?", reference={"answer": "47"})
REPRICED = updated("products", "lamp", {"price": 47}, {"price": 52})
REFUNDED = added("refunds", {"order_id": 17, "amount": 20})
WRITE = Task(prompt="Do both.", reference={"changes": [REPRICED, REFUNDED]})


def grade(task: Task, answer: str = "done", changes: Any = (), outcome: Outcome = COMPLETED) -> Any:
    state = {} if changes is None else {"changes": changes if isinstance(changes, str) else list(changes)}
    trajectory = answered(task, answer, outcome=outcome, final_state=state)
    result = asyncio.run(ShopGrader().grade(task, trajectory))
    canonical_json(result.evidence)
    return result


@pytest.mark.parametrize("answer", ["47", " 47. ", "$47", "47.00", "047"])
def test_right_answers(answer: str) -> None:
    assert grade(READ, answer).score == 1.0


@pytest.mark.parametrize("answer", ["", "48", "47 48", "4 7", "47 or 48", "-47", "lamp", "47" * 500, "4７"])
def test_wrong_answers(answer: str) -> None:
    result = grade(READ, answer)
    assert result.score == 0.0
    assert result.evidence["expected"] == "47"
    assert len(result.evidence["found"]) <= 200


def test_a_read_that_changes_anything_fails_even_with_the_right_answer() -> None:
    result = grade(READ, "47", [REFUNDED])
    assert result.score == 0.0
    assert "change nothing" in result.evidence["problem"]


@pytest.mark.parametrize(
    ("changes", "score"),
    [
        ([REPRICED, REFUNDED], 1.0),
        ([REFUNDED, REPRICED], 1.0),
        ([], 0.0),
        ([REPRICED], 0.0),
        ([REPRICED, REFUNDED, REFUNDED], 0.0),
        ([REPRICED, REFUNDED, updated("stock", "rug", {"units": 5}, {"units": 6})], 0.0),
        ([updated("products", "lamp", {"price": 47}, {"price": 53}), REFUNDED], 0.0),
        ([updated("products", "rug", {"price": 47}, {"price": 52}), REFUNDED], 0.0),
    ],
)
def test_a_write_must_change_exactly_its_rows(changes: list[Any], score: float) -> None:
    result = grade(WRITE, changes=changes)
    assert result.score == score
    assert (result.evidence["n_missing"] == result.evidence["n_extra"] == 0) == (score == 1.0)


def test_what_a_write_says_does_not_count() -> None:
    assert grade(WRITE, answer="", changes=[REPRICED, REFUNDED]).score == 1.0


def test_an_episode_that_did_not_complete_scores_nothing() -> None:
    truncated = Outcome(ending=Ending.TRUNCATED, limit=Limit.TURNS)
    own_fault = Outcome(ending=Ending.ERROR, owner=Owner.MODEL, cause="malformed")
    for outcome in (truncated, own_fault):
        assert grade(WRITE, changes=[REPRICED, REFUNDED], outcome=outcome).score == 0.0
        assert grade(READ, "47", outcome=outcome).score == 0.0


@pytest.mark.parametrize("owner", [Owner.ENVIRONMENT, Owner.GRADER, Owner.INFRASTRUCTURE])
def test_a_fault_that_is_not_the_policys_gets_no_score(owner: Owner) -> None:
    result = grade(READ, "47", outcome=Outcome(ending=Ending.ERROR, owner=owner, cause="crash"))
    assert result.score is None
    assert result.cause == f"excluded:error:{owner}"


@pytest.mark.parametrize("changes", [None, "none"])
def test_a_missing_final_state_gets_no_score(changes: Any) -> None:
    assert grade(READ, "47", changes).cause == "final_state_missing"


@given(st.text(max_size=300))
def test_any_answer_gets_a_score(answer: str) -> None:
    assert grade(READ, answer).score in (0.0, 1.0)
    normalised_answer(answer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Shipped  23.", "shipped 23"), ("$1,410", "1410"), ("1,41", "1,41"), ("B4!", "b4"), ("-0", "0")],
)
def test_normal_form(text: str, expected: str) -> None:
    assert normalised_answer(text) == expected
