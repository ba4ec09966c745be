"""The message graph: exact ids, masks, forks and what is trained of them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
from array import array
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.core.errors import InvariantViolation
from burnish.core.message import Message, ToolCall
from burnish.core.outcome import COMPLETED, Ending, Outcome, Owner
from burnish.core.sampling import Extension, Sample, SampleRequest, SamplingParams
from burnish.core.task import Limits, Task
from burnish.core.trajectory import Node, Trajectory
from burnish.rollout.audit import audit_samples, audit_trajectory, path_ids, require_audit
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.graph import GraphBuilder
from burnish.rollout.runner import run_episodes
from burnish.rollout.samples import demonstration_samples, training_samples
from burnish.testing.fakes import FakeEnvironment, FakeRenderer, ScriptedSampler, fake_tool

END = FakeRenderer.end_id


def ids(*values: int) -> array[int]:
    return array("i", values)


def sampled(*values: int, version: int = 3) -> Sample:
    return Sample(
        token_ids=ids(*values), logprobs=array("f", [-0.25] * len(values)), versions=array("i", [version]) * len(values)
    )


def test_linear_episode_keeps_every_token_once():
    graph = GraphBuilder()
    graph.add_prompt([Message.user("q")], ids(1, 2))
    graph.add_action(Message.assistant("a"), sampled(7, 8))
    graph.add_observation([Message.user("r")], Extension(token_ids=ids(3)))
    assert graph.prefix_ids() == ids(1, 2, 7, 8, 3)
    assert [node.parent for node in graph.nodes] == [-1, 0, 1]
    assert [list(node.action_mask) for node in graph.nodes] == [[0, 0], [1, 1], [0]]
    assert list(graph.nodes[1].versions) == [3, 3]
    assert list(graph.nodes[2].versions) == [-1]
    assert all(math.isnan(value) for value in graph.nodes[0].logprobs)
    assert graph.sampled_tokens == 2


def test_prefix_is_a_copy():
    graph = GraphBuilder()
    graph.add_prompt([Message.user("q")], ids(1, 2))
    graph.prefix_ids().append(9)
    assert graph.prefix_ids() == ids(1, 2)


def test_fork_is_a_named_counted_root_and_is_not_sampled():
    graph = GraphBuilder()
    graph.add_prompt([Message.user("q")], ids(1))
    graph.add_action(Message.assistant("a"), sampled(7))
    graph.add_observation([Message.user("r")], Extension(token_ids=ids(1, 9, 3), fork="thinking_dropped"))
    assert graph.nodes[2].parent == -1
    assert graph.nodes[2].fork == "thinking_dropped"
    assert graph.prefix_ids() == ids(1, 9, 3)
    assert graph.forks == {"thinking_dropped": 1}
    assert not any(graph.nodes[2].action_mask)
    assert len(graph.messages) == 3, "a fork repeats no message"


@pytest.mark.parametrize(
    "sample",
    [
        Sample(token_ids=ids(1, 2), logprobs=array("f", [0.0])),
        Sample(token_ids=ids(1), logprobs=array("f", [math.nan])),
        Sample(token_ids=ids(1), logprobs=array("f", [-math.inf])),
    ],
)
def test_broken_sample_is_an_invariant_violation(sample):
    graph = GraphBuilder()
    graph.add_prompt([Message.user("q")], ids(1))
    with pytest.raises(InvariantViolation, match="sample_"):
        graph.add_action(Message.assistant("a"), sample)


def test_order_of_nodes_is_checked():
    graph = GraphBuilder()
    with pytest.raises(ValueError, match="follows an action"):
        graph.add_observation([Message.user("r")], Extension(token_ids=ids(3)))
    graph.add_prompt([Message.user("q")], ids(1))
    with pytest.raises(ValueError, match="one prompt"):
        graph.add_prompt([Message.user("q")], ids(1))


# -- properties over whole episodes ------------------------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8) | st.sampled_from(["", "🍐", "é"])
calls = st.builds(
    lambda name, key, value: ToolCall(id="x", name=name, arguments={key: value}),
    st.sampled_from(["echo", "boom", "unknown"]),
    st.sampled_from(["a", "b"]),
    st.integers(-5, 5) | texts,
)
turns = st.lists(
    st.builds(lambda text, cs: Message.assistant(text, tuple(cs)), texts, st.lists(calls, max_size=2))
    | st.binary(max_size=10),
    min_size=1,
    max_size=6,
)


def boom(arguments):
    raise ValueError("no such thing")


def play(script, renderer, *, replies=(), limits=None, n=1):
    sampler = ScriptedSampler(script, renderer=renderer, version=5)
    tools = [fake_tool("echo", lambda arguments: json.dumps(dict(arguments))), fake_tool("boom", boom)]
    plans = [
        EpisodePlan(id=f"t/{i}", group_id="t", task=Task(prompt="go", system="be good"), sample_index=i, seed=i)
        for i in range(n)
    ]
    trajectories = asyncio.run(
        run_episodes(
            plans,
            make_environment=lambda task: FakeEnvironment(tools=tools, replies=replies),
            renderer=renderer,
            sampler=sampler,
            params=SamplingParams(),
            limits=limits or Limits(max_turns=6, max_malformed_calls=9),
        )
    )
    return trajectories, sampler.requests


@settings(max_examples=150, deadline=None)
@given(script=turns, drop=st.booleans(), replies=st.lists(texts, max_size=3), max_tokens=st.integers(1, 60))
def test_tokens_are_facts(script, drop, replies, max_tokens):
    """Joined path tokens are the exact ids of every request, masks hold, every sampled token is trained once."""
    renderer = FakeRenderer(drop_earlier_text=drop)
    script = [turn if isinstance(turn, Message) else turn + bytes([65]) for turn in script]
    limits = Limits(max_turns=6, max_turn_tokens=max_tokens, max_malformed_calls=9)
    (trajectory,), requests = play(script, renderer, replies=replies, limits=limits)

    assert audit_trajectory(trajectory, renderer) == []
    actions = [index for index, node in enumerate(trajectory.nodes) if node.is_action]
    assert len(actions) == len(requests) == trajectory.counters["turns"]
    for action, request in zip(actions, requests, strict=True):
        assert path_ids(trajectory, trajectory.nodes[action].parent) == list(request.prompt_ids)
    for before, after, action in zip(requests, requests[1:], actions, strict=False):
        sent = [*before.prompt_ids, *trajectory.nodes[action].token_ids]
        is_prefix = list(after.prompt_ids[: len(sent)]) == sent
        assert is_prefix != bool(trajectory.nodes[action + 1].fork), "an exact prefix or a named fork"
    named = sum(count for name, count in trajectory.counters.items() if name.startswith("fork:"))
    assert trajectory.counters["forks"] == named == sum(bool(node.fork) for node in trajectory.nodes)

    samples = training_samples(trajectory, 0.5)
    assert audit_samples(trajectory, samples) == []
    for sample in samples:
        assert {value for value, mask in zip(sample.advantages, sample.loss_mask, strict=True) if mask} <= {0.5}


def test_template_that_drops_earlier_text_forks_by_name():
    renderer = FakeRenderer(drop_earlier_text=True)
    call = ToolCall(id="x", name="echo", arguments={"a": 1})
    script = [Message.assistant("I think", (call,)), Message.assistant("", (call,)), Message.assistant("done")]
    (trajectory,), _ = play(script, renderer)
    assert trajectory.counters["fork:earlier_text_dropped"] == trajectory.counters["forks"] == 1
    assert len(list(trajectory.leaves())) == 2
    assert len(training_samples(trajectory, 1.0)) == 2
    assert [message.role for message in trajectory.messages].count("assistant") == 3


class ReencodingRenderer(FakeRenderer):
    """What must not be: the past is encoded again, and nothing says so."""

    def extend(self, past, new, tools):
        return Extension(token_ids=self.open([*past, *new], tools))


def test_a_renderer_that_repeats_the_past_is_seen():
    """Negative control for the prefix check: without a fork the next prompt holds the conversation twice."""
    call = ToolCall(id="x", name="echo", arguments={"a": 1})
    (trajectory,), requests = play([Message.assistant("", (call,)), "done"], ReencodingRenderer())
    expected = FakeRenderer().open(list(trajectory.messages[:-1]), [])
    assert list(requests[1].prompt_ids) != list(expected)


# -- the audit sees what is broken -------------------------------------------------------------------------------------


def a_trajectory() -> Trajectory:
    call = ToolCall(id="x", name="echo", arguments={"a": 1})
    (trajectory,), _ = play([Message.assistant("", (call,)), "done"], FakeRenderer())
    return trajectory


def broken(trajectory: Trajectory, index: int, **changes) -> Trajectory:
    nodes = list(trajectory.nodes)
    nodes[index] = dataclasses.replace(nodes[index], **changes)
    return dataclasses.replace(trajectory, nodes=tuple(nodes))


def test_audit_passes_then_names_each_fault():
    good = a_trajectory()
    require_audit(good, FakeRenderer())
    observation, action = good.nodes[2], good.nodes[1]
    ones = array("b", [1]) * len(observation.token_ids)
    faults = {
        "observation with sampled tokens": broken(good, 2, action_mask=ones),
        "second root": broken(good, 2, parent=-1),
        "fork (x) that is no root": broken(good, 2, fork="x"),
        "does not come before": broken(good, 1, parent=2),
        "without a log-probability": broken(good, 1, logprobs=array("f", [math.nan]) * len(action.token_ids)),
        "not sampled": broken(good, 1, action_mask=array("b", bytes(len(action.token_ids)))),
        "one assistant message": broken(good, 1, messages=(Message.user("no"),)),
        "read as another message": broken(good, 1, messages=(Message.assistant("no"),)),
        "counted": dataclasses.replace(good, counters={"forks": 2}),
    }
    for expected, trajectory in faults.items():
        assert any(expected in problem for problem in audit_trajectory(trajectory, FakeRenderer())), expected
    with pytest.raises(InvariantViolation, match="mask_audit"):
        require_audit(faults["second root"])


# -- training samples --------------------------------------------------------------------------------------------------


def node(parent: int, tokens: list[int], *, action: bool, fork: str = "") -> Node:
    count = len(tokens)
    return Node(
        parent=parent,
        messages=(Message.assistant("a") if action else Message.user("u"),),
        token_ids=ids(*tokens),
        action_mask=array("b", [int(action)] * count),
        logprobs=array("f", [-0.5 if action else math.nan] * count),
        versions=ids(*[4 if action else -1] * count),
        is_action=action,
        fork=fork,
    )


def record(*nodes: Node, outcome: Outcome = COMPLETED) -> Trajectory:
    return Trajectory(
        id="t", task_id="t", task_hash="h", group_id="g", sample_index=0, seed=0, nodes=nodes, outcome=outcome
    )


def test_shared_prefix_is_trained_exactly_once():
    branched = record(
        node(-1, [1, 2], action=False),
        node(0, [7, 8], action=True),
        node(1, [3], action=False),
        node(2, [9], action=True),
        node(1, [4, 5], action=False),
        node(4, [6], action=True),
    )
    first, second = training_samples(branched, 2.0)
    assert list(first.token_ids) == [1, 2, 7, 8, 3, 9]
    assert list(first.loss_mask) == [0, 0, 1, 1, 0, 1]
    assert list(second.token_ids) == [1, 2, 7, 8, 4, 5, 6]
    assert list(second.loss_mask) == [0, 0, 0, 0, 0, 0, 1]
    assert list(second.versions) == [-1, -1, -1, -1, -1, -1, 4]
    assert list(first.behaviour_logprobs) == [0, 0, -0.5, -0.5, 0, -0.5]
    assert audit_samples(branched, [first, second]) == []
    assert audit_samples(branched, [first, first]), "the audit sees tokens that are trained twice"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.booleans(), st.integers(0, 3)), max_size=14))
def test_every_action_token_is_trained_once_in_any_tree(shape):
    nodes = [node(-1, [1], action=False)]
    for index, (parent, action, count) in enumerate(shape, start=1):
        nodes.append(node(parent % index, list(range(count + 1)), action=action))
    trajectory = record(*nodes)
    assert audit_samples(trajectory, training_samples(trajectory, 1.0)) == []


def test_paths_without_actions_give_no_sample():
    assert training_samples(record(node(-1, [1], action=False)), 1.0) == []


def test_partly_sampled_action_trains_its_sampled_tokens():
    forced = dataclasses.replace(
        node(0, [7, 8], action=True),
        action_mask=array("b", [0, 1]),
        logprobs=array("f", [math.nan, -0.5]),
        versions=ids(-1, 4),
    )
    (sample,) = training_samples(record(node(-1, [1], action=False), forced), 2.0)
    assert list(sample.loss_mask) == [0, 0, 1]
    assert list(sample.behaviour_logprobs) == [0, 0, -0.5]
    assert list(sample.advantages) == [0, 0, 2]


def test_what_may_not_be_trained_is_refused():
    crash = Outcome(ending=Ending.ERROR, owner=Owner.ENVIRONMENT, cause="tool_raised")
    nodes = (node(-1, [1], action=False), node(0, [2], action=True))
    with pytest.raises(ValueError, match="error:environment"):
        training_samples(record(*nodes, outcome=crash), 1.0)
    with pytest.raises(ValueError, match="finite"):
        training_samples(record(*nodes), math.nan)
    with pytest.raises(ValueError, match="without token ids"):
        training_samples(record(node(-1, [1], action=False), node(0, [], action=True)), 1.0)


def test_model_errors_are_trained():
    mistaken = Outcome(ending=Ending.ERROR, owner=Owner.MODEL, cause="malformed_calls")
    nodes = (node(-1, [1], action=False), node(0, [2], action=True))
    assert len(demonstration_samples(record(*nodes, outcome=mistaken))) == 1


def test_action_seeds_are_a_function_of_plan_and_turn():
    def say(request: SampleRequest) -> str | Message:
        if len(request.messages) < 4:
            return Message.assistant("", (ToolCall(id="x", name="echo", arguments={}),))
        return str(Random(request.seed).random())

    (one, two), requests = play(say, FakeRenderer(), n=2)
    assert len({request.seed for request in requests}) == len(requests)
    (again, _), _ = play(say, FakeRenderer(), n=2)
    assert one.answer == again.answer != two.answer
