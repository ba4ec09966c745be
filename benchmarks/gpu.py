"""One GPU: Burnish's sampler and learner against plain transformers, and the share of the device's peak they reach.

    python benchmarks/gpu.py [--quick] [--seeds N] [--data DIR] [--device cuda|cpu]

Random-weight Qwen3 models of 0.1B and 0.5B parameters in bf16; nothing is downloaded.  Sampling: 128 different prompts
of 256 tokens, 256 new tokens each, by `EmbeddedSampler` and by `model.generate`.  Training: one optimizer step on 64
samples of 256 to 768 tokens, half of each trained, by `Learner` and by the plain way (padded batches of 8, the model's
logits, the loss over the trained tokens).  The sides alternate; the first round of each warms up and is left out;
ratios are of each round, median and range.

Model FLOP use (MFU): operations that the model needs (2 for a weight and token, 3 times that in training, and
attention over the keys that a token sees; padding and recomputation do not count) per second, as a share of the
device's dense bf16 peak: the data sheet's where the device is known, else a measured product of 8192-cubed.

Bar: neither side of Burnish is slower than transformers.  Null without a GPU, where `--device cpu --quick` runs the
same code on toy sizes.  About five minutes on an H100.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen3Config

from burnish.algorithms.grpo import GrpoLoss
from burnish.core.learning import TrainingSample
from burnish.core.sampling import SampleRequest, SamplingParams
from burnish.policies.sampler import EmbeddedSampler
from burnish.training.gradients import flatten_gradients, zero_gradients
from burnish.training.learner import Learner
from burnish.training.optimizer import Optimizer, OptimizerSpec

PEAKS_TFLOPS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
    "GH200": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "A10G": 70.0,
    "A10": 125.0,
    "A30": 165.0,
    "A40": 149.7,
    "RTX A6000": 154.8,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 6000 Ada": 364.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "RTX 5090": 209.5,
}
"""Dense bf16 with float32 accumulation, by NVIDIA's data sheets; of the names in a device's name the longest holds."""
SPEED_BAR = 1.0
GRADIENT_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
console = Console(width=80, highlight=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a Qwen3 and of the work on it."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    inner: int
    vocabulary: int = 32_000
    rows: int = 128
    prompt: int = 256
    new: int = 256
    samples: int = 64
    longest: int = 768
    plain_batch: int = 8
    micro_batch_tokens: int = 16_384


SHAPES = (
    Shape(name="0.1B", hidden=768, layers=12, heads=12, kv_heads=4, head_width=64, inner=2304),
    Shape(name="0.5B", hidden=1024, layers=28, heads=16, kv_heads=8, head_width=128, inner=3072),
)
TOY = Shape(
    name="toy",
    hidden=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_width=16,
    inner=128,
    vocabulary=512,
    rows=8,
    prompt=16,
    new=16,
    samples=8,
    longest=48,
    micro_batch_tokens=512,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Seconds of both sides on the same work, the tokens that count, and the operations that the model needs for it."""

    burnish_s: float
    plain_s: float
    tokens: int
    flop: float


# -- the work ----------------------------------------------------------------------------------------------------------


def build(shape: Shape, device: torch.device, seed: int) -> Any:
    """A model with random weights: bf16 on a GPU, float32 on a CPU."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        intermediate_size=shape.inner,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").to(device).eval()


def draw_prompts(shape: Shape, seed: int) -> list[list[int]]:
    """Different prompts of one length."""
    rng = random.Random(seed)
    return [[rng.randrange(1, shape.vocabulary) for _ in range(shape.prompt)] for _ in range(shape.rows)]


def draw_samples(shape: Shape, seed: int) -> list[TrainingSample]:
    """Samples of `longest / 3` to `longest` tokens, the second half of each trained."""
    rng = random.Random(seed)
    samples = []
    for index in range(shape.samples):
        length = rng.randint(shape.longest // 3, shape.longest)
        mask = [int(place >= length // 2) for place in range(length)]
        samples.append(
            TrainingSample(
                trajectory_id=str(index),
                group_id=str(index // 8),
                token_ids=array("i", [rng.randrange(1, shape.vocabulary) for _ in range(length)]),
                loss_mask=array("b", mask),
                behaviour_logprobs=array("f", [0.0] * length),
                versions=array("i", [m - 1 for m in mask]),
                advantages=array("f", [rng.choice([-1.0, 1.0]) * m for m in mask]),
            )
        )
    return samples


def weights_of(model: nn.Module) -> int:
    """Weights that a token is multiplied with; the tied embedding counts once, as the head."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)


def forward_flop(model: nn.Module, shape: Shape, first: int, last: int) -> float:
    """Operations of one sequence's tokens at positions `first` to `last - 1`, each seeing itself and all before it."""
    seen = (last * (last + 1) - first * (first + 1)) / 2
    return 2.0 * weights_of(model) * (last - first) + 4.0 * shape.layers * shape.heads * shape.head_width * seen


