"""The repositories and their bugs: real enough, rebuilt the same each time, and each bug validated both ways."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.support.repair_runs import options

from burnish.core.errors import TaskError
from burnish.core.sandbox import PYTHON
from burnish.environments.repair.gitpack import git_folder
from burnish.environments.repair.grading import Defences, Verdict, judge, same_value
from burnish.environments.repair.policies import gold_edits
from burnish.environments.repair.repository import (
    agent_files,
    broken_tree,
    history,
    load_repository,
    repository_names,
)
from burnish.environments.repair.rooms import shared_sandbox
from burnish.sandbox.ladder import SandboxSpec

BUGS = [(name, bug) for name in repository_names() for bug in load_repository(name).bugs.values()]
IDS = [f"{name}-{bug.name}" for name, bug in BUGS]


def test_there_is_enough_of_everything() -> None:
    assert len(repository_names()) >= 6
    assert len(BUGS) >= 30
    for name in repository_names():
        repository = load_repository(name)
        python = {path: text for path, text in repository.tree.items() if path.endswith(".py")}
        modules = [path for path in python if path.startswith(f"{name}/") and not path.endswith("__init__.py")]
        assert sum(len(python[path].splitlines()) for path in modules) >= 300
        assert len(modules) >= 4
        assert len(repository.commits) >= 10
        assert {bug.split for bug in repository.bugs.values()} == {"train", "heldout"}


@pytest.fixture(scope="module")
def verdicts() -> Mapping[str, tuple[Verdict, Verdict, int]]:
    """By bug: hidden tests before and after the right repair, exit status of the visible tests before it."""

    async def validate(name: str, bug_name: str, slots: asyncio.Semaphore) -> tuple[Verdict, Verdict, int]:
        repository = load_repository(name)
        bug = repository.bugs[bug_name]
        sandbox = await shared_sandbox(SandboxSpec(**options()))
        broken = broken_tree(repository, bug)
        fixed = {}
        for path, old, new in gold_edits(repository, bug):
            assert broken[path].count(old) == 1
            fixed[path] = broken[path].replace(old, new)
        async with slots:
            before = await judge(sandbox, repository, bug, {"files": {}}, Defences())
            after = await judge(sandbox, repository, bug, {"files": fixed}, Defences())
            files = {path: text.encode() for path, text in broken.items()}
            visible = await sandbox.run([PYTHON, "-m", "unittest"], files=files)
        assert b"Ran 0 tests" not in visible.stderr
        return before, after, visible.exit if visible.exit is not None else -1

    async def all_of_them() -> list[tuple[Verdict, Verdict, int]]:
        slots = asyncio.Semaphore(3)
        return await asyncio.gather(*(validate(name, bug.name, slots) for name, bug in BUGS))

    return dict(zip(IDS, asyncio.run(all_of_them()), strict=True))


@pytest.mark.parametrize(("name", "bug_name"), [(name, bug.name) for name, bug in BUGS], ids=IDS)
def test_each_bug_is_valid_both_ways(
    verdicts: Mapping[str, tuple[Verdict, Verdict, int]], name: str, bug_name: str
) -> None:
    before, after, visible = verdicts[f"{name}-{bug_name}"]
    own = {check.name for check in load_repository(name).bugs[bug_name].checks}
    assert len(own & set(before.failed)) >= 2, "its own hidden tests notice it, by more than one example"
    assert after.failed == (), "the right repair passes every hidden test of the repository"
    assert visible == 0, "the visible tests do not notice it"


@pytest.mark.parametrize(("name", "bug_name"), [(name, bug.name) for name, bug in BUGS], ids=IDS)
def test_the_agents_disk_holds_neither_repair_nor_hidden_tests(name: str, bug_name: str) -> None:
    repository = load_repository(name)
    bug = repository.bugs[bug_name]
    commits = history(repository, broken_tree(repository, bug))
    assert len({str(sorted(commit.files.items())) for commit in commits}) == len(commits)
    for commit in commits:
        for edit in bug.edits:
            text = commit.files.get(edit.path, b"").decode()
            assert edit.right not in text or edit.right in edit.wrong
    disk = b"\n".join(agent_files(name, bug_name).values()).decode("latin-1")
    for check in bug.checks:
        assert check.code.strip() not in disk
        assert check.name not in disk
    assert not any(edit.right.strip() in bug.issue for edit in bug.edits)


def test_history_is_a_sound_git_repository_with_the_same_ids_each_time(tmp_path: Path) -> None:
    files = agent_files("inikit", "hash_in_value")
    for path, data in files.items():
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    assert files[".git/refs/heads/main"].strip() == _head(tmp_path)

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert git("fsck", "--strict", "--full").strip() == ""
    assert len(git("log", "--oneline").splitlines()) == 10
    assert git("status", "--short") == ""
    assert "Lexer: comments" in git("log", "--format=%s")


def _head(folder: Path) -> bytes:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, check=True)
    return done.stdout.strip()


def test_commit_ids_do_not_depend_on_the_machine() -> None:
    """The id of a commit hashes tree, author, date and message, and nothing else."""
    repository = load_repository("inikit")
    commits = history(repository, dict(repository.tree))
    again = history(repository, dict(repository.tree))
    assert git_folder(commits)[".git/refs/heads/main"] == git_folder(again)[".git/refs/heads/main"]
    assert git_folder(commits[:9])[".git/refs/heads/main"] != git_folder(commits)[".git/refs/heads/main"]


def test_a_repository_that_is_not_there() -> None:
    with pytest.raises(TaskError, match="inikit"):
        load_repository("nothing")


@pytest.mark.parametrize(
    ("expected", "value", "same"),
    [(1, 1.0, True), (1, True, False), ([1], (1,), False), ({"a": None}, {"a": None}, True), ("1", 1, False)],
)
def test_values_are_compared_as_json(expected: object, value: object, same: bool) -> None:
    assert same_value(expected, value) is same
