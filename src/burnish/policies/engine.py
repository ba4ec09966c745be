"""Continuous batching: rows of many requests decode together, and whoever ends makes room for the next.

The live rows stand in the first n slots.  A row that ends leaves a hole, whose text stays warm; a request takes a hole,
preferably the one that holds the beginning of its prompt.  With nothing queued, holes are closed once they are an
eighth of the batch, and warm texts are parked behind it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from burnish.core.sampling import Finish, Sample, SampleRequest, SamplingParams
from burnish.policies.draw import Draw, DrawRules, draw, draw_uniforms, filters
from burnish.policies.forward import Forward
from burnish.policies.kernels import present_kernels
from burnish.policies.ledger import Entry, Ledger
from burnish.policies.placing import Unit, place, prefill_ranges
from burnish.policies.prefixes import Prefixes
from burnish.policies.results import KeptLog, SamplerCounts, sample_of

_HOLE_SHARE = 8
"""Holes are closed once they are at least one in so many slots of the batch."""

_ADMIT_SHARE, _PATIENCE_STEPS = 8, 8
"""A prefill of one request costs a good part of a decode step, so requests wait until they are one for so many live
rows, but never longer than so many steps."""

_SLACK_COLUMNS = 16
_ATTENTION_LANE = 16
"""Attention reads a multiple of so many columns, so that its buffers serve several steps."""

_MOST_STOP_SETS = 64


@dataclass(slots=True, eq=False, kw_only=True)
class Row:
    """One request on its way.  first_step: the engine's step count when its first token was drawn; first_version: of
    that token.  `deliver` gets the sample."""

    request: SampleRequest
    deliver: Callable[[Sample], None]
    prompt: npt.NDArray[np.int32]
    stream: np.random.Generator | None = None
    uniforms: int = 0
    first_step: int = 0
    first_version: int = 0
    kept: KeptLog = field(default_factory=KeptLog)


class Engine:
    """Rows over one `Forward`.  Call `advance` under inference mode until `busy` is False; not for two threads.

    max_rows: rows that decode at once.  warm_bytes: keys and values kept of rows that have ended.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        vocabulary: int,
        max_rows: int,
        warm_bytes: int,
        prefill_tokens: int,
        counts: SamplerCounts,
    ) -> None:
        self.forward, self.vocabulary, self.counts = forward, vocabulary, counts
        self.max_rows, self.prefill_tokens = max_rows, prefill_tokens
        self.warm_bytes = warm_bytes if forward.keeps_state else 0
        self.store = forward.new_store()
        self.device = self.store.device
        self.ledger = Ledger(self.device)
        self.prefixes = Prefixes()
        self.queue: deque[Row] = deque()
        self.rows: dict[int, Row] = {}
        self.end = 0
        self.version = 0
        self._step = 0
        self._waited = 0
        self._versions: list[tuple[int, int]] = []
        self._params: Counter[SamplingParams] = Counter()
        self._rules: DrawRules | None = None
        self._longest, self._next_limit = 0, 0
        self._draw_room = torch.empty(2, 0, vocabulary, device=self.device)
        self._draw_parts: Sequence[torch.Tensor] = self._draw_room.unbind()
        self._stop_sets: dict[tuple[int, ...], int] = {}
        self._stops = torch.zeros(0, vocabulary, dtype=torch.bool, device=self.device)

    @property
    def live(self) -> int:
        """Rows that are decoding."""
        return len(self.rows)

    @property
    def busy(self) -> bool:
        """Whether `advance` has anything to do."""
        return bool(self.rows or self.queue)

    def submit(
        self,
        request: SampleRequest,
        deliver: Callable[[Sample], None],
        prompt: npt.NDArray[np.int32] | None = None,
    ) -> Row:
        """Queue a request; its sample will be given to `deliver` from within `advance`.

        prompt: its ids with images numbered (`burnish.policies.sight`), where it shows any.
        """
        ids = np.frombuffer(request.prompt_ids, np.int32) if prompt is None else prompt
        row = Row(request=request, deliver=deliver, prompt=ids)
        self.queue.append(row)
        return row

    def withdraw(self, rows: Sequence[Row]) -> None:
        """Nobody waits for these any more.  Callable outside inference mode."""
        gone = {id(row) for row in rows}
        self.queue = deque(row for row in self.queue if id(row) not in gone)
        slots = [slot for slot, row in self.rows.items() if id(row) in gone]
        if slots:
            with torch.inference_mode():
                self._remove(slots)
            for slot in slots:
                self.prefixes.drop(slot)

    def set_version(self, version: int, *, keep_prefixes: bool) -> None:
        """Tokens drawn from now on carry `version`; rows in flight keep their keys and values."""
        self.version = version
        if self.rows:
            oldest = min(row.first_step for row in self.rows.values())
            self._versions = [entry for entry in self._versions if entry[0] > oldest]
            self._versions.append((self._step + 1, version))
        if not keep_prefixes:
            self.prefixes.clear()

    def forget(self) -> None:
        """Drop the texts of rows that have ended, and memory beyond what they may take."""
        self.prefixes.clear()
        if not self.rows and self.store.bytes_held > self.warm_bytes:
            self.store.clear()
            self.ledger = Ledger(self.device)

    def reset(self) -> None:
        """Drop every row, queued or live, and all memory: what is held may be unusable."""
        self.queue.clear()
        self.rows.clear()
        self.prefixes.clear()
        self._params.clear()
        self.end, self._rules = 0, None
        self.store.clear()
        self.ledger = Ledger(self.device)

    def advance(self) -> None:
        """Admit what there is room for, then draw one token for every live row."""
        if self._worth_admitting():
            self._admit()
        else:
            self._waited += 1
            self._close_holes()
        if self.rows:
            self._decode()
        else:
            self._rest()

    def _rest(self) -> None:
        """Nothing is live."""
        self.end = 0
        self._versions.clear()
        if len(self._stop_sets) > _MOST_STOP_SETS:
            self._stop_sets.clear()
            self._stops = self._stops[:0]

    # -- decoding --------------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        ledger, end, step = self.ledger, self.end, self._step
        longest = self._longest + step + 1
        if longest + 1 > ledger.columns:
            self._ensure(self.store.rows, longest + _SLACK_COLUMNS)
        columns = min(ledger.columns, -(-longest // _ATTENTION_LANE) * _ATTENTION_LANE)
        front = ledger.front(end)
        logits = self.forward.decode(self.store, ledger.tokens(end), front.position, columns)
        self._step += 1
        drawn = self._draw(logits, ledger.advance(end), self._present_rules())
        ledger.record(end, drawn.tokens, drawn.logprobs)
        if drawn.kept is not None:
            self._note_kept(drawn, range(end))
        self.counts.decode_steps += 1
        self.counts.decoded_rows += len(self.rows)
        stopped = self._stopped(drawn.tokens, front.stop_set)
        ended = stopped
        if self._step >= self._next_limit:
            ended = torch.logical_or(stopped, front.position >= front.last)
        if bool(ended.any()):
            self._finish(ended, stopped, range(end))

    def _draw(self, logits: torch.Tensor, uniforms: torch.Tensor, rules: DrawRules) -> Draw:
        kernels = present_kernels() if self.device.type == "cpu" else None
        return draw(logits, uniforms, rules, room=self._room(len(logits)), kernels=kernels)

    def _room(self, rows: int) -> Sequence[torch.Tensor]:
        if len(self._draw_parts[0]) != rows:
            if self._draw_room.shape[1] < rows:
                self._draw_room = torch.empty(2, rows, self.vocabulary, device=self.device)
            self._draw_parts = self._draw_room[:, :rows].unbind()
        return self._draw_parts

    def _stopped(self, tokens: torch.Tensor, stop_set: torch.Tensor) -> torch.Tensor:
        if len(self._stops) == 1:
            return self._stops[0].index_select(0, tokens)
        return self._stops[stop_set, tokens]

    def _present_rules(self) -> DrawRules:
        if self._rules is None:
            kinds = list(self._params)
            if len(kinds) > 1:
                kinds = [self.rows[slot].request.params if slot in self.rows else kinds[0] for slot in range(self.end)]
            self._rules = DrawRules.of(kinds, self.device)
        return self._rules

    def _note_kept(self, drawn: Draw, slots: Sequence[int]) -> None:
        """Append the kept set of every filtered row to what it has."""
        assert drawn.kept is not None
        counts = drawn.kept.sum(dim=1).tolist()
        ids = drawn.kept.nonzero()[:, 1].to("cpu", torch.int32).numpy()
        end = 0
        for slot, count in zip(slots, counts, strict=True):
            start, end = end, end + count
            row = self.rows.get(slot)
            if row is not None and filters(row.request.params):
                row.kept.append(ids[start:end] if count < self.vocabulary else ids[:0])

    def _finish(self, ended: torch.Tensor, stopped: torch.Tensor, slots: Sequence[int]) -> None:
        """Hand out the samples of the rows that have ended; their texts stay warm."""
        flags = torch.stack([ended, stopped]).cpu().numpy()
        done = [index for index in np.flatnonzero(flags[0]).tolist() if slots[index] in self.rows]
        if not done:
            return
        where = [slots[index] for index in done]
        position, ids, logprobs = self.ledger.read(where)
        rows = self._remove(where)
        for k, (index, slot, row) in enumerate(zip(done, where, rows, strict=True)):
            start, end = len(row.prompt), int(position[k]) + 1
            versions = self._token_versions(row, end - start)
            finish = Finish.STOP if flags[1][index] else Finish.LENGTH
            self.counts.generated_tokens += end - start
            self._keep_warm(slot, ids[k, : end - 1].astype(np.int32), start - 1)
            row.deliver(sample_of(ids[k, start:end], logprobs[k, start:end], versions, row.kept, finish))

    def _remove(self, slots: Sequence[int]) -> list[Row]:
        rows = [self.rows.pop(slot) for slot in slots]
        for row in rows:
            self._params[row.request.params] -= 1
            if not self._params[row.request.params]:
                del self._params[row.request.params]
        self.ledger.stop(slots)
        self._rows_changed()
        return rows

    def _rows_changed(self) -> None:
        self._rules = None
        rows = self.rows.values()
        self._longest = max((len(row.prompt) - row.first_step for row in rows), default=0)
        self._next_limit = min((row.first_step + row.request.max_tokens - 1 for row in rows), default=0)

    def _token_versions(self, row: Row, tokens: int) -> list[int]:
        versions = [row.first_version] * tokens
        for step, version in self._versions:
            first = step - row.first_step
            if 0 < first < tokens:
                versions[first:] = [version] * (tokens - first)
        return versions

    def _keep_warm(self, slot: int, ids: npt.NDArray[np.int32], prompt: int) -> None:
        self.prefixes.drop(slot)
        if self.store.row_bytes <= self.warm_bytes:
            self.prefixes.add(slot, ids, (len(ids), prompt), warm=True)
            self._trim_warm()

    def _trim_warm(self) -> None:
        while len(self.prefixes) * self.store.row_bytes > self.warm_bytes:
            self.prefixes.drop(next(self.prefixes.warm_slots()))

    # -- rows coming and going -------------------------------------------------------------------------------------

    def _worth_admitting(self) -> bool:
        room = min(self.max_rows - len(self.rows), len(self.queue))
        return room > 0 and (room * _ADMIT_SHARE >= len(self.rows) or self._waited >= _PATIENCE_STEPS)

    def _admit(self) -> None:
        self._waited = 0
        rows = [self.queue.popleft() for _ in range(min(self.max_rows - len(self.rows), len(self.queue)))]
        columns = max(len(row.prompt) + min(row.request.max_tokens, _SLACK_COLUMNS) for row in rows)
        units = Unit.group(rows, self.prefixes)
        plan = place(units, live=set(self.rows), end=self.end, rows=self.store.rows, prefixes=self.prefixes)
        self._ensure(plan.rows, columns + 1)
        used = max((len(held.ids) for held in plan.moved), default=0)
        self.store.swap([a for a, _ in plan.swaps], [b for _, b in plan.swaps], used)
        self.store.copy([a for a, _ in plan.parked], [b for _, b in plan.parked], used)
        self.end = plan.end
        copies = [unit for unit in units if unit.source >= 0]
        if copies:
            most = max(unit.held_tokens for unit in copies)
            self.store.copy([unit.source for unit in copies], [unit.slots[0] for unit in copies], most)
        logits = self._prefill(units)
        self._share([(unit, slot) for unit in units for slot in unit.slots[1 : len(unit.taken)]], held=True)
        self._share([(unit, slot) for unit in units for slot in unit.slots[max(1, len(unit.taken)) :]], held=False)
        self._start(units, logits)

    def _share(self, places: Sequence[tuple[Unit[Row], int]], *, held: bool) -> None:
        """Give other slots of units what stands in their first.  held: these hold what the unit began with."""
        if places:
            first = min(unit.held_tokens for unit, _ in places) if held else 0
            end = max(len(unit.prompt) for unit, _ in places)
            self.store.copy([unit.slots[0] for unit, _ in places], [slot for _, slot in places], end, first=first)

    def _prefill(self, units: list[Unit[Row]]) -> torch.Tensor:
        """Logits [U, V] after each prompt."""
        units.sort(key=lambda unit: (unit.new_tokens, len(unit.prompt)))
        logits = []
        for first, end in prefill_ranges([unit.new_tokens for unit in units], self.prefill_tokens):
            part = units[first:end]
            new = [unit.prompt[unit.held_tokens :] for unit in part]
            starts = [unit.held_tokens for unit in part]
            logits.append(self.forward.prefill(self.store, [unit.slots[0] for unit in part], starts, new))
            self.counts.prefilled_tokens += sum(unit.new_tokens for unit in part)
        return torch.cat(logits) if len(logits) > 1 else logits[0]

    def _start(self, units: Sequence[Unit[Row]], logits: torch.Tensor) -> None:
        """Draw the first token of every new row."""
        slots = [slot for unit in units for slot in unit.slots]
        rows = [row for unit in units for row in unit.rows]
        source = [index for index, unit in enumerate(units) for _ in unit.rows]
        for slot, row in zip(slots, rows, strict=True):
            row.first_step, row.first_version = self._step, self.version
            self.rows[slot] = row
            self._params[row.request.params] += 1
            self.counts.prompt_tokens += len(row.prompt)
        self._rows_changed()
        self.ledger.start([self._entry(slot, row) for slot, row in zip(slots, rows, strict=True)])
        index = torch.tensor([slots, source], dtype=torch.long, device=self.device)
        if len(rows) > len(units):
            logits = logits.index_select(0, index[1])
        kinds = [row.request.params for row in rows]
        rules = DrawRules.of(kinds[:1] if len(set(kinds)) == 1 else kinds, self.device)
        drawn = self._draw(logits, self.ledger.advance_some(index[0]), rules)
        self.ledger.record_some(index[0], drawn.tokens, drawn.logprobs)
        if drawn.kept is not None:
            self._note_kept(drawn, slots)
        if self.warm_bytes:
            for unit in units:
                self.prefixes.add(unit.slots[0], unit.prompt, (len(unit.prompt) - 1,), warm=False)
        stopped = self._stopped(drawn.tokens, self.ledger.stop_set[index[0]])
        ended = torch.logical_or(stopped, self.ledger.position[index[0]] >= self.ledger.last[index[0]])
        if bool(ended.any()):
            self._finish(ended, stopped, slots)

    def _entry(self, slot: int, row: Row) -> Entry:
        request = row.request
        row.uniforms = 0
        if request.params.temperature > 0.0:
            row.stream = np.random.Generator(np.random.PCG64(request.seed))
        return Entry(
            slot=slot,
            prompt=row.prompt,
            last_column=len(row.prompt) + request.max_tokens - 1,
            uniforms=self._more_uniforms(row),
            stop_set=self._stop_set(request.stop_ids),
        )

    def _more_uniforms(self, row: Row) -> npt.NDArray[np.float64]:
        """Those of the columns there are; a generous limit costs nothing."""
        count = min(row.request.max_tokens, self.ledger.columns - len(row.prompt)) - row.uniforms
        if row.stream is None or count <= 0:
            return np.zeros(0)
        row.uniforms += count
        return draw_uniforms(row.stream, count)

    def _stop_set(self, stop_ids: tuple[int, ...]) -> int:
        if stop_ids not in self._stop_sets:
            self._stop_sets[stop_ids] = len(self._stop_sets)
            flags = torch.zeros(1, self.vocabulary, dtype=torch.bool)
            flags[0, [stop for stop in stop_ids if 0 <= stop < self.vocabulary]] = True
            self._stops = torch.cat([self._stops, flags.to(self.device)])
        return self._stop_sets[stop_ids]

    def _ensure(self, rows: int, columns: int) -> None:
        """Room in memory and ledger; rows in flight get the uniforms of the new columns."""
        self.store.ensure(rows, columns)
        if self.ledger.ensure(self.store.rows, self.store.columns):
            self._trim_warm()
            starts = {slot: len(row.prompt) + row.uniforms for slot, row in self.rows.items()}
            more = {slot: self._more_uniforms(row) for slot, row in self.rows.items()}
            self.ledger.supply(list(starts), list(starts.values()), list(more.values()))

    def _close_holes(self) -> None:
        """Move the last live rows into the holes before them."""
        live, holes = len(self.rows), self.end - len(self.rows)
        if not live or self.queue or holes * _HOLE_SHARE < self.end:
            return
        empty = [slot for slot in range(live) if slot not in self.rows]
        movers = sorted(slot for slot in self.rows if slot >= live)
        if movers:
            kept = []
            for slot, mover in zip(empty, movers, strict=True):
                # a text that another slot holds too is not worth moving out of the way
                if self.prefixes.is_spare(slot):
                    self.prefixes.drop(slot)
                else:
                    kept.append((slot, mover))
            held = max((len(self.prefixes.held_ids(slot)) for slot, _ in kept), default=0)
            used = min(max(self._longest + self._step + 1, held), self.store.columns)
            self.store.copy([*movers, *(slot for slot, _ in kept)], [*empty, *(mover for _, mover in kept)], used)
            self.prefixes.exchange(list(zip(empty, movers, strict=True)))
            self.ledger.move(movers, empty)
            for target, source in zip(empty, movers, strict=True):
                self.rows[target] = self.rows.pop(source)
        self.end = live
        self._rows_changed()