# -- the sides ---------------------------------------------------------------------------------------------------------


def timed(device: torch.device, call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin, result


def generate_plainly(model: Any, shape: Shape, prompts: Sequence[Sequence[int]]) -> Any:
    """What `transformers` offers: one batch, sampled to the end."""
    ids = torch.tensor(prompts, device=model.device)
    lengths = {"max_new_tokens": shape.new, "min_new_tokens": shape.new}
    settings = GenerationConfig(**lengths, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0)
    with torch.inference_mode():
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)


def sample_rounds(model: Any, shape: Shape, seeds: Sequence[int]) -> list[Round]:
    """Both samplers on the prompts of every seed, in turn; one more round before them warms up."""
    sampler = EmbeddedSampler(model, pad_id=0, device=model.device, max_rows=shape.rows)
    flop = shape.rows * forward_flop(model, shape, 0, shape.prompt + shape.new - 1)
    rounds = []
    for place, seed in enumerate([seeds[0], *seeds]):
        prompts = draw_prompts(shape, 1000 * place + seed)
        requests = [
            SampleRequest(
                key=str(index),
                prompt_ids=array("i", prompt),
                params=SamplingParams(temperature=1.0),
                max_tokens=shape.new,
                seed=index,
                stop_ids=(),
            )
            for index, prompt in enumerate(prompts)
        ]
        sides: dict[str, Callable[[], Any]] = {
            "burnish": lambda asked=requests: sampler.sample_now(asked),
            "plain": lambda asked=prompts: generate_plainly(model, shape, asked),
        }
        seconds = {}
        for name in sorted(sides, reverse=bool(place % 2)):
            seconds[name], result = timed(model.device, sides[name])
            drawn = sum(len(s.token_ids) for s in result) if name == "burnish" else result[:, shape.prompt :].numel()
            if drawn != shape.rows * shape.new:
                raise SystemExit(
                    f"{name} drew {drawn} tokens of {shape.rows * shape.new}; the comparison means nothing"
                )
        if place:
            tokens = shape.rows * shape.new
            rounds.append(Round(burnish_s=seconds["burnish"], plain_s=seconds["plain"], tokens=tokens, flop=flop))
    return rounds


def plain_gradient(model: Any, shape: Shape, samples: Sequence[TrainingSample]) -> None:
    """As one writes it with `transformers`: padded batches, all logits, the mean over trained tokens."""
    total = sum(sum(sample.loss_mask) for sample in samples)
    for start in range(0, len(samples), shape.plain_batch):
        rows = samples[start : start + shape.plain_batch]
        width = max(sample.length for sample in rows)
        ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
        attention, weights = torch.zeros_like(ids), torch.zeros(len(rows), width)
        for row, sample in enumerate(rows):
            n, mask = sample.length, torch.tensor(sample.loss_mask, dtype=torch.bool)
            ids[row, :n], attention[row, :n] = torch.tensor(sample.token_ids), 1
            labels[row, :n] = torch.where(mask, ids[row, :n], -100)
            weights[row, :n] = torch.tensor(sample.advantages)
        ids, labels, attention, weights = (tensor.to(model.device) for tensor in (ids, labels, attention, weights))
        logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1].float()
        nats = nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
        loss = (nats * weights[:, 1:].flatten()).sum() / total
        loss.backward()


def check_gradients(model: Any, sides: Sequence[Callable[[], Any]]) -> None:
    """Raises SystemExit where the sides do not compute the same gradient."""
    gradients = []
    for side in sides:
        zero_gradients(model)
        side()
        gradients.append(flatten_gradients(model).float())
    zero_gradients(model)
    difference = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    if not difference <= GRADIENT_TOLERANCE[model.dtype]:
        raise SystemExit(f"the gradients differ by {difference:.1e}; the comparison means nothing")


def train_rounds(model: Any, shape: Shape, seeds: Sequence[int]) -> list[Round]:
    """Both training steps on the samples of every seed, in turn; one more round before them warms up."""
    learner = Learner(model, GrpoLoss(), max_micro_batch_tokens=shape.micro_batch_tokens)
    # a step of nothing: both sides work on the same weights, in every round
    optimizer = Optimizer(model, OptimizerSpec(learning_rate=0.0))
    rounds = []
    for place, seed in enumerate([seeds[0], *seeds]):
        samples = draw_samples(shape, 1000 * place + seed)
        scores = learner.score(samples)
        fresh = [with_logprobs(sample, score) for sample, score in zip(samples, scores, strict=True)]
        sides: dict[str, Callable[[], Any]] = {
            "burnish": lambda given=fresh: learner.accumulate(given, learner.normaliser(given)),
            "plain": lambda given=fresh: plain_gradient(model, shape, given),
        }
        if not place:
            check_gradients(model, list(sides.values()))
        seconds = {}
        for name in sorted(sides, reverse=bool(place % 2)):
            optimizer.zero_gradients()
            seconds[name], _ = timed(model.device, lambda side=sides[name]: (side(), optimizer.step()))
        if place:
            flop = 3.0 * sum(forward_flop(model, shape, 0, sample.length) for sample in fresh)
            tokens = sum(sample.length for sample in fresh)
            rounds.append(Round(burnish_s=seconds["burnish"], plain_s=seconds["plain"], tokens=tokens, flop=flop))
    return rounds


