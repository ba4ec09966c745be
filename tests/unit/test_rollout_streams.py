from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.grade import Grade
from burnish.core.message import ImagePart, Message, Role, ToolCall
from burnish.core.outcome import COMPLETED
from burnish.core.streams import TokenColumns
from burnish.core.trajectory import NO_VERSION, Node, Trajectory
from burnish.rollout.branches import FORK_NEW, FORK_REWRITTEN
from burnish.rollout.samples import trained_nodes, training_samples
from burnish.rollout.streams import (
    ControlTokens,
    Judgement,
    LearnerStreams,
    action_spans,
    in_trained_order,
    source_of,
    token_columns,
    token_stream,
)

OPEN, CLOSE, END = 260, 261, 262
CONTROL = ControlTokens([OPEN, CLOSE, END])


def call(name: str, **arguments: object) -> ToolCall:
    return ToolCall(id=f"call_{name}", name=name, arguments=arguments)


def action(
    parent: int,
    ids: Sequence[int],
    *calls: ToolCall,
    logprobs: Sequence[float] | None = None,
    version: int = 4,
    mask: Sequence[int] | None = None,
) -> Node:
    return Node(
        parent=parent,
        messages=(Message.assistant("said", calls),),
        token_ids=array("i", ids),
        action_mask=array("b", mask or [1] * len(ids)),
        logprobs=array("f", logprobs or [-0.1 * token for token in ids]),
        versions=array("i", [version] * len(ids)),
        is_action=True,
    )


def shown(parent: int, *messages: Message, count: int = 3, fork: str = "") -> Node:
    return Node(
        parent=parent,
        messages=messages,
        token_ids=array("i", range(count)),
        action_mask=array("b", [0] * count),
        logprobs=array("f", [float("nan")] * count),
        versions=array("i", [NO_VERSION] * count),
        is_action=False,
        fork=fork,
    )


def trajectory(*nodes: Node, tags: dict[str, str] | None = None, key: str = "rl/000001/0000/00") -> Trajectory:
    return Trajectory(
        id=key,
        task_id="t",
        task_hash="h",
        group_id=key.rpartition("/")[0],
        sample_index=0,
        seed=0,
        nodes=nodes,
        outcome=COMPLETED,
        counters={"tool_calls": 2, "tool_errors": 1},
        tags=tags or {},
    )


def two_calls() -> Trajectory:
    """Asks for a price, gets an error, asks again, gets it, answers in two turns."""
    first = call("price", item="pear")
    return trajectory(
        shown(-1, Message.user("What does a pear cost?")),
        action(0, [OPEN, 7, CLOSE, END], first),
        shown(1, Message.tool("no such item", call=first, is_error=True)),
        action(2, [OPEN, 8, CLOSE, END], first),
        shown(3, Message.tool("3", call=first)),
        action(4, [9, END], version=5),
        shown(5, Message.user("Sure?")),
        action(6, [3, END], version=5),
        tags={"source": "shop", "skill": "lookup", "level": "1"},
    )


def test_spans_say_what_each_action_was_conditioned_on():
    spans, retries = action_spans(two_calls())
    assert [(span.start, span.end, span.turn) for span in spans] == [(0, 4, 0), (4, 8, 1), (8, 10, 2), (10, 12, 3)]
    assert [span.tool for span in spans] == ["", "price", "price", ""]
    assert [span.after_tool for span in spans] == [False, True, True, True]
    assert [span.after_error for span in spans] == [False, True, False, False]
    assert retries == 1


def test_another_tool_after_an_error_is_no_retry():
    first, other = call("price"), call("stock")
    _, retries = action_spans(
        trajectory(
            shown(-1, Message.user("?")),
            action(0, [1], first),
            shown(1, Message.tool("broken", call=first, is_error=True)),
            action(2, [2], other),
        )
    )
    assert retries == 0


def test_images_and_rewritten_histories_are_remembered():
    image = ImagePart(sha256="0" * 64, media_type="image/png", width_px=8, height_px=8)
    nodes = (
        shown(-1, Message.user("look")),
        action(0, [1]),
        shown(1, Message(role=Role.USER, parts=(image,))),
        action(2, [2]),
        shown(-1, Message.user("summary"), fork=FORK_REWRITTEN),
        action(4, [3]),
        shown(-1, Message.user("another matter"), fork=FORK_NEW),
        action(6, [4]),
    )
    spans, _ = action_spans(trajectory(*nodes))
    assert [span.after_image for span in spans] == [False, True, True, False]
    assert [span.after_compaction for span in spans] == [False, False, True, False]


