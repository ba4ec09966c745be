"""The library and a loop without abstractions reach the same weights."""

from __future__ import annotations

import importlib.util
import random
import shutil
from array import array
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from tiny_runs import tiny_recipe

from burnish.algorithms.advantages import group_advantages, has_signal
from burnish.algorithms.grpo import GrpoLoss
from burnish.core.learning import TrainingSample
from burnish.core.message import Message, Role
from burnish.core.outcome import COMPLETED, Ending, Outcome, Owner
from burnish.core.trajectory import Node, Trajectory
from burnish.loop.conductor import start_run
from burnish.loop.manifest import stored_recipe
from burnish.loop.policy import reopen_policy
from burnish.loop.reinforce import optimizer_spec
from burnish.loop.setup import rl_loss
from burnish.rollout.samples import training_samples
from burnish.store.reader import RunReader
from burnish.store.rows import Fate, StoredTrajectory
from burnish.store.segments import encode_segment
from burnish.training.checkpoint import load_checkpoint
from burnish.training.learner import Learner
from burnish.training.model_state import load_model_state
from burnish.training.optimizer import Optimizer, OptimizerSpec

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]
SETTINGS = {"lr": 1e-2, "temperature": 0.9, "clip_low": 0.2, "clip_high": 0.28, "grad_clip": 1.0, "scale": "none"}


def raw_loop() -> ModuleType:
    specification = importlib.util.spec_from_file_location("raw_loop", ROOT / "examples" / "raw_loop.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def build(exact: bool = False) -> transformers.PreTrainedModel:
    """A Qwen3 in float32, or a GPT-2 (whose norms compute in the precision of the weights) in float64."""
    torch.manual_seed(0)
    if exact:
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=64, **shape)).double()
    config = transformers.Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=64,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return transformers.Qwen3ForCausalLM(config)


def node(rng: random.Random, parent: int, is_action: bool) -> Node:
    count = rng.randint(3, 7)
    logprobs = [-rng.uniform(3.5, 4.8) if is_action else float("nan") for _ in range(count)]
    return Node(
        parent=parent,
        messages=(Message(role=Role.ASSISTANT if is_action else Role.USER),),
        token_ids=array("i", [rng.randrange(64) for _ in range(count)]),
        action_mask=array("b", [is_action] * count),
        logprobs=array("f", logprobs),
        versions=array("i", [0 if is_action else -1] * count),
        is_action=is_action,
    )


def make_batch() -> list[StoredTrajectory]:
    """4 groups of 4 episodes of 4 nodes; one group has no signal, one episode failed, one forks after two nodes."""
    rng = random.Random(0)
    rows = []
    for group in range(4):
        for member in range(4):
            forks = group == 1 and member == 2
            parents, actions = [-1, 0, 1, 2], [False, True, False, True]
            if forks:
                parents, actions = [-1, 0, 1, 1], [False, True, True, True]
            failed = group == 3 and member == 0
            trajectory = Trajectory(
                id=f"rl/000001/{group:04}/{member:02}",
                task_id=str(group),
                task_hash="h",
                group_id=f"rl/000001/{group:04}",
                sample_index=member,
                seed=0,
                nodes=tuple(node(rng, parent, action) for parent, action in zip(parents, actions, strict=True)),
                outcome=Outcome(ending=Ending.ERROR, owner=Owner.ENVIRONMENT, cause="crash") if failed else COMPLETED,
            )
            reward = None if failed else 1.0 if group == 2 else rng.choice([0.0, 0.25, 1.0])
            fate = Fate.FAILED if failed else Fate.FILTERED if group == 2 else Fate.TRAINED
            rows.append(
                StoredTrajectory(trajectory=trajectory, phase="rl", step=1, policy_version=0, reward=reward, fate=fate)
            )
    return rows


def make_samples(rows: list[StoredTrajectory]) -> list[TrainingSample]:
    samples = []
    for group in dict.fromkeys(row.trajectory.group_id for row in rows):
        members = [row for row in rows if row.trajectory.group_id == group and row.reward is not None]
        rewards = [row.reward for row in members if row.reward is not None]
        if has_signal(rewards):
            for row, advantage in zip(members, group_advantages(rewards), strict=True):
                samples += training_samples(row.trajectory, advantage)
    return samples


def train_with_the_library(model: torch.nn.Module, samples: list[TrainingSample], **loss: Any) -> list[float]:
    learner = Learner(model, GrpoLoss(**loss), temperature=0.9, max_micro_batch_tokens=60)
    optimizer = Optimizer(model, OptimizerSpec(learning_rate=1e-2))
    losses = []
    for _ in range(3):
        losses.append(learner.accumulate(samples, learner.normaliser(samples)).sums["loss"])
        optimizer.step()
    return losses


def distance(a: torch.nn.Module, b: torch.nn.Module) -> float:
    return float(
        torch.cat([(p - q).detach().flatten() for p, q in zip(a.parameters(), b.parameters(), strict=True)]).norm()
    )


def both(tmp_path: Path, exact: bool, **change: Any) -> tuple[float, float]:
    """How far the library moved in 3 steps, and how far from where the raw loop arrived."""
    raw, batch = raw_loop(), make_batch()
    segment = tmp_path / "segment.parquet"
    segment.write_bytes(encode_segment(batch))
    plain, ours, start = build(exact), build(exact), build(exact)
    rows = raw.read_rows(segment)
    plain_losses = [loss for loss, _ in raw.train(plain, rows, SETTINGS, {}, steps=3)]
    losses = train_with_the_library(ours, make_samples(batch), **change)
    assert change or losses == pytest.approx(plain_losses, rel=1e-4, abs=1e-6)
    return distance(ours, start), distance(ours, plain)


