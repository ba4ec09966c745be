"""The embedded engine: what share of the machine's matrix-product rate a decode step reaches, and tokens per second.

    python benchmarks/engine.py [--quick] [--seeds N] [--data DIR]

A Qwen3 of 0.48M random parameters (hidden 128, 3 layers, 4 heads, 1 key head, intermediate 256, 507 tokens), prompts of
16 tokens and 48 sampled ones, on one thread.  The share counts the floating-point operations of a step's matrix
products (projections, attention at its context length, output head) over everything that a step does, drawing and
bookkeeping included, against a product of two 1024 x 1024 matrices of the same type; the two take turns.  Seconds
are CPU seconds of this process, so that other work on the machine counts as little as it can.  The same share for a
model with 8 heads and 8 key heads, whose attention is many products of single rows, is reported beside it.

Tokens per second: the engine's own pass over the weights ("lean"), its pass through the model's code ("model"), and
`transformers` generate, each from prompts to samples.  Where a C compiler is at hand, the engine uses functions that it
compiled on this machine; `compiled` in the figures says so.

Bar: a share of 45% at batch 96 in float32; the aim is 70%.  Takes about three minutes with 5 seeds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, Qwen3Config

from burnish.core.sampling import SampleRequest, SamplingParams
from burnish.policies import engine as engine_module
from burnish.policies.forward import CachedForward, Forward
from burnish.policies.kernels import loaded_kernels
from burnish.policies.lean import LeanForward
from burnish.policies.plan import DecodePlan
from burnish.policies.sampler import EmbeddedSampler

console = Console(width=80, highlight=False)
BAR, AIM = 0.45, 0.70
VOCABULARY, HIDDEN, LAYERS, INNER = 507, 128, 3, 256
PROMPT, NEW = 16, 48
BATCHES = (16, 64, 96, 256)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
clock = time.process_time


def make_model(dtype: torch.dtype, heads: int = 4, kv_heads: int = 1) -> Any:
    """Random weights, in evaluation mode."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=HIDDEN // heads,
        intermediate_size=INNER,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def make_requests(rows: int, seed: int) -> list[SampleRequest]:
    """Different prompts, no stop id: every row draws all its tokens."""
    prompts = np.random.default_rng(seed).integers(3, VOCABULARY, (rows, PROMPT))
    return [
        SampleRequest(
            key=str(row),
            prompt_ids=array("i", prompt.tolist()),
            params=SamplingParams(),
            max_tokens=NEW,
            seed=seed * 1000 + row,
            stop_ids=(),
        )
        for row, prompt in enumerate(prompts)
    ]


def step_operations(rows: int, context: float, heads: int, kv_heads: int) -> float:
    """Floating-point operations of the matrix products of one decode step; multiplication and addition count apart."""
    size = HIDDEN // heads
    layer = HIDDEN * (heads + 2 * kv_heads) * size + heads * size * HIDDEN + 3 * HIDDEN * INNER
    attention = 2 * context * heads * size
    return 2.0 * rows * (LAYERS * (layer + attention) + HIDDEN * VOCABULARY)


def product_rate(dtype: torch.dtype, times: int) -> float:
    """FLOP/s of 1024-cubed products, the median of some."""
    left, right, out = (torch.randn(1024, 1024, dtype=dtype) for _ in range(3))
    torch.mm(left, right, out=out)
    seconds = []
    for _ in range(times):
        started = clock()
        torch.mm(left, right, out=out)
        seconds.append(clock() - started)
    return 2 * 1024**3 / statistics.median(seconds)


def step_seconds(forward: Forward, rows: int, seed: int) -> float:
    """The median decode step of one batch, drawing included, over contexts from 16 to 64."""
    sampler = EmbeddedSampler(forward.model, pad_id=0, max_rows=rows, forward=forward)  # type: ignore[attr-defined]
    engine = sampler._engine
    for request in make_requests(rows, seed):
        engine.submit(request, lambda sample: None)
    seconds = []
    with torch.inference_mode():
        engine.advance()
        while engine.busy:
            started = clock()
            engine.advance()
            seconds.append(clock() - started)
    return statistics.median(seconds)


def measure_share(dtype: torch.dtype, rows: int, seeds: int, heads: int = 4, kv_heads: int = 1) -> dict[str, Any]:
    """Steps and products by turns; the median share with its range."""
    forward = LeanForward(make_model(dtype, heads, kv_heads))
    step_seconds(forward, rows, 100)
    operations = step_operations(rows, PROMPT + NEW / 2, heads, kv_heads)
    shares, steps, rates = [], [], []
    for seed in range(seeds):
        rate = product_rate(dtype, 8)
        seconds = step_seconds(forward, rows, seed)
        rate = (rate + product_rate(dtype, 8)) / 2
        shares.append(operations / seconds / rate)
        steps.append(seconds)
        rates.append(rate)
    return {
        "share": statistics.median(shares),
        "share_range": [min(shares), max(shares)],
        "step_ms": 1e3 * statistics.median(steps),
        "step_mflop": operations / 1e6,
        "product_gflop_per_s": statistics.median(rates) / 1e9,
    }


@contextmanager
def stopwatch(totals: dict[str, float]) -> Iterator[None]:
    """Time the parts of every decode step that is prepared while the block runs."""
    kept_add, kept_draw = DecodePlan.add, engine_module.draw

    def add(plan: DecodePlan, part: str, function: Callable[..., object], *arguments: Any, **named: Any) -> None:
        kept_add(plan, part, _timed(function, part, totals), *arguments, **named)

    DecodePlan.add = add  # type: ignore[method-assign]
    engine_module.draw = _timed(kept_draw, "draw", totals)
    try:
        yield
    finally:
        DecodePlan.add = kept_add  # type: ignore[method-assign]
        engine_module.draw = kept_draw


