"""Many diagnoses together: clusters of failures, category by place, slices over the steps of a run.  Bounded in size.

Only counts and at most `MAX_CASES` cases are kept, however many trajectories there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from burnish.diagnosis.corrections import Correction, corrected, names_message
from burnish.diagnosis.diagnose import Diagnosis
from burnish.diagnosis.localise import Suspect
from burnish.diagnosis.record import Record
from burnish.diagnosis.taxonomy import Fault
from burnish.stats.intervals import wilson

T = TypeVar("T")
PLACES = 10
"""Tenths of a trajectory in the heat map."""
REVIEWED = ("n", "step", "category", "owner")
"""Diagnoses that a person looked at, and those of them that were right in each."""
MAX_CASES = 200
MAX_EXAMPLES = 5
MAX_SLICES = 200
MAX_TASKS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A failed trajectory with its diagnosis, corrected where a person did."""

    record: Record
    diagnosis: Diagnosis
    critical: Suspect
    correction: Correction | None = None


@dataclass(slots=True)
class Cluster:
    """Failures alike: same category, owner, cause and tool.  examples: ids of a few."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Thinned(Generic[T]):
    """At most `most` of any number of things, evenly from the first to the last: every k-th, k a power of 2.

    >>> few = Thinned[int](most=4)
    >>> for n in range(20):
    ...     few.add(n)
    >>> few.items
    [0, 8, 16]
    """

    most: int
    items: list[T] = field(default_factory=list)
    seen: int = 0
    every: int = 1

    def add(self, item: T) -> None:
        """One more, kept or not."""
        if self.seen % self.every == 0:
            self.items.append(item)
        self.seen += 1
        if len(self.items) > self.most:
            self.items, self.every = self.items[::2], 2 * self.every


@dataclass(slots=True)
class Overview:
    """Everything that a report shows.

    heat: (category, tenth of the trajectory) -> failures.  clusters: (category, owner, cause, tool) -> Cluster.
    slices: (name, value) -> step -> counts of "runs", "failed", each category and owner.  tasks: task id -> counts.
    reviewed: what people said of diagnoses; its keys are `REVIEWED`.
    """

    name: str = ""
    runs: int = 0
    passed: int = 0
    accused: int = 0
    unknown: int = 0
    bad: int = 0
    reviewed: Counter[str] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    owners: Counter[str] = field(default_factory=Counter)
    heat: Counter[tuple[str, int]] = field(default_factory=Counter)
    clusters: dict[tuple[str, str, str, str], Cluster] = field(default_factory=dict)
    slices: dict[tuple[str, str], dict[int, Counter[str]]] = field(default_factory=dict)
    tasks: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    kept: Thinned[Case] = field(default_factory=lambda: Thinned(most=MAX_CASES))

    @property
    def cases(self) -> list[Case]:
        """Failures from the first to the last, at most `MAX_CASES`."""
        return self.kept.items

    def add(self, record: Record, diagnosis: Diagnosis | None, correction: Correction | None = None) -> Case | None:
        """Count one trajectory; diagnosis: None for one that passed and was not looked at."""
        self.runs += 1
        critical = diagnosis.critical if diagnosis is not None else None
        if correction is not None and not names_message(record, correction):
            correction = None
        if diagnosis is not None and correction is not None:
            critical = corrected(record, critical, correction)
            self._review(diagnosis.critical, critical)
        self._count_slices(record, critical)
        self._count_task(record, critical)
        if diagnosis is None or critical is None:
            self.passed += diagnosis is None
            self.unknown += diagnosis is not None
            return None
        case = Case(record=record, diagnosis=diagnosis, critical=critical, correction=correction)
        self.accused += 1
        self.categories[str(critical.category)] += 1
        self.owners[str(critical.owner)] += 1
        self.heat[str(critical.category), tenth(critical.position, len(record.items))] += 1
        key = (str(critical.category), str(critical.owner), *cause_of(case))
        cluster = self.clusters.setdefault(key, Cluster())
        cluster.count += 1
        cluster.examples += [record.id] if len(cluster.examples) < MAX_EXAMPLES else []
        self.kept.add(case)
        return case

    def _review(self, said: Suspect | None, right: Suspect | None) -> None:
        self.reviewed["n"] += 1
        if said is not None and right is not None:
            self.reviewed["step"] += said.position == right.position
            self.reviewed["category"] += said.category == right.category
            self.reviewed["owner"] += said.owner == right.owner

    def _count_slices(self, record: Record, critical: Suspect | None) -> None:
        step = record.extra.get("step")
        at = step if isinstance(step, int) and not isinstance(step, bool) else 0
        for key in slices_of(record):
            if key not in self.slices and len(self.slices) >= MAX_SLICES:
                continue
            counts = self.slices.setdefault(key, {}).setdefault(at, Counter())
            counts["runs"] += 1
            counts["failed"] += record.passed is False
            if critical is not None:
                counts[str(critical.category)] += 1
                counts[f"owner:{critical.owner}"] += 1

    def _count_task(self, record: Record, critical: Suspect | None) -> None:
        key = record.task_id or record.id
        if key in self.tasks or len(self.tasks) < MAX_TASKS:
            counts = self.tasks.setdefault(key, {})
            for name in ("runs", *(("failed",) if critical else ()), *((str(critical.category),) if critical else ())):
                row = counts.setdefault(name, [0])
                row[0] += 1

    def ordered_clusters(self) -> list[tuple[tuple[str, str, str, str], Cluster]]:
        """Largest first."""
        return sorted(self.clusters.items(), key=lambda item: (-item[1].count, item[0]))


def accuracy(overview: Overview) -> dict[str, tuple[float, float, float]]:
    """Share of the reviewed diagnoses whose step, category and owner people left as they were, with its 95% Wilson
    interval; {} where nobody looked.  Of what people chose to look at, not of all failures.
    """
    n = overview.reviewed["n"]
    found: dict[str, tuple[float, float, float]] = {}
    for name in REVIEWED[1:] if n else ():
        interval = wilson(overview.reviewed[name], n)
        found[name] = (overview.reviewed[name] / n, interval.low, interval.high)
    return found


def tenth(position: int, length: int) -> int:
    """Which tenth of a trajectory a position (from 0) lies in.

    >>> tenth(0, 20), tenth(19, 20), tenth(10, 20)
    (0, 9, 5)
    """
    return min(PLACES - 1, PLACES * position // max(1, length))


def cause_of(case: Case) -> tuple[str, str]:
    """(the weightiest constraint or departure at the critical step, the tool that is called there or answers)."""
    position = case.critical.position
    here = [v for v in case.diagnosis.log.violations if v.position == position]
    best = max(here, key=lambda v: v.severity, default=None)
    departs = next((d for d in case.diagnosis.difference.departures if d.position == position), None)
    item = case.record.items[position]
    tool = item.calls[0].name if item.calls else item.name
    unexplained = "a judge's word" if case.critical.by_judge else "place alone"
    cause = best.constraint if best is not None else f"departs: {departs.kind}" if departs is not None else unexplained
    return cause, tool


def slices_of(record: Record) -> Iterator[tuple[str, str]]:
    """("all", "") and each tag of the task that made the trajectory."""
    yield "all", ""
    tags = record.extra.get("tags")
    for name, value in tags.items() if isinstance(tags, Mapping) else ():
        if isinstance(name, str) and isinstance(value, str) and len(value) <= 60:
            yield name, value


def over_steps(steps: Mapping[int, Counter[str]], most: int = 8) -> list[tuple[str, Counter[str]]]:
    """Counts in at most `most` spans of steps, in order.

    >>> [name for name, _ in over_steps({1: Counter(runs=2), 2: Counter(runs=2), 3: Counter(runs=2)}, most=2)]
    ['1-2', '3']
    """
    ordered = sorted(steps)
    size = -(-len(ordered) // most) if ordered else 1
    found = []
    for start in range(0, len(ordered), size):
        span = ordered[start : start + size]
        name = str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}"
        found.append((name, sum((steps[step] for step in span), Counter[str]())))
    return found


def overview_json(overview: Overview) -> dict[str, Any]:
    """The counts as JSON, and what they say about which data to draw."""
    return {
        "runs": overview.runs,
        "passed": overview.passed,
        "accused": overview.accused,
        "unknown": overview.unknown,
        "bad": overview.bad,
        "reviewed": {"n": overview.reviewed["n"], **accuracy(overview)},
        "categories": dict(overview.categories.most_common()),
        "owners": dict(overview.owners.most_common()),
        "heat": {
            category: [overview.heat[category, place] for place in range(PLACES)] for category in overview.categories
        },
        "clusters": [
            {
                "category": key[0],
                "owner": key[1],
                "cause": key[2],
                "tool": key[3],
                "count": cluster.count,
                "examples": cluster.examples,
            }
            for key, cluster in overview.ordered_clusters()
        ],
        "slices": [
            {"slice": f"{name}={value}" if value else name, "steps": steps, "failed": 0, **dict(counts)}
            for (name, value), by_step in overview.slices.items()
            for steps, counts in over_steps(by_step)
        ],
        "teachable": teachable(overview),
    }


def teachable(overview: Overview) -> dict[str, dict[str, float]]:
    """Slice -> {value: share of its runs that failed by the agent's fault}.

    What a curriculum may draw more of: failures of the agent can be learnt from; those that are put down to a user, a
    tool or a grader cannot, though they stay in the loss unless typed or proven.
    """
    found: dict[str, dict[str, float]] = {}
    for (name, value), by_step in overview.slices.items():
        total = sum(by_step.values(), Counter[str]())
        if value and total["runs"]:
            found.setdefault(name, {})[value] = round(total[f"owner:{Fault.AGENT}"] / total["runs"], 4)
    return found
