"""Mixed reasoning: exact shares over any stretch of tasks, tags that can be forced, turns that begin as told."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seeing_models import noise, tiny_vision

from burnish.core.errors import ConfigError
from burnish.core.message import Message, Role, TextPart
from burnish.core.task import Task
from burnish.environments.question import Question
from burnish.loop.config import Recipe
from burnish.loop.grading import open_world
from burnish.loop.worlds import mistaken_expert
from burnish.policies.chat import MODE_BEGINS
from burnish.rollout.episode import EpisodePlan, spoken
from burnish.rollout.runner import run_scripted
from burnish.tasks.modes import MODE_TAG, PROMPT_TAGS, Mode, ModeMixture, with_mode


def _tasks(count: int) -> list[Task]:
    return [Task(prompt=f"What is {n}?", reference={"answer": str(n)}) for n in range(count)]


@given(st.integers(0, 300), st.floats(0.01, 0.99))
def test_shares_hold_after_every_task(count: int, share: float) -> None:
    given_modes = Counter[str]()
    mixture = ModeMixture({"think": share, "direct": 1.0 - share})
    for number, task in enumerate(mixture(_tasks(count)), start=1):
        given_modes[task.tags[MODE_TAG]] += 1
        assert abs(given_modes["think"] - share * number) <= 1.0


def test_one_in_five_thinks_to_start_with() -> None:
    found = ModeMixture().split(_tasks(100))
    assert {mode: len(tasks) for mode, tasks in found.items()} == {Mode.THINK: 20, Mode.DIRECT: 80}
    assert all(task.prompt_text.endswith(PROMPT_TAGS[mode]) for mode, tasks in found.items() for task in tasks)


def test_other_shares_are_refused() -> None:
    for shares in ({"think": 0.5}, {"think": 1.5, "direct": -0.5}, {"ponder": 1.0}):
        with pytest.raises(ConfigError, match=r"unknown mode|add up to 1"):
            ModeMixture(shares)


def test_a_forced_mode_replaces_what_was_there_and_keeps_the_images() -> None:
    image = noise(1)
    task = Task(prompt=(image, TextPart(text="How many? /think")), tags={"mode": "think", "kind": "count"})
    forced = with_mode(task, Mode.DIRECT)
    assert forced.parts == (image, TextPart(text="How many? /direct"))
    assert forced.tags == {"mode": "direct", "kind": "count"}
    assert forced.content_hash != task.content_hash
    assert forced.id == forced.content_hash
    assert with_mode(Task(prompt="x", id="own"), Mode.THINK).id == "own"
    assert with_mode(Task(prompt=(image,)), Mode.THINK).parts == (image, TextPart(text="/think"))


@pytest.mark.parametrize(("mode", "said"), [("think", "<think>4 is 4</think>4"), ("direct", "<think></think>4")])
def test_a_forced_turn_begins_as_told_and_the_beginning_is_not_trained(mode: str, said: str) -> None:
    _, _, renderer = tiny_vision()
    forced = renderer.forced(mode)
    begins = renderer.encode_action(Message.assistant(MODE_BEGINS[mode]))[:-1]
    prompt = [Message.user("What is 4?")]
    assert forced.open(prompt, []) == renderer.open(prompt, []) + begins
    action = forced.encode_action(Message.assistant(said))
    assert begins + action == renderer.encode_action(Message.assistant(said))
    assert forced.parse(action).text == said
    assert spoken(forced.parse(action).text) == "4"
    new = [Message(role=Role.USER, parts=(TextPart(text="again"),))]
    past = [*prompt, Message.assistant(said)]
    assert forced.extend(past, new, []).token_ids == renderer.extend(past, new, []).token_ids + begins
    assert renderer.open(prompt, [])[-len(begins) :] != begins, "the renderer itself stays as it was"


def test_a_demonstration_in_a_forced_mode_holds_the_same_tokens() -> None:
    _, _, renderer = tiny_vision()
    task = Task(prompt="What is 4?", reference={"answer": "<think></think>4"})
    plan = EpisodePlan(id="a", group_id="a", task=task, sample_index=0, seed=0)
    ids = []
    for one in (renderer, renderer.forced("direct")):
        (done,) = asyncio.run(
            run_scripted([plan], make_environment=lambda _: Question(), policy=mistaken_expert(None), renderer=one)
        )
        assert done.answer == "4"
        ids.append([token for node in done.nodes for token in node.token_ids])
    assert ids[0] == ids[1]


def test_unknown_modes_are_refused() -> None:
    _, _, renderer = tiny_vision()
    with pytest.raises(ConfigError, match="auto, think, direct"):
        renderer.forced("ponder")
    assert renderer.forced("think").forced("auto").open([Message.user("x")], []) == renderer.open(
        [Message.user("x")], []
    )
    assert isinstance(renderer.forced("think").open([Message.user("x")], []), array)


@pytest.mark.parametrize(("heldout", "expected"), [("mixed", {"think": 10, "direct": 10}), ("direct", {"direct": 20})])
def test_a_recipe_gives_its_tasks_modes(tmp_path: Path, heldout: str, expected: dict[str, int]) -> None:
    rows = [json.dumps({"prompt": f"What is {n}?", "answer": str(n)}) for n in range(200)]
    (tmp_path / "sums.jsonl").write_text("\n".join(rows))
    environment = {
        "name": str(tmp_path / "sums.jsonl"),
        "modes": {"think": 0.5, "direct": 0.5},
        "heldout_mode": heldout,
    }
    world = open_world(Recipe.model_validate({"environment": environment}))
    train, other = world.tasks("train", 20), world.tasks("heldout", 20)
    assert Counter(task.tags[MODE_TAG] for task in train) == {"think": 10, "direct": 10}
    assert Counter(task.tags[MODE_TAG] for task in other) == expected
    assert all(task.prompt_text.endswith(f" /{task.tags[MODE_TAG]}") for task in [*train, *other])
    plain = open_world(Recipe.model_validate({"environment": {"name": environment["name"]}}))
    assert not any(MODE_TAG in task.tags for task in plain.tasks("train", 20))
