"""A recipe whose episodes are played by a user's own program, trained in both modes."""

from __future__ import annotations

import importlib.util
import json
import string
from pathlib import Path
from random import Random

import pytest
from letter_runs import BASE

from burnish.core.errors import ConfigError
from burnish.loop.conductor import start_run
from burnish.loop.program import load_program
from burnish.loop.recipes import apply_overrides, validate
from burnish.store.reader import RunReader

LETTERS = string.ascii_lowercase[:8]
PROGRAM = """
import json, urllib.request

def agent(task):
    body = json.dumps({"model": task.model, "messages": [{"role": "user", "content": task.prompt}]}).encode()
    headers = {"content-type": "application/json", "authorization": "Bearer " + task.api_key}
    with urllib.request.urlopen(urllib.request.Request(task.base_url + "/chat/completions", body, headers)) as reply:
        return json.load(reply)["choices"][0]["message"]["content"]

def two(task, other):
    return ""
"""

pytestmark = pytest.mark.skipif(importlib.util.find_spec("uvicorn") is None, reason="needs the extra proxy")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Tasks, half-wrong demonstrations and the program as files; the words of a recipe that uses them."""
    rng = Random(0)
    tasks = [{"prompt": f"{a}{b}", "answer": a, "id": f"{a}{b}"} for a in LETTERS for b in "123"]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks), encoding="utf-8")
    chats = []
    for task in tasks * 8:
        said = task["answer"] if rng.random() < 0.4 else rng.choice(LETTERS)
        turns = [{"role": "user", "content": task["prompt"]}, {"role": "assistant", "content": said}]
        chats.append({"messages": turns})
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
    (tmp_path / "own.py").write_text(PROGRAM, encoding="utf-8")
    return [
        f"environment.name={tmp_path / 'tasks.jsonl'}",
        f"environment.program={tmp_path / 'own.py'}",
        f"warm_start.data={tmp_path / 'chats.jsonl'}",
        *("warm_start.steps=300", "warm_start.batch_size=32", "rl.steps=20", "rl.groups=8", "rl.group_size=6"),
        *("rl.lr=3e-3", "limits.max_turn_tokens=6", "limits.max_context_tokens=64", "run.workers=1"),
    ]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_program_is_trained(words: list[str], tmp_path: Path, mode: str) -> None:
    recipe = validate(apply_overrides(BASE, [*words, f"rollout.mode={mode}"]), source="test")
    start_run(recipe, tmp_path / "run")
    reader = RunReader(tmp_path / "run")
    rewards = [value for _, value in reader.scalars("reward/mean", "rl")]
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.1
    asked = [value for _, value in reader.scalars("count/requests", "rl")]
    played = [value for _, value in reader.scalars("episodes/trained", "rl")]
    assert min(asked) >= max(played) > 0
    assert reader.status().state == "finished"


def test_what_is_no_program_is_said_before_anything_is_written(words: list[str], tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    for spec, problem in (
        (f"{own}:agnet", "did you mean 'agent'"),
        (f"{own}:two", "must take the task as its one argument"),
        (str(tmp_path / "missing.py"), "does not exist"),
    ):
        recipe = validate(apply_overrides(BASE, [*words, f"environment.program={spec}"]), source="test")
        with pytest.raises(ConfigError, match=problem):
            start_run(recipe, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_command_line_is_taken_as_words() -> None:
    assert load_program("node agent.js --fast 'two words'") == ["node", "agent.js", "--fast", "two words"]
    assert load_program("") is None
