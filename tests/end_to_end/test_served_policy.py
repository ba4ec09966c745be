"""A run whose policy is sampled by a server that follows its weights."""

from __future__ import annotations

import copy
import json
import re
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from letter_runs import letters_recipe, run_letters, weights

from burnish.core.errors import ConfigError, InvariantViolation
from burnish.core.message import Message
from burnish.core.sampling import Sample, SampleRequest
from burnish.loop.conductor import resume_run, start_run
from burnish.policies.sampler import EmbeddedSampler
from burnish.store.reader import RunReader

WORDS = ("sampler.url=http://server", "run.workers=1", "rl.steps=4")


class CopyServer:
    """Holds a copy of the policy, as a server on another machine would.  stubborn: takes no weights after the first.
    positions: what it says that it can hold."""

    def __init__(self, *, stubborn: bool = False, positions: int | None = None) -> None:
        self.stubborn, self.positions = stubborn, positions
        self.followed: list[int] = []
        self.sampler: Any = None

    async def open(self) -> int | None:
        return self.positions

    async def follow(self, model: Any, version: int) -> None:
        self.followed.append(version)
        if self.sampler is None:
            self.copy = copy.deepcopy(model)
            self.sampler = EmbeddedSampler(self.copy, pad_id=0)
        elif not self.stubborn:
            self.copy.load_state_dict(model.state_dict())
        self.sampler.version = version

    async def sample(self, requests: Sequence[SampleRequest]) -> Sequence[Sample]:
        return await self.sampler.sample(requests)


def run_served(folder: Path, server: CopyServer, *words: str) -> Path:
    start_run(letters_recipe(*WORDS, *words), folder, server=server)
    return folder


def tokens(folder: Path) -> list[array[int]]:
    reader = RunReader(folder)
    rows = [row for info in reader.steps("rl") for row in reader.trajectories("rl", info.step)]
    return [node.token_ids for row in rows for node in row.trajectory.nodes]


def test_the_run_is_that_of_the_embedded_engine(tmp_path: Path) -> None:
    server = CopyServer()
    served = run_served(tmp_path / "served", server)
    own = run_letters(tmp_path / "own", "run.workers=1", "rl.steps=4")
    assert tokens(served) == tokens(own)
    assert len(tokens(served)) > 20
    assert server.followed[-1] == RunReader(served).steps("rl")[-1].policy_version
    after, expected = weights(served, "final"), weights(own, "final")
    assert all(torch.allclose(after[name], expected[name], atol=1e-4) for name in expected)


@pytest.mark.parametrize("weights_when", ["in_flight", "episode"])
def test_asynchronous_episodes_are_sampled_by_it_too(tmp_path: Path, weights_when: str) -> None:
    folder = run_served(tmp_path / "run", CopyServer(), "rollout.mode=async", f"rollout.weights={weights_when}")
    assert len(RunReader(folder).steps("rl")) == 4


def test_weights_that_do_not_arrive_are_noticed_at_the_next_update(tmp_path: Path) -> None:
    with pytest.raises(InvariantViolation, match="differ"):
        run_served(tmp_path / "run", CopyServer(stubborn=True))


def test_a_server_that_holds_too_little_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--max-model-len"):
        run_served(tmp_path / "run", CopyServer(positions=32))


def test_recipe_and_server_go_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="VllmPolicy"):
        start_run(letters_recipe(*WORDS), tmp_path / "none")
    with pytest.raises(ConfigError, match=r"sampler\.url is ''"):
        start_run(letters_recipe(), tmp_path / "extra", server=CopyServer())


def test_a_resumed_run_goes_on_with_the_server(tmp_path: Path) -> None:
    stopped: list[int] = []

    def stop() -> bool:
        stopped.append(1)
        return len(stopped) > 4

    with pytest.raises(Exception, match="stopped on request"):
        start_run(letters_recipe(*WORDS), tmp_path / "run", server=CopyServer(), stop=stop)
    resume_run(tmp_path / "run", server=CopyServer())
    whole = run_served(tmp_path / "whole", CopyServer())
    assert tokens(tmp_path / "run") == tokens(whole)