SHOWN = st.sampled_from(
    [
        (),
        (Message.user("Sure?"),),
        (Message.tool("3", call=call("price")),),
        (Message.tool("no such item", call=call("price"), is_error=True),),
        (Message.tool("3", call=call("price")), Message.tool("gone", call=call("stock"), is_error=True)),
        (Message.tool("gone", call=call("stock"), is_error=True), Message.user("Sure?")),
        (
            Message(
                role=Role.USER, parts=(ImagePart(sha256="0" * 64, media_type="image/png", width_px=8, height_px=8),)
            ),
        ),
    ]
)
ACTIONS = st.sampled_from([(), (call("price"),), (call("stock"), call("price"))])


@given(st.lists(st.one_of(st.tuples(st.just(True), ACTIONS), st.tuples(st.just(False), SHOWN)), max_size=12))
def test_a_chain_is_read_as_what_branches_is(turns: list[tuple[bool, tuple[Any, ...]]]) -> None:
    """The same conversation, and with a message beside its last one, which makes it no chain."""
    chain = [shown(-1, Message.user("What does a pear cost?"))]
    for acts, what in turns:
        chain.append(action(len(chain) - 1, [7, END], *what) if acts else shown(len(chain) - 1, *what))
    beside = shown(-1, Message.user("another matter"), fork=FORK_NEW)
    assert action_spans(trajectory(*chain)) == action_spans(trajectory(*chain, beside))


def test_a_stream_holds_the_sampled_tokens_and_what_is_known_of_them():
    one = two_calls()
    learner = LearnerStreams(logprobs=np.arange(12, dtype=np.float32), entropy=np.full(12, 0.5, dtype=np.float32))
    judged = Judgement.of(
        [Grade(grader="shop", version="1", score=1.0, evidence={"progress": 0.5})], reward=0.9, advantage=0.3
    )
    stream = token_stream(one, judged, step=7, version=6, control=CONTROL, learner=learner)
    assert stream.length == 12
    assert list(stream.control) == [1, 0, 1, 1, 1, 0, 1, 1, 0, 1, 0, 1]
    assert list(stream.staleness) == [2] * 8 + [1] * 4
    assert stream.learner == array("f", range(12))
    assert stream.behaviour[1] == pytest.approx(-0.7)
    assert (stream.source, stream.skill, stream.turns, stream.retries) == ("shop", "lookup", 4, 1)
    assert (stream.advantage, stream.reward, stream.success, stream.progress) == (0.3, 0.9, 1.0, 0.5)
    assert dict(stream.reward_parts) == {"shop": 1.0}
    assert (stream.tool_calls, stream.tool_errors, stream.outcome, stream.step) == (2, 1, "completed", 7)
    assert stream.score_norm is stream.proximal is stream.reference is None


def test_without_a_learner_the_stream_is_there_all_the_same():
    stream = token_stream(two_calls(), Judgement(), step=1, version=5, control=CONTROL)
    assert stream.learner is None
    assert stream.length == 12
    assert (stream.success, stream.progress, stream.reward) == (None, None, None)


def test_a_grade_that_could_not_be_given_is_no_failure():
    unknown = Judgement.of([Grade(grader="g", version="1", score=None, cause="timeout")], reward=None, advantage=None)
    assert (unknown.success, dict(unknown.reward_parts)) == (None, {})
    partial = Judgement.of([Grade(grader="g", version="1", score=0.9)], reward=0.9, advantage=None)
    assert partial.success == 0.0


def test_tokens_that_were_not_sampled_are_left_out():
    one = trajectory(shown(-1, Message.user("?")), action(0, [1, 2, 3], mask=[1, 0, 1]))
    stream = token_stream(one, Judgement(), step=1, version=4, control=CONTROL)
    assert list(stream.behaviour) == pytest.approx([-0.1, -0.3])
    assert [(span.start, span.end) for span in stream.spans] == [(0, 2)]


def branched() -> Trajectory:
    """The first leaf's path is 0-1-4-5, the second's 0-1-2-3: samples train 1, 5, 3 or 1, 3, 5, never in node order of
    a straight line."""
    return trajectory(
        shown(-1, Message.user("?")),
        action(0, [1]),
        shown(1, Message.user("left")),
        action(2, [2, 3]),
        shown(1, Message.user("right")),
        action(4, [4, 5, 6]),
        shown(3, Message.user("left again")),
        action(6, [7]),
    )


