"""The learner's forward and backward pass on one CPU thread: over a tree of prefixes against the model's own forward.

    python benchmarks/learner.py [--quick] [--seeds N] [--data DIR]

Two workloads of 32 prompts x 8 episodes: "distinct", whose members share the prompt alone (15 of about 80 tokens;
random ids, the least that there is to share), and "alike", whose members also share half of their turns, as those of a
policy do that is sure of itself (in the demo's shop 75 to 85% of all tokens stand in a prefix that another episode of
the batch has).  The two sides alternate; ratios are of seconds for one gradient of the whole batch, median and range
over rounds and seeds.  "products" is the share of the machine's matrix-product rate (1024-cubed, float32, measured in
between) that the tree side reaches on the matrix products it needs, attention left out.

Bar, for the two tiny models: at least 1.2x on "distinct" (every weight is multiplied with at least 78% of the other
side's tokens, and the rest of a pass has to shrink with it) and at least 1.75x on "alike" (half of the tokens, less
what attention over rows that part late costs).  The gradients must agree within 1e-4.  About four minutes in full.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModelForCausalLM, Qwen3Config

from burnish.algorithms.grpo import GrpoLoss
from burnish.core.learning import TrainingSample
from burnish.training.gradients import flatten_gradients, zero_gradients
from burnish.training.learner import Learner
from burnish.training.passes import ModelPasses

VOCABULARY = 507
BAR = {"distinct": 1.2, "alike": 1.75}
TOLERANCE = 1e-4
SHAPES = {
    "0.48M, 1 kv head": {
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
    },
    "0.6M, 8 kv heads": {
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
    "25M, 4 kv heads": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4},
}
console = Console(width=80)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One gradient by each side: seconds, tokens (padding included) that each put through the model, GFLOP/s of the
    machine.  needed_gflop: matrix products of the tree side."""

    own_s: float
    tree_s: float
    own_tokens: float
    tree_tokens: float
    needed_gflop: float
    machine_gflop_s: float


def build(shape: str, seed: int) -> nn.Module:
    """A Qwen3 with random weights, float32."""
    sizes = SHAPES[shape]
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        head_dim=sizes["hidden_size"] // sizes["num_attention_heads"],
        intermediate_size=sizes["hidden_size"] * (2 if sizes["hidden_size"] == 128 else 3),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        **sizes,
    )
    model: nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    return model


def episodes(workload: str, groups: int, seed: int) -> list[TrainingSample]:
    """Groups of 8: a prompt of 12 to 18 tokens, 1 to 3 turns of action and observation, an answer."""
    rng = random.Random(seed)

    def draw(low: int, high: int) -> list[int]:
        return [rng.randrange(VOCABULARY) for _ in range(rng.randint(low, high))]

    samples = []
    for group in range(groups):
        prompt = draw(12, 18)
        common = [(draw(8, 20), draw(8, 20)) for _ in range(3)]
        for member in range(8):
            ids, mask = list(prompt), [0] * len(prompt)
            own = workload == "distinct"
            for turn in range(rng.choice([1, 2, 2, 3, 3])):
                own = own or rng.random() < 0.25
                action, observation = (draw(8, 20), draw(8, 20)) if own else common[turn]
                ids += action + observation
                mask += [1] * len(action) + [0] * len(observation)
            answer = draw(3, 8)
            ids += answer
            mask += [1] * len(answer)
            advantage = rng.uniform(-1, 1)
            samples.append(
                TrainingSample(
                    trajectory_id=f"{group}/{member}",
                    group_id=str(group),
                    token_ids=array("i", ids),
                    loss_mask=array("b", mask),
                    behaviour_logprobs=array("f", [-6.2 * m for m in mask]),
                    versions=array("i", [m - 1 for m in mask]),
                    advantages=array("f", [advantage * m for m in mask]),
                )
            )
    return samples


