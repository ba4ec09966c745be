"""The newest figures of a run in the text format of Prometheus (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from burnish.core.errors import ConfigError
from burnish.store.reader import RunReader
from burnish.store.rows import PHASES, RunState

SEVERITIES = ("alarm", "warning")


def exposition(run_dir: Path | str) -> tuple[bytes, str]:
    """(text, content type) of everything a scraper wants to know of a run now.

    Scalars stand under one name with labels, `burnish_scalar{phase="rl",name="reward/mean"}`, since their own names
    hold characters that Prometheus refuses.  Raises ConfigError where prometheus-client is missing, StoreError where
    the run cannot be read.
    """
    try:
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
    except ImportError as error:
        raise ConfigError(
            f'the Prometheus page needs its library ({error}): pip install "burnish[trackers]"'
        ) from error
    registry = CollectorRegistry()
    registry.register(_Collector(RunReader(run_dir)))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Collector:
    """What `CollectorRegistry` asks once for each scrape."""

    def __init__(self, reader: RunReader) -> None:
        self._reader = reader

    def describe(self) -> Iterable[Any]:
        """Nothing beforehand: registering alone reads no run."""
        return ()

    def collect(self) -> Iterable[Any]:
        """Every metric family, of this moment."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        status = self._reader.status()
        state = GaugeMetricFamily("burnish_run_state", "1 for the state that the run is in", labels=["state"])
        for one in RunState:
            state.add_metric([str(one)], float(one is status.state))
        yield state
        yield GaugeMetricFamily(
            "burnish_heartbeat_timestamp_seconds", "When its writer was last alive", value=status.heartbeat_at_s
        )
        steps = GaugeMetricFamily("burnish_step", "Newest step of a phase", labels=["phase"])
        scalars = GaugeMetricFamily(
            "burnish_scalar", "A scalar at the newest step of its phase", labels=["phase", "name"]
        )
        for phase in PHASES:
            known = self._reader.steps(phase)
            if known:
                steps.add_metric([phase], known[-1].step)
                for name, value in self._reader.step_scalars(phase, known[-1].step).items():
                    scalars.add_metric([phase, name], value)
        yield steps
        yield scalars
        yield from self._events(CounterMetricFamily)

    def _events(self, family: Any) -> Iterable[Any]:
        events = self._reader.events()
        found = Counter(
            (str(event.data.get("severity") or SEVERITIES[0]), str(event.data.get("kind") or ""))
            for event in events
            if event.kind == "finding"
        )
        decided = Counter(
            (str(event.data.get("act") or ""), "no" if event.data.get("dry_run", True) else "yes")
            for event in events
            if event.kind == "decision"
        )
        findings = family("burnish_findings", "Findings of the monitors", labels=["severity", "kind"])
        for severity in SEVERITIES:
            # A counter that is there from the start lets an alert see its first increase.
            found.setdefault((severity, ""), 0)
        for labels, count in sorted(found.items()):
            findings.add_metric(labels, count)
        decisions = family("burnish_decisions", "Decisions of control", labels=["act", "carried_out"])
        for labels, count in sorted(decided.items()):
            decisions.add_metric(labels, count)
        yield findings
        yield decisions