def trained_scores(one: Trajectory) -> np.ndarray:
    """Minus the behaviour policy's log-probabilities, in the order of the samples."""
    return np.array(
        [
            -value
            for sample in training_samples(one, 1.0)
            for value, trained in zip(sample.behaviour_logprobs, sample.loss_mask, strict=True)
            if trained
        ],
        dtype=np.float32,
    )


def test_scores_of_a_branched_conversation_find_their_tokens():
    one = branched()
    trained = trained_scores(one)
    assert trained_nodes(one) != sorted(trained_nodes(one)), "else this test shows nothing"
    stream = token_stream(
        one, Judgement(), step=1, version=4, control=CONTROL, learner=LearnerStreams(logprobs=trained)
    )
    assert list(stream.learner) == [-value for value in stream.behaviour]
    back = in_trained_order(one, np.frombuffer(stream.learner, dtype=np.float32))
    assert back.tolist() == trained.tolist()


def test_many_trajectories_at_once_are_as_one_by_one():
    """Straight, branched, with tokens that were not sampled, without any action, in one call."""
    masked = trajectory(shown(-1, Message.user("?")), action(0, [1, 2, 3], mask=[1, 0, 1]), key="rl/000001/0001/01")
    silent = trajectory(shown(-1, Message.user("?")), key="rl/000001/0001/02")
    many = [
        two_calls(),
        replace(branched(), id="rl/000001/0001/00"),
        masked,
        silent,
        replace(two_calls(), id="rl/000001/0001/03"),
    ]
    scores = [trained_scores(one) for one in many]
    judged = [Judgement(advantage=float(i), reward=None if i else 1.0) for i in range(len(many))]
    columns = token_columns(
        many, judged, step=3, version=6, control=CONTROL, learner=LearnerStreams(logprobs=np.concatenate(scores))
    )
    alone = [
        token_stream(one, known, step=3, version=6, control=CONTROL, learner=LearnerStreams(logprobs=found))
        for one, known, found in zip(many, judged, scores, strict=True)
    ]
    assert columns.split() == tuple(alone)
    assert TokenColumns.of(alone) == columns
    assert all(list(stream.learner) == [-value for value in stream.behaviour] for stream in alone)
    with pytest.raises(ValueError, match="12 scores for"):
        token_columns(many, judged, step=3, version=6, control=CONTROL, learner=LearnerStreams(logprobs=scores[0]))


@pytest.mark.parametrize("untrained", [0, 1, 2, 3])
def test_untrained_at_the_front_are_as_columns_of_their_own(untrained: int) -> None:
    """A branched trajectory stands on either side of the border."""
    bent = [replace(branched(), id=f"rl/000001/0001/{i:02}") for i in range(2)]
    many = [bent[0], two_calls(), bent[1]]
    judged = [Judgement(advantage=None if i < untrained else 0.5, reward=1.0) for i in range(3)]
    scores = np.concatenate([np.empty(0, dtype=np.float32), *(trained_scores(one) for one in many[untrained:])])
    learner = LearnerStreams(logprobs=scores, entropy=-scores)
    together = token_columns(many, judged, step=3, version=6, control=CONTROL, learner=learner, untrained=untrained)
    apart = [
        token_columns(many[:untrained], judged[:untrained], step=3, version=6, control=CONTROL),
        token_columns(many[untrained:], judged[untrained:], step=3, version=6, control=CONTROL, learner=learner),
    ]
    assert together == TokenColumns.joined(apart)
    assert [stream.learner is None for stream in together.split()] == [i < untrained for i in range(3)]


def test_sources_come_from_tags():
    assert source_of({"source": "refunds", "level": "2"}) == "refunds"
    assert source_of({"level": "2"}) == "level 2"
    assert source_of({}) == ""


def test_streams_cost_little():
    """256 trajectories in about a millisecond; the bound leaves room for a slow machine."""
    many = [replace(two_calls(), id=f"rl/000001/0000/{index:03}") for index in range(256)]
    learner = LearnerStreams(logprobs=np.zeros(12 * 256, dtype=np.float32))
    judged, best_s = [Judgement()] * 256, 1.0
    for _ in range(5):
        started_s = time.process_time()
        token_columns(many, judged, step=1, version=5, control=CONTROL, learner=learner)
        best_s = min(best_s, time.process_time() - started_s)
    assert best_s < 0.01
