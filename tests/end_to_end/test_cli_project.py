"""The project that `burnish init` writes: right as text, and trained by the commands that its README names."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from burnish.cli import _parser, main
from burnish.loop.recipes import load_recipe, validate
from burnish.loop.replay import replay_step
from burnish.store.reader import RunReader
from burnish.store.rows import RunState

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = (
    "run.workers=2",
    "model.tiny.hidden_size=32",
    "model.tiny.heads=2",
    "model.tiny.kv_heads=1",
    "model.tiny.layers=1",
    "warm_start.steps=4",
    "warm_start.traces=40",
    "warm_start.batch_size=8",
    "rl.steps=2",
    "rl.groups=4",
    "rl.group_size=2",
    "evaluation.tasks=6",
    "evaluation.quick_tasks=4",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("work") / "my-agent"
    assert main(["init", str(folder)]) == 0
    return folder


def test_its_environment_is_the_example(project: Path) -> None:
    example = (EXAMPLES / "warehouse.py").read_text()
    assert (project / "warehouse.py").read_text() == example
    code = [line for line in example.splitlines() if line.strip()]
    assert len(code) <= 25


def test_its_recipe_is_valid_with_and_without_what_is_commented_out(project: Path) -> None:
    text = (project / "recipe.toml").read_text()
    recipe = load_recipe(str(project / "recipe.toml"))
    assert recipe.environment.name == str(project / "warehouse.py")
    bare = load_recipe(str(project / "warehouse.py"))
    assert recipe.warm_start.mistakes
    noiseless = recipe.warm_start.model_copy(update={"mistakes": {}})
    assert (noiseless, recipe.rl, recipe.evaluation) == (bare.warm_start, bare.rl, bare.evaluation)
    everything = re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE)
    assert everything != text
    assert validate(tomllib.loads(everything), "recipe").model.path
    # Every key comes with a reason.
    for line in text.splitlines():
        if re.match(r"(# )?\w+ = ", line):
            assert "#" in line.partition(" = ")[2], line


def test_its_readme_is_short_and_its_commands_exist(project: Path) -> None:
    text = (project / "README.md").read_text()
    assert len(text.splitlines()) <= 40
    commands = [
        line.strip().partition("  #")[0].split(" # ")[0]
        for line in text.splitlines()
        if line.startswith("    burnish ")
    ]
    assert len(commands) > 8
    for command in commands:
        words = shlex.split(command)[1:]
        arguments, rest = _parser().parse_known_args(words)
        keys = [*getattr(arguments, "keys", []), *rest]
        assert all("=" in key for key in keys), command
        load_recipe(str(project / "recipe.toml"), keys)


def test_doctor_and_train_work_on_it(project: Path) -> None:
    """As a user would: the installed command, in the project's folder, with worker processes."""

    def burnish(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "burnish.cli", *words]
        return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=200, check=False)

    examined = burnish("doctor", "warehouse.py", "--tasks", "60")
    assert examined.returncode == 0, examined.stdout + examined.stderr
    assert "Fit to train on." in examined.stdout
    trained = burnish("train", "recipe.toml", *SMALL)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert trained.stderr == ""
    for part in ("starting 2 workers", "step 4/4", "step 2/2", "Held-out success", "burnish view recipe-001"):
        assert part in trained.stdout
    run = project / "runs" / "recipe-001"
    assert RunReader(run).status().state is RunState.FINISHED
    assert (run / "report.html").is_file()


def test_what_workers_trained_replays_in_one_process(project: Path, monkeypatch) -> None:
    run = project / "runs" / "recipe-001"
    if not run.exists():
        pytest.skip("needs the run of the test above")
    monkeypatch.chdir(project)
    found = replay_step(run, 2, lambda text: None)
    assert found.bit_equal
