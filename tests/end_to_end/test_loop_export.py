"""A policy outside of its run: an exported folder is the same policy, wherever it is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from letter_runs import LETTERS, run_letters
from transformers import AutoModelForCausalLM, AutoTokenizer

from burnish.core.errors import CheckpointError, ConfigError
from burnish.core.message import Message
from burnish.core.tool import ToolSpec
from burnish.evaluation.heldout import EvalResult, EvalSpec, Mode
from burnish.loop.conductor import resume_run
from burnish.loop.note import NAME, read_note
from burnish.loop.standalone import (
    Subject,
    evaluate_subject,
    export_run,
    model_subject,
    open_taskset,
    parse_taskset,
    pick_evaluation,
    read_result,
    run_subject,
    stored_policy,
    write_result,
)
from burnish.store.layout import RunLayout
from burnish.store.reader import RunReader


def evaluate(subject: Subject, taskset: str = "", mode: Mode = Mode.GREEDY, **options) -> EvalResult:
    world, split = open_taskset(taskset, options, subject.recipe)
    spec = EvalSpec(label="test", split=split, mode=mode, samples=2)
    return evaluate_subject(subject, world, spec, 8)


def scores(result: EvalResult) -> dict[str, tuple[float | None, ...]]:
    return {task.task_id: task.scores for task in result.tasks}


@pytest.fixture(scope="module")
def exported(plain_run: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "model"
    assert export_run(plain_run, folder) == "final"
    return folder


def test_the_folder_loads_with_transformers_alone(plain_run: Path, exported: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    _, policy, _ = stored_policy(plain_run)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is in a?"}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, policy.model(ids).logits)
    assert set(policy.renderer.stop_ids) <= set(model.generation_config.eos_token_id)
    assert {path.name for path in exported.iterdir()} >= {"model.safetensors", "tokenizer.json", "chat_template.jinja"}


@pytest.mark.parametrize("mode", list(Mode))
def test_run_and_folder_score_the_same_on_every_task(plain_run: Path, exported: Path, mode: Mode) -> None:
    of_run, of_folder = evaluate(run_subject(plain_run), mode=mode), evaluate(model_subject(str(exported)), mode=mode)
    assert scores(of_run) == scores(of_folder)
    assert [t.answer for t in of_run.trajectories] == [t.answer for t in of_folder.trajectories]
    if mode is Mode.SAMPLED:
        # Not always the same was said; else equal scores would prove nothing.
        assert len({t.answer for t in of_run.trajectories}) > 1


def test_other_weights_score_otherwise(plain_run: Path, sft_model: Path) -> None:
    mode = Mode.SAMPLED
    of_run, of_sft = evaluate(run_subject(plain_run), mode=mode), evaluate(model_subject(str(sft_model)), mode=mode)
    assert [t.answer for t in of_run.trajectories] != [t.answer for t in of_sft.trajectories]


def test_adapters_are_merged(lora_run: Path, tmp_path) -> None:
    folder = tmp_path / "merged"
    export_run(lora_run, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert not any("lora" in name for name, _ in model.named_parameters())
    _, policy, _ = stored_policy(lora_run)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        merged, adapted = model(ids).logits, policy.model(ids).logits
        with policy.model.disable_adapter():
            base = policy.model(ids).logits
    assert (merged - adapted).abs().max() < 1e-4
    assert (base - adapted).abs().max() > 0.1
    assert scores(evaluate(run_subject(lora_run))) == scores(evaluate(model_subject(str(folder))))


def test_the_folder_says_how_it_was_trained(plain_run: Path, exported: Path, sft_model: Path, lora_run: Path) -> None:
    note = read_note(exported)
    assert note["model"]["show_tools"] == "none"
    assert note["environment"]["name"] == str(LETTERS)
    assert model_subject(str(exported)).recipe.environment == run_subject(plain_run).recipe.environment
    # A run that starts from it shows tools as it was trained to see them, and so does everybody after it.
    for folder in (sft_model, RunLayout(lora_run).model):
        assert read_note(folder)["model"]["show_tools"] == "none"


def test_a_model_from_elsewhere_is_shown_the_tools(exported: Path, tmp_path) -> None:
    foreign = Path(shutil.copytree(exported, tmp_path / "foreign"))
    (foreign / NAME).unlink()
    spec = ToolSpec(name="look", description="Look.", parameters={"type": "object", "properties": {}})
    lengths = []
    for folder, words in ((exported, []), (foreign, []), (foreign, ["model.show_tools=none"])):
        renderer = model_subject(str(folder), words).renderer
        assert renderer is not None
        lengths.append(len(renderer.open([Message.user("What is in a?")], [spec])))
    assert lengths[0] == lengths[2] < lengths[1]


def test_a_broken_note_is_an_error(exported: Path, tmp_path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "broken"))
    for text in ("{", "[]"):
        (folder / NAME).write_text(text)
        with pytest.raises(ConfigError, match=r"burnish\.json .*delete it"):
            model_subject(str(folder))


def test_a_run_may_start_from_the_folder_and_be_resumed(exported: Path, tmp_path) -> None:
    """Resuming reads the run's own notes: the folder may be gone by then."""
    folder = Path(shutil.copytree(exported, tmp_path / "start"))
    words = (f"model.path={folder}", "warm_start.steps=0", "rl.steps=2", "evaluation.tasks=2")
    run = run_letters(tmp_path / "run", *words)
    prompts = [row.trajectory.nodes[0].token_ids for row in RunReader(run).trajectories("rl", 1)]
    assert max(map(len, prompts)) < 40
    shutil.rmtree(folder)
    shutil.rmtree(RunLayout(run).checkpoints / "final")
    shutil.rmtree(RunLayout(run).checkpoints / "rl-000002")
    resume_run(run)
    again = [row.trajectory.nodes[0].token_ids for row in RunReader(run).trajectories("rl", 1)]
    assert again == prompts


