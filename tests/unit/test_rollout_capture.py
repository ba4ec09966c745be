"""The capture without HTTP: exact merging, named forks, ends of actions, and what is trained of it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from captures import ADD, CALL, OPENING, PLAN, ask, capture_of, result, two_turns
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.core.hashing import derive_seed
from burnish.core.kept import KeptSets
from burnish.core.message import Message, Role
from burnish.core.outcome import COMPLETED
from burnish.core.sampling import Extension, Finish, Sample, SampleRequest, SamplingParams
from burnish.core.task import Limits
from burnish.core.tool import ToolSpec
from burnish.core.trajectory import Trajectory
from burnish.rollout.audit import path_ids
from burnish.rollout.capture import Capture
from burnish.rollout.chat_api import Completion, Refusal
from burnish.rollout.runner import run_episodes
from burnish.rollout.samples import training_samples
from burnish.testing.fakes import FakeEnvironment, FakeRenderer, ScriptedSampler


def timeless(trajectory: Trajectory) -> dict[str, Any]:
    nodes = tuple(dataclasses.replace(node, started_s=0.0, duration_s=0.0) for node in trajectory.nodes)
    plain = dataclasses.replace(trajectory, nodes=nodes, tool_s=0.0, total_s=0.0, counters={}, final_state={}, tags={})
    return {field.name: repr(getattr(plain, field.name)) for field in dataclasses.fields(plain)}


def episode(script: Any, *, limits: Limits | None = None, renderer: Any = None) -> tuple[Trajectory, ScriptedSampler]:
    sampler = ScriptedSampler(script, renderer=renderer)
    [trajectory] = asyncio.run(
        run_episodes(
            [PLAN],
            make_environment=lambda task: FakeEnvironment(tools=[ADD]),
            renderer=renderer or FakeRenderer(),
            sampler=sampler,
            params=SamplingParams(),
            limits=limits,
        )
    )
    return trajectory, sampler


# -- the same as an episode ------------------------------------------------------------------------------------------


def test_a_tool_loop_is_captured_as_an_episode_would_be() -> None:
    """Golden: ids, masks, log-probabilities, messages, seeds and the requests themselves."""
    answer, trajectory, sampler = capture_of(two_turns, [CALL, "5"])
    expected, reference = episode([CALL, "5"])
    assert answer == trajectory.answer == "5"
    assert timeless(trajectory) == timeless(expected)
    assert [repr(request) for request in sampler.requests] == [repr(request) for request in reference.requests]


def test_a_renderer_that_forks_is_captured_as_an_episode_would_be() -> None:
    said = Message.assistant("Let me add.", CALL.tool_calls)
    _, trajectory, sampler = capture_of(two_turns, [said, "5"], renderer=FakeRenderer(drop_earlier_text=True))
    expected, reference = episode([said, "5"], renderer=FakeRenderer(drop_earlier_text=True))
    assert timeless(trajectory) == timeless(expected)
    assert [request.seed for request in sampler.requests] == [request.seed for request in reference.requests]
    assert trajectory.counters["fork:earlier_text_dropped"] == 1


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_turns=1),
        Limits(max_turn_tokens=5),
        Limits(max_episode_tokens=60),
        Limits(max_episode_tokens=len(FakeRenderer().encode_action(CALL))),
        Limits(max_turns=2, max_episode_tokens=10),
    ],
)
def test_limits_cut_where_they_cut_an_episode(limits: Limits) -> None:
    async def program(capture: Capture) -> None:
        try:
            while True:
                await two_turns(capture)
        except (Refusal, IndexError):
            return

    _, trajectory, _ = capture_of(program, [CALL, CALL], limits=limits)
    expected, _ = episode([CALL, CALL], limits=limits)
    assert trajectory.outcome.limit == expected.outcome.limit is not None
    ours, theirs = timeless(trajectory), timeless(expected)
    if limits.max_episode_tokens != 60:  # The episode has a third turn there, this program begins anew.
        assert ours == theirs


# -- merging ---------------------------------------------------------------------------------------------------------


def test_what_a_program_may_do_to_a_message_without_a_fork() -> None:
    """Whitespace, the layout of arguments and parts instead of text are no difference; the tokens stay as sampled."""

    async def program(capture: Capture) -> None:
        first = await capture.complete(ask(*OPENING))
        call = first.message.tool_calls[0]
        loose = dataclasses.replace(call, arguments=json.loads('{"b": 3, "a" : 2}'))
        again = Message.assistant("  Hm. ", (loose,))
        await capture.complete(ask(*OPENING, again, result(first, "5")))

    _, trajectory, _ = capture_of(program, [Message.assistant("Hm.\n", CALL.tool_calls), "5"])
    assert trajectory.counters["forks"] == 0
    assert [node.parent for node in trajectory.nodes] == [-1, 0, 1, 2]


def test_the_same_question_again_is_a_second_action_on_the_same_prompt() -> None:
    async def program(capture: Capture) -> None:
        await asyncio.gather(*(capture.complete(ask(*OPENING)) for _ in range(3)))

    _, trajectory, sampler = capture_of(program, ["5"])
    assert [node.parent for node in trajectory.nodes] == [-1, 0, 0, 0]
    assert trajectory.counters["forks"] == 0
    seeds = [request.seed for request in sampler.requests]
    assert seeds[0] == derive_seed(PLAN.seed, 0)
    assert len(set(seeds)) == 3, "equal questions draw different answers"


def test_going_back_to_an_earlier_turn_branches_there() -> None:
    async def program(capture: Capture) -> None:
        first = await capture.complete(ask(*OPENING))
        for text in ("Sure?", "Really?"):
            await capture.complete(ask(*OPENING, first.message, Message.user(text)))

    _, trajectory, _ = capture_of(program, ["5"])
    assert [node.parent for node in trajectory.nodes] == [-1, 0, 1, 2, 1, 4]
    assert trajectory.counters["forks"] == 0
    samples = training_samples(trajectory, 1.0)
    assert [sum(sample.loss_mask) for sample in samples] == [4, 2], "the shared action is trained once"


def test_the_same_call_twice_has_two_ids() -> None:
    """Each of two equal attempts goes on from its own tokens."""

    async def program(capture: Capture) -> None:
        for _ in range(2):
            attempts.append(await capture.complete(ask(*OPENING)))
        for done in reversed(attempts):
            await capture.complete(ask(*OPENING, done.message, result(done, "5")))

    attempts: list[Completion] = []
    _, trajectory, _ = capture_of(program, [CALL, "5"])
    assert len({done.message.tool_calls[0].id for done in attempts}) == 2
    assert [node.parent for node in trajectory.nodes] == [-1, 0, 0, 2, 3, 1, 5]
    assert {call.id for node in trajectory.nodes for m in node.messages for call in m.tool_calls} == {"call_0"}


def test_more_of_a_question_is_another_prompt() -> None:
    """The tokens after a question open the policy's turn; nothing can be shown behind them but its action."""

    async def program(capture: Capture) -> None:
        await capture.complete(ask(*OPENING))
        await capture.complete(ask(*OPENING, Message.user("And 3 + 4?")))

    _, trajectory, _ = capture_of(program, ["5"])
    assert [node.parent for node in trajectory.nodes] == [-1, 0, -1, 2]
    assert trajectory.counters["fork:new_conversation"] == 1


