"""The state machine of an episode: limits, outcomes, what is recorded."""

from __future__ import annotations

import asyncio
import math
from array import array

import pytest

from burnish.core.errors import InvariantViolation
from burnish.core.hashing import derive_seed
from burnish.core.message import Message, ToolCall
from burnish.core.outcome import COMPLETED, Ending, Limit, Owner
from burnish.core.sampling import Finish, Sample, SamplingParams
from burnish.core.task import Limits, Task
from burnish.rollout.episode import Episode, EpisodePlan
from burnish.rollout.hygiene import clean_message, clean_plain, stored_state
from burnish.rollout.messages_only import MessageRenderer
from burnish.rollout.runner import run_episodes
from burnish.testing.fakes import FakeEnvironment, FakeRenderer, ScriptedSampler, fake_tool

CALL = Message.assistant("", (ToolCall(id="x", name="echo", arguments={"a": 1}),))
ECHO = fake_tool("echo", lambda arguments: "ok")


def plan(index: int = 0, **task) -> EpisodePlan:
    return EpisodePlan(id=f"e/{index}", group_id="e", task=Task(**{"prompt": "q", **task}), sample_index=index, seed=7)


def play(script, *, environment=None, limits=None, renderer=None, **task):
    environment = environment or FakeEnvironment(tools=[ECHO])
    sampler = ScriptedSampler(script)
    (trajectory,) = asyncio.run(
        run_episodes(
            [plan(**task)],
            make_environment=lambda task: environment,
            renderer=renderer or FakeRenderer(),
            sampler=sampler,
            params=SamplingParams(temperature=0.7),
            limits=limits,
        )
    )
    return trajectory, sampler, environment


def test_completed_episode():
    trajectory, sampler, environment = play(
        [CALL, "42"], environment=FakeEnvironment(tools=[ECHO], state={"rows": (1,)})
    )
    assert trajectory.outcome == COMPLETED
    assert trajectory.answer == "42"
    assert trajectory.final_state == {"answer": "42", "rows": [1]}
    assert environment.calls == ["start", "tools", "reply", "finish", "close"]
    assert trajectory.counters["turns"] == 2
    assert trajectory.counters["tool_calls"] == 1
    assert (trajectory.id, trajectory.group_id, trajectory.seed) == ("e/0", "e", 7)
    first, second = sampler.requests
    assert (first.key, second.key) == ("e/0/0", "e/0/1")
    assert (first.seed, second.seed) == (derive_seed(7, 0), derive_seed(7, 1))
    assert second.tools == (ECHO.spec,)
    assert [message.role for message in second.messages] == ["user", "assistant", "tool"]
    assert second.params == SamplingParams(temperature=0.7)
    assert trajectory.total_s >= trajectory.tool_s > 0
    assert trajectory.nodes[1].started_s >= trajectory.nodes[0].started_s


def test_reply_goes_on_and_its_none_ends():
    trajectory, _, _ = play(["a", "b"], environment=FakeEnvironment(replies=["more"]))
    assert [message.text for message in trajectory.messages] == ["q", "a", "more", "b"]
    assert trajectory.answer == "b"


def test_turn_limit_lets_the_last_calls_act_and_then_truncates():
    ran = []
    tool = fake_tool("echo", lambda arguments: ran.append(1) or "ok")
    trajectory, _, environment = play([CALL], environment=FakeEnvironment(tools=[tool]), limits=Limits(max_turns=2))
    assert trajectory.outcome.limit is Limit.TURNS
    assert len(ran) == 2
    assert trajectory.messages[-1].role == "tool"
    assert "finish" in environment.calls, "a truncated episode may carry a reward, so its final state is asked for"
    assert trajectory.answer == ""


def test_answer_on_the_last_turn_completes():
    assert play(["42"], limits=Limits(max_turns=1))[0].outcome == COMPLETED


def test_turn_tokens_truncate_and_cut_calls_do_not_run():
    ran = []
    tool = fake_tool("echo", lambda arguments: ran.append(1) or "ok")
    trajectory, _, _ = play([CALL], environment=FakeEnvironment(tools=[tool]), limits=Limits(max_turn_tokens=5))
    assert trajectory.outcome.limit is Limit.TURN_TOKENS
    assert len(trajectory.nodes[-1].token_ids) == 5
    assert not ran


