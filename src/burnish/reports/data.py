"""A run as JSON-able values for its page.  Reads through RunReader alone, keeps what cannot change."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from burnish.reports.cost import CostReadings
from burnish.reports.failures import CHOICES, Failures
from burnish.reports.overview import overview
from burnish.reports.sample import MAX_BYTES, choose_sample
from burnish.reports.series import Readings
from burnish.reports.trajectories import Filter, list_trajectories, read_trajectory, token_ids
from burnish.reports.vocabulary import TokenTexts
from burnish.store.reader import RunReader

MAX_CACHED = 64


class RunData:
    """What the page of one run shows.  Methods may be called from several threads.

    Answers are kept for the revision of the run that they were made at: the same question about an unchanged run reads
    no segment twice.  Raises StoreError where there is no readable run.
    """

    def __init__(self, run_dir: Path | str) -> None:
        self._reader = RunReader(run_dir)
        self._readings, self._costs = Readings(self._reader), CostReadings(self._reader)
        self._tokens = TokenTexts(self._reader.layout.model)
        self._failures = Failures(self._reader)
        self._lock = threading.Lock()
        self._kept: OrderedDict[object, dict[str, Any]] = OrderedDict()

    @property
    def root(self) -> Path:
        """The run's directory."""
        return self._reader.layout.root

    def revision(self) -> str:
        """A text that changes whenever the run has something new: a step, an event, another status."""
        status, steps = self._reader.status(), self._reader.steps()
        last = steps[-1].committed_at_s if steps else 0.0
        events = len(self._reader.events())
        return f"{status.state}.{status.attempt}.{status.updated_at_s}.{len(steps)}.{last}.{events}"

    def overview(self) -> dict[str, Any]:
        """Everything but trajectories, and under "revision" what it was made at."""
        revision = self.revision()

        def read() -> dict[str, Any]:
            return overview(self._reader, self._readings, self._costs) | {"revision": revision}

        return self._once(("overview",), revision, read)

    def list(self, wanted: Filter) -> dict[str, Any]:
        """A page of light rows; see `list_trajectories`."""
        return self._once(wanted, self.revision(), lambda: list_trajectories(self._reader, wanted))

    def trajectory(self, trajectory_id: str) -> dict[str, Any]:
        """One trajectory whole, with the texts of its tokens under "texts", what went wrong in it under "diagnosis"
        (None where it passed), and what that may be corrected to under "choices".  Raises StoreError where there is
        none."""

        def read() -> dict[str, Any]:
            found = read_trajectory(self._reader, trajectory_id)
            texts = self._tokens.texts(token_ids([found]))
            diagnosis = self._failures.of([found]).get(trajectory_id)
            return found | {"texts": texts, "diagnosis": diagnosis, "choices": CHOICES}

        return self._once(("trajectory", trajectory_id), self.revision(), read)

    def sample(self, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
        """A bounded choice of whole trajectories with their diagnoses, and the texts of all their tokens."""
        chosen = choose_sample(self._reader, self._failures, max_bytes=max_bytes)
        return {"trajectories": chosen, "texts": self._tokens.texts(token_ids(chosen))}

    def _once(self, key: object, revision: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        with self._lock:
            kept = self._kept.get((key, revision))
            if kept is None:
                kept = make()
                self._kept[key, revision] = kept
                while len(self._kept) > MAX_CACHED:
                    self._kept.popitem(last=False)
            self._kept.move_to_end((key, revision))
            return kept
