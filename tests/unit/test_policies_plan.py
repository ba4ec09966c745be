"""The prepared decode step, and the memory it walks through."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import SPECS, TINY, VOCABULARY, decoded, make_model

from burnish.policies import plan as plan_module
from burnish.policies.forward import computes_logits
from burnish.policies.lean import LeanForward
from burnish.policies.ledger import Entry, Ledger
from burnish.policies.pages import zeroed_bytes

CPU = torch.device("cpu")


def lean_agrees(model) -> bool:
    return computes_logits(LeanForward(model, compiled=False), model, model.config.get_text_config())


@pytest.mark.parametrize("family", list(SPECS))
@pytest.mark.parametrize("largest_table", [0, 2**16])
def test_masks_from_a_table_and_computed_are_right(family: str, largest_table: int, monkeypatch) -> None:
    monkeypatch.setattr(plan_module, "_LARGEST_TABLE", largest_table)
    assert lean_agrees(make_model(SPECS[family]))


def test_a_wrong_mask_is_noticed(monkeypatch) -> None:
    monkeypatch.setattr(plan_module, "_fill_mask", lambda out, *_: out.zero_())
    assert not lean_agrees(make_model(TINY))


def test_norms_with_another_epsilon_keep_it() -> None:
    model = make_model(TINY)
    model.model.layers[1].post_attention_layernorm.variance_epsilon = 0.5
    assert lean_agrees(model)
    forward = LeanForward(model)
    model.model.layers[1].post_attention_layernorm.variance_epsilon = 1e-6
    assert not computes_logits(forward, model, model.config)


def test_plans_of_different_sizes_share_memory_without_harm() -> None:
    """The smaller plan is made first, used again after the larger one, and draws the same logits."""
    model = make_model(TINY)
    forward = LeanForward(model)
    store = forward.new_store()
    store.ensure(8, 20)
    ids = np.random.default_rng(0).integers(3, VOCABULARY, (8, 6)).astype(np.int32)
    with torch.inference_mode():
        forward.prefill(store, range(8), [0] * 8, list(ids))
        tokens, positions = torch.arange(3, 11), torch.full((8,), 6)
        first = forward.decode(store, tokens[:3], positions[:3], 16).clone()
        whole = forward.decode(store, tokens, positions, 20).clone()
        again = forward.decode(store, tokens[:3], positions[:3], 16).clone()
    assert len(forward._plans) == 2
    assert torch.equal(first, again)
    assert torch.allclose(whole[:3], first, atol=1e-5)
    assert not torch.allclose(whole[3:6], first, atol=1e-2)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("family", list(SPECS))
def test_memory_of_packed_weights_stays_while_the_model_keeps_its_own(family: str, in_place: bool) -> None:
    model = make_model(SPECS[family])
    forward = LeanForward(model)
    before, packed = decoded(forward), forward.packed
    with torch.no_grad():
        for parameter in model.parameters():
            if in_place:
                parameter.mul_(1.2)
            else:
                parameter.data = parameter.data * 1.2
    forward.refresh()
    assert not in_place or forward.packed is packed
    assert torch.equal(decoded(forward), decoded(LeanForward(model)))
    assert not torch.allclose(decoded(forward), before, atol=1e-2)


def test_prepared_steps_stay_when_weights_change_and_go_when_settings_do() -> None:
    model = make_model(TINY)
    forward = LeanForward(model)
    store = forward.new_store()
    store.ensure(4, 20)
    tokens, positions = torch.arange(3, 7), torch.full((4,), 6)
    with torch.inference_mode():
        forward.decode(store, tokens, positions, 16)
    (plan,) = forward._plans.values()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(0.5)
    forward.refresh()
    assert list(forward._plans.values()) == [plan]
    with torch.inference_mode():
        forward.decode(store, tokens, positions, 16)
    assert list(forward._plans.values()) == [plan]
    attention = model.model.layers[1].self_attn
    attention.q_norm.variance_epsilon = attention.k_norm.variance_epsilon = 0.5
    forward.refresh()
    assert not forward._plans
    assert computes_logits(forward, model, model.config)


@pytest.mark.parametrize("count", [0, 100, 5 * 2**20 + 64])
def test_large_pages_are_zero_aligned_and_hold_what_is_written(count: int) -> None:
    block = zeroed_bytes(count, CPU)
    assert block.shape == (count,)
    assert not block.any()
    assert count == 0 or block.data_ptr() % 64 == 0
    block.fill_(7)
    assert bool((block == 7).all())
    other = zeroed_bytes(count, CPU)
    assert not other.any()


def test_a_ledger_that_grows_keeps_its_rows() -> None:
    ledger = Ledger(CPU)
    ledger.ensure(2, 8)
    prompt, uniforms = np.arange(3, dtype=np.int32), np.array([0.25, 0.5])
    ledger.start([Entry(slot=1, prompt=prompt, last_column=9, uniforms=uniforms, stop_set=0)])
    assert ledger.tokens(2).tolist() == [0, 2]
    assert ledger.advance(2).tolist() == [0.0, 0.25]
    ledger.record(2, torch.tensor([5, 6]), torch.tensor([-1.0, -2.0]))
    assert ledger.ensure(3, 16)
    assert ledger.tokens(2).tolist()[1] == 6
    assert ledger.advance(3).tolist()[1] == 0.5
    assert ledger.position.tolist() == [0, 4, 0]
    assert ledger.flat.tolist() == [0, 20, 32]
