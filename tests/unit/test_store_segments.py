"""A segment gives back exactly what it was given: ids, bits of floats, text, codes."""

from __future__ import annotations

import doctest
import math
import struct
from array import array
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.core.errors import StoreError
from burnish.core.grade import Grade
from burnish.core.message import ImagePart, Message, Role, TextPart, ToolCall, message_to_json
from burnish.core.outcome import COMPLETED, Ending, Limit, Outcome, Owner
from burnish.core.trajectory import Node, Trajectory
from burnish.store import layout, rows, segments
from burnish.store.rows import Fate, StoredTrajectory
from burnish.store.segments import decode_segment, encode_segment, storable_text, to_table

TEXT = st.text(st.characters(codec=None), max_size=12)
"""Every code point, lone surrogates and NUL among them."""

KEYS = st.text(st.characters(codec="utf-8"), max_size=6)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(KEYS, JSON, max_size=3)
OUTCOMES = st.one_of(
    st.just(COMPLETED),
    st.builds(Outcome, ending=st.just(Ending.TRUNCATED), limit=st.sampled_from(Limit)),
    st.builds(Outcome, ending=st.just(Ending.ERROR), owner=st.sampled_from(Owner), cause=TEXT, detail=TEXT),
)
PARTS = st.one_of(
    st.builds(TextPart, text=TEXT),
    st.builds(
        ImagePart,
        sha256=st.just("ab" * 32),
        media_type=st.just("image/png"),
        width_px=st.integers(1, 9),
        height_px=st.integers(1, 9),
    ),
)
CALLS = st.builds(ToolCall, id=TEXT, name=TEXT, arguments=OBJECTS, error=TEXT)
MESSAGES = st.one_of(
    st.builds(Message, role=st.sampled_from([Role.SYSTEM, Role.USER]), parts=st.lists(PARTS, max_size=2).map(tuple)),
    st.builds(
        Message,
        role=st.just(Role.ASSISTANT),
        parts=st.lists(PARTS, max_size=1).map(tuple),
        tool_calls=st.lists(CALLS, max_size=2).map(tuple),
    ),
    st.builds(
        Message,
        role=st.just(Role.TOOL),
        parts=st.lists(PARTS, max_size=1).map(tuple),
        tool_call_id=TEXT,
        name=TEXT,
        is_error=st.booleans(),
    ),
)
GRADES = st.one_of(
    st.builds(
        Grade, grader=TEXT, version=TEXT, score=st.floats(0, 1), evidence=OBJECTS, cost_tokens=st.integers(0, 2**40)
    ),
    st.builds(Grade, grader=TEXT, version=TEXT, score=st.none(), cause=TEXT.filter(bool)),
)


def from_bits(code: str, bits: list[int]) -> array[Any]:
    """An array whose elements have exactly these 32-bit patterns, signalling NaNs included."""
    stream: array[Any] = array(code)
    stream.frombytes(struct.pack(f"{len(bits)}I", *bits))
    return stream


@st.composite
def nodes(draw: st.DrawFn, index: int) -> Node:
    bits = draw(st.lists(st.integers(0, 2**32 - 1), max_size=5))
    return Node(
        parent=draw(st.integers(-1, index - 1)),
        messages=tuple(draw(st.lists(MESSAGES, max_size=2))),
        token_ids=from_bits("i", bits),
        action_mask=array("b", [bit & 1 for bit in bits]),
        logprobs=from_bits("f", list(reversed(bits))),
        versions=from_bits("i", bits),
        is_action=draw(st.booleans()),
        fork=draw(TEXT),
        started_s=draw(FINITE),
        duration_s=draw(FINITE),
    )


@st.composite
def stored(draw: st.DrawFn) -> StoredTrajectory:
    trajectory = Trajectory(
        id=draw(TEXT),
        task_id=draw(TEXT),
        task_hash="ab" * 8,
        group_id=draw(TEXT),
        sample_index=draw(st.integers(0, 2**31 - 1)),
        seed=draw(st.integers(0, 2**63 - 1)),
        nodes=tuple(draw(nodes(index)) for index in range(draw(st.integers(0, 3)))),
        outcome=draw(OUTCOMES),
        answer=draw(TEXT),
        final_state=draw(OBJECTS),
        counters=draw(st.dictionaries(KEYS, st.integers(), max_size=2)),
        tags=draw(st.dictionaries(KEYS, TEXT, max_size=2)),
        tool_s=draw(FINITE),
        total_s=draw(FINITE),
    )
    return StoredTrajectory(
        trajectory=trajectory,
        phase="rl",
        step=3,
        policy_version=draw(st.integers(0, 2**40)),
        fate=draw(st.sampled_from(Fate)),
        grades=tuple(draw(st.lists(GRADES, max_size=2))),
        reward=draw(st.none() | FINITE | st.just(-0.0)),
        advantage=draw(st.none() | FINITE),
    )