@pytest.mark.parametrize(("exact", "tolerance"), [(True, 1e-6), (False, 1e-3)])
def test_raw_loop_and_library_reach_the_same_weights_after_three_steps(tmp_path, exact, tolerance):
    # In float32 weights whose gradient is all rounding differ more: AdamW's step has the same size for them.
    moved, apart = both(tmp_path, exact)
    assert moved > 1.0
    assert apart < tolerance * moved


@pytest.mark.parametrize("change", [{"clip_high": 0.2}, {"aggregation": "sequence"}])
def test_another_formula_is_told_apart(tmp_path, change):
    moved, apart = both(tmp_path, exact=True, **change)
    assert apart > 1e-2 * moved


def test_a_batch_without_signal_is_said():
    rows = [{"trajectory_id": str(member), "group_id": "g", "reward": 1.0} for member in range(4)]
    with pytest.raises(SystemExit, match="nothing to learn"):
        list(raw_loop().train(build(), rows, SETTINGS, {}, steps=1))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two RL steps of a GPT-2, which computes in the precision of its weights."""
    folder = tmp_path_factory.mktemp("raw") / "run"
    words = ("model.tiny.family=gpt2", "rl.steps=2", "evaluation.before=false", "evaluation.every=0")
    start_run(tiny_recipe("checkpoint.every=1", "rl.lr=1e-4", "evaluation.tasks=4", *words), folder)
    return folder


def call(run: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> ModuleType:
    raw = raw_loop()
    monkeypatch.setattr("sys.argv", ["raw_loop.py", str(run), *words])
    raw.main()
    return raw


def library_weights(run: Path, step: int, steps: int, *, double: bool = False) -> torch.nn.Module:
    """The library's way from the checkpoint before `step`, on the batch and the advantages that the run stored."""
    recipe = stored_recipe(run)
    checkpoint = load_checkpoint(run / "checkpoints", f"rl-{step - 1:06d}")
    model = reopen_policy(recipe, run / "model").model
    load_model_state(model, checkpoint.model_state)
    optimizer_state = checkpoint.optimizer_state
    if double:
        model.double()
        optimizer_state = {name: t.double() if t.is_floating_point() else t for name, t in optimizer_state.items()}
    optimizer = Optimizer(model, optimizer_spec(recipe.rl))
    optimizer.restore(optimizer_state)
    rows = [row for row in RunReader(run).trajectories("rl", step) if row.advantage is not None]
    samples = [sample for row in rows for sample in training_samples(row.trajectory, row.advantage or 0.0)]
    learner = Learner(model, rl_loss(recipe))
    for _ in range(steps):
        learner.accumulate(samples, learner.normaliser(samples))
        optimizer.step()
    return model


def farthest(a: torch.nn.Module, b: torch.nn.Module) -> float:
    return max(float((p - q).detach().abs().max()) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("step", [1, 2])
def test_from_a_stored_run_it_reaches_the_weights_of_the_library(run, step):
    raw = raw_loop()
    settings = raw.read_settings(run)
    segment, stored_loss = raw.find_segment(run, step)
    plain, optimizer = raw.read_checkpoint(run, step)
    plain.double()
    optimizer = {name: tensor.double() for name, tensor in optimizer.items()}
    start = library_weights(run, step, 0, double=True)
    losses = [loss for loss, _ in raw.train(plain, raw.read_rows(segment), settings, optimizer, steps=3)]
    assert losses[0] == pytest.approx(stored_loss, abs=1e-5)
    assert farthest(plain, start) > 1e-4
    assert farthest(plain, library_weights(run, step, 3, double=True)) < 1e-6
    assert farthest(plain, library_weights(run, step, 2, double=True)) > 1e-5


def test_its_command_reads_a_run_and_saves_the_weights(run, monkeypatch, capsys, tmp_path):
    call(run, monkeypatch, "--step", "2", "--steps", "1", "--out", str(tmp_path / "model"))
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    # What the run itself reached in that step.
    ended = reopen_policy(stored_recipe(run), run / "model").model
    load_model_state(ended, load_checkpoint(run / "checkpoints", "rl-000002").model_state)
    # In float32: a weight whose gradient is all rounding moves by up to the learning rate, 1e-4.
    assert farthest(saved, ended) < 1e-5
    assert "step 1: loss" in capsys.readouterr().out


def test_what_it_cannot_read_is_said(run, monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="no RL step 9"):
        call(run, monkeypatch, "--step", "9")
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(copy / "checkpoints" / "rl-000001")
    with pytest.raises(SystemExit, match="steps that have one: 1, 3"):
        call(copy, monkeypatch, "--step", "2")
    manifest = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(manifest.replace('"updates": 1', '"updates": 2'))
    with pytest.raises(SystemExit, match=r"rl\.updates=2"):
        call(copy, monkeypatch)


def test_the_raw_loop_stays_raw():
    text = (ROOT / "examples" / "raw_loop.py").read_text()
    assert len(text.splitlines()) <= 300
    assert "burnish" not in text
    assert "\nclass " not in text
