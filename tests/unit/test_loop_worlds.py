"""From names to worlds: built in, a user's file, JSONL, reasoning-gym; and every way in which a name can be wrong."""

from __future__ import annotations

import asyncio
import json
from random import Random

import pytest

from burnish.core.errors import ConfigError, TaskError
from burnish.core.grade import Grade
from burnish.graders.graph import aggregator_at, for_evaluation
from burnish.loop.worlds import load_world
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.runner import run_scripted

TWO = """
from burnish import Environment, Task
from dataclasses import dataclass

@dataclass
class NotOne:
    x: int = 0

class First(Environment):
    def tasks(self, split, rng):
        yield Task(prompt=f"{split} {rng.random()}", reference={"answer": "1"})

class Second(First):
    def __init__(self, size: int, tag="t"):
        if size < 0:
            raise ValueError("size is negative")
        self.size = size
"""


@pytest.fixture
def write(tmp_path):
    def _write(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return _write


def rows(count: int = 30) -> str:
    return "".join(json.dumps({"prompt": f"{n} + 1?", "answer": n + 1}) + "\n" for n in range(count))


# -- built in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shop", "calculator"])
def test_a_built_in_environment_comes_whole(name: str) -> None:
    world = load_world(name, {}, seed=0)
    assert world.expert is not None
    assert world.graders
    assert len(world.tasks("train", 5)) == 5


def test_tasks_are_a_function_of_the_seed() -> None:
    first, again, other = (load_world("calculator", {}, seed=seed).tasks("train", 3) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shpo", "did you mean 'shop'?"),
        ("calcualtor", "did you mean 'calculator'?"),
        ("reasoning-gmy:chain_sum", "did you mean 'reasoning-gym'?"),
        ("zzz", "built in: calculator, repair, scan_report, scenes, shop, shop_dialogue, reasoning-gym:DATASET"),
        ("shop:heldout", "environment shop takes no ':heldout'"),
        ("reasoning-gym", "name a dataset: reasoning-gym:DATASET"),
        ("nowhere.py", "the file nowhere.py does not exist"),
        ("nowhere.jsonl", "nowhere.jsonl cannot be read"),
    ],
)
def test_an_unknown_name_is_explained(name: str, message: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, TaskError)) as caught:
        load_world(name, {}, seed=0)
    assert message in str(caught.value)


def test_wrong_options_are_explained() -> None:
    with pytest.raises(ConfigError, match=r"shop has no option 'levl'; did you mean 'level'\?; it takes: .*level"):
        load_world("shop", {"levl": 2}, seed=0)
    with pytest.raises(ConfigError, match="level"):
        load_world("shop", {"level": 99}, seed=0)


# -- a user's file --------------------------------------------------------------------------------------------------


def test_the_only_environment_of_a_file_needs_no_name(write) -> None:
    path = write("one.py", TWO.split("class Second")[0])
    world = load_world(path, {}, seed=0)
    assert (world.name, world.expert, world.mistakes) == (path, None, ())
    assert world.tasks("train")[0].prompt_text.startswith("train")


def test_one_of_several_is_named_after_a_colon(write) -> None:
    path = write("two.py", TWO)
    with pytest.raises(ConfigError, match=r"exactly one Environment class \(found: First, Second\).*two\.py:First"):
        load_world(path, {}, seed=0)
    with pytest.raises(ConfigError, match=r"no environment class 'Secnd'; did you mean 'Second'\?"):
        load_world(f"{path}:Secnd", {}, seed=0)
    with pytest.raises(ConfigError, match=r"no environment class 'NotOne'"):
        load_world(f"{path}:NotOne", {}, seed=0)
    world = load_world(f"{path}:Second", {"size": 3}, seed=0)
    assert world.make().size == 3  # type: ignore[attr-defined]


