from __future__ import annotations

import json
import random
from array import array
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from burnish.algorithms.grpo import GrpoLoss
from burnish.core.errors import CheckpointError
from burnish.core.learning import TrainingSample
from burnish.training.checkpoint import keep_newest, list_checkpoints, load_checkpoint, load_latest, save_checkpoint
from burnish.training.learner import Learner
from burnish.training.lora import LoraSpec, add_lora
from burnish.training.model_state import load_model_state, model_state
from burnish.training.optimizer import Optimizer, OptimizerSpec
from burnish.training.random_state import capture_random_state, restore_random_state

torch.set_num_threads(1)


def build(lora: bool = False, tied: bool = True, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = transformers.Qwen3Config(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=24,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    model = transformers.Qwen3ForCausalLM(config)
    return add_lora(model, LoraSpec(rank=2), seed=seed) if lora else model


def draw_samples() -> list[TrainingSample]:
    """Random samples from the global generators: a resume that forgets one of them goes another way."""
    samples = []
    for _ in range(4):
        length = random.randint(5, 9)
        uniform = np.random.random(length)
        mask = [0, 0] + [1] * (length - 2)
        samples.append(
            TrainingSample(
                trajectory_id="t",
                group_id="g",
                token_ids=array("i", torch.randint(0, 40, (length,)).tolist()),
                loss_mask=array("b", mask),
                behaviour_logprobs=array("f", [-3.5 * m for m in mask]),
                versions=array("i", mask),
                advantages=array("f", [u - 0.5 if m else 0.0 for u, m in zip(uniform, mask, strict=True)]),
            )
        )
    return samples


class Run:
    """A small training run with everything that a checkpoint must hold."""

    def __init__(self, lora: bool, seed: int = 0) -> None:
        self.model = build(lora=lora, seed=seed)
        self.learner = Learner(self.model, GrpoLoss(), max_micro_batch_tokens=20)
        spec = OptimizerSpec(learning_rate=0.01, schedule="cosine", warmup_steps=2, total_steps=12)
        self.optimizer = Optimizer(self.model, spec)
        self.generators = {"own": np.random.default_rng(5), "py": random.Random(5), "torch": torch.Generator()}

    def step(self) -> tuple[float, float]:
        samples = draw_samples()
        samples[0].advantages[3] = float(self.generators["own"].random()) + self.generators["py"].random()
        statistics = self.learner.accumulate(samples, self.learner.normaliser(samples))
        return statistics.sums["loss"], self.optimizer.step().grad_norm

    def save(self, directory: Path, name: str, **changes) -> None:
        parts = {
            "model_state": model_state(self.model),
            "optimizer_state": self.optimizer.state(),
            "rng": capture_random_state(self.generators),
            "state": {"step": self.optimizer.steps},
        }
        save_checkpoint(directory, name, **(parts | changes))

    def load(self, directory: Path) -> None:
        checkpoint = load_latest(directory)
        load_model_state(self.model, checkpoint.model_state)
        self.optimizer.restore(checkpoint.optimizer_state)
        restore_random_state(checkpoint.rng, self.generators)
        assert checkpoint.state["step"] == self.optimizer.steps


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.mark.parametrize("lora", [False, True])
def test_resume_is_exact_to_the_bit(tmp_path, lora):
    straight = Run(lora)
    seed_everything(1)
    metrics = [straight.step() for _ in range(3)]
    straight.save(tmp_path, "sft_3")
    metrics += [straight.step() for _ in range(3)]

    seed_everything(99)
    resumed = Run(lora, seed=0 if lora else 7)
    resumed.load(tmp_path)
    assert [resumed.step() for _ in range(3)] == metrics[3:]
    for name, tensor in model_state(straight.model).items():
        assert torch.equal(tensor, model_state(resumed.model)[name]), name


@pytest.mark.parametrize("forgotten", ["python", "numpy", "torch", "own"])
def test_a_forgotten_generator_shows_at_the_first_step(tmp_path, forgotten):
    straight = Run(lora=False)
    seed_everything(1)
    straight.step()
    straight.save(tmp_path, "a")
    expected = straight.step()
    seed_everything(99)
    resumed = Run(lora=False)
    resumed.generators["own"].random(3)
    checkpoint = load_latest(tmp_path)
    left = capture_random_state(resumed.generators)
    if forgotten == "own":
        checkpoint.rng["named"]["own"] = left["named"]["own"]
    else:
        checkpoint.rng[forgotten] = left[forgotten]
    load_model_state(resumed.model, checkpoint.model_state)
    resumed.optimizer.restore(checkpoint.optimizer_state)
    restore_random_state(checkpoint.rng, resumed.generators)
    assert resumed.step() != expected


def test_random_state_survives_json_and_refuses_other_generators():
    generators = {"a": np.random.default_rng(3), "b": random.Random(3), "c": torch.Generator()}
    random.gauss(0, 1)
    np.random.standard_normal()
    state = json.loads(json.dumps(capture_random_state(generators)))

    def draw():
        own = (generators["a"].random(), generators["b"].random(), torch.rand(2, generator=generators["c"]).tolist())
        return random.gauss(0, 1), np.random.standard_normal(), torch.rand(2).tolist(), own

    first = draw()
    restore_random_state(state, generators)
    assert draw() == first
    with pytest.raises(CheckpointError, match="generators"):
        restore_random_state(state)


def test_the_newest_is_the_last_saved_whatever_its_name(tmp_path):
    run = Run(lora=False)
    for name in ("sft_000400", "rl_000020", "rl_000100"):
        run.save(tmp_path, name, state={"name": name})
    assert [ref.name for ref in list_checkpoints(tmp_path)] == ["rl_000100", "rl_000020", "sft_000400"]
    assert load_latest(tmp_path).state["name"] == "rl_000100"
    assert load_checkpoint(tmp_path, "sft_000400").state["name"] == "sft_000400"
    run.save(tmp_path, "rl_000020", state={"name": "again"})
    assert load_latest(tmp_path).state["name"] == "again"
    assert [ref.sequence for ref in list_checkpoints(tmp_path)] == [4, 3, 1]
    assert keep_newest(tmp_path, 1, keep=frozenset({"sft_000400"})) == ["rl_000100"]
    assert [ref.name for ref in list_checkpoints(tmp_path)] == ["rl_000020", "sft_000400"]


@pytest.mark.parametrize("tied", [False, True])
def test_with_a_config_beside_it_transformers_loads_a_checkpoint(tmp_path, tied):
    model = build(tied=tied).eval()
    save_checkpoint(
        tmp_path,
        "a",
        model_state=model_state(model),
        optimizer_state={},
        rng={},
        state={},
        files={"config.json": model.config.to_json_string()},
    )
    elsewhere = transformers.AutoModelForCausalLM.from_pretrained(load_latest(tmp_path).ref.path)
    ids = torch.arange(10).unsqueeze(0)
    assert torch.equal(model(ids).logits, elsewhere(ids).logits)


def test_foreign_weights_are_refused_and_change_nothing():
    model = build()
    before = {name: tensor.clone() for name, tensor in model_state(model).items()}
    for change, message in (
        ({"model.norm.weight": torch.zeros(3)}, "expected"),
        ({"model.norm.weight": torch.zeros(16, dtype=torch.float64)}, "expected"),
        ({"other": torch.zeros(3)}, "names differ"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_model_state(model, {**{name: tensor + 1 for name, tensor in before.items()}, **change})
    with pytest.raises(CheckpointError, match="names differ"):
        load_model_state(build(lora=True), before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model_state(model).items())


def test_loading_keeps_the_memory_of_the_parameters():
    model = build()
    address = model.model.norm.weight.data_ptr()
    load_model_state(model, {name: tensor.clone() for name, tensor in model_state(model).items()})
    assert model.model.norm.weight.data_ptr() == address


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        load_latest(tmp_path / "nowhere")
    Run(lora=False).save(tmp_path, "a")
    with pytest.raises(CheckpointError, match="there are: a"):
        load_checkpoint(tmp_path, "b")
    for name in ("", "../a", ".hidden", "corrupt_a"):
        with pytest.raises(ValueError, match="name"):
            load_checkpoint(tmp_path, name)
    with pytest.raises(ValueError, match="at least one"):
        keep_newest(tmp_path, 0)
