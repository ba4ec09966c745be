"""Three ways to next-token logits behind one interface, and the choice among them by measurement.

* `LeanForward` (burnish.policies.lean): for decoders that are understood to the last detail; fastest.
* `CachedForward`: the model's own code through transformers' `Cache` interface, over the same slots.
* `RecomputedForward`: for models whose state is more than keys and values (recurrent and hybrid ones); every token
  reads the whole text again, slow and always right.

`choose_forward` takes the first that computes the logits of the model's plain forward pass on a small input, prefill,
decoding and continued prefill included.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from burnish.policies.decoder import close_logits
from burnish.policies.lean import LeanForward
from burnish.policies.ragged import Ragged, additive
from burnish.policies.sight import HeldFeatures, sight_of
from burnish.policies.slots import SlotStore

STATELESS_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})

_PROBED_WINDOW = 64
_PROBE_TOLERANCE_HALF = 8e-2


class Forward(Protocol):
    """Next-token logits for rows of a `SlotStore`.  keeps_state: False where held tokens save no work."""

    keeps_state: bool

    def refresh(self) -> None:
        """Take note of changed weights."""
        ...

    def new_store(self) -> SlotStore:
        """An empty store for this model."""
        ...

    def prefill(
        self, store: SlotStore, slots: Sequence[int], starts: Sequence[int], ids: Sequence[npt.NDArray[np.int32]]
    ) -> Tensor:
        """Feed `ids[u]` to slot `slots[u]` from column `starts[u]` on; logits [U, V] after the last of each."""
        ...

    def decode(self, store: SlotStore, ids_R: Tensor, positions_R: Tensor, columns: int) -> Tensor:
        """Feed one token to each of the first R slots; logits [R, V], valid until the next call.
        columns: more than any live row's position."""
        ...


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of a `_SlotCache`."""

    is_sliding = False
    is_compileable = False

    def __init__(self, cache: _SlotCache, index: int) -> None:
        super().__init__()
        self.cache, self.index, self.is_initialized = cache, index, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor | None = None) -> None:
        """The store allocates."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new tokens; return all columns of the rows, [rows, heads, columns, head_dim]."""
        return self.cache.write(self.index, key_states, value_states)

    def get_seq_length(self, *args: Any) -> int:
        """Columns before the first new one; rows differ, so positions are always given beside it."""
        return self.cache.columns - self.cache.width

    def get_mask_sizes(self, query: int | Tensor) -> tuple[int, int]:
        """Length and offset of the keys."""
        return self.cache.columns, 0

    def get_max_length(self) -> int:
        """No limit that a model should know of."""
        return -1

    get_max_cache_shape = get_max_length


