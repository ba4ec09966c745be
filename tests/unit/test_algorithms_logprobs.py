from __future__ import annotations

import math

import pytest
import torch

from burnish.algorithms import logprobs as module
from burnish.algorithms.kept import KeptTokens
from burnish.algorithms.logprobs import token_logprobs
from burnish.core.errors import InvariantViolation

torch.set_num_threads(1)


def logits(rows: int, vocabulary: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 16, 1 << 18])
def test_values_entropy_and_gradient_are_those_of_log_softmax(temperature, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
    x = logits(7, 9).requires_grad_()
    targets = torch.tensor([0, 8, 3, 3, 1, 7, 5])
    weights = torch.linspace(-1, 2, 7, dtype=torch.float64)

    expected = torch.log_softmax(x / temperature, -1)
    (expected_gradient,) = torch.autograd.grad((expected[range(7), targets] * weights).sum(), x)
    values, entropy, _ = token_logprobs(x, targets, temperature=temperature)
    (gradient,) = torch.autograd.grad((values * weights).sum(), x)

    torch.testing.assert_close(values, expected[range(7), targets])
    torch.testing.assert_close(entropy, -(expected.exp() * expected).sum(-1))
    torch.testing.assert_close(gradient, expected_gradient)
    assert not entropy.requires_grad


def test_gradient_by_finite_differences():
    x = logits(3, 5).requires_grad_()
    targets = torch.tensor([0, 4, 2])
    assert torch.autograd.gradcheck(lambda z: token_logprobs(z, targets, temperature=0.8)[0], (x,))


def test_a_forbidden_token_has_probability_zero_and_no_nan():
    x = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    values, entropy, _ = token_logprobs(x, torch.tensor([1]), temperature=1.0)
    values.sum().backward()
    assert values.item() == pytest.approx(-math.log(2))
    assert entropy.item() == pytest.approx(math.log(2))
    assert x.grad is not None
    assert x.grad.tolist() == [[-0.5, 0.5, 0.0]]


def test_half_precision_logits_are_widened_first():
    x = logits(4, 50, torch.bfloat16).requires_grad_()
    values, *_ = token_logprobs(x, torch.arange(4), temperature=1.0)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, torch.log_softmax(x.float(), -1)[range(4), range(4)])
    values.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_greedy_temperature_is_refused_and_nothing_gives_nothing():
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(torch.zeros(1, 2), torch.tensor([0]), temperature=0.0)
    values, entropy, _ = token_logprobs(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), temperature=1.0)
    assert values.shape == entropy.shape == (0,)


KEPT = [[], [8, 2], [3], [0, 3, 5, 7], [], [7, 6, 1], [5, 0]]
"""Kept sets of seven tokens over nine ids; an empty one stands for the whole vocabulary."""


def kept_tokens(sets: list[list[int]]) -> KeptTokens:
    return KeptTokens(
        counts_N=torch.tensor([len(ids) for ids in sets]),
        ids_K=torch.tensor([token for ids in sets for token in ids], dtype=torch.int64),
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 16, 1 << 18])
def test_kept_sets_renormalise_values_entropy_and_gradient(temperature, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
    x = logits(7, 9).requires_grad_()
    targets = torch.tensor([0, 8, 3, 3, 1, 7, 5])
    weights = torch.linspace(-1, 2, 7, dtype=torch.float64)
    expected, entropies = [], []
    for row, ids in enumerate(KEPT):
        chosen = torch.tensor(ids or list(range(9)))
        renormalised = torch.log_softmax(x[row, chosen] / temperature, -1)
        expected.append(renormalised[chosen == targets[row]].squeeze())
        entropies.append(-(renormalised.exp() * renormalised).sum())
    (expected_gradient,) = torch.autograd.grad((torch.stack(expected) * weights).sum(), x)

    values, entropy, _ = token_logprobs(x, targets, temperature=temperature, kept=kept_tokens(KEPT))
    (gradient,) = torch.autograd.grad((values * weights).sum(), x)
    torch.testing.assert_close(values, torch.stack(expected))
    torch.testing.assert_close(entropy, torch.stack(entropies))
    torch.testing.assert_close(gradient, expected_gradient)
    assert values[2].item() == entropy[2].item() == 0.0  # the only id that could be drawn
    free, *_ = token_logprobs(x, targets, temperature=temperature)
    assert bool((values >= free).all())


def test_empty_kept_sets_change_nothing():
    x, targets = logits(3, 5), torch.tensor([0, 4, 2])
    with_sets = token_logprobs(x, targets, temperature=1.0, kept=kept_tokens([[], [], []]), score_norm=True)
    for one, other in zip(with_sets, token_logprobs(x, targets, temperature=1.0, score_norm=True), strict=True):
        assert torch.equal(one, other)


def test_a_token_outside_its_kept_set_is_named():
    with pytest.raises(InvariantViolation, match=r"kept_set.* 1 \(id 4\) is outside the set of 2 ids"):
        token_logprobs(logits(3, 5), torch.tensor([0, 4, 2]), temperature=1.0, kept=kept_tokens([[0, 1], [1, 2], []]))
