"""Starting a run: what is refused before anything is written, and a warm start on chats of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from letter_runs import LETTERS, letters_recipe, run_letters

from burnish.core.errors import BurnishError, ConfigError, TaskError
from burnish.loop.progress import Progress
from burnish.loop.recipes import load_recipe
from burnish.loop.setup import resolve_workers
from burnish.store.reader import RunReader
from burnish.store.rows import Fate, RunState

NO_TRAIN = """
from burnish import Environment, Task

class Odd(Environment):
    def tasks(self, split, rng):
        if split == "{empty}":
            return
        for n in range(9):
            yield Task(prompt=f"{{split}} {{n}}?", reference={{"answer": "1"}})
"""


def chat(number: int) -> dict[str, object]:
    """A chat in the world of letters: one look, one answer."""
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": {"drawer": "abcd"[number % 4]}}}
    return {
        "messages": [
            {"role": "user", "content": f"What is in {'abcd'[number % 4]}?"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "name": "look", "content": "xyz"[number % 3]},
            {"role": "assistant", "content": "xyz"[number % 3]},
        ]
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["warm_start.data=nowhere.jsonl"], r"warm_start\.data: there is no file nowhere\.jsonl"),
        (["warm_start.mistakes.sloppy=0.1"], "makes no mistake 'sloppy'; it knows: blind"),
        (["warm_start.mistakes.blind=1.1"], "add up to at most 1"),
        (["warm_start.mistakes.blind=-0.1"], "add up to at most 1"),
        (["model.path=./nowhere"], r"there is no folder \./nowhere"),
        (["model.tiny.heads=3"], "even multiple of heads"),
        (["model.device=cuda:7"], "cuda:7"),
        (["model.device=tpu"], "tpu"),
        (["rl.loss=grop"], "did you mean 'grpo'"),
        (["environment.options.drwers=2"], "did you mean 'drawers'"),
        (["environment.name=calculater"], "did you mean 'calculator'"),
    ],
)
def test_what_cannot_work_is_refused_and_leaves_nothing(tmp_path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_letters(tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("empty", ["train", "heldout"])
def test_an_empty_split_is_refused(tmp_path, empty: str) -> None:
    path = tmp_path / "odd.py"
    path.write_text(NO_TRAIN.format(empty=empty))
    with pytest.raises(TaskError, match=rf"no tasks.*{empty}|{empty}.*no tasks"):
        run_letters(tmp_path / "run", f"environment.name={path}", "warm_start.steps=0")
    assert not (tmp_path / "run").exists()


def test_a_warm_start_needs_an_expert_or_chats(tmp_path) -> None:
    path = tmp_path / "odd.py"
    path.write_text(NO_TRAIN.format(empty="none"))
    with pytest.raises(ConfigError, match=r"has no expert; write a solve method, .* or set warm_start\.steps=0"):
        run_letters(tmp_path / "run", f"environment.name={path}")
    with pytest.raises(ConfigError, match="nothing grades the chats"):
        run_letters(tmp_path / "run", f"warm_start.data={path}", "warm_start.keep=correct")


def test_a_run_is_never_written_over(plain_run: Path) -> None:
    with pytest.raises(BurnishError, match="plain"):
        run_letters(plain_run)
    assert RunReader(plain_run).status().state is RunState.FINISHED


# -- chats ----------------------------------------------------------------------------------------------------------


def test_sft_on_chats_of_the_users_own(tmp_path) -> None:
    path = tmp_path / "chats.jsonl"
    rows = [json.dumps(chat(number)) for number in range(24)]
    rows[6] = '{"messages": []}'
    path.write_text("\n".join(rows))
    said: list[Progress] = []
    words = (f"warm_start.data={path}", "warm_start.steps=60", "rl.steps=0", "evaluation.tasks=8")
    run = run_letters(tmp_path / "run", *words, watch=said.append)
    reader = RunReader(run)
    demonstrations = reader.trajectories("sft", 0)
    assert len(demonstrations) == 23
    assert {row.fate for row in demonstrations} == {Fate.DEMONSTRATION}
    [event] = reader.events("bad_rows")
    assert f"{path}:7: " in event.detail
    assert any(f"left out {path}:7" in progress.message for progress in said)
    losses = [value for _, value in reader.scalars("loss", "sft")]
    assert losses[-1] < 0.25 * losses[0]
    # It has learned to use the tool, which the chats alone could teach it.
    used = [row.trajectory.counters["tool_calls"] for row in reader.trajectories("eval", 1)]
    assert sum(used) >= 6


def test_chats_that_are_too_long_for_the_world_are_left_out(tmp_path) -> None:
    path = tmp_path / "chats.jsonl"
    long = {"messages": [{"role": "user", "content": "long " * 300}, {"role": "assistant", "content": "x"}]}
    path.write_text("\n".join(json.dumps(row) for row in [*(chat(n) for n in range(19)), long]))
    run = run_letters(tmp_path / "run", f"warm_start.data={path}", "warm_start.steps=1", "rl.steps=0")
    [event] = RunReader(run).events("bad_rows")
    assert "limits.max_context_tokens is 160" in event.detail


def test_a_file_of_bad_chats_ends_the_run_and_says_why(tmp_path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("{}\n{}\n")
    with pytest.raises(TaskError, match=r"2 of 2 lines are unusable: .*chats\.jsonl:1: "):
        run_letters(tmp_path / "run", f"warm_start.data={path}")
    status = RunReader(tmp_path / "run").status()
    assert (status.state, "chats.jsonl:1" in status.detail) == (RunState.FAILED, True)


# -- rows -----------------------------------------------------------------------------------------------------------


def test_bad_rows_of_a_taskset_are_told_and_kept_in_the_store(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [json.dumps({"prompt": f"{n}?", "answer": str(n % 3)}) for n in range(30)]
    rows[3] = "{broken"
    path.write_text("\n".join(rows))
    said: list[Progress] = []
    words = (f"environment.name={path}", "rl.steps=1", "warm_start.steps=2", "evaluation.tasks=2")
    run = run_letters(tmp_path / "run", *words, watch=said.append)
    [event] = RunReader(run).events("bad_rows")
    assert event.data["problems"] == [
        f"{path}:4: not JSON (Expecting property name enclosed in double quotes at column 2)"
    ]
    assert any(f"{path}:4" in progress.message for progress in said)


# -- workers --------------------------------------------------------------------------------------------------------


def test_the_automatic_number_of_workers_is_stored_as_a_number() -> None:
    resolved = resolve_workers(letters_recipe("run.workers=0"))
    assert 2 <= resolved.run.workers <= 8
    assert resolve_workers(letters_recipe("run.workers=5")).run.workers == 5
    assert resolve_workers(load_recipe(str(LETTERS))).run.workers == resolved.run.workers