class _SlotCache(Cache):  # type: ignore[misc]
    """Shows a model some rows of a store.

    rows: slots that the model sees, in order (None: the first ones).  where: slot and column of each new token;
    chosen: which of the new states [rows, width] these are, None for all of them.
    """

    def __init__(self, store: SlotStore, *, rows: Tensor | None, width: int, columns: int) -> None:
        self.store, self.rows, self.width, self.columns = store, rows, width, columns
        self.where: tuple[Tensor, Tensor]
        self.chosen: tuple[Tensor, Tensor] | None = None
        super().__init__(layers=[_SlotLayer(self, index) for index in range(len(store.keys))])

    def write(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `_SlotLayer.update`."""
        self.store.allocate(
            index, heads=keys.shape[1], key_dim=keys.shape[3], value_dim=values.shape[3], dtype=keys.dtype
        )
        held = []
        for buffer, new in zip(self.store.layer(index), (keys, values), strict=True):
            by_token = new.transpose(1, 2)
            by_token = by_token[:, 0] if self.chosen is None else by_token[self.chosen]
            buffer.transpose(1, 2).index_put_(self.where, by_token)
            seen = buffer[: len(new), :, : self.columns]
            held.append(seen if self.rows is None else buffer[:, :, : self.columns].index_select(0, self.rows))
        return held[0], held[1]


class CachedForward:
    """The model's own forward pass, with four-dimensional masks (one for each type of layer where they differ)."""

    keeps_state = True

    def __init__(self, model: Any) -> None:
        self.model = model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        accepted = inspect.signature(base.forward).parameters
        self._extra: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        config = base.config.get_text_config()
        self.layers = int(config.num_hidden_layers)
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self._limits = attention_limits(config)
        self._sight = sight_of(model)
        self._features = None if self._sight is None else HeldFeatures(model, self._sight)

    def refresh(self) -> None:
        """The model reads its own weights."""
        if self._features is not None:
            self._features.forget()

    def new_store(self) -> SlotStore:
        """Layers are allocated as the model writes them."""
        return SlotStore(layers=self.layers, device=self.device, keys_across=False)

    def prefill(
        self, store: SlotStore, slots: Sequence[int], starts: Sequence[int], ids: Sequence[npt.NDArray[np.int32]]
    ) -> Tensor:
        """See `Forward`.  Rows end in the same column, so that one position's logits are enough."""
        ragged = Ragged(slots, starts, [len(part) for part in ids], self.device)
        ids_UQ = np.zeros((len(ids), ragged.width), np.int64)
        for row, part in enumerate(ids):
            ids_UQ[row, ragged.width - len(part) :] = part
        steps = torch.arange(ragged.width, device=self.device)
        shift_U1 = (ragged.width - ragged.lengths_U)[:, None]
        positions_UQ = ragged.starts_U[:, None] + steps - shift_U1
        cache = _SlotCache(store, rows=ragged.slots_U, width=ragged.width, columns=ragged.columns)
        cache.where = (ragged.slots_N, ragged.positions_N)
        cache.chosen = (ragged.unit_N, ragged.offset_N + shift_U1[ragged.unit_N, 0])
        return self._logits(torch.from_numpy(ids_UQ).to(self.device), positions_UQ, ragged, cache)

    def decode(self, store: SlotStore, ids_R: Tensor, positions_R: Tensor, columns: int) -> Tensor:
        """See `Forward`."""
        rows = len(ids_R)
        ragged = Ragged([0], [0], [columns], self.device)
        cache = _SlotCache(store, rows=None, width=1, columns=columns)
        cache.where = (torch.arange(rows, device=self.device), positions_R)
        return self._logits(ids_R[:, None], positions_R[:, None], ragged, cache)

    def _logits(self, ids_RQ: Tensor, positions_RQ: Tensor, ragged: Ragged, cache: _SlotCache) -> Tensor:
        masks = {
            kind: additive(ragged.hidden(positions_RQ, **limits), self.dtype)[:, None]
            for kind, limits in self._limits.items()
        }
        given = {"input_ids": ids_RQ}
        if self._sight is not None:
            given = self._sight.inputs(self.model, ids_RQ, self._features)
        logits: Tensor = self.model(
            **given,
            attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
            position_ids=positions_RQ.clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            **self._extra,
        ).logits
        return logits[:, -1]


class RecomputedForward:
    """Reads every row from its start; the store holds token ids alone."""

    keeps_state = False

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self._sight = sight_of(model)

    def refresh(self) -> None:
        """The model reads its own weights."""

    def new_store(self) -> SlotStore:
        """One layer, whose values are the ids."""
        store = SlotStore(layers=1, device=self.device, keys_across=False)
        store.allocate(0, heads=1, key_dim=0, value_dim=1, dtype=torch.int64)
        return store

    def prefill(
        self, store: SlotStore, slots: Sequence[int], starts: Sequence[int], ids: Sequence[npt.NDArray[np.int32]]
    ) -> Tensor:
        """See `Forward`."""
        ragged = Ragged(slots, starts, [len(part) for part in ids], self.device)
        held = self._ids(store)
        tokens_N = torch.from_numpy(np.concatenate(ids).astype(np.int64)).to(self.device)
        held.index_put_((ragged.slots_N, ragged.positions_N), tokens_N)
        return self._read(held[ragged.slots_U, : ragged.columns], ragged.starts_U + ragged.lengths_U - 1)

    def decode(self, store: SlotStore, ids_R: Tensor, positions_R: Tensor, columns: int) -> Tensor:
        """See `Forward`."""
        held = self._ids(store)
        held.index_put_((torch.arange(len(ids_R), device=self.device), positions_R), ids_R)
        return self._read(held[: len(ids_R), : int(positions_R.max()) + 1], positions_R)

    def _ids(self, store: SlotStore) -> Tensor:
        return store.layer(0)[1][:, 0, :, 0]

    def _read(self, ids_RT: Tensor, last_R: Tensor) -> Tensor:
        """What stands to the right of a token never changes it in a causal model, so no mask is needed."""
        if self._sight is None:
            logits_RTV = self.model(input_ids=ids_RT, attention_mask=torch.ones_like(ids_RT), use_cache=False).logits
        else:
            # a slot may hold the rest of another text, where an image can be cut
            ids_RT = ids_RT.masked_fill(torch.arange(ids_RT.shape[1], device=self.device) > last_R[:, None], 0)
            given = self._sight.inputs(self.model, ids_RT)
            logits_RTV = self.model(**given, attention_mask=torch.ones_like(ids_RT), use_cache=False).logits
            logits_RTV = self._sight.hide(logits_RTV)
        logits: Tensor = logits_RTV[torch.arange(len(ids_RT), device=self.device), last_R]
        return logits


def attention_limits(config: Any) -> dict[str, dict[str, int]]:
    """What each type of layer of a model sees: {} for everything before, a window or a chunk in tokens.

    >>> from types import SimpleNamespace
    >>> attention_limits(SimpleNamespace(layer_types=["full_attention", "sliding_attention"], sliding_window=8))
    {'full_attention': {}, 'sliding_attention': {'window': 8}}
    """
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    kinds = getattr(config, "layer_types", None)
    kinds = list(dict.fromkeys(kinds)) if kinds else ["full_attention" if window is None else "sliding_attention"]
    limits: dict[str, dict[str, int]] = {}
    for kind in kinds:
        limits[kind] = {}
        if kind == "sliding_attention" and window is not None:
            limits[kind]["window"] = int(window)
        if kind == "chunked_attention" and chunk is not None:
            limits[kind]["chunk"] = int(chunk)
    return limits


def choose_forward(model: Any) -> Forward:
    """The fastest way that agrees with the model's plain forward pass; see the module's text."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    sight = sight_of(model)
    if sight is not None and sight.encoder.whole:
        return RecomputedForward(model)
    if not kinds <= STATELESS_LAYERS or getattr(base, "_is_stateful", False):
        return RecomputedForward(model)
    for kind in (LeanForward, partial(LeanForward, compiled=False), CachedForward):
        try:
            forward: Forward = kind(model)
            if computes_logits(forward, model, config):
                return forward
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError):
            # the model's code or the description cannot bear this way of calling; the next one asks less of it
            continue
    return RecomputedForward(model)


@torch.inference_mode()
def computes_logits(forward: Forward, model: Any, config: Any) -> bool:
    """Whether two rows of different length get the logits of one plain pass: prefilled, decoded and continued.

    Windows of up to 64 tokens are outgrown.  Tolerance as in `close_logits`, in half precisions 8e-2.
    """
    windows = [limit for limits in attention_limits(config).values() for limit in limits.values()]
    long = max([7, *(limit + 2 for limit in windows if limit <= _PROBED_WINDOW)])
    total = min(long + 5, getattr(config, "max_position_embeddings", None) or long + 5)
    if total < 8:
        return False
    device = next(model.parameters()).device
    ids = np.random.default_rng(0).integers(0, int(config.vocab_size), (2, total)).astype(np.int32)
    training = model.training
    model.eval()
    try:
        full = torch.from_numpy(ids).long().to(device)
        expected = model(input_ids=full, attention_mask=torch.ones_like(full), use_cache=False).logits
        store = forward.new_store()
        store.ensure(3, total + 1)
        at = [3, total - 5]
        found = [forward.prefill(store, [1, 0], [0, 0], [ids[0, : at[0]], ids[1, : at[1]]])]
        right = [torch.stack([expected[row, end - 1] for row, end in enumerate(at)])]
        for step in range(3):
            tokens, positions = full[[1, 0], [at[1] + step, at[0] + step]], [at[1] + step, at[0] + step]
            found.append(forward.decode(store, tokens, torch.tensor(positions, device=device), total).clone())
            right.append(expected[[1, 0], positions])
        found.append(
            forward.prefill(store, [1, 0], [at[0] + 3, at[1] + 3], [ids[0, 6:8], ids[1, total - 2 : total - 1]])
        )
        right.append(expected[[0, 1], [7, total - 2]])
    finally:
        model.train(training)
    return close_logits(torch.cat(found), torch.cat(right), half=_PROBE_TOLERANCE_HALF)
