"""The library and a loop without abstractions reach the same weights."""

from __future__ import annotations

import importlib.util
import random
from array import array
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers

from burnish.algorithms.advantages import group_advantages, has_signal
from burnish.algorithms.grpo import GrpoLoss
from burnish.core.learning import TrainingSample
from burnish.core.message import Message, Role
from burnish.core.outcome import COMPLETED, Ending, Outcome, Owner
from burnish.core.trajectory import Node, Trajectory
from burnish.rollout.samples import training_samples
from burnish.store.rows import Fate, StoredTrajectory
from burnish.store.segments import encode_segment
from burnish.training.learner import Learner
from burnish.training.optimizer import Optimizer, OptimizerSpec

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]


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
    rows = raw.read_rows([segment])
    plain_losses = [loss for loss, _ in raw.train(plain, rows, steps=3, learning_rate=1e-2, temperature=0.9)]
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
        list(raw_loop().train(build(), rows, steps=1, learning_rate=1e-2))


def test_the_raw_loop_stays_raw():
    text = (ROOT / "examples" / "raw_loop.py").read_text()
    assert len(text.splitlines()) <= 300
    assert "burnish" not in text
    assert "\nclass " not in text