def test_options_of_a_users_class_are_checked(write) -> None:
    path = f"{write('two.py', TWO)}:Second"
    with pytest.raises(ConfigError, match=r"needs a value: environment\.options\.size"):
        load_world(path, {}, seed=0)
    with pytest.raises(ConfigError, match=r"no option 'sizes'; did you mean 'size'\?; it takes: size, tag"):
        load_world(path, {"sizes": 3}, seed=0)
    with pytest.raises(ConfigError, match=r"cannot be made with options.*size is negative"):
        load_world(path, {"size": -1}, seed=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def broken(:\n", r"SyntaxError: .*line 1"),
        ("import burnish\n\nimport not_installed_anywhere\n", r"ModuleNotFoundError: .*not_installed.* \(line 3\)"),
        ("x = 1 / 0\n", r"ZeroDivisionError: .* \(line 1\)"),
        ("x = 1\n", r"exactly one Environment class \(found: none\)"),
        ("from burnish import Environment\n", r"exactly one Environment class \(found: none\)"),
        (
            "from burnish import Environment\nclass E(Environment):\n    chance = 2.0\n",
            r"chance lies in \[0, 1\], got 2\.0.* \(line 2\)",
        ),
    ],
)
def test_a_file_that_cannot_be_used_says_where(write, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_world(write("broken.py", text), {}, seed=0)


def test_a_missing_file_suggests_its_neighbour(write, tmp_path) -> None:
    write("warehouse.py", TWO)
    with pytest.raises(ConfigError, match=r"warehose\.py does not exist; did you mean '.*warehouse\.py'\?"):
        load_world(str(tmp_path / "warehose.py"), {}, seed=0)


def test_a_file_may_import_its_neighbours(write) -> None:
    write("a_helper_beside_it.py", "PROMPT = 'from the neighbour'\n")
    path = write(
        "importing.py",
        "from burnish import Environment, Task\nfrom a_helper_beside_it import PROMPT\n"
        "class E(Environment):\n    def tasks(self, split, rng):\n"
        "        yield Task(prompt=PROMPT + split, reference={'answer': '1'})\n",
    )
    assert load_world(path, {}, seed=0).tasks("train")[0].prompt_text == "from the neighbourtrain"


def test_an_unknown_grader_of_a_users_class_gets_a_suggestion(write) -> None:
    text = TWO.split("class Second")[0].replace("(Environment):\n", '(Environment):\n    graders = ("exactt",)\n')
    with pytest.raises(ConfigError, match="did you mean 'exact'"):
        load_world(write("graded.py", text), {}, seed=0)


def test_an_empty_split_is_an_error(write) -> None:
    world = load_world(write("one.py", TWO.split("class Second")[0]), {}, seed=0)
    with pytest.raises(TaskError, match="unseen"):
        world.tasks("unseen")
    empty = (
        "from burnish import Environment\nclass E(Environment):\n    def tasks(self, split, rng):\n        return []\n"
    )
    with pytest.raises(TaskError, match="no tasks"):
        load_world(write("empty.py", empty), {}, seed=0).tasks("train")


# -- JSONL ----------------------------------------------------------------------------------------------------------


def test_a_jsonl_file_is_a_world_of_questions(write) -> None:
    world = load_world(write("sums.jsonl", rows()), {"grader": "numeric", "heldout_share": 0.2}, seed=0)
    assert (len(world.tasks("train")), len(world.tasks("heldout"))) == (24, 6)
    assert [grader.name for grader in world.graders] == ["numeric"]
    assert world.limits.max_turns == 1
    task = world.tasks("train")[0]
    plan = EpisodePlan(id="a", group_id="a", task=task, sample_index=0, seed=0)
    assert world.expert is not None
    [done] = asyncio.run(run_scripted([plan], make_environment=world.make, policy=world.expert))
    assert done.answer == task.reference["answer"]


def test_malformed_rows_are_named_and_the_others_kept(write) -> None:
    lines = rows().splitlines()
    lines[4] = '{"prompt": "no answer"}'
    lines[9] = "{broken"
    path = write("sums.jsonl", "\n".join(lines))
    world = load_world(path, {}, seed=0)
    assert [problem.split(": ")[0] for problem in world.problems] == [f"{path}:5", f"{path}:10"]
    assert len(world.tasks("train")) + len(world.tasks("heldout")) == 28
    lines[:10] = ["{"] * 10
    with pytest.raises(TaskError, match=r"sums\.jsonl:1: "):
        load_world(write("sums.jsonl", "\n".join(lines)), {}, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grder": "numeric"}, r"no option 'grder'; did you mean 'grader'\?"),
        ({"heldout": 0.2}, r"did you mean 'heldout_share'\?|did you mean 'heldout_path'\?"),
        ({"seed": 3}, "no option 'seed'"),
        ({"grader": "exat"}, "did you mean 'exact'"),
        ({"heldout_share": 2.0}, r"heldout_share lies in \[0, 1\)"),
        ({"heldout_share": "many"}, "cannot be made with options"),
    ],
)
def test_wrong_options_of_a_jsonl_file_are_explained(write, options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_world(write("sums.jsonl", rows()), options, seed=0)


# -- reasoning-gym --------------------------------------------------------------------------------------------------


def test_a_dataset_of_reasoning_gym_is_a_world() -> None:
    pytest.importorskip("reasoning_gym")
    world = load_world("reasoning-gym:chain_sum", {"size": 20, "heldout_size": 5, "max_terms": 2}, seed=1)
    assert (len(world.tasks("train")), len(world.tasks("heldout"))) == (20, 5)
    assert [grader.name for grader in world.graders] == ["reasoning_gym"]


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("chain_sums", {}, "did you mean 'chain_sum'"),
        ("chain_sum", {"size": "twenty"}, "whole number, got 'twenty'"),
        ("chain_sum", {"size": 0}, "at least 1"),
        ("chain_sum", {"seed": 3}, "takes no option 'seed'"),
    ],
)
def test_wrong_names_and_options_of_reasoning_gym_are_explained(dataset: str, options, message: str) -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ConfigError, match=message):
        load_world(f"reasoning-gym:{dataset}", options, seed=0)


