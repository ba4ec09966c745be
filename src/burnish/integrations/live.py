"""A run in progress, followed by a tracker: on a thread of its own, so that no run waits for somebody else's server."""

from __future__ import annotations

import importlib
import queue
import threading
from collections.abc import Sequence
from pathlib import Path

from burnish.core.tracked import TrackedNote, TrackedStep
from burnish.integrations.trackers import RunHead, Sink, load_tracker, read_head

MOST_WAITING = 1000
"""Steps that may wait for a tracker; more are lost to it, and counted."""
FAILURES = 3
"""Steps in a row that a tracker may refuse before it is left alone for the rest of the run."""
CLOSE_S = 30.0


class LiveTracker:
    """Sends every step of the run in `folder` to "wandb", "trackio" or "mlflow" as it is stored.

    The run is opened at the first step; a run that is resumed goes on in the same one.  Raises ConfigError at once
    where the library is missing.  Everything else that goes wrong is a trouble, and the run goes on.

    close_s: how long the end of a run may wait for what is still under way.
    """

    def __init__(self, name: str, project: str, folder: Path, *, close_s: float = CLOSE_S) -> None:
        load_tracker(name)
        self._name, self._project, self._folder, self._close_s = name, project, folder, close_s
        self._queue: queue.Queue[tuple[TrackedStep, Sequence[TrackedNote]] | None] = queue.Queue(MOST_WAITING)
        self._troubles: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lost = 0
        self._notes: list[TrackedNote] = []
        self._thread: threading.Thread | None = None

    def take(self, step: TrackedStep, notes: Sequence[TrackedNote]) -> None:
        if self._thread is None:
            head = read_head(self._folder)
            self._thread = threading.Thread(target=self._send, args=(head,), name=f"tracker {self._name}", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait((step, notes))
        except queue.Full:
            if self._lost == 0:
                self._tell(f"is {MOST_WAITING} steps behind; it loses steps from {step.phase} {step.step} on")
            self._lost += 1

    def troubles(self) -> Sequence[str]:
        found = []
        while not self._troubles.empty():
            found.append(self._troubles.get())
        return found

    def close(self) -> None:
        if self._thread is None:
            return
        try:
            self._queue.put(None, timeout=self._close_s)
        except queue.Full:
            self._tell("stands still")
        self._thread.join(self._close_s)
        if self._thread.is_alive():
            self._tell(f"was not done {self._close_s:g} s after the run; what it has not taken by now is lost to it")
        if self._lost:
            self._tell(f"lost {self._lost} steps; `burnish export` sends the whole run")

    def _tell(self, text: str) -> None:
        self._troubles.put(f"{self._name} {text}")

    def _send(self, head: RunHead) -> None:
        """The thread."""
        sink = self._open(head)
        refused = 0
        while (item := self._queue.get()) is not None:
            if sink is None or refused >= FAILURES:
                continue
            try:
                self._pass_on(sink, *item)
                refused = 0
            except Exception as error:  # noqa: BLE001 - the boundary to somebody else's library: a run outlives it
                refused += 1
                left_alone = "; it gets nothing more of this run" if refused >= FAILURES else ""
                self._tell(f"refused {item[0].phase} {item[0].step}: {type(error).__name__}: {error}{left_alone}")
        if sink is not None:
            try:
                sink.close()
            except Exception as error:  # noqa: BLE001 - as above
                self._tell(f"could not end the run: {type(error).__name__}: {error}")

    def _open(self, head: RunHead) -> Sink | None:
        try:
            module = importlib.import_module(f"burnish.integrations.{self._name}")
            sink: Sink = module.open_run(head, self._project)
        except Exception as error:  # noqa: BLE001 - as above
            self._tell(f"does not take the run: {type(error).__name__}: {error}")
            return None
        return sink

    def _pass_on(self, sink: Sink, step: TrackedStep, notes: Sequence[TrackedNote]) -> None:
        sink.log(step)
        if notes:
            self._notes += notes
            sink.note(self._notes)