def _timed(function: Callable[..., Any], part: str, totals: dict[str, float]) -> Callable[..., Any]:
    def timed(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            totals[part] = totals.get(part, 0.0) + time.perf_counter() - started

    return timed


def measure_parts(rows: int) -> dict[str, float]:
    """Milliseconds of each part of a decode step, in float32."""
    forward = LeanForward(make_model(torch.float32))
    sampler = EmbeddedSampler(forward.model, pad_id=0, max_rows=rows, forward=forward)
    engine = sampler._engine
    for request in make_requests(rows, 0):
        engine.submit(request, lambda sample: None)
    totals: dict[str, float] = {}
    with torch.inference_mode(), stopwatch(totals):
        engine.advance()
        totals.clear()
        started, steps = time.perf_counter(), 0
        while engine.live == rows and steps < NEW - 4:
            engine.advance()
            steps += 1
        total = time.perf_counter() - started
    parts = {part: 1e3 * seconds / steps for part, seconds in sorted(totals.items(), key=lambda item: -item[1])}
    return parts | {"the rest": 1e3 * total / steps - sum(parts.values())}


def measure_rates(dtype: torch.dtype, rows: int, seeds: int) -> dict[str, list[float]]:
    """Tokens per CPU second of each way from prompts to samples, one value a seed; the ways take turns."""
    model = make_model(dtype)
    ways: dict[str, Callable[[list[SampleRequest]], object]] = {
        "lean": EmbeddedSampler(model, pad_id=0, forward=LeanForward(model), prefix_cache_bytes=0).sample_now,
        "model": EmbeddedSampler(model, pad_id=0, forward=CachedForward(model), prefix_cache_bytes=0).sample_now,
        "generate": partial(generate, model),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for seed in range(-1, seeds):
        for way, sample in ways.items():
            requests = make_requests(rows, abs(seed))
            started = clock()
            sample(requests)
            if seed >= 0:
                rates[way].append(rows * NEW / (clock() - started))
    return rates


def generate(model: Any, requests: list[SampleRequest]) -> object:
    """The same work by transformers: plain sampling from the whole distribution."""
    ids = torch.tensor([request.prompt_ids.tolist() for request in requests])
    with torch.inference_mode():
        return model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            pad_token_id=0,
        )


def show_shares(shares: dict[str, dict[str, Any]]) -> None:
    """Print the first table."""
    table = Table(title="Decode step against 1024-cubed products", expand=True)
    for column in ("model, type, batch", "step ms", "MFLOP", "product GFLOP/s", "share", "range"):
        table.add_column(column, justify="left" if column.startswith("model") else "right")
    for name, found in shares.items():
        low, high = found["share_range"]
        table.add_row(
            name,
            f"{found['step_ms']:.2f}",
            f"{found['step_mflop']:.0f}",
            f"{found['product_gflop_per_s']:.0f}",
            f"{found['share']:.0%}",
            f"{low:.0%}-{high:.0%}",
        )
    console.print(table)


def show_rates(rates: dict[str, dict[str, list[float]]]) -> None:
    """Print the second table."""
    table = Table(title="Tokens per CPU second, and how many times generate's (range)", expand=True)
    for column in ("type, batch", "lean", "model", "generate", "lean / generate"):
        table.add_column(column, justify="left" if column.startswith("type") else "right")
    for name, found in rates.items():
        ratios = [lean / other for lean, other in zip(found["lean"], found["generate"], strict=True)]
        middle = {way: statistics.median(values) for way, values in found.items()}
        table.add_row(
            name,
            *(f"{middle[way] / 1e3:.1f}k" for way in ("lean", "model", "generate")),
            f"{statistics.median(ratios):.1f}x ({min(ratios):.1f}-{max(ratios):.1f})",
        )
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and give the exit code."""
    parser = argparse.ArgumentParser(description="Decode rate of the embedded engine.")
    parser.add_argument("--quick", action="store_true", help="small sizes, no verdict")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", help="not used: nothing is kept")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds = 2 if options.quick else options.seeds
    batches = (16, 96) if options.quick else BATCHES
    dtypes = {"float32": torch.float32} if options.quick else DTYPES

    shares = {
        f"{kind}, {name}, {rows}": measure_share(dtype, rows, seeds, heads, kv_heads)
        for kind, heads, kv_heads in (("4 heads, 1 key head", 4, 1), ("8 heads, 8 key heads", 8, 8))
        for name, dtype in dtypes.items()
        for rows in (batches if kv_heads == 1 else (96,))
    }
    show_shares(shares)
    parts = measure_parts(96)
    console.print("Parts of a step at batch 96, float32, ms: " + ", ".join(f"{k} {v:.2f}" for k, v in parts.items()))
    rates = {f"{name}, {rows}": measure_rates(dtype, rows, seeds) for name, dtype in dtypes.items() for rows in batches}
    show_rates(rates)

    decisive = shares["4 heads, 1 key head, float32, 96"]["share"]
    holds = None if options.quick else decisive >= BAR
    console.print(f"Share at batch 96 in float32: {decisive:.1%} (bar {BAR:.0%}, aim {AIM:.0%})")
    figures = {
        "benchmark": "engine",
        "machine": {"processor": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1},
        "compiled": loaded_kernels() is not None,
        "context_tokens": PROMPT + NEW / 2,
        "shares": shares,
        "step_parts_ms": parts,
        "tokens_per_cpu_s": rates,
        "share_at_96": decisive,
        "bar": BAR,
        "aim": AIM,
        "aim_reached": decisive >= AIM,
        "holds": holds,
    }
    print(json.dumps(figures))
    return 0 if holds is not False else 1


if __name__ == "__main__":
    sys.exit(main())
