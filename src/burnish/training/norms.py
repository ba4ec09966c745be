"""The same RMS norm in fewer passes over memory.

With small models on a CPU the matrix products take less than half of a training step.  Most of the rest is element-wise
work, a third of it in the norms, which `transformers` writes as eight operations that are differentiated one by one.
For y = g * x / rms(x), rms(x) = sqrt(mean(x^2) + eps) and x^ = x / rms(x):

    dL/dx = (g * dL/dy - x^ * mean(g * dL/dy * x^)) / rms(x),     dL/dg = sum(dL/dy * x^)

A norm is replaced only while the learner works, and only where it was measured to compute this formula (Gemma's, with
g = 1 + weight, included).  Formula: Zhang and Sennrich, arXiv 1910.07467.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_TOLERANCE = 1e-5


class _RmsNorm(torch.autograd.Function):
    """y = gain * x / rms(x) over the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = scale.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        normed = torch.mul(x, scale)
        ctx.save_for_backward(normed, scale, gain)
        return torch.mul(normed, gain)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        normed, scale, gain = ctx.saved_tensors
        width = normed.shape[-1]
        product = gradients[0] * normed
        to_gain = product.reshape(-1, width).sum(0) if ctx.needs_input_grad[1] else None
        mean = torch.mv(product.reshape(-1, width), gain / width).view(scale.shape)
        return torch.mul(gradients[0], gain).addcmul_(normed, mean, value=-1).mul_(scale), to_gain, None


def rms_norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    """gain * x / sqrt(mean(x^2) + epsilon) over the last dimension, differentiable in x and gain."""
    normed: Tensor = _RmsNorm.apply(x, gain, epsilon)  # type: ignore[no-untyped-call]
    return normed


class FusedNorms:
    """The norms of a model that can be replaced, found once; `with fused.active(): ...` replaces them.

    Empty (and `active` does nothing) off the CPU, where fused kernels exist, and in any precision but float32, where
    the casts between the steps are part of what a model computes.
    """

    def __init__(self, model: nn.Module) -> None:
        self._forwards: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
        for module in model.modules():
            forward = _fused_forward(module) if type(module).__name__.endswith("RMSNorm") else None
            if forward is not None:
                self._forwards.append((module, forward))

    def __len__(self) -> int:
        return len(self._forwards)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Replace the norms for the time of the block."""
        for module, forward in self._forwards:
            module.__dict__["forward"] = forward
        try:
            yield
        finally:
            for module, _ in self._forwards:
                module.__dict__.pop("forward", None)


def _fused_forward(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """A drop-in forward for `module`, None where it computes something else."""
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, nn.Parameter) or not isinstance(epsilon, float) or len(list(module.parameters())) != 1:
        return None
    if weight.ndim != 1 or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return None
    for offset in (0.0, 1.0):

        def forward(hidden_states: Tensor, offset: float = offset) -> Tensor:
            gain = weight + offset if offset else weight
            return rms_norm(hidden_states, gain, epsilon)

        if _agrees(module, forward, weight):
            return forward
    return None


@torch.no_grad()
def _agrees(module: nn.Module, forward: Callable[[Tensor], Tensor], weight: nn.Parameter) -> bool:
    """Compare on a ramp of ordinary size and on one so small that epsilon decides."""
    ramp = torch.linspace(-1.0, 2.0, 2 * len(weight), dtype=weight.dtype).view(2, -1)
    for probe in (ramp, ramp * 1e-3):
        expected, actual = module(probe), forward(probe)
        if expected.shape != actual.shape or expected.dtype != actual.dtype:
            return False
        if float((expected - actual).abs().max()) > _TOLERANCE * max(1.0, float(expected.abs().max())):
            return False
    return True