# -- the policy as its own judge ---------------------------------------------------------------------------------------

GRAPH = """
[judges.self]
use = "policy"

[graders.answer]
use = "get_reward"

[graders.letters]
use = "rubric"
options = { rubric = "letters.toml" }
judge = "self"
weight = 0.5
"""
RUBRIC = """
name = "letters"

[judging]
max_tokens = 48
attempts = 1

[[criteria]]
id = "has_w"
text = "It has a w."
"""


class JudgingServer(CopyServer):
    """Plays as the policy does, and finds a "w" where it is asked to judge."""

    def __init__(self) -> None:
        super().__init__()
        self.judged: list[int] = []

    async def sample(self, requests: Sequence[SampleRequest]) -> Sequence[Sample]:
        if not requests[0].key.startswith("judge/"):
            return await super().sample(requests)
        self.judged.append(self.followed[-1])
        return [Sample(message=Message.assistant(self._verdicts(request.messages[-1].text))) for request in requests]

    def _verdicts(self, prompt: str) -> str:
        nonce = re.findall(r"<<<end answer (\w+)>>>", prompt)[0]
        answer = prompt.partition(f"<<<answer {nonce}>>>\n")[2].partition(f"\n<<<end answer {nonce}")[0]
        asked = prompt.rpartition("Criteria:\n")[2].split("\n")
        words = [line.split('"')[1] if "The word" in line else "w" for line in asked]
        rows = [{"item": n, "quote": "", "reason": "", "value": int(word in answer)} for n, word in enumerate(words, 1)]
        return json.dumps({"nonce": nonce, "verdicts": rows})


def graded_by_itself(tmp_path: Path) -> str:
    (tmp_path / "letters.toml").write_text(RUBRIC, encoding="utf-8")
    path = tmp_path / "graders.toml"
    path.write_text(GRAPH, encoding="utf-8")
    return f"graders.file={path}"


def rubric_grades(folder: Path) -> list[tuple[Any, Any]]:
    reader = RunReader(folder)
    rows = [row for info in reader.steps("rl") for row in reader.trajectories("rl", info.step)]
    return [(row, grade) for row in rows for grade in row.grades if grade.grader == "letters"]


def test_the_policy_judges_itself_as_it_is_at_that_step(tmp_path: Path) -> None:
    server = JudgingServer()
    words = ("model.tiny.max_positions=8192", graded_by_itself(tmp_path))
    found = rubric_grades(run_served(tmp_path / "run", server, *words))
    judged = [(row, grade) for row, grade in found if grade.evidence]
    assert len(judged) > 10
    assert {grade.score for _, grade in judged} == {0.0, 1.0}
    for row, grade in judged:
        assert grade.score == float("w" in row.trajectory.answer)
        assert grade.evidence["judges"] == {"policy": f"policy@{row.policy_version}"}
    assert len({row.policy_version for row, _ in judged}) == 4
    assert set(server.judged) >= {row.policy_version for row, _ in judged}


def test_in_worker_processes_it_is_the_worker_s_own_policy_that_is_asked(tmp_path: Path) -> None:
    """A model this small answers no question in due form, which is a failed judge and not an absent one."""
    words = (
        "run.in_process=false",
        "model.tiny.max_positions=4096",
        "rl.steps=1",
        "stop.max_excluded_share=1",
        graded_by_itself(tmp_path),
    )
    found = rubric_grades(run_letters(tmp_path / "run", *words))
    causes = {grade.cause for _, grade in found if grade.score is None}
    assert causes
    assert causes <= {"judge:malformed", "judge:timeout"}


def test_a_question_that_is_too_long_for_the_policy_is_no_verdict(tmp_path: Path) -> None:
    words = ("run.in_process=true", "rl.steps=1", "stop.max_excluded_share=1", graded_by_itself(tmp_path))
    found = rubric_grades(run_letters(tmp_path / "run", *words))
    assert {grade.cause for _, grade in found if grade.score is None} == {"judge:context_too_long"}
