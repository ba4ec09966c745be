"""Every command of the command line, in this process, on runs that take seconds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from letter_runs import BASE, LETTERS, run_letters
from rich.console import Console

from burnish.cli import EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USAGE, commands, evaluating, main
from burnish.store.reader import RunReader
from burnish.store.rows import RunState

Outcome = tuple[int, str, str]
Burnish = Callable[..., Outcome]


@pytest.fixture
def burnish(monkeypatch, capsys) -> Burnish:
    """Run a command; its exit code, and what it printed to both streams."""
    monkeypatch.setattr(commands, "console", Console(width=80))
    monkeypatch.setattr(commands, "errors", Console(width=80, stderr=True))
    monkeypatch.setattr(evaluating, "console", Console(width=80))

    def _burnish(*words: object) -> Outcome:
        try:
            code = main([str(word) for word in words])
        except SystemExit as ended:
            code = int(str(ended.code))
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        assert all(len(line) <= 80 or "/" in line for line in printed.out.splitlines())
        return code, printed.out, printed.err

    return _burnish


def as_toml(table: dict[str, Any]) -> str:
    """Nested tables of numbers, texts and booleans as TOML."""
    lines = []
    for section, keys in table.items():
        for key, value in keys.items():
            if isinstance(value, dict):
                lines += [f"{section}.{key}.{name} = {json.dumps(leaf)}" for name, leaf in value.items()]
            else:
                lines.append(f"{section}.{key} = {json.dumps(value)}")
    return "\n".join(lines)


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "letters.toml"
    path.write_text(as_toml(BASE))
    return path


@pytest.fixture(scope="module")
def root(plain_run: Path, tmp_path_factory) -> Path:
    """A folder with two runs: one as it was, one trained otherwise."""
    folder = tmp_path_factory.mktemp("root")
    shutil.copytree(plain_run, folder / "first")
    run_letters(folder / "second", "rl.lr=2e-3", "rl.steps=3")
    return folder


# -- train, resume, fork --------------------------------------------------------------------------------------------


def test_train_ends_with_a_table_and_a_report(burnish: Burnish, recipe: Path, tmp_path) -> None:
    code, out, _ = burnish("train", recipe, f"run.root={tmp_path}/runs", "rl.steps=2", "evaluation.before=true")
    assert code == 0
    run = tmp_path / "runs" / "letters-001"
    for part in ("memory plan on cpu", "RL", "step 2/2", "Held-out success", "before SFT", "after RL", "Wall time"):
        assert part in out, part
    assert str(run / "report.html") in out.replace("\n", "")
    assert "burnish view letters-001" in out
    assert (run / "report.html").stat().st_size > 100_000
    code, out, _ = burnish("train", recipe, f"run.root={tmp_path}/runs", "rl.steps=1", "warm_start.steps=1")
    assert (code, (tmp_path / "runs" / "letters-002").is_dir()) == (0, True)


def test_ctrl_c_stops_cleanly_and_resume_goes_on(burnish: Burnish, recipe: Path, tmp_path) -> None:
    """The first Ctrl-C lets the step end; the exit code says interrupted, and the run can be resumed to its end."""
    environment = tmp_path / "interrupting.py"
    flag = tmp_path / "interrupt.flag"
    environment.write_text(
        LETTERS.read_text()
        + f"""
    def setup(self, task):
        import os, pathlib, signal
        flag = pathlib.Path({str(flag)!r})
        if flag.exists():
            flag.unlink()
            os.kill(os.getpid(), signal.SIGINT)