def test_sub_agents_draw_alike_in_whatever_order_they_arrive() -> None:
    def seeds(names: Sequence[str]) -> dict[str, int]:
        async def program(capture: Capture) -> None:
            await capture.complete(ask(*OPENING))
            await asyncio.gather(*(capture.complete(ask(Message.user(name))) for name in names))

        _, trajectory, sampler = capture_of(program, ["ok"])
        assert trajectory.counters["fork:new_conversation"] == 3
        return {request.messages[-1].text: request.seed for request in sampler.requests}

    assert seeds(["a", "b", "c"]) == seeds(["c", "a", "b"])


# -- forks -----------------------------------------------------------------------------------------------------------

Edit = Callable[[list[Message]], Sequence[Message]]


def after_three_turns(
    edit: Edit, script: Sequence[Any] = ("one", "two", "three", "four"), **options: Any
) -> Trajectory:
    """Three turns of a chat, then a fourth request with the history as `edit` left it."""

    async def program(capture: Capture) -> None:
        history = list(OPENING)
        for turn in range(3):
            done = await capture.complete(ask(*history, tools=options.get("tools", ())))
            history += [done.message, Message.user(f"go on {turn}")]
        await capture.complete(ask(*edit(history), tools=options.get("tools_then", options.get("tools", ()))))

    return capture_of(program, list(script), renderer=options.get("renderer"))[1]


def test_an_unchanged_history_does_not_fork() -> None:
    """Negative control of the tests below."""
    assert after_three_turns(lambda history: history).counters["forks"] == 0