def test_exact_fit_action_completes():
    assert play(["12345"], limits=Limits(max_turn_tokens=6))[0].outcome == COMPLETED
    ids = array("i", [52, FakeRenderer.end_id])
    late = Sample(token_ids=ids, logprobs=array("f", [-1, -1]), versions=array("i", [0, 0]), finish=Finish.LENGTH)
    trajectory, _, _ = play([late], limits=Limits(max_turn_tokens=2))
    assert trajectory.outcome == COMPLETED, "a stop id at the limit is a stop, whatever the engine calls it"


def test_episode_tokens_truncate():
    length = len(FakeRenderer().encode_action(CALL))
    trajectory, sampler, _ = play([CALL], limits=Limits(max_episode_tokens=length + 4))
    assert trajectory.outcome.limit is Limit.EPISODE_TOKENS
    assert sampler.requests[1].max_tokens == 4
    exact, _, _ = play([CALL], limits=Limits(max_episode_tokens=length))
    assert exact.outcome.limit is Limit.EPISODE_TOKENS
    assert exact.counters["turns"] == 1


def test_context_tokens_truncate():
    tool = fake_tool("echo", lambda arguments: "x" * 200)
    trajectory, _, _ = play([CALL], environment=FakeEnvironment(tools=[tool]), limits=Limits(max_context_tokens=150))
    assert trajectory.outcome.limit is Limit.CONTEXT_TOKENS
    cut, sampler, _ = play([b"y" * 90], limits=Limits(max_context_tokens=60))
    assert cut.outcome.limit is Limit.CONTEXT_TOKENS
    assert sampler.requests[0].max_tokens == 60 - len(sampler.requests[0].prompt_ids)


def test_prompt_that_does_not_fit_is_not_the_models_fault():
    trajectory, sampler, environment = play(["x"], prompt="q" * 100, limits=Limits(max_context_tokens=50))
    assert trajectory.outcome.owner is Owner.ENVIRONMENT
    assert trajectory.outcome.cause == "prompt_too_long"
    assert not sampler.requests
    assert environment.calls[-1] == "close"


def test_wall_time_truncates():
    async def slow(arguments) -> str:
        await asyncio.sleep(0.05)
        return "ok"

    tool = fake_tool("echo", slow)
    trajectory, _, _ = play([CALL], environment=FakeEnvironment(tools=[tool]), limits=Limits(timeout_s=0.02))
    assert trajectory.outcome.limit is Limit.TIME


def test_too_many_malformed_calls_are_the_models_error():
    bad = [260, *b'{"name": "echo", "arguments": ', 261, FakeRenderer.end_id]
    trajectory, _, environment = play([bad], limits=Limits(max_malformed_calls=2))
    assert trajectory.outcome.owner is Owner.MODEL
    assert trajectory.outcome.cause == "malformed_calls"
    assert trajectory.outcome.may_carry_reward
    assert trajectory.counters["malformed_calls"] == 3
    assert "finish" in environment.calls
    assert trajectory.messages[2].is_error


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_arguments_without_json_form_are_unreadable_calls(value):
    bad = Message.assistant("", (ToolCall(id="x", name="echo", arguments={"a": value}),))
    trajectory, _, _ = play([bad, "done"])
    assert trajectory.outcome == COMPLETED
    assert trajectory.counters["malformed_calls"] == 1
    assert trajectory.messages[1].tool_calls[0].arguments == {}


def test_limits_of_the_task_come_first():
    environment = FakeEnvironment(tools=[ECHO])
    environment.limits = Limits(max_turns=5)
    assert play([CALL], environment=environment)[0].counters["turns"] == 5
    assert play([CALL], limits=Limits(max_turns=3))[0].counters["turns"] == 3
    assert play([CALL], environment=environment, limits=Limits(max_turns=3))[0].counters["turns"] == 3
    own = Task(prompt="q", limits=Limits(max_turns=2))
    chosen = EpisodePlan(id="e", group_id="e", task=own, sample_index=0, seed=0)
    episode = Episode(chosen, environment, FakeRenderer(), Limits(max_turns=3), SamplingParams())
    assert episode.limits.max_turns == 2