def test_the_noisy_expert_makes_the_mistake_that_it_is_told(tmp_path) -> None:
    from letters_env import Letters

    from burnish.loop.worlds import mistaken_expert

    task = next(t for t in Letters().tasks("train", Random(3)) if t.reference["answer"] != "x")
    plans = [EpisodePlan(id="a", group_id="a", task=task, sample_index=0, seed=0)]
    for mistake, answer in ((None, task.reference["answer"]), ("blind", "x")):
        [done] = asyncio.run(
            run_scripted(plans, make_environment=lambda task: Letters(), policy=mistaken_expert(mistake))
        )
        assert done.answer == answer


WEIGHED = """
from burnish import Environment, Task

class Weighed(Environment):
    graders = ("exact", "choice")
    weights = {weights}

    def tasks(self, split, rng):
        yield Task(prompt=split, reference={{"answer": "A"}})
"""


def test_an_environment_says_what_its_graders_count(write):
    grades = [Grade(grader=name, version="1", score=score) for name, score in (("exact", 1.0), ("choice", 0.0))]
    cases = (("None", 0.5, 0.5), ('{"exact": 2.0}', 2.0, 1.0), ('{"exact": 1.0, "choice": 1.0}', 1.0, 0.5))
    for number, (weights, reward, held_out) in enumerate(cases):
        world = load_world(write(f"weighed{number}.py", WEIGHED.format(weights=weights)), {}, seed=0)
        assert aggregator_at(world.aggregator, 0.5).rewards([grades]) == [reward]
        assert for_evaluation(world.aggregator).rewards([grades]) == [held_out]
    wrong = (('{"exat": 1.0}', "did you mean 'exact'"), ('{"exact": 0.0}', "every weight is 0"))
    for number, (weights, message) in enumerate(wrong):
        with pytest.raises(ConfigError, match=message):
            load_world(write(f"wrong{number}.py", WEIGHED.format(weights=weights)), {}, seed=0)