"""
    )
    flag.touch()
    keys = (f"environment.name={environment}", f"run.root={tmp_path}/runs", "run.name=mine", "warm_start.steps=0")
    before = signal.getsignal(signal.SIGINT)
    code, _, err = burnish("train", recipe, *keys, "evaluation.before=true")
    assert code == EXIT_INTERRUPTED
    assert "stopping after this step" in err
    assert "go on with `burnish resume`" in err
    assert not flag.exists()
    assert signal.getsignal(signal.SIGINT) is before
    run = tmp_path / "runs" / "mine"
    assert RunReader(run).status().state is RunState.STOPPED
    assert (run / "report.html").is_file()
    code, out, _ = burnish("resume", "latest", "--root", tmp_path / "runs")
    assert code == 0
    assert "after RL" in out
    assert RunReader(run).status().state is RunState.FINISHED


def test_fork_trains_on(burnish: Burnish, root: Path) -> None:
    code, out, _ = burnish("fork", "first", "--root", root, "rl.steps=6")
    assert code == 0
    assert RunReader(root / "first-fork-001").manifest()["parent"]["run"] == "first"
    assert "after RL" in out
    code, _, err = burnish("fork", "first", "--root", root, "model.lora.rank=2")
    assert (code, "fork cannot change model.lora.rank" in err) == (EXIT_USAGE, True)
    code, _, err = burnish("fork", "first", "--root", root, "--step", "rl-000099", "rl.steps=9")
    assert (code, "no checkpoint rl-000099" in err.replace("\n", " ")) == (1, True)
    shutil.rmtree(root / "first-fork-001")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train", "shpo"], EXIT_USAGE, "did you mean 'shop'?"),
        (["train", "demo", "rl.stpes=3"], EXIT_USAGE, "did you mean 'rl.steps'?"),
        (["train", "demo", "environment.name=calculater"], EXIT_USAGE, "did you mean 'calculator'?"),
        (["train", "demo", "environment.options.levle=2"], EXIT_USAGE, "did you mean 'level'?"),
        (["train", "calculator", "model.path=./nowhere"], EXIT_USAGE, "there is no folder ./nowhere"),
        (["train", "calculator", "rl.loss=grop"], EXIT_USAGE, "did you mean 'grpo'?"),
        (["train", "calculator", "warm_start.data=no.jsonl"], EXIT_USAGE, "there is no file no.jsonl"),
        (["train", "calculator", "warm_start.mistakes.sloppy=0.5"], EXIT_USAGE, "makes no mistake 'sloppy'"),
        (["train", "calculator", "model.tiny.heads=3"], EXIT_USAGE, "must be an even multiple of heads"),
        (["train", "calculator", "model.device=cuda:7"], EXIT_USAGE, "cuda:7"),
        (["train", "missing.jsonl"], 1, "missing.jsonl cannot be read"),
        (["resume", "nothing"], 1, "there is no run 'nothing'"),
        (["view", "latest"], 1, "there are no runs under runs"),
    ],
)
def test_what_cannot_be_is_said_at_once_and_leaves_no_run(
    burnish: Burnish, tmp_path, monkeypatch, words: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found, _, err = burnish(*words)
    assert (found, message in err.replace("\n", " ")) == (code, True), err
    assert not (tmp_path / "runs").exists()


def test_a_run_that_gives_up_exits_with_3_and_advice(burnish: Burnish, recipe: Path, tmp_path) -> None:
    environment = tmp_path / "hopeless.py"
    environment.write_text(
        LETTERS.read_text().replace("        if answer ==", "        return 0.0\n        if answer ==")
    )
    keys = (f"environment.name={environment}", f"run.root={tmp_path}/runs", "stop.no_signal_groups=4")
    code, _, err = burnish("train", recipe, *keys)
    assert code == EXIT_STOPPED
    assert "none of the first 4 groups had two different rewards" in err.replace("\n", " ")
    assert "report: " in err


def test_a_traceback_is_shown_on_request(recipe: Path) -> None:
    from burnish.core.errors import ConfigError

    with pytest.raises(ConfigError):
        main(["--traceback", "train", str(recipe), "rl.stpes=3"])


# -- eval and compare -----------------------------------------------------------------------------------------------


def test_eval_of_a_run_and_of_its_export_agree(burnish: Burnish, root: Path, tmp_path) -> None:
    code, out, _ = burnish("eval", "first", "--root", root, "--tasks", 8, "--samples", 2)
    assert code == 0
    assert "16" in out
    assert "first@final" in out.replace("\n", "")
    [path] = (root / "first" / "evals").iterdir()
    assert burnish("export", "first", "--root", root, "--out", tmp_path / "model")[0] == 0
    words = ("--root", root, "--tasks", 8, "--samples", 2, "--label", "model")
    code, out, err = burnish("eval", tmp_path / "model", *words)
    assert code == 0, err
    of_model = root / "evals" / "model-heldout-greedy.json"
    rows = [json.loads(file.read_text()) for file in (path, of_model)]
    assert rows[0]["details"]["tasks"] == rows[1]["details"]["tasks"]
    code, out, _ = burnish("compare", path, of_model)
    assert code == 0
    assert "0 / 0 / 8" in out
    assert "same seeds" in out
    shutil.rmtree(root / "first" / "evals")


def test_eval_takes_another_taskset_and_its_options(burnish: Burnish, root: Path) -> None:
    words = ("--root", root, "--taskset", f"{LETTERS}:train", "drawers=2", "limits.max_turns=1", "--tasks", 4)
    code, _, _ = burnish("eval", "first", *words, "--mode", "sampled", "--label", "mine")
    assert code == 0
    assert (root / "first" / "evals" / "mine-train-sampled.json").is_file()
    for wrong, message in (
        (("--taskset", "shpo"), "did you mean 'shop'?"),
        (("--taskset", "calculator:unsen"), "splits"),
        (("--taskset", f"{LETTERS}", "drwers=2"), "did you mean 'drawers'?"),
        (("rl.lr=2",), "rl.lr has no effect on an evaluation"),
        (("limits.turns=2",), "did you mean"),
    ):
        code, _, err = burnish("eval", "first", "--root", root, *wrong)
        assert (code, message in err.replace("\n", " ")) == (EXIT_USAGE, True), err
    code, _, err = burnish("eval", "frist", "--root", root)
    assert (code, "did you mean first" in err) == (1, True)
    shutil.rmtree(root / "first" / "evals")


def test_compare_of_two_runs_is_paired(burnish: Burnish, root: Path) -> None:
    code, out, _ = burnish("compare", "first", "second", "--root", root, "--mode", "sampled")
    assert code == 0
    assert "second against first" in out
    assert "heldout, sampled, 6 tasks, 6 pairs of episodes" in out
    code, _, err = burnish("compare", "first", "second", "--root", root, "--label", "before")
    assert (code, "has no evaluation before/heldout/greedy; it has: after_rl/" in err.replace("\n", " ")) == (2, True)


def test_compare_refuses_other_tasks(burnish: Burnish, root: Path) -> None:
    code, _, _ = burnish("eval", "second", "--root", root, "--tasks", 3, "--label", "few")
    assert code == 0
    few = root / "second" / "evals" / "few-heldout-greedy.json"
    code, _, err = burnish("compare", "first", few, "--root", root)
    assert (code, "were not measured on the same tasks" in err.replace("\n", " ")) == (EXIT_USAGE, True)
    shutil.rmtree(root / "second" / "evals")


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An OpenAI-compatible server that calls the tool it is offered and repeats the result."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            bodies.append(body | {"authorization": self.headers.get("Authorization")})
            last = body["messages"][-1]
            if last["role"] == "tool":
                message: dict[str, Any] = {"role": "assistant", "content": last["content"]}
            else:
                drawer = last["content"].rstrip("?").split()[-1]
                function = {"name": "look", "arguments": json.dumps({"drawer": drawer})}
                call = {"id": "c1", "type": "function", "function": function}
                message = {"role": "assistant", "content": None, "tool_calls": [call]}
            data = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", bodies
    server.shutdown()
    server.server_close()


def test_eval_of_an_endpoint(burnish: Burnish, endpoint, tmp_path, monkeypatch) -> None:
    url, bodies = endpoint
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    words = ("eval", "openai:some/model", "--taskset", LETTERS, "--tasks", 5, "--root", tmp_path)
    code, out, _ = burnish(*words, "--base-url", url)
    assert code == 0
    assert "1.000" in out
    assert len(bodies) == 10
    assert bodies[0]["tools"][0]["function"]["name"] == "look"
    assert bodies[0]["authorization"] == "Bearer secret-key"
    [stored] = (tmp_path / "evals").iterdir()
    assert "secret-key" not in stored.read_text()
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    assert burnish(*words)[0] == 0
    monkeypatch.setenv("OPENAI_BASE_URL", "ftp://nowhere")
    code, _, err = burnish(*words)
    assert (code, "http:// or https://" in err) == (EXIT_USAGE, True)
    monkeypatch.delenv("OPENAI_BASE_URL")
    code, _, err = burnish(*words)
    assert (code, "--base-url" in err) == (EXIT_USAGE, True)
    code, _, err = burnish("eval", "openai:m", "--base-url", url)
    assert (code, "name one with --taskset" in err.replace("\n", " ")) == (EXIT_USAGE, True)


# -- looking at runs ------------------------------------------------------------------------------------------------


def test_runs_are_listed_and_pruned(burnish: Burnish, root: Path, tmp_path) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "root"))
    code, out, _ = burnish("runs", "--root", copy)
    assert code == 0
    assert "first" in out
    assert "second" in out
    assert "finished" in out
    assert burnish("runs", "prune", "--root", copy)[0] == EXIT_USAGE
    words = ("runs", "prune", "--max-gb", "0", "--keep-last", "1", "--root", copy)
    code, out, _ = burnish(*words)
    assert (code, (copy / "first").is_dir()) == (0, True)
    assert "would remove" in out
    assert "add --yes" in out
    code, out, _ = burnish(*words, "--yes")
    assert (code, (copy / "first").exists(), (copy / "second").is_dir()) == (0, False, True)
    assert "removed" in out
    code, out, _ = burnish(*words, "--yes")
    assert (code, "nothing to remove" in out) == (0, True)
    code, out, _ = burnish("runs", "--root", tmp_path / "nowhere")
    assert (code, "There are no runs here" in out) == (0, True)


def test_replay_says_whether_the_loss_is_the_same(burnish: Burnish, root: Path, monkeypatch) -> None:
    code, out, _ = burnish("replay", "first", "--step", 4, "--root", root)
    assert code == 0
    assert "the same to the last bit" in out
    honest = RunReader.step_scalars

    def other_loss(self: RunReader, phase: str, step: int) -> dict[str, float]:
        return honest(self, phase, step) | {"loss": 0.123}

    monkeypatch.setattr(RunReader, "step_scalars", other_loss)
    code, out, _ = burnish("replay", "first", "--step", 4, "--root", root)
    assert (code, "DIFFERENT" in out) == (1, True)
    code, _, err = burnish("replay", "first", "--step", 40, "--root", root)
    assert (code, "has no RL step 40" in err) == (1, True)


def test_report_is_one_file(burnish: Burnish, root: Path, tmp_path) -> None:
    code, out, _ = burnish("report", "first", "--root", root, "--out", tmp_path / "page.html")
    assert code == 0
    assert out.strip() == str(tmp_path / "page.html")
    assert "<html" in (tmp_path / "page.html").read_text()[:2000]


def test_view_serves_until_ctrl_c(burnish: Burnish, root: Path, monkeypatch) -> None:
    import httpx

    from burnish.reports.live import LiveServer

    pages: list[int] = []

    def visited_once(self: LiveServer) -> None:
        self.start()
        pages.append(httpx.get(self.url).status_code)
        raise KeyboardInterrupt

    monkeypatch.setattr(LiveServer, "serve_forever", visited_once, raising=True)
    honest = LiveServer.start
    monkeypatch.setattr(LiveServer, "start", lambda self: _in_background(self, honest))
    code, out, _ = burnish("view", "first", "--root", root, "--port", 0)
    assert (code, pages) == (0, [200])
    assert "http://127.0.0.1:" in out


def _in_background(server: Any, start: Callable[[Any], Any]) -> None:
    """Serve as `start` does, whatever `serve_forever` has become."""
    server._serving.set()
    server._thread = threading.Thread(target=server._server.serve_forever, args=(0.01,), daemon=True)
    server._thread.start()


def test_export_writes_a_folder_once(burnish: Burnish, root: Path, tmp_path) -> None:
    words = ("export", "first", "--root", root, "--out", tmp_path / "model", "--step", "rl-000002")
    code, out, err = burnish(*words)
    assert code == 0
    assert "first@rl-000002" in out
    assert err == ""
    code, _, err = burnish(*words)
    assert (code, "is not empty" in err) == (EXIT_USAGE, True)


# -- environments and projects --------------------------------------------------------------------------------------


def test_doctor_tells_fit_from_unfit(burnish: Burnish, tmp_path) -> None:
    code, out, _ = burnish("doctor", LETTERS, "--tasks", 8)
    assert "declared chance 0.2" in out.replace("\n", " ")
    assert code == 1, "babbling earns more than the declared chance here"
    code, out, _ = burnish("doctor", "calculator", "--tasks", 40)
    assert (code, "Fit to train on." in out) == (0, True)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{n} + {n}?", "answer": 2 * n}) + "\n" for n in range(40)))
    code, out, _ = burnish("doctor", rows, "--tasks", 20, "grader=numeric")
    assert code == 0, out
    for words, message in (
        (("shpo",), "did you mean 'shop'?"),
        (("shop", "levl=2"), "did you mean 'level'?"),
        (("shop", "level"), "unrecognized arguments: level|not of the form"),
    ):
        code, _, err = burnish("doctor", *words)
        assert code == EXIT_USAGE
        assert any(part in err for part in message.split("|")), err


def test_keys_lists_every_key_with_its_default(burnish: Burnish) -> None:
    from burnish.loop.recipes import all_keys

    code, out, _ = burnish("keys")
    assert code == 0
    for key in all_keys():
        assert f" {key} " in out, key
    assert "Undefined" not in out
    code, out, _ = burnish("keys", "checkpoint")
    assert (code, "checkpoint.every" in out, "rl.lr" in out) == (0, True, False)
    code, _, err = burnish("keys", "checkpont")
    assert (code, "did you mean 'checkpoint'?" in err) == (EXIT_USAGE, True)


def test_init_writes_a_project_once(burnish: Burnish, tmp_path) -> None:
    folder = tmp_path / "agent"
    code, out, _ = burnish("init", folder)
    assert code == 0
    assert {path.name for path in folder.iterdir()} == {"warehouse.py", "recipe.toml", "README.md"}
    assert "burnish doctor warehouse.py" in out
    code, _, err = burnish("init", folder)
    assert (code, "is not empty" in err) == (EXIT_USAGE, True)
    assert os.access(folder / "README.md", os.W_OK)