@pytest.mark.parametrize(
    ("edit", "reason", "shown"),
    [
        (lambda h: [*h[:2], Message.assistant("zwei"), *h[3:]], "history_rewritten", ["zwei"]),
        (lambda h: [*h[:3], Message.user("other"), *h[4:]], "history_rewritten", ["other"]),
        (lambda h: [*h[:2], *h[4:]], "history_dropped", []),
        (lambda h: [*h[:3], *h[4:]], "history_dropped", []),
        (lambda h: [h[0], *h[5:]], "history_dropped", []),
        (lambda h: [h[0], Message.user("summary: one, two, three")], "new_conversation", None),
        (lambda h: [Message.user("you are a sub-agent")], "new_conversation", None),
    ],
)
def test_what_cannot_be_merged_is_a_named_fork(edit: Edit, reason: str, shown: list[str] | None) -> None:
    trajectory = after_three_turns(edit)
    assert trajectory.counters["forks"] == trajectory.counters[f"fork:{reason}"] == 1
    root = trajectory.nodes[-2]
    assert (root.parent, root.fork) == (-1, reason)
    if shown is not None:
        texts = [message.text for message in root.messages]
        assert texts == [*shown, "go on 2"], "messages that the graph holds already are not repeated"
    whole = FakeRenderer().open(edit([*OPENING, *_chat()]), ())
    assert root.token_ids == whole, "the fork is the conversation as the program has it"


def _chat() -> list[Message]:
    said = ("one", "two", "three")
    return [m for i, text in enumerate(said) for m in (Message.assistant(text), Message.user(f"go on {i}"))]


def test_thinking_that_the_program_takes_out_is_a_fork_of_that_name() -> None:
    script = [f"<think>hm {i}</think>\n\nanswer {i}" for i in range(4)]

    def spoken(history: list[Message]) -> list[Message]:
        return [
            Message.assistant(message.text.partition("</think>\n\n")[2]) if message.role is Role.ASSISTANT else message
            for message in history
        ]

    trajectory = after_three_turns(spoken, script)
    assert trajectory.counters["fork:thinking_dropped"] == 1
    assert [message.text for message in trajectory.nodes[-2].messages] == ["go on 2"]
    assert trajectory.answer == "answer 3"


class ToolListing(FakeRenderer):
    """Shows the names of the tools before everything else."""

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> array[int]:
        return array("i", list("".join(tool.name for tool in tools).encode())) + super().open(messages, [])

    def extend(self, past: Sequence[Message], new: Sequence[Message], tools: Sequence[ToolSpec]) -> Extension:
        return Extension(token_ids=super().open(new, []))


def test_other_tools_fork_where_the_prompt_shows_them() -> None:
    shown = after_three_turns(lambda h: h, tools=(ADD.spec,), tools_then=(), renderer=ToolListing())
    assert shown.counters["fork:tools_changed"] == 1
    assert [message.text for message in shown.nodes[-2].messages] == ["go on 2"]
    unseen = after_three_turns(lambda h: h, tools=(ADD.spec,), tools_then=())
    assert unseen.counters["forks"] == 0, "a prompt without tools is the same tokens"


# -- ends of actions -------------------------------------------------------------------------------------------------


def test_a_cap_of_the_program_cuts_the_action_and_not_the_episode() -> None:
    async def program(capture: Capture) -> None:
        first = await capture.complete(ask(*OPENING, max_tokens=3))
        assert (first.finish_reason, first.message.text, first.completion_tokens) == ("length", "abc", 3)
        await capture.complete(ask(*OPENING, first.message, Message.user("go on")))

    _, trajectory, _ = capture_of(program, ["abcdef", "ghi"])
    assert trajectory.outcome == COMPLETED
    assert trajectory.counters["forks"] == 0
    after = trajectory.nodes[2]
    assert after.token_ids[0] == FakeRenderer.end_id, "the end of the turn is shown, not sampled"
    assert not any(after.action_mask)


def test_a_stop_text_ends_the_action_with_the_token_that_completes_it() -> None:
    async def program(capture: Capture) -> None:
        first = await capture.complete(ask(*OPENING, stop=("Observation:", "zzz")))
        assert first.message.text == "Thought: add. "
        assert first.finish_reason == "stop"
        await capture.complete(ask(*OPENING, first.message, Message.user("Observation: 5")))

    said = "Thought: add. Observation: I made this up"
    _, trajectory, _ = capture_of(program, [said, "5"])
    assert bytes(list(trajectory.nodes[1].token_ids)) == b"Thought: add. Observation:"
    assert trajectory.counters["forks"] == 0
    assert trajectory.outcome == COMPLETED


def test_a_stop_text_cuts_the_kept_sets_too() -> None:
    async def program(capture: Capture) -> None:
        await capture.complete(ask(*OPENING, stop=("b",)))

    sample = Sample(
        token_ids=array("i", list(b"abc")),
        logprobs=array("f", [-1, -2, -3]),
        versions=array("i", [4, 4, 5]),
        kept=KeptSets(counts=array("i", [1, 2, 1]), ids=array("i", [97, 98, 97, 99])),
        finish=Finish.LENGTH,
    )
    _, trajectory, _ = capture_of(program, lambda request: sample, limits=Limits(max_turn_tokens=3))
    action = trajectory.nodes[1]
    assert (list(action.versions), list(action.logprobs)) == ([4, 4], [-1, -2])
    assert action.kept == KeptSets(counts=array("i", [1, 2]), ids=array("i", [97, 98, 97]))