def with_logprobs(sample: TrainingSample, logprobs: array[float]) -> TrainingSample:
    """The sample as this policy would have drawn it."""
    return replace(sample, behaviour_logprobs=logprobs)


# -- figures -----------------------------------------------------------------------------------------------------------


def peak_flops(device: torch.device) -> tuple[float, str]:
    """Operations per second of the device at its best, and where the figure is from."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = [key for key in PEAKS_TFLOPS if key in name]
        if known:
            return PEAKS_TFLOPS[max(known, key=len)] * 1e12, "data sheet"
    size = 8192 if device.type == "cuda" else 512
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = min(timed(device, lambda: left @ right)[0] for _ in range(10))
    return 2.0 * size**3 / best, f"measured product of {size}-cubed"


def summary(rounds: Sequence[Round], peak: float) -> dict[str, Any]:
    """Medians of one kind of work on one model."""
    ratios = [one.plain_s / one.burnish_s for one in rounds]
    found: dict[str, Any] = {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "rounds": [asdict(r) for r in rounds],
    }
    for side in ("burnish", "plain"):
        seconds = [getattr(one, f"{side}_s") for one in rounds]
        middle = statistics.median
        found[side] = {
            "s": middle(seconds),
            "tokens_per_s": middle([one.tokens / s for one, s in zip(rounds, seconds, strict=True)]),
            "mfu": middle([one.flop / s / peak for one, s in zip(rounds, seconds, strict=True)]),
        }
    return found


def table(results: dict[str, dict[str, Any]]) -> Table:
    """Two rows for each kind of work: Burnish, and what it is compared with."""
    shown = Table(box=None, pad_edge=False)
    for name in ("work", "side", "seconds", "tokens/s", "MFU", "times faster"):
        shown.add_column(name, no_wrap=True, justify="left" if name in ("work", "side") else "right")
    for work, found in results.items():
        spread = f"{found['ratio']:.2f} ({min(found['ratios']):.2f}-{max(found['ratios']):.2f})"
        for side, ratio in (("burnish", spread), ("plain", "")):
            row = found[side]
            name = side if side == "burnish" else "generate" if "sample" in work else "plain step"
            shown.add_row(
                work if ratio else "",
                name,
                f"{row['s']:.3f}",
                f"{row['tokens_per_s']:,.0f}",
                f"{row['mfu']:.1%}",
                ratio,
            )
    return shown


def pick_device(name: str) -> torch.device | None:
    """The device asked for; None where it is a GPU and there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        return None
    return torch.device(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="toy sizes on a CPU, the small model alone on a GPU")
    parser.add_argument("--seeds", type=int, default=None, help="rounds, each with its own work (default: 5; 2 quick)")
    parser.add_argument("--data", default="", help="folder to which the figures are also written")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    if device is None or (device.type == "cpu" and not arguments.quick):
        console.print("no GPU is here; `--device cpu --quick` runs the same code on toy sizes")
        print(json.dumps({"device": None, "holds": None}))
        return 0
    seeds = range(arguments.seeds or (2 if arguments.quick else 5))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    peak, source = peak_flops(device)
    console.print(f"{name}, torch {torch.__version__}; peak {peak / 1e12:.1f} TFLOP/s ({source})")
    results: dict[str, dict[str, Any]] = {}
    for shape in (TOY,) if device.type == "cpu" else SHAPES[: 1 if arguments.quick else None]:
        model = build(shape, device, seed=0)
        console.print(f"  {shape.name}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters")
        results[f"{shape.name} sample"] = summary(sample_rounds(model, shape, seeds), peak)
        results[f"{shape.name} train"] = summary(train_rounds(model, shape, seeds), peak)
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()
    console.print(table(results))
    decided = device.type == "cuda" and not arguments.quick
    bars = {f"{work}: not slower": found["ratio"] >= SPEED_BAR if decided else None for work, found in results.items()}
    holds = all(bars.values()) if decided else None
    figures = {"device": name, "peak_tflops": peak / 1e12, "peak_source": source, "results": results, "bars": bars}
    text = json.dumps(figures | {"holds": holds})
    if arguments.data:
        folder = Path(arguments.data)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"gpu-{name.replace(' ', '-').lower()}.json").write_text(text, encoding="utf-8")
    print(text)
    return 1 if holds is False else 0


if __name__ == "__main__":
    sys.exit(main())
