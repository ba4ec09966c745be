"""Calling a model through the public interface of transformers, and planning what has to go through it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from burnish.core.sampling import SampleRequest
from burnish.policies.cache import RowCache
from burnish.policies.prefixes import Prefix, PrefixStore

STATELESS_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})


class Forward:
    """One model behind one call, whatever its architecture and the release of transformers.

    prefill_tokens: padded tokens of one prefill pass.  `caches` is False for models whose state is not keys and values
    alone (recurrent and hybrid ones); these are recomputed from the start at every token.
    """

    def __init__(self, model: Any, *, prefill_tokens: int) -> None:
        self.model = model
        self.prefill_tokens = prefill_tokens
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        accepted = inspect.signature(base.forward).parameters
        self._takes_cache_position = "cache_position" in accepted
        self._extra: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        config = base.config.get_text_config()
        self.layers = int(config.num_hidden_layers)
        kinds = set(getattr(config, "layer_types", None) or ())
        self.caches = kinds <= STATELESS_LAYERS and not getattr(base, "_is_stateful", False)

    def cached(
        self, ids_RQ: torch.Tensor, mask_RK: torch.Tensor, positions_RQ: torch.Tensor, cache: RowCache
    ) -> torch.Tensor:
        """Logits [R, V] of the last of Q columns; K is everything that the cache's window sees, the Q included."""
        extra = self._extra
        if self._takes_cache_position:
            width, seen = ids_RQ.shape[1], mask_RK.shape[1]
            extra = extra | {"cache_position": torch.arange(seen - width, seen, device=ids_RQ.device)}
        logits: torch.Tensor = self.model(
            input_ids=ids_RQ,
            attention_mask=mask_RK,
            position_ids=positions_RQ,
            past_key_values=cache,
            use_cache=True,
            **extra,
        ).logits
        return logits[:, -1]

    def recomputed(self, ids_RT: torch.Tensor, length_R: torch.Tensor) -> torch.Tensor:
        """Logits [R, V] after the first `length_R` of T right-padded columns, without a cache.

        What stands to the right of a token never changes it in a causal model, so no mask is needed.
        """
        logits_RTV = self.model(input_ids=ids_RT, attention_mask=torch.ones_like(ids_RT), use_cache=False).logits
        logits: torch.Tensor = logits_RTV[torch.arange(len(ids_RT), device=ids_RT.device), length_R - 1]
        return logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One distinct prompt of a batch: its ids (int32 [T]), the requests that share it and what is already cached.

    Example: a group of 8 with one prompt of 40 tokens is one unit with 8 members and 40 new tokens.
    """

    ids: npt.NDArray[np.int32]
    members: tuple[int, ...]
    prefix: Prefix | None = None

    @property
    def new_tokens(self) -> int:
        """Tokens that have to go through the model, at least 1."""
        return len(self.ids) - (self.prefix.length if self.prefix else 0)


def plan_units(requests: Sequence[SampleRequest], store: PrefixStore) -> list[Unit]:
    """Equal prompts become one unit; units are ordered by how much is new, so that a prefill pass is even."""
    members: dict[bytes, list[int]] = {}
    for index, request in enumerate(requests):
        members.setdefault(request.prompt_ids.tobytes(), []).append(index)
    units = []
    for raw, indices in members.items():
        ids = np.frombuffer(raw, np.int32)
        units.append(Unit(ids=ids, members=tuple(indices), prefix=store.longest(ids)))
    return sorted(units, key=lambda unit: (unit.new_tokens, len(unit.ids)))


def prefill_ranges(units: Sequence[Unit], max_tokens: int) -> list[tuple[int, int]]:
    """Cut ordered units into [first, end) of similar width with at most `max_tokens` padded tokens (or one unit).

    A unit narrower than its range recomputes some of what it holds, hence the bound on unevenness.
    """
    ranges: list[tuple[int, int]] = []
    start = 0
    for index, unit in enumerate(units):
        too_many = (index + 1 - start) * unit.new_tokens > max_tokens
        too_wide = unit.new_tokens > 8 + units[start].new_tokens * 3 // 2
        if index > start and (too_many or too_wide):
            ranges.append((start, index))
            start = index
    return [*ranges, (start, len(units))]