def shown(value: Any) -> Any:
    """A value with arrays as bytes (NaN equals itself), floats as bits, and text as UTF-8 can hold it."""
    if isinstance(value, str) and not isinstance(value, (Fate, Role)):
        return storable_text(value)
    if isinstance(value, float):
        return ("float", struct.pack("d", value))
    if isinstance(value, array):
        return (value.typecode, value.tobytes())
    if isinstance(value, Message):
        return shown(message_to_json(value))
    if isinstance(value, Mapping):
        return {shown(key): shown(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: shown(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


@given(st.lists(stored(), max_size=4))
@settings(max_examples=120, deadline=None)
def test_round_trip_is_exact(given_rows: list[StoredTrajectory]) -> None:
    assert shown(decode_segment(encode_segment(given_rows))) == shown(given_rows)


def row(**changes: Any) -> StoredTrajectory:
    fields = {
        "id": "rl/000003/0000/00",
        "task_id": "t",
        "task_hash": "h",
        "group_id": "g",
        "sample_index": 0,
        "seed": 7,
        "nodes": (),
        "outcome": COMPLETED,
    }
    return StoredTrajectory(
        trajectory=Trajectory(**(fields | changes)), phase="rl", step=3, policy_version=1, fate=Fate.TRAINED
    )


def test_the_round_trip_check_sees_a_changed_bit() -> None:
    quiet, payload = from_bits("f", [0x7FC00000]), from_bits("f", [0x7FC00001])
    assert shown(quiet) != shown(payload), "two NaNs with different bits must not pass for the same"


def test_the_attempt_is_the_writers() -> None:
    assert [r.attempt for r in decode_segment(encode_segment([row()], attempt=4))] == [4]


def test_same_rows_same_bytes() -> None:
    assert encode_segment([row(), row(id="b")]) == encode_segment([row(), row(id="b")])


def test_lone_surrogates_become_replacement_characters_and_nothing_else_changes() -> None:
    back = decode_segment(encode_segment([row(answer="a\ud800\x00b", final_state={"k": ["\udfff", "😀"]})]))[0]
    assert back.trajectory.answer == "a\ufffd\x00b"
    assert back.trajectory.final_state == {"k": ["\ufffd", "😀"]}


def test_numbers_that_json_cannot_hold_become_words() -> None:
    state = {"a": math.nan, "b": [math.inf, -math.inf], "c": 1.5}
    back = decode_segment(encode_segment([row(final_state=state)]))[0]
    assert back.trajectory.final_state == {"a": "NaN", "b": ["Infinity", "-Infinity"], "c": 1.5}


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "changes",
    [
        {"final_state": {"k": {1, 2}}},
        {"final_state": {"k": b"raw"}},
        {"final_state": {"k": deep(200_000)}},
        {"counters": {"k": object()}},
        {"seed": 2**64},
        {"sample_index": 2**40},
    ],
)
def test_what_does_not_fit_is_refused_with_its_name(changes: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match="trajectory odd cannot be stored"):
        to_table([row(), row(id="odd", **changes)])


def test_a_stream_of_the_wrong_type_is_refused() -> None:
    bad = Node(
        parent=-1,
        messages=(),
        token_ids=array("q", [1]),
        action_mask=array("b", [0]),
        logprobs=array("f", [0.0]),
        versions=array("i", [-1]),
        is_action=False,
    )
    with pytest.raises(StoreError, match=r"token_ids of a node must be array\('i'\)"):
        to_table([row(nodes=(bad,))])


@pytest.mark.parametrize("data", [b"", b"PAR1", b"x" * 100])
def test_bytes_that_are_no_segment_are_refused(data: bytes) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        decode_segment(data)


def test_a_segment_of_another_schema_is_refused() -> None:
    with pytest.raises(StoreError, match="lacks the columns answer"):
        segments.from_table(to_table([row()]).drop_columns(["answer"]))


def test_a_step_holds_only_its_own_trajectories() -> None:
    with pytest.raises(ValueError, match="belongs to step rl/3, not to rl/4"):
        rows.StepRecord(phase="rl", step=4, rows=[row()])
    with pytest.raises(ValueError, match="a phase is one of sft, rl, eval"):
        rows.StepRecord(phase="warmup", step=4)


@pytest.mark.parametrize("module", [rows, layout, segments])
def test_docstring_examples_hold(module: object) -> None:
    outcome = doctest.testmod(module)  # type: ignore[arg-type]
    assert outcome.attempted > 0
    assert outcome.failed == 0