def machine_gflop_s() -> float:
    """Rate of a float32 product of 1024-cubed, the best of five."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - started)
    return 2 * 1024**3 / best / 1e9


def needed_gflop(learner: Learner, samples: Sequence[TrainingSample], shape: str) -> float:
    """Matrix products of the tree side in one gradient, attention left out: 6 operations for a weight and a node."""
    sizes = SHAPES[shape]
    hidden, inner = sizes["hidden_size"], sizes["hidden_size"] * (2 if sizes["hidden_size"] == 128 else 3)
    width = hidden // sizes["num_attention_heads"]
    key_value = 2 * width * sizes["num_key_value_heads"] * hidden
    layer = 2 * hidden * hidden + key_value + 3 * hidden * inner
    total = 0.0
    for batch in learner._cut(samples, None):
        nodes, asked = batch.padded_tokens, len(batch.positions_N.unique())
        full_layers = sizes["num_hidden_layers"] - 1
        # q of the last layer is one product with its keys and values, for every node
        last = nodes * (key_value + hidden * hidden) + asked * (layer - key_value - hidden * hidden)
        total += nodes * full_layers * layer + last + asked * hidden * VOCABULARY
    return 6 * total / 1e9


def measure(shape: str, workload: str, seed: int, rounds: int, groups: int) -> list[Round]:
    """Alternate the two sides; raises SystemExit where their gradients differ."""
    model, samples = build(shape, seed), episodes(workload, groups, seed)
    tree = Learner(model, GrpoLoss())
    own = Learner(model, GrpoLoss(), max_micro_batch_tokens=1024 if model.config.hidden_size == 128 else 2048)
    own._passes = ModelPasses(model, pad_id=0)
    normaliser, results, gradients = tree.normaliser(samples), [], {}
    flop = needed_gflop(tree, samples, shape)

    def gradient(learner: Learner) -> tuple[float, float]:
        zero_gradients(model)
        started = time.perf_counter()
        sums = learner.accumulate(samples, normaliser).sums
        seconds = time.perf_counter() - started
        gradients[learner] = flatten_gradients(model)
        return seconds, sums["padded_tokens"]

    for place in range(rounds + 1):
        rate = machine_gflop_s()
        sides = [own, tree] if place % 2 else [tree, own]
        found = {side: gradient(side) for side in sides}
        if place:  # the first round warms up
            results.append(
                Round(
                    own_s=found[own][0],
                    tree_s=found[tree][0],
                    own_tokens=found[own][1],
                    tree_tokens=found[tree][1],
                    needed_gflop=flop,
                    machine_gflop_s=max(rate, machine_gflop_s()),
                )
            )
    difference = float((gradients[tree] - gradients[own]).norm() / gradients[own].norm())
    if not difference <= TOLERANCE:
        raise SystemExit(f"{shape}, {workload}: the gradients differ by {difference:.1e}; the comparison means nothing")
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", default="", help="not used: nothing is kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("model", "workload", "own s", "tree s", "ratio (range)", "tokens", "products")
    figures: dict[str, dict[str, float]] = {}
    for shape in SHAPES:
        big = shape.startswith("25M")
        seeds, rounds = (1, 1) if options.quick or big else (options.seeds, 5)
        groups = 2 if options.quick and big else 8 if options.quick or big else 32
        for workload in BAR:
            found = [one for seed in range(seeds) for one in measure(shape, workload, seed, rounds + big, groups)]
            ratios = sorted(one.own_s / one.tree_s for one in found)
            own_s, tree_s = (
                statistics.median(values) for values in zip(*((o.own_s, o.tree_s) for o in found), strict=True)
            )
            share = statistics.median(one.needed_gflop / one.tree_s / one.machine_gflop_s for one in found)
            tokens = statistics.median(one.tree_tokens / one.own_tokens for one in found)
            ratio = statistics.median(ratios)
            figures[f"{shape}/{workload}"] = {
                "own_s": own_s,
                "tree_s": tree_s,
                "ratio": ratio,
                "ratio_low": ratios[0],
                "ratio_high": ratios[-1],
                "token_share": tokens,
                "own_tokens_per_s": statistics.median(one.own_tokens / one.own_s for one in found),
                "tree_tokens_per_s": statistics.median(one.own_tokens / one.tree_s for one in found),
                "product_share": share,
                "groups": groups,
            }
            spread = f"{ratio:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
            table.add_row(shape, workload, f"{own_s:.3f}", f"{tree_s:.3f}", spread, f"{tokens:.0%}", f"{share:.0%}")
    console.print(table)
    console.print("tokens: that the tree side puts through the model, of those of the other side")
    holds = all(
        figures[f"{shape}/{workload}"]["ratio"] >= bar
        for shape in SHAPES
        for workload, bar in BAR.items()
        if not shape.startswith("25M")
    )
    print(json.dumps({"figures": figures, "bar": BAR, "holds": None if options.quick else holds}))
    return 0 if options.quick or holds else 1


if __name__ == "__main__":
    sys.exit(main())
