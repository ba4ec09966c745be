"""How much memory a run will take, known before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from burnish.core.errors import ConfigError
from burnish.policies.load import auto_class

_GIB = 2**30
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_CGROUP_USED = (Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeeds:
    """What the run asks of the model.  `MemoryNeeds(rows=256, context_tokens=512, micro_batch_tokens=4096)`

    rows and context_tokens: sequences that are sampled together and their length.  micro_batch_tokens: padded tokens
    of one backward pass, 0 for no training.  lora_rank: 0 for full training.  reference: a frozen second copy for the
    KL term.  processes: workers that share the weights but hold their own gradients, activations and caches.
    """

    rows: int
    context_tokens: int
    micro_batch_tokens: int = 0
    lora_rank: int = 0
    reference: bool = False
    processes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes by purpose; `MemoryPlan(weights=2_000_000, ..., available=8 * 2**30).fits` is True.

    An estimate: activations follow a formula for a transformer with fused attention (see `memory_plan`).
    """

    parameters: int
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    kv_cache: int
    available: int
    device: str

    @property
    def total(self) -> int:
        """Bytes of everything."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.kv_cache

    @property
    def fits(self) -> bool:
        """Whether the total is at most what is available."""
        return self.total <= self.available

    def lines(self) -> list[str]:
        """The plan as a table of text, for the start of a run."""
        parts = ("weights", "gradients", "optimizer", "activations", "kv_cache", "total")
        rows = [f"  {name.replace('_', ' '):<12}{format_bytes(getattr(self, name)):>10}" for name in parts]
        share = f"{self.trainable / max(self.parameters, 1):.1%} of {self.parameters / 1e6:,.2f}M parameters train"
        verdict = "fits" if self.fits else "does NOT fit: lower rows, context, batch; or use LoRA"
        return [
            f"memory plan on {self.device} ({share})",
            *rows,
            f"  {'available':<12}{format_bytes(self.available):>10}  {verdict}",
        ]


def format_bytes(count: int) -> str:
    """Bytes for people.

    >>> format_bytes(3 * 2**30 // 2), format_bytes(5 * 2**20), format_bytes(700)
    ('1.50 GiB', '5.0 MiB', '0.7 KiB')
    """
    if count >= _GIB:
        return f"{count / _GIB:.2f} GiB"
    if count >= 2**20:
        return f"{count / 2**20:.1f} MiB"
    return f"{count / 2**10:.1f} KiB"


def memory_plan(
    config: Any, needs: MemoryNeeds, *, device: torch.device, dtype: torch.dtype, available: int | None = None
) -> MemoryPlan:
    """Estimate from a model's configuration alone; no weights are allocated.

    Weights and caches are exact.  Gradients and AdamW's two moments take the weights' type for each trained
    parameter.  Activations of one micro-batch of T tokens: per layer about 14 hidden-sized and 4 intermediate-sized
    vectors a token (projections, norms, gate, residuals; after Korthikanti et al. 2022, arXiv 2205.05198, section 4.1
    with fused attention), and 4 float32 vectors of the vocabulary a token for the loss.
    available: bytes; measured where None.  Raises ConfigError where a need is below 0 or there is nothing to sample.
    """
    if min(needs.rows, needs.context_tokens, needs.processes) < 1 or min(needs.micro_batch_tokens, needs.lora_rank) < 0:
        raise ConfigError(f"rows, context_tokens and processes must be at least 1 and nothing below 0, got {needs}")
    with torch.device("meta"):
        skeleton = auto_class(config).from_config(config, dtype=dtype)
    parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    adapters = _lora_parameters(skeleton, needs.lora_rank)
    trainable = 0 if not needs.micro_batch_tokens else adapters or parameters
    size, copies = dtype.itemsize, 2 if needs.reference and not adapters else 1
    return MemoryPlan(
        parameters=parameters + adapters,
        trainable=trainable,
        weights=(parameters * copies + adapters) * size,
        gradients=trainable * size * needs.processes,
        optimizer=2 * trainable * size,
        activations=_activation_bytes(config.get_text_config(), needs.micro_batch_tokens, size) * needs.processes,
        kv_cache=_cache_bytes(config.get_text_config(), needs, size) * needs.processes,
        available=available_bytes(device) if available is None else available,
        device=str(device),
    )


def available_bytes(device: torch.device) -> int:
    """Free memory of the device: a GPU's own, else the machine's within the limit of its control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    for limit_file, used_file in zip(_CGROUP_LIMITS, _CGROUP_USED, strict=True):
        if limit_file.is_file() and used_file.is_file():
            limit = limit_file.read_text().strip()
            if limit.isdigit():
                free = min(free, max(int(limit) - int(used_file.read_text()), 0))
    return free


def _lora_parameters(skeleton: Any, rank: int) -> int:
    """Adapters on every linear map but the output head: rank x (inputs + outputs) each."""
    head = skeleton.get_output_embeddings()
    count = 0
    for module in skeleton.modules():
        weight = getattr(module, "weight", None)
        is_linear = isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
        if is_linear and module is not head and weight is not None:
            count += rank * sum(weight.shape)
    return count


def _activation_bytes(config: Any, tokens: int, size: int) -> int:
    hidden = int(config.hidden_size)
    intermediate = int(getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden)
    per_token = int(config.num_hidden_layers) * (14 * hidden + 4 * intermediate) * size + 4 * 4 * int(config.vocab_size)
    return tokens * per_token


def _cache_bytes(config: Any, needs: MemoryNeeds, size: int) -> int:
    heads = int(config.num_attention_heads)
    head_size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    return 2 * int(config.num_hidden_layers) * kv_heads * head_size * needs.rows * needs.context_tokens * size
