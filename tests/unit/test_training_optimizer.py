from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch

from burnish.core.errors import CheckpointError
from burnish.training.failures import NonFiniteLoss
from burnish.training.gradients import (
    GradientBuffer,
    flatten_gradients,
    gradient_size,
    load_gradients,
    sum_in_order,
    trainable_parameters,
)
from burnish.training.optimizer import Optimizer, OptimizerSpec

torch.set_num_threads(1)


def build(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.LayerNorm(6), torch.nn.Linear(6, 2)).to(dtype)
    model[0].bias.requires_grad_(False)
    return model


def fill(model: torch.nn.Module, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    load_gradients(model, scale * torch.randn(gradient_size(model), generator=generator))


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_steps_are_those_of_adamw_with_clipping():
    ours, theirs = build(), build()
    optimizer = Optimizer(ours, OptimizerSpec(learning_rate=0.01, weight_decay=0.1, max_grad_norm=0.5))
    decay = [p for p in theirs.parameters() if p.requires_grad and p.ndim > 1]
    rest = [p for p in theirs.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.01, foreach=False)
    for seed in range(5):
        fill(ours, seed)
        fill(theirs, seed)
        norm = torch.nn.utils.clip_grad_norm_(decay + rest, 0.5)
        reference.step()
        step = optimizer.step()
        assert step.clipped
        assert step.grad_norm == pytest.approx(float(norm))
        assert step.step == seed + 1 == optimizer.steps
    torch.testing.assert_close(weights(ours), weights(theirs))
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_a_missing_gradient_is_a_zero_gradient():
    missing, zero = build(), build()
    optimizers = [Optimizer(model, OptimizerSpec(learning_rate=0.01)) for model in (missing, zero)]
    for seed in range(3):
        for model, optimizer in zip((missing, zero), optimizers, strict=True):
            fill(model, seed)
            model[2].weight.grad = None if model is missing else torch.zeros_like(model[2].weight)
            optimizer.step()
    assert torch.equal(weights(missing), weights(zero))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_rise_peak_and_fall(schedule):
    spec = OptimizerSpec(learning_rate=2.0, schedule=schedule, warmup_steps=4, total_steps=20, final_fraction=0.1)
    rates = [spec.learning_rate_at(step) for step in range(25)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert max(rates) == rates[4] == 2.0
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    assert rates[20:] == pytest.approx([0.2] * 5)


def test_the_learning_rate_of_the_schedule_is_used():
    model = build()
    optimizer = Optimizer(model, OptimizerSpec(learning_rate=1.0, warmup_steps=4))
    fill(model, 0)
    before = weights(model)
    assert optimizer.step().learning_rate == 0.25
    assert (weights(model) - before).abs().max().item() == pytest.approx(0.25, rel=1e-3)


def test_bad_specs_are_refused():
    with pytest.raises(ValueError, match="total_steps"):
        OptimizerSpec(learning_rate=1.0, schedule="cosine")
    with pytest.raises(ValueError, match="learning_rate"):
        OptimizerSpec(learning_rate=math.nan)
    with pytest.raises(ValueError, match="constant"):
        OptimizerSpec(learning_rate=1.0, schedule="cubic")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_gradient_changes_nothing(bad):
    model = build()
    optimizer = Optimizer(model, OptimizerSpec(learning_rate=0.1))
    fill(model, 0)
    optimizer.step()
    before, state = weights(model), {key: value.clone() for key, value in optimizer.state().items()}
    fill(model, 1)
    model[2].weight.grad[0, 0] = bad
    with pytest.raises(NonFiniteLoss, match="optimizer step 1"):
        optimizer.step()
    assert torch.equal(weights(model), before)
    assert all(torch.equal(value, state[key]) for key, value in optimizer.state().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("before", [0, 3])
def test_restored_state_goes_on_to_the_bit(dtype, before):
    spec = OptimizerSpec(learning_rate=0.01, schedule="cosine", warmup_steps=2, total_steps=9)
    straight, half = build(dtype), build(dtype)
    optimizer, first = Optimizer(straight, spec), Optimizer(half, spec)
    for seed in range(before):
        for model, steps in ((straight, optimizer), (half, first)):
            fill(model, seed)
            steps.step()
    resumed = copy.deepcopy(half)
    second = Optimizer(resumed, spec)
    second.restore({key: value.clone() for key, value in first.state().items()})
    for seed in range(before, before + 3):
        for model, steps in ((straight, optimizer), (resumed, second)):
            fill(model, seed)
            assert steps.step().step == seed + 1
    assert torch.equal(weights(straight), weights(resumed))


def test_restoring_without_the_moments_is_noticed_and_foreign_states_refused():
    model = build()
    optimizer = Optimizer(model, OptimizerSpec(learning_rate=0.01))
    fill(model, 0)
    optimizer.step()
    state = optimizer.state()
    with pytest.raises(CheckpointError, match="names differ"):
        Optimizer(build(), optimizer.spec).restore({key: v for key, v in state.items() if "exp_avg_sq" not in key})
    with pytest.raises(CheckpointError, match="shape"):
        Optimizer(build(), optimizer.spec).restore({key: v.reshape(-1) for key, v in state.items()})
    with pytest.raises(CheckpointError, match="names differ"):
        Optimizer(build(), optimizer.spec).restore({})


def test_half_precision_is_stepped_in_a_float32_copy():
    model = build(torch.bfloat16)
    with torch.no_grad():
        model[2].weight.fill_(1.0)
    optimizer = Optimizer(model, OptimizerSpec(learning_rate=1e-3))
    for _ in range(20):
        load_gradients(model, torch.ones(gradient_size(model)))
        optimizer.step()
    # 20 steps of 0.001 arrive; each alone is below what bfloat16 can tell from 1.
    assert model[2].weight.float().mean().item() == pytest.approx(0.98, abs=2e-3)


def test_flat_gradients_there_and_back():
    model = build()
    flat = torch.arange(float(gradient_size(model)))
    load_gradients(model, flat)
    assert model[0].bias.grad is None
    assert list(trainable_parameters(model)) == ["0.weight", "1.weight", "1.bias", "2.weight", "2.bias"]
    assert torch.equal(flatten_gradients(model), flat)
    model[2].bias.grad = None
    assert flatten_gradients(model)[-2:].tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="values"):
        flatten_gradients(model, torch.zeros(3))


def test_shards_are_summed_in_order():
    model = build()
    storage = torch.zeros(2, gradient_size(model))
    buffers = [GradientBuffer(model, storage=storage[shard]) for shard in range(2)]
    for seed, buffer in enumerate(buffers):
        fill(model, seed)
        assert buffer.take(model) is buffer.flat
        assert not flatten_gradients(model).any()
    total = sum_in_order([buffer.flat for buffer in buffers])
    assert torch.equal(total, storage[0] + storage[1])
    assert torch.equal(sum_in_order(list(storage), out=torch.empty_like(total)), total)
    buffers[1].give(model)
    assert torch.equal(flatten_gradients(model), storage[1])
    with pytest.raises(ValueError, match="no shards"):
        sum_in_order([])


def test_the_order_of_a_float_sum_matters_so_it_is_fixed():
    shards = [torch.tensor([1e8]), torch.tensor([-1e8]), torch.tensor([1.0])]
    assert sum_in_order(shards).item() == 1.0
    assert sum_in_order(shards[::-1]).item() == 0.0
