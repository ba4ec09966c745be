"""The command line before any heavy library is loaded: help, typos, exit codes."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from burnish.cli import COMMANDS, EXIT_USAGE, main

HEAVY = ("torch", "transformers", "peft", "pyarrow", "duckdb", "numpy", "scipy", "rich", "pydantic")


def loaded_by(code: str) -> set[str]:
    """Which heavy libraries a fresh interpreter holds after `code`."""
    program = f"import sys\n{code}\nprint('MODULES', *[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.rpartition("MODULES")[2].split())


def test_the_package_and_its_help_load_nothing_heavy() -> None:
    help_of = "from burnish.cli import main\ntry:\n    main({!r})\nexcept SystemExit:\n    pass"
    assert not loaded_by("import burnish") & {"torch", "transformers", "peft", "pyarrow", "duckdb"}
    assert loaded_by(help_of.format(["--help"])) == loaded_by("import burnish")
    assert loaded_by(help_of.format(["train", "--help"])) == loaded_by("import burnish")
    # The measure itself works.
    assert loaded_by("import pyarrow") >= {"pyarrow"}


@pytest.mark.parametrize(
    ("words", "is_started"),
    [
        ((), True),
        (("run.workers=3",), True),
        (("model.path=/models/some", "model.device=cpu"), True),
        (("model.path=/models/some",), False),
        (("model.device=cuda",), False),
        (("run.workers=1",), False),
        (("run.in_process=true",), False),
        (("sampler.url=http://127.0.0.1:1",), False),
    ],
)
def test_what_forks_workers_is_started_where_a_recipe_has_some(words, is_started: bool, monkeypatch) -> None:
    from burnish.loop import fork_server
    from burnish.loop.recipes import load_recipe

    started = []
    monkeypatch.setattr(fork_server, "start", lambda: started.append(True))
    fork_server.start_early(load_recipe("demo", list(words)))
    assert bool(started) is is_started


def test_it_is_started_before_anything_heavy_is_loaded() -> None:
    command = """
from burnish.cli import main
from burnish.loop import fork_server

def start():
    print("STARTED", *[name for name in {heavy!r} if name in sys.modules], "MODULES")
    sys.exit()

fork_server.start = start
main(["train", "demo"])
"""
    program = "import sys\n" + command.format(heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.rpartition("STARTED")[2].partition("MODULES")[0].split())
    assert "STARTED" in done.stdout
    assert not loaded & {"torch", "transformers", "peft", "scipy"}


def test_help_is_there_in_a_third_of_a_second() -> None:
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "burnish.cli", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
        assert b"burnish train my_env.py" in done.stdout
    assert min(seconds) < 0.3


def test_help_names_every_command(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"    {command} " in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: burnish {command}" in capsys.readouterr().out


def test_the_help_of_fork_says_which_keys_may_change(capsys) -> None:
    from burnish.loop.config import FORKABLE_SECTIONS, Recipe

    with pytest.raises(SystemExit):
        main(["fork", "--help"])
    fixed = " and ".join(section for section in Recipe.model_fields if section not in FORKABLE_SECTIONS)
    assert f"Every key may change but those of {fixed}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["dockter", "shop"], "did you mean 'doctor'?"),
        (["xyzzy"], "unknown command 'xyzzy'\nCommands: demo, train"),
        (["train"], "the following arguments are required: RECIPE"),
        (["eval", "latest", "--taskst", "shop"], "did you mean --taskset?"),
        (["replay", "latest", "--steps", "3"], "--step"),
        (["replay", "latest", "--step", "three"], "invalid int value: 'three'"),
        (["runs", "lst"], "invalid choice: 'lst'"),
        (["eval", "latest", "--mode", "greddy"], "invalid choice: 'greddy'"),
        (["resume", "latest", "rl.steps=3"], "unrecognized arguments: rl.steps=3"),
        (["train", "demo", "--fast"], "unrecognized arguments: --fast"),
        (["--versoin"], "did you mean --version?"),
    ],
)
def test_a_wrong_word_gets_a_hint_and_exit_code_2(words: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == EXIT_USAGE
    assert message in capsys.readouterr().err


def test_the_version(capsys) -> None:
    import burnish

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"burnish {burnish.__version__}"


def test_no_command_prints_the_help(capsys) -> None:
    assert main([]) == EXIT_USAGE
    assert "First steps" in capsys.readouterr().out