# -- what is evaluated ----------------------------------------------------------------------------------------------


def test_the_taskset_may_be_another(plain_run: Path) -> None:
    result = evaluate(run_subject(plain_run), "calculator:train")
    assert result.split == "train"
    assert all("look" not in t.messages[0].text for t in result.trajectories)
    other = evaluate(run_subject(plain_run), f"{LETTERS}:heldout", drawers=2)
    assert {t.messages[0].text for t in other.trajectories} <= {"What is in a?", "What is in b?"}
    with pytest.raises(ConfigError, match=r"takes no ':train2'; .*splits"):
        evaluate(run_subject(plain_run), "calculator:train2")
    with pytest.raises(ConfigError, match=r"has no split 'unseen'; it has \['train', 'heldout'\]"):
        evaluate(run_subject(plain_run), f"{LETTERS}:unseen")


def test_overrides_reach_an_evaluation_or_are_refused(plain_run: Path, exported: Path) -> None:
    short = run_subject(plain_run, ["limits.max_turn_tokens=1"])
    assert {t.outcome.label for t in evaluate(short).trajectories} <= {"truncated:turn_tokens", "completed"}
    assert evaluate(short).outcomes != evaluate(run_subject(plain_run)).outcomes
    assert model_subject(str(exported), ["limits.max_turns=1"]).recipe.limits.max_turns == 1
    for words, message in (
        (["rl.lr=1.0"], r"rl\.lr has no effect on an evaluation"),
        (["model.dtype=float32"], "the model of a run is what it is"),
        (["limits.max_turn=1"], "did you mean 'limits.max_turns'"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_subject(plain_run, words)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shop", ("shop", "heldout")),
        ("shop:train", ("shop", "train")),
        ("a/b.py:Second", ("a/b.py:Second", "heldout")),
        ("a/b.py:Second:unseen", ("a/b.py:Second", "unseen")),
        ("reasoning-gym:chain_sum:train", ("reasoning-gym:chain_sum", "train")),
    ],
)
def test_a_taskset_names_environment_and_split(text: str, expected: tuple[str, str]) -> None:
    assert parse_taskset(text) == expected


def test_results_survive_the_disk(plain_run: Path, tmp_path) -> None:
    result = evaluate(run_subject(plain_run))
    path = tmp_path / "evals" / "one.json"
    write_result(result, path)
    row = read_result(path)
    assert (row.label, row.split, row.mode, row.n) == ("test", "heldout", "greedy", 16)
    path.write_text(json.dumps({"label": "x"}))
    with pytest.raises(ConfigError, match="no evaluation written by"):
        read_result(path)


def test_a_missing_evaluation_names_those_that_there_are(plain_run: Path) -> None:
    rows = RunReader(plain_run).evaluations()
    assert pick_evaluation(rows, label="after_rl", split="heldout", mode="greedy", run="plain").n == 6
    with pytest.raises(ConfigError, match="has no evaluation before/heldout/greedy; it has: after_rl/heldout/greedy,"):
        pick_evaluation(rows, label="before", split="heldout", mode="greedy", run="plain")


# -- refusals -------------------------------------------------------------------------------------------------------


def test_an_export_overwrites_nothing(plain_run: Path, exported: Path) -> None:
    with pytest.raises(ConfigError, match="exists and is not empty"):
        export_run(plain_run, exported)


def test_an_unknown_checkpoint_names_those_that_there_are(plain_run: Path, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint rl-000003 in .*; there are: final, "):
        export_run(plain_run, tmp_path / "out", "rl-000003")
    assert not (tmp_path / "out").exists()