def test_task_names_the_tools_on_offer():
    environment = FakeEnvironment(tools=[fake_tool("a", str), fake_tool("b", str)])
    _, sampler, _ = play(["x"], environment=environment, tools=("b",))
    assert [spec.name for spec in sampler.requests[0].tools] == ["b"]
    missing, _, _ = play(["x"], tools=("c",))
    assert missing.outcome.cause == "tools_raised"
    twins, _, _ = play(["x"], environment=FakeEnvironment(tools=[ECHO, ECHO]))
    assert "share a name" in twins.outcome.detail


def test_long_replies_are_cut():
    trajectory, _, _ = play(
        ["a", "b"], environment=FakeEnvironment(replies=["x" * 50]), limits=Limits(max_tool_result_chars=9)
    )
    assert trajectory.messages[2].text.startswith("xxxxxxxxx\n[cut: 41")
    assert trajectory.counters["cut_results"] == 1


def test_misuse_is_refused():
    episode = Episode(plan(), FakeEnvironment(), FakeRenderer(), None, SamplingParams())
    with pytest.raises(ValueError, match="not live"):
        episode.request()
    with pytest.raises(ValueError, match="still live"):
        asyncio.run(episode.finish())


@pytest.mark.parametrize(
    ("sample", "name"),
    [
        (
            Sample(
                token_ids=array("i", [1, 2, 3]),
                logprobs=array("f", [0, 0, 0]),
                versions=array("i", [0] * 3),
                finish=Finish.LENGTH,
            ),
            "sample_length",
        ),
        (
            Sample(token_ids=array("i", [1]), logprobs=array("f", [0]), versions=array("i", [0]), finish=Finish.STOP),
            "sample_stop_id",
        ),
        (Sample(token_ids=array("i", [1, 262]), logprobs=array("f", [0])), "sample_alignment"),
    ],
)
def test_broken_samplers_stop_the_run_and_close_the_worlds(sample, name):
    environment = FakeEnvironment()
    with pytest.raises(InvariantViolation, match=name):
        play([sample], environment=environment, limits=Limits(max_turn_tokens=2))
    assert environment.calls[-1] == "close"


def test_messages_without_tokens_are_graded_but_not_exact():
    script = [Sample(message=CALL), Sample(message=Message.assistant("42"))]
    trajectory, _, _ = play(script, renderer=MessageRenderer())
    assert trajectory.answer == "42"
    assert not trajectory.is_token_exact
    assert [len(node.token_ids) for node in trajectory.nodes] == [0, 0, 0, 0]
    assert trajectory.outcome.ending is Ending.COMPLETED


def test_tokens_without_a_tokenizer_are_infrastructure():
    trajectory, _, _ = play(["x"], renderer=MessageRenderer())
    assert trajectory.outcome.owner is Owner.INFRASTRUCTURE
    assert trajectory.outcome.cause == "parse_raised"


class TestHygiene:
    def test_clean_message_keeps_clean_ones(self):
        message = Message.user("🍐")
        assert clean_message(message) is message

    def test_deep_arguments_become_an_unreadable_call(self):
        value: object = 1
        for _ in range(5000):
            value = [value]
        (call,) = clean_message(Message.assistant("", (ToolCall(id="x", name="t", arguments={"a": value}),))).tool_calls
        assert "too deep" in call.error
        assert call.arguments == {}

    @pytest.mark.parametrize("bad", [{1: 2}, {"a": object()}, {"a": math.nan}, {"a": b"x"}])
    def test_values_without_json_form(self, bad):
        with pytest.raises(ValueError, match=r"names must be text|no JSON form|not a finite"):
            clean_plain(bad)

    def test_state_is_a_clean_copy(self):
        rows = [{"a": 1}]
        state = stored_state({"rows": rows, "text": "\ud800"})
        rows[0]["a"] = 2
        assert state == {"rows": [{"a": 1}], "text": "\ufffd"}

    def test_state_must_be_a_mapping(self):
        with pytest.raises(TypeError, match="mapping"):
            stored_state([1])
