"""Compiled functions of a decode step: the same numbers as torch's operations, and nothing that others have written."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import SPECS, TINY, decoded, make_model

from burnish.core.errors import RunStopped
from burnish.core.sampling import SamplingParams
from burnish.policies import kernels as kernels_module
from burnish.policies.draw import DrawRules, draw
from burnish.policies.forward import choose_forward, computes_logits
from burnish.policies.kernels import Kernels, Refused, load_kernels, loaded_kernels, present_kernels
from burnish.policies.lean import LeanForward

needs_compiler = pytest.mark.skipif(loaded_kernels() is None, reason="no C compiler is installed")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def kernels() -> Kernels:
    found = loaded_kernels()
    assert found is not None
    return found


# -- whole models -----------------------------------------------------------------------------------------------------

SHAPES = {
    **SPECS,
    "one key head": replace(TINY, kv_heads=1),
    "a key head for each": replace(TINY, kv_heads=4),
    "groups of three": replace(TINY, hidden_size=48, heads=6, kv_heads=2, intermediate_size=40),
    "heads of 32": replace(TINY, hidden_size=64, heads=2, kv_heads=1),
    "heads of 24": replace(TINY, hidden_size=72, heads=3, kv_heads=3),
}


@needs_compiler
@pytest.mark.parametrize("shape", list(SHAPES))
def test_compiled_steps_are_torch_steps(shape: str) -> None:
    model = make_model(SHAPES[shape])
    compiled, plain = LeanForward(model), LeanForward(model, compiled=False)
    assert computes_logits(compiled, model, model.config)
    found, expected = decoded(compiled), decoded(plain)
    assert torch.allclose(found, expected, atol=2e-5, rtol=2e-5)
    (one,), (other,) = compiled._plans.values(), plain._plans.values()
    assert one.attends is not None
    assert other.attends is None
    assert len(one.calls) < len(other.calls)


@needs_compiler
def test_heads_that_do_not_fill_vectors_stay_with_torch() -> None:
    model = make_model(replace(TINY, hidden_size=40, heads=4, kv_heads=2, intermediate_size=44))
    forward = LeanForward(model)
    assert computes_logits(forward, model, model.config)
    (plan,) = forward._plans.values()
    assert plan.kernels is not None
    assert plan.attends is None


@needs_compiler
def test_a_wrong_function_is_noticed_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(TINY)
    assert choose_forward(model)._compiled
    monkeypatch.setattr(Kernels, "silu", lambda self, gate_up, out: out.zero_)
    assert not computes_logits(LeanForward(model), model, model.config)
    chosen = choose_forward(model)
    assert isinstance(chosen, LeanForward)
    assert not chosen._compiled


@needs_compiler
@pytest.mark.parametrize("way", ["threads", "type"])
def test_they_are_for_one_thread_and_float32(way: str) -> None:
    model = make_model(TINY)
    if way == "threads":
        torch.set_num_threads(2)
        assert present_kernels() is None
    else:
        model = model.double()
    forward = LeanForward(model)
    decoded(forward)
    (plan,) = forward._plans.values()
    assert plan.kernels is None


# -- attention --------------------------------------------------------------------------------------------------------


def attended(kernels: Kernels, parts: dict[str, Any], rows: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    qkv, keys, values = (parts[name][rows].clone() for name in ("qkv", "keys", "values"))
    mixed = torch.empty(len(qkv), parts["heads"] * keys.shape[2])
    at = parts["at"][rows].clone()
    kernels.attend(qkv, at, parts["gain"], parts["turns"], (keys, values), mixed, parts["window"])()
    return mixed, keys, values


def expected_attention(parts: dict[str, Any], row: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One row in float64, by the formula."""
    heads, at, window = parts["heads"], int(parts["at"][row]), parts["window"]
    keys, values = parts["keys"][row].double(), parts["values"][row].double()
    kv_heads, size, _ = keys.shape
    qkv = parts["qkv"][row].double().view(heads + 2 * kv_heads, size)
    qk, v = qkv[: heads + kv_heads].clone(), qkv[heads + kv_heads :]
    if parts["gain"] is not None:
        gain, floor_square = parts["gain"]
        qk = qk / (qk.square().sum(-1, keepdim=True) + floor_square).sqrt() * gain
    if parts["turns"] is not None:
        qk = torch.view_as_real(torch.view_as_complex(qk.view(len(qk), -1, 2)) * parts["turns"][at]).flatten(1)
    keys[:, :, at], values[:, at] = qk[heads:], v
    first = 0 if window is None else max(0, at + 1 - window)
    of_head = torch.arange(heads) // (heads // kv_heads)
    scores = torch.einsum("hd,hdc->hc", qk[:heads], keys[of_head][..., first : at + 1])
    mixed = torch.einsum("hc,hcd->hd", scores.softmax(-1), values[of_head][:, first : at + 1])
    return mixed.flatten(), keys, values


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(1, 1), (2, 1), (3, 1), (4, 1), (4, 4), (6, 2), (7, 1), (8, 2)]),
    st.sampled_from([8, 16, 24, 32, 40, 64, 128]),
    st.sampled_from([16, 48, 112]),
    st.sampled_from([None, 1, 7, 8, 40]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_attention_is_the_formula_and_rows_are_alone(
    heads: tuple[int, int], size: int, columns: int, window: int | None, has_norms: bool, turns: bool, seed: int
) -> None:
    kernels = loaded_kernels()
    assert kernels is not None
    torch.manual_seed(seed)
    rows, (n, kv) = 3, heads
    parts: dict[str, Any] = {
        "heads": n,
        "qkv": torch.randn(rows, (n + 2 * kv) * size),
        "keys": torch.randn(rows, kv, size, columns),
        "values": torch.randn(rows, kv, columns, size),
        "at": torch.tensor([0, columns - 1, seed % columns]),
        "gain": (torch.rand(n + kv, size) + 0.5, 1e-3) if has_norms else None,
        "turns": torch.polar(torch.ones(columns, size // 2), torch.rand(columns, size // 2) * 6) if turns else None,
        "window": window,
    }
    mixed, keys, values = attended(kernels, parts, slice(None))
    for row in range(rows):
        for found, expected in zip((mixed, keys, values), expected_attention(parts, row), strict=True):
            assert torch.allclose(found[row].double(), expected, atol=3e-5, rtol=3e-5)
        alone = attended(kernels, parts, slice(row, row + 1))
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, (mixed, keys, values), strict=True))


@needs_compiler
def test_what_is_not_a_number_stays_visible(kernels: Kernels) -> None:
    parts: dict[str, Any] = {
        "heads": 2,
        "qkv": torch.randn(2, 4 * 8),
        "keys": torch.randn(2, 1, 8, 16),
        "values": torch.randn(2, 1, 16, 8),
        "at": torch.tensor([5, 5]),
        "gain": None,
        "turns": None,
        "window": None,
    }
    parts["qkv"][0, 3] = math.nan
    mixed, _, _ = attended(kernels, parts, slice(None))
    assert mixed[0].isnan().any()
    assert mixed[1].isfinite().all()


# -- drawing ----------------------------------------------------------------------------------------------------------

PLAIN = DrawRules.of([SamplingParams()], "cpu")


@needs_compiler
@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(-120, 120, width=32), min_size=1, max_size=200),
    st.floats(0, 1 - 2**-23, width=32),
    st.sampled_from([0.0, -1e4, -60.0, 60.0, 1e4]),
)
def test_draws_are_the_inverse_cdf(row: list[float], uniform: float, far: float) -> None:
    logits = torch.tensor([row, row]) + torch.tensor([[0.0], [far]])
    token, logprob, _ = draw(logits, torch.tensor([uniform] * 2), PLAIN, kernels=loaded_kernels())
    for line in range(2):
        exact = logits[line].double()
        probability = exact.softmax(-1)
        below = float(probability[: int(token[line])].sum())
        assert below - 1e-6 <= uniform <= below + float(probability[int(token[line])]) + 1e-6
        assert float(logprob[line]) == pytest.approx(float(exact.log_softmax(-1)[int(token[line])]), abs=2e-5)


