"""One batch of requests from prompts to finished actions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from burnish.core.sampling import SampleRequest
from burnish.policies.cache import RowCache
from burnish.policies.draw import DrawRules, draw
from burnish.policies.forward import Forward, Unit, prefill_ranges
from burnish.policies.prefixes import Prefix

_FIRST_STEPS = 64
"""Columns and uniforms set up at first; more when a row gets that far, so a generous limit costs nothing."""

_COMPACT_SHARE = 8
"""Finished rows are moved out of the batch once they are at least one in so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What one request got: T int32 ids and float32 log-probabilities; `stopped` is False at the length limit."""

    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    stopped: bool


class Batch:
    """R rows that decode together: the units first, then the other members of shared prompts.

    Row r belongs to request `request_R[r]`; the rows still growing are always the first `live`, the finished
    ones behind them keep their columns.  All prompts end in column `prompt_columns`, so step t writes column
    `prompt_columns + t` of every row.
    """

    def __init__(self, forward: Forward, requests: Sequence[SampleRequest], units: Sequence[Unit], pad_id: int) -> None:
        self.forward, self.requests, self.units, self.pad_id = forward, requests, units, pad_id
        self.device = next(forward.model.parameters()).device
        pairs = [(unit.members[0], row) for row, unit in enumerate(units)]
        pairs += [(member, row) for row, unit in enumerate(units) for member in unit.members[1:]]
        self.request_R = np.array([member for member, _ in pairs])
        self.unit_R = np.array([row for _, row in pairs])
        self.live = len(pairs)
        self.prompt_columns = max(len(unit.ids) for unit in units)
        self.start_R = self._rows([self.prompt_columns - len(units[row].ids) for _, row in pairs])
        self.budget_R = self._rows([requests[member].max_tokens for member, _ in pairs])
        self.max_steps = max(requests[member].max_tokens for member, _ in pairs)
        self.rules = DrawRules.of([requests[member].params for member, _ in pairs], self.device)
        self.done_R = torch.zeros(self.live, dtype=torch.bool, device=self.device)
        self.stopped_R = self.done_R.clone()
        self.length_R = self.budget_R.clone()
        self._streams = [np.random.Generator(np.random.PCG64(request.seed)) for request in requests]
        self.tokens_RT = torch.zeros((self.live, 0), dtype=torch.long, device=self.device)
        self.logprobs_RT = torch.zeros((self.live, 0), device=self.device)
        self.uniforms_RT = torch.zeros((self.live, 0), dtype=torch.float64, device=self.device)
        self._extend_streams(min(self.max_steps, _FIRST_STEPS))
        columns = self.prompt_columns + self.tokens_RT.shape[1]
        self.cache = RowCache(layers=forward.layers, rows=self.live, columns=columns)

    def run(self) -> None:
        """Prefill, then draw until every row has met a stop id or its budget."""
        logits_RV = self._prefill()
        stops_SV, stop_set_R = self._stop_table(logits_RV.shape[1])
        for step in range(self.max_steps):
            if step == self.tokens_RT.shape[1]:
                self._extend_streams(min(self.max_steps, 2 * step))
            tokens, logprobs = draw(logits_RV, self.uniforms_RT[: self.live, step], self.rules)
            self.tokens_RT[: self.live, step] = tokens
            self.logprobs_RT[: self.live, step] = logprobs
            stopped = stops_SV[0][tokens] if len(stops_SV) == 1 else stops_SV[stop_set_R[: self.live], tokens]
            ended = stopped | (self.budget_R[: self.live] <= step + 1)
            if bool(ended.any()):
                order = self._retire(ended, stopped, step + 1)
                if self.live == 0:
                    return
                if order is not None:
                    stop_set_R = stop_set_R[order]
                    tokens = self.tokens_RT[: self.live, step]
            logits_RV = self._step(tokens, step)

    def results(self) -> list[Drawn]:
        """What every request got, in their order."""
        tokens, logprobs = self.tokens_RT.to("cpu", torch.int32).numpy(), self.logprobs_RT.cpu().numpy()
        lengths, stopped = self.length_R.tolist(), self.stopped_R.tolist()
        row_of = np.argsort(self.request_R)
        return [
            Drawn(token_ids=tokens[row, : lengths[row]], logprobs=logprobs[row, : lengths[row]], stopped=stopped[row])
            for row in row_of.tolist()
        ]

    def prefixes(self) -> Iterator[Prefix]:
        """What the cache holds of every row: the prompt and all sampled tokens but the last."""
        tokens, lengths = self.tokens_RT.to("cpu", torch.int32).numpy(), self.length_R.tolist()
        for row, (unit, first) in enumerate(zip(self.unit_R.tolist(), self.start_R.tolist(), strict=True)):
            ids = np.concatenate([self.units[unit].ids, tokens[row, : lengths[row] - 1]])
            yield Prefix(cache=self.cache, row=row, first_column=first, ids=ids)

    # -- the model ------------------------------------------------------------------------------------------------

    def _prefill(self) -> torch.Tensor:
        """Logits [R, V] after each prompt; fills the cache of every row."""
        self._restore_prefixes()
        columns, shared = self.prompt_columns, len(self.units)
        ids_UP = np.full((shared, columns), self.pad_id, np.int64)
        for row, unit in enumerate(self.units):
            ids_UP[row, columns - len(unit.ids) :] = unit.ids
        ids = torch.from_numpy(ids_UP).to(self.device)
        logits = [self._prefill_range(ids, *span) for span in prefill_ranges(self.units, self.forward.prefill_tokens)]
        source_R = torch.from_numpy(self.unit_R).to(self.device)
        if shared < self.live:
            self.cache.copy_rows(source_R[shared:], torch.arange(shared, self.live, device=self.device), columns)
        self._remask()
        return torch.cat(logits)[source_R]

    def _prefill_range(self, ids_UP: torch.Tensor, first: int, end: int) -> torch.Tensor:
        columns = self.prompt_columns
        width = max(unit.new_tokens for unit in self.units[first:end])
        left = columns - max(len(unit.ids) for unit in self.units[first:end])
        self.cache.look_at(rows=(first, end), first_column=left, next_column=columns - width)
        start_R1 = self.start_R[first:end, None]
        seen_K = torch.arange(left, columns, device=self.device)
        positions_RQ = (seen_K[-width:] - start_R1).clamp_(min=0)
        return self.forward.cached(ids_UP[first:end, -width:], (seen_K >= start_R1).long(), positions_RQ, self.cache)

    def _restore_prefixes(self) -> None:
        by_cache: dict[int, list[tuple[int, Prefix]]] = {}
        for row, unit in enumerate(self.units):
            if unit.prefix is not None:
                by_cache.setdefault(id(unit.prefix.cache), []).append((row, unit.prefix))
        for hits in by_cache.values():
            other = hits[0][1].cache
            source, target = [], []
            for row, prefix in hits:
                tokens = np.arange(prefix.length)
                source.append(prefix.row * other.window.columns + prefix.first_column + tokens)
                first_column = self.prompt_columns - len(self.units[row].ids)
                target.append(row * self.cache.window.columns + first_column + tokens)
            numbers = torch.from_numpy(np.stack([np.concatenate(source), np.concatenate(target)])).to(self.device)
            self.cache.adopt(other, numbers[0], numbers[1])

    def _step(self, tokens_R: torch.Tensor, step: int) -> torch.Tensor:
        """Logits [live, V] after the tokens drawn at `step`."""
        column = self.prompt_columns + step
        if column >= self.cache.window.columns:
            self.cache.reserve(column + 1)
            self._remask()
        self.cache.look_at(rows=(0, self.live), first_column=self._left, next_column=column)
        mask_RK = self._mask_RK[:, : column + 1 - self._left]
        return self.forward.cached(tokens_R[:, None], mask_RK, column - self.start_R[: self.live, None], self.cache)

    def _remask(self) -> None:
        """The mask of the live rows over every column that any of them uses, now or later."""
        self._left = int(self.start_R[: self.live].min())
        columns = torch.arange(self._left, self.cache.window.columns, device=self.device)
        self._mask_RK = (columns >= self.start_R[: self.live, None]).long()

    # -- rows -----------------------------------------------------------------------------------------------------

    def _retire(self, ended: torch.Tensor, stopped: torch.Tensor, length: int) -> torch.Tensor | None:
        """Note which rows have ended after `length` tokens; once they are many, move them behind the live ones and
        return the new order of all rows."""
        live = self.live
        fresh = ended & ~self.done_R[:live]
        self.length_R[:live][fresh] = length
        self.stopped_R[:live] |= fresh & stopped
        self.done_R[:live] |= fresh
        left = live - int(self.done_R[:live].sum())
        if left and (live - left) * _COMPACT_SHARE < live:
            return None
        self.live = left
        if left == 0:
            return None
        holes = self.done_R[:left].nonzero()[:, 0]
        fillers = left + (~self.done_R[left:live]).nonzero()[:, 0]
        order = torch.arange(len(self.done_R), device=self.device)
        order[holes], order[fillers] = fillers, holes
        self._reorder(order)
        self._move_state(order, holes, fillers, self.prompt_columns + length)
        return order

    def _move_state(self, order: torch.Tensor, holes: torch.Tensor, fillers: torch.Tensor, columns: int) -> None:
        """What the model remembers of the rows follows their new order."""
        self.cache.swap_rows(holes, fillers, columns)
        self._remask()

    def _reorder(self, order: torch.Tensor) -> None:
        host = order.cpu().numpy()
        self.request_R, self.unit_R = self.request_R[host], self.unit_R[host]
        self.start_R, self.budget_R, self.length_R = self.start_R[order], self.budget_R[order], self.length_R[order]
        self.done_R, self.stopped_R = self.done_R[order], self.stopped_R[order]
        self.tokens_RT, self.logprobs_RT = self.tokens_RT[order], self.logprobs_RT[order]
        self.uniforms_RT = self.uniforms_RT[order]
        self.rules = self.rules.reordered(order)

    def _extend_streams(self, steps: int) -> None:
        """Room for `steps` tokens of every row, with the uniforms that decide them."""
        old = self.tokens_RT.shape[1]
        fresh_RT = np.zeros((len(self.request_R), steps - old))
        for row in range(self.live):
            request = self.request_R[row]
            if self.requests[request].params.temperature > 0.0:
                fresh_RT[row] = self._streams[request].random(steps - old)
        self.uniforms_RT = torch.cat([self.uniforms_RT, torch.from_numpy(fresh_RT).to(self.device)], dim=1)
        more = (len(self.request_R), steps - old)
        self.tokens_RT = torch.cat([self.tokens_RT, self.tokens_RT.new_zeros(more)], dim=1)
        self.logprobs_RT = torch.cat([self.logprobs_RT, self.logprobs_RT.new_zeros(more)], dim=1)

    def _stop_table(self, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Bool [S, V] of the S distinct stop sets, and which of them each row obeys."""
        sets: dict[tuple[int, ...], int] = {}
        set_R = [sets.setdefault(self.requests[index].stop_ids, len(sets)) for index in self.request_R.tolist()]
        table = torch.zeros((len(sets), vocabulary), dtype=torch.bool)
        for stop_ids, row in sets.items():
            table[row, [stop for stop in stop_ids if 0 <= stop < vocabulary]] = True
        return table.to(self.device), self._rows(set_R)

    def _rows(self, values: Sequence[int] | Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)


