"""Keeping what health sees of a run in this process, as it sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

from burnish.core.streams import TokenColumns, TokenStream
from burnish.health.slices import SliceNames
from burnish.health.sums import HealthSums
from fault_runs.cache import StepData
from fault_runs.plain import plain_scalars


class Recorder:
    """Takes the token streams on their way into `HealthSums`; a step that is reduced in several parts is merged."""

    def __init__(self) -> None:
        self.names: SliceNames | None = None
        self._streams: dict[int, list[TokenStream]] = {}
        self._sums: dict[int, HealthSums] = {}
        self._done: list[StepData] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Everything that this process reduces until the context ends is kept."""
        of = HealthSums.of

        def kept(given: TokenColumns | Sequence[TokenStream], names: SliceNames) -> HealthSums:
            sums = of(given, names)
            streams = given.split() if isinstance(given, TokenColumns) else given
            if streams:
                self._take(streams, sums, names)
            return sums

        with mock.patch.object(HealthSums, "of", staticmethod(kept)):
            yield

    def _take(self, streams: Sequence[TokenStream], sums: HealthSums, names: SliceNames) -> None:
        step = streams[0].step
        self.names = names
        for earlier in [number for number in self._sums if number != step]:
            self._close(earlier)
        # After a rollback the run goes through steps again; those of the first pass are superseded.
        self._done = [item for item in self._done if item.step < step]
        self._streams.setdefault(step, []).extend(streams)
        self._sums[step] = HealthSums.merge([self._sums[step], sums]) if step in self._sums else sums

    def _close(self, step: int) -> None:
        streams, sums = self._streams.pop(step), self._sums.pop(step)
        self._done.append(StepData.of(step, sums, plain_scalars(streams)))

    def steps(self) -> list[StepData]:
        """All steps so far, in order; raises ValueError where the loop never looked at its tokens."""
        for step in sorted(self._sums):
            self._close(step)
        if not self._done:
            raise ValueError(
                "the loop reduced no token streams in this process: health.on must be true, with one worker"
            )
        return self._done
