"""AdamW with a learning-rate schedule and gradient clipping.

AdamW: Loshchilov and Hutter, arXiv 1711.05101.  Decay leaves vectors (norms, biases) alone.  Parameters in half
precision are stepped in a float32 copy, since an update of a ten-thousandth of the value is below their resolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from burnish.core.errors import CheckpointError
from burnish.training.failures import NonFiniteLoss
from burnish.training.gradients import trainable_parameters

_FULL_PRECISION = (torch.float32, torch.float64)
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Schedule(StrEnum):
    """How the learning rate runs after the warm-up."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"schedule is one of {', '.join(cls)}, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """`OptimizerSpec(learning_rate=3e-4, schedule="cosine", warmup_steps=20, total_steps=400)`

    learning_rate: the peak.  warmup_steps: linear rise from 1 / warmup_steps of it.  schedule: afterwards constant, or
    linear or cosine down to final_fraction of it at total_steps (needed for these two).  max_grad_norm: larger
    gradients are scaled down to it; 0 for no limit.
    """

    learning_rate: float
    schedule: Schedule = Schedule.CONSTANT
    warmup_steps: int = 0
    total_steps: int = 0
    final_fraction: float = 0.0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", Schedule(self.schedule))
        if not (math.isfinite(self.learning_rate) and self.learning_rate >= 0):
            raise ValueError(f"learning_rate is finite and at least 0, got {self.learning_rate}")
        if self.schedule is not Schedule.CONSTANT and self.total_steps <= self.warmup_steps:
            raise ValueError(
                f"schedule {self.schedule} needs total_steps above warmup_steps ({self.warmup_steps}), "
                f"got {self.total_steps}"
            )

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0.

        >>> spec = OptimizerSpec(learning_rate=1.0, schedule="linear", warmup_steps=2, total_steps=6)
        >>> [spec.learning_rate_at(step) for step in range(7)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
        """
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule is Schedule.CONSTANT:
            return self.learning_rate
        done = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        share = 1.0 - done if self.schedule is Schedule.LINEAR else 0.5 * (1.0 + math.cos(math.pi * done))
        return self.learning_rate * (self.final_fraction + (1.0 - self.final_fraction) * share)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerStep:
    """What one step did.  `OptimizerStep(step=12, learning_rate=3e-4, grad_norm=1.7, clipped=True)`

    step: count of steps after this one.  grad_norm: Euclidean, before clipping.
    """

    step: int
    learning_rate: float
    grad_norm: float
    clipped: bool


class Optimizer:
    """Steps the trainable parameters of a model from their `.grad`; a missing gradient counts as zero.

    `optimizer = Optimizer(model, OptimizerSpec(learning_rate=3e-4)); optimizer.step()`.  `spec` may be replaced between
    steps (only the learning rate, its schedule and the clipping are read anew).
    """

    def __init__(self, model: nn.Module, spec: OptimizerSpec) -> None:
        self.spec = spec
        self.steps = 0
        self._parameters = trainable_parameters(model)
        self._stepped: dict[str, Tensor] = {
            name: parameter if parameter.dtype in _FULL_PRECISION else parameter.detach().float().clone()
            for name, parameter in self._parameters.items()
        }
        groups: list[dict[str, Any]] = [
            {
                "params": [value for value in self._stepped.values() if value.ndim > 1],
                "weight_decay": spec.weight_decay,
            },
            {"params": [value for value in self._stepped.values() if value.ndim <= 1], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=spec.learning_rate,
            betas=(spec.beta1, spec.beta2),
            eps=spec.epsilon,
            fused=True,
        )

    def zero_gradients(self) -> None:
        """Forget the accumulated gradients."""
        for parameter in self._parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> OptimizerStep:
        """Clip, step, forget the gradients.  Raises NonFiniteLoss, with nothing changed, if one is not finite."""
        gradients = self._gradients()
        norm = torch.nn.utils.get_total_norm(gradients)
        grad_norm = float(norm)
        if not math.isfinite(grad_norm):
            raise NonFiniteLoss(f"the gradient norm of optimizer step {self.steps}")
        clipped = 0.0 < self.spec.max_grad_norm < grad_norm
        if clipped:
            torch.nn.utils.clip_grads_with_norm_(self._stepped.values(), self.spec.max_grad_norm, norm)
        learning_rate = self.spec.learning_rate_at(self.steps)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self._publish()
        self.zero_gradients()
        self.steps += 1
        return OptimizerStep(step=self.steps, learning_rate=learning_rate, grad_norm=grad_norm, clipped=clipped)

    def _gradients(self) -> list[Tensor]:
        """Give every stepped tensor a float32 gradient; returns them."""
        gradients = []
        for name, parameter in self._parameters.items():
            stepped = self._stepped[name]
            if parameter.grad is None:
                stepped.grad = torch.zeros_like(stepped)
            elif stepped is not parameter:
                stepped.grad = parameter.grad.float()
            gradients.append(stepped.grad)
        return [gradient for gradient in gradients if gradient is not None]

    def _publish(self) -> None:
        """Round the float32 copies back into parameters of half precision."""
        for name, parameter in self._parameters.items():
            stepped = self._stepped[name]
            if stepped is not parameter:
                parameter.copy_(stepped)
                stepped.grad = None

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on exactly, as tensors: the step count, both moments, float32 copies."""
        tensors = {"steps": torch.tensor(self.steps, dtype=torch.int64)}
        for name, stepped in self._stepped.items():
            moments = self._adamw.state.get(stepped, {})
            tensors.update({f"{moment}.{name}": moments[moment] for moment in _MOMENTS if moment in moments})
            if stepped is not self._parameters[name]:
                tensors[f"copy.{name}"] = stepped
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `state()`.  Raises CheckpointError, with nothing changed, where it belongs to another model."""
        steps = int(tensors["steps"]) if "steps" in tensors else -1
        expected = {"steps"}
        for name, stepped in self._stepped.items():
            expected |= {f"{moment}.{name}" for moment in _MOMENTS if steps > 0}
            expected |= {f"copy.{name}"} if stepped is not self._parameters[name] else set()
        if set(tensors) != expected:
            odd = sorted(set(tensors) ^ expected)
            raise CheckpointError(
                f"the optimizer state is not of this model: {len(odd)} names differ, first {odd[0]!r}"
            )
        for key, value in tensors.items():
            name = key.partition(".")[2]
            if name and value.shape != self._stepped[name].shape:
                raise CheckpointError(f"the optimizer state is of another model: {key} has shape {tuple(value.shape)}")
        self.steps = steps
        self._adamw.state.clear()
        for name, stepped in self._stepped.items():
            if steps > 0:
                moments = {m: tensors[f"{m}.{name}"].to(stepped.device, copy=True) for m in _MOMENTS}
                count = torch.tensor(float(steps), dtype=torch.float32, device=stepped.device)
                self._adamw.state[stepped] = {"step": count, **moments}
            if f"copy.{name}" in tensors:
                stepped.copy_(tensors[f"copy.{name}"])