class RecomputedBatch(Batch):
    """The same for models that keep other state than keys and values: every step reads the whole sequence again.

    Slow, and right for any causal model: rows are padded on the right, where nothing can reach back.
    """

    def prefixes(self) -> Iterator[Prefix]:
        """Nothing is held."""
        return iter(())

    def _prefill(self) -> torch.Tensor:
        width = self.prompt_columns + self.max_steps
        ids_RT = np.full((self.live, width), self.pad_id, np.int64)
        for row, unit in enumerate(self.unit_R.tolist()):
            ids_RT[row, : len(self.units[unit].ids)] = self.units[unit].ids
        self._ids_RT = torch.from_numpy(ids_RT).to(self.device)
        return self._read_all(0)

    def _step(self, tokens_R: torch.Tensor, step: int) -> torch.Tensor:
        lengths = self.prompt_columns - self.start_R[: self.live] + step
        self._ids_RT[torch.arange(self.live, device=self.device), lengths] = tokens_R
        return self._read_all(step + 1)

    def _read_all(self, drawn: int) -> torch.Tensor:
        lengths = self.prompt_columns - self.start_R[: self.live] + drawn
        return self.forward.recomputed(self._ids_RT[: self.live, : int(lengths.max())], lengths)

    def _move_state(self, order: torch.Tensor, holes: torch.Tensor, fillers: torch.Tensor, columns: int) -> None:
        self._ids_RT = self._ids_RT[order]