@needs_compiler
def test_draws_do_not_depend_on_how_neighbours_are_drawn(kernels: Kernels) -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    uniforms = torch.tensor([0.1, 0.4, 0.6, 0.9])
    kinds = [SamplingParams(), SamplingParams(temperature=0.0), SamplingParams(), SamplingParams(top_k=3, top_p=0.8)]
    alone = draw(logits, uniforms, PLAIN, kernels=kernels)
    mixed = draw(logits, uniforms, DrawRules.of(kinds, "cpu"), kernels=kernels)
    assert torch.equal(mixed.tokens[[0, 2]], alone.tokens[[0, 2]])
    assert torch.equal(mixed.logprobs[[0, 2]], alone.logprobs[[0, 2]])
    assert int(mixed.tokens[1]) == int(logits[1].argmax())
    assert int(mixed.tokens[3]) in logits[3].topk(3).indices.tolist()
    assert mixed.kept is not None


@needs_compiler
def test_every_second_row_of_larger_tensors_is_drawn_from(kernels: Kernels) -> None:
    logits = torch.randn(6, 80, generator=torch.Generator().manual_seed(0))
    uniforms = torch.tensor([0.1, 0.9, 0.5, 0.2, 0.8, 0.4])
    apart = draw(logits[::2, ::2], uniforms[::2], PLAIN, kernels=kernels)
    together = draw(logits[::2, ::2].clone(), uniforms[::2].clone(), PLAIN, kernels=kernels)
    assert torch.equal(apart.tokens, together.tokens)
    assert torch.equal(apart.logprobs, together.logprobs)