def test_calls_that_cannot_be_read_are_not_told_as_calls() -> None:
    async def program(capture: Capture) -> Completion:
        return await capture.complete(ask(*OPENING))

    told, trajectory, _ = capture_of(program, [b"Hi"])
    assert told.message == Message.assistant("Hi")
    garbage = [72, 105, 260, *b'{"name": "add"', 261, 262]
    told, trajectory, _ = capture_of(program, [garbage])
    assert told.message == Message.assistant("Hi")
    assert (trajectory.counters["tool_calls"], trajectory.counters["malformed_calls"]) == (1, 1)


def test_tool_choice_none_hides_calls() -> None:
    async def program(capture: Capture) -> Completion:
        first = await capture.complete(ask(*OPENING, hides_calls=True))
        await capture.complete(ask(*OPENING, first.message, Message.user("and?")))
        return first

    told, trajectory, _ = capture_of(program, [Message.assistant("Hm", CALL.tool_calls), "5"])
    assert told.message == Message.assistant("Hm")
    assert told.finish_reason == "stop"
    assert trajectory.counters["forks"] == 0
    assert trajectory.nodes[1].messages[0].tool_calls, "what was sampled is recorded"


# -- the property ----------------------------------------------------------------------------------------------------


class Counting(ScriptedSampler):
    """Every action is unique, so that a token which is trained can be traced to the moment it was drawn."""

    def __init__(self) -> None:
        self.drawn: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        super().__init__(self._say)

    def _say(self, request: SampleRequest) -> Any:
        number = len(self.drawn)
        ids = [*f"say {number} ".encode()]
        if number % 3 == 0:
            ids += [260, *json.dumps({"name": "add", "arguments": {"a": number}}).encode(), 261]
        ids = [*ids, 262][: request.max_tokens]
        self.drawn.append((tuple(request.prompt_ids), tuple(ids)))
        return ids


def edited(data: st.DataObject, history: list[Message]) -> list[Message]:
    """One change of a conversation that some program might make."""
    kind = data.draw(st.sampled_from(["none", "none", "drop", "swap", "edit", "cut", "repeat", "new", "insert"]))
    at = data.draw(st.integers(0, len(history) - 1))
    if kind == "drop" and len(history) > 1:
        return history[:at] + history[at + 1 :]
    if kind == "swap" and at:
        return [*history[: at - 1], history[at], history[at - 1], *history[at + 1 :]]
    if kind == "edit":
        text = data.draw(st.sampled_from(["", " ", "other", "say 1 "]))
        changed = dataclasses.replace(history[at], parts=Message.user(text).parts)
        return [*history[:at], changed, *history[at + 1 :]]
    if kind == "cut":
        return history[: at + 1]
    if kind == "repeat":
        return [*history, history[at]]
    if kind == "insert":
        return [*history[:at], Message.assistant("never said"), *history[at:]]
    return [Message.user(f"agent {at}")] if kind == "new" else history


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_whatever_a_program_does_what_is_trained_is_what_was_sampled(data: st.DataObject) -> None:
    """Every action follows exactly the tokens it was drawn after, and is trained exactly once."""
    sampler = Counting()
    renderer = FakeRenderer(drop_earlier_text=data.draw(st.booleans()))

    async def program(capture: Capture) -> None:
        histories = [list(OPENING)]
        for _ in range(data.draw(st.integers(1, 7))):
            history = edited(data, histories[data.draw(st.integers(0, len(histories) - 1))])
            cap = data.draw(st.sampled_from([None, None, 4]))
            stop = data.draw(st.sampled_from([(), (), ("y ",)]))
            done = await capture.complete(ask(*history, max_tokens=cap, stop=stop))
            told = [Message.tool("5", call=call) for call in done.message.tool_calls]
            histories.append([*history, done.message, *(told or [Message.user("go on")])])

    _, trajectory, _ = capture_of(
        program, sampler, renderer=renderer, limits=Limits(max_turns=20, max_context_tokens=9999)
    )
    actions = [index for index, node in enumerate(trajectory.nodes) if node.is_action]
    assert len(actions) == len(sampler.drawn)
    for index, (prompt, ids) in zip(actions, sampler.drawn, strict=True):
        node = trajectory.nodes[index]
        before = path_ids(trajectory, node.parent)
        assert tuple(before) == prompt
        assert tuple(node.token_ids) == ids[: len(node.token_ids)]
    trained = [
        tuple(token for token, mask in zip(sample.token_ids, sample.loss_mask, strict=True) if mask)
        for sample in training_samples(trajectory, 0.5)
    ]
    assert sum(map(len, trained)) == trajectory.action_tokens