@needs_compiler
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(bad: float, kernels: Kernels) -> None:
    logits = torch.zeros(3, 20)
    logits[1, 4] = bad
    with pytest.raises(RunStopped, match="NaN or infinite"):
        draw(logits, torch.full((3,), 0.5), PLAIN, kernels=kernels)


# -- compiling and loading --------------------------------------------------------------------------------------------


@needs_compiler
def test_a_library_is_compiled_once(tmp_path: Path) -> None:
    load_kernels(tmp_path / "cache")
    (made,) = (tmp_path / "cache").iterdir()
    before = made.stat().st_mtime_ns
    time.sleep(0.01)
    load_kernels(tmp_path / "cache")
    assert made.stat().st_mtime_ns == before
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


@needs_compiler
@pytest.mark.parametrize("content", [b"", b"rubbish"])
def test_what_cannot_be_loaded_is_compiled_anew(content: bytes, tmp_path: Path) -> None:
    load_kernels(tmp_path / "first")
    (whole,) = (tmp_path / "first").iterdir()
    file = tmp_path / "cache" / whole.name
    file.parent.mkdir(mode=0o700)
    file.write_bytes(content)
    file.chmod(0o700)
    load_kernels(file.parent)
    assert file.read_bytes() == whole.read_bytes()


@needs_compiler
@pytest.mark.parametrize("name", ["folder", "file"])
def test_what_others_may_write_is_not_executed(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    load_kernels(folder)
    (file,) = folder.iterdir()
    (folder if name == "folder" else file).chmod(0o777)
    with pytest.raises(Refused, match="written by other users"):
        load_kernels(folder)


def test_without_a_compiler_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_module, "COMPILERS", ("no-such-compiler",))
    with pytest.raises(Refused, match="no-such-compiler"):
        load_kernels(tmp_path)


BROKEN = {
    "fails": "exit 3",
    "hangs": "sleep 60",
    "writes rubbish": 'while [ "$1" != -o ]; do shift; done; echo x > "$2"',
}


@pytest.mark.parametrize("how", list(BROKEN))
def test_a_broken_compiler_is_no_compiler(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "badcc"
    program.write_text(f"#!/bin/sh\n{BROKEN[how]}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(kernels_module, "COMPILERS", (str(program),))
    monkeypatch.setattr(kernels_module, "TIMEOUT_S", 0.5)
    with pytest.raises(Refused):
        load_kernels(tmp_path / "cache")


def test_a_cache_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    with pytest.raises(Refused, match="cache"):
        load_kernels(tmp_path / "cache")


@pytest.mark.parametrize("base", ["", "relative", "/somewhere"])
def test_the_cache_is_where_the_system_keeps_caches(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", base)
    expected = Path("/somewhere/burnish") if base == "/somewhere" else Path.home() / ".cache" / "burnish"
    assert kernels_module.cache_folder() == expected


def test_a_user_without_a_home_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", homeless)
    loaded_kernels.cache_clear()
    try:
        assert loaded_kernels() is None
    finally:
        loaded_kernels.cache_clear()
