"""What episodes cost and what they achieve for it: success against length over a run, and staleness of its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from burnish.reports.headline import STAGES, title_of
from burnish.reports.series import number
from burnish.stats.intervals import Estimate, clustered_bootstrap, wilson
from burnish.store.reader import RunReader
from burnish.store.rows import EvaluationRow

MAX_WINDOWS = 12
"""Points of the path over training; longer runs have more steps in each."""

MAX_BINS = 6
BIN_STEPS = 8
"""Success by length is that of the episodes of so many of the newest RL steps."""

STALENESS = ((0, 0), (1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, None))
"""Bounds of the staleness that tokens are counted by, in policy versions, both included."""

# A token cost is in the reward but not in the grades, so success is read from these.
_SUCCESS = """CASE phase WHEN 'rl' THEN list_min([grade.score for grade in grades]) ELSE reward END >= 1 - 1e-6"""
_EPISODES = f"""
SELECT phase, step, count(*) AS n, sum(action_tokens) AS tokens,
       coalesce(sum(coalesce({_SUCCESS}, false)::INT), 0) AS successes,
       min(trajectory_id) AS id
FROM trajectories
WHERE reward IS NOT NULL AND ((phase = 'rl' AND step > ?) OR (phase = 'eval' AND step > ?))
GROUP BY phase, step ORDER BY phase, step
"""
_NEWEST = f"""
SELECT group_id, action_tokens, coalesce({_SUCCESS}, false) AS success FROM trajectories
WHERE phase = 'rl' AND step > ? AND reward IS NOT NULL ORDER BY trajectory_id
"""
# The learner of a step is the version that the step before it left behind; of the first step, the newest one sampled.
_STALENESS = """
WITH learner AS (SELECT step, lag(policy_version) OVER (ORDER BY step) AS version FROM steps WHERE phase = 'rl'),
sampled AS (SELECT step, version, count(*) AS n FROM tokens
            WHERE phase = 'rl' AND step > ? AND fate = 'trained' AND is_action GROUP BY step, version)
SELECT sampled.step AS step, n,
       coalesce(learner.version, max(sampled.version) OVER (PARTITION BY sampled.step)) - sampled.version AS staleness
FROM sampled JOIN learner ON learner.step = sampled.step ORDER BY sampled.step, staleness
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """Episodes that have a reward, what they sampled and how many were right.

    `Spending(n=64, tokens=2048, successes=40)`
    """

    n: int
    tokens: int
    successes: int

    @property
    def tokens_per_episode(self) -> float:
        """Mean sampled tokens."""
        return self.tokens / self.n if self.n else float("nan")

    @property
    def success(self) -> float:
        """Share of the episodes that every grader gave a full score."""
        return self.successes / self.n if self.n else float("nan")

    @property
    def successes_per_1k_tokens(self) -> float:
        """Successes for each 1000 sampled tokens."""
        return 1000 * self.successes / self.tokens if self.tokens else float("nan")

    @staticmethod
    def total(parts: Iterable[Spending]) -> Spending:
        """All of them together."""
        found = list(parts)
        return Spending(
            n=sum(part.n for part in found),
            tokens=sum(part.tokens for part in found),
            successes=sum(part.successes for part in found),
        )


class CostReadings:
    """What a run's charts of cost and staleness need from its segments; each step is read once.

    steps: by RL step.  evaluations: by (label, split, mode).  staleness: by RL step, trained tokens of each bucket of
    `STALENESS`.
    """

    def __init__(self, reader: RunReader) -> None:
        self._reader = reader
        self._attempt = -1
        self._eval_step = -1
        self._bins: tuple[int, list[dict[str, Any]]] = (-1, [])
        self.steps: dict[int, Spending] = {}
        self.evaluations: dict[tuple[str, str, str], Spending] = {}
        self.staleness: dict[int, list[int]] = {}

    def update(self, attempt: int, *, is_asynchronous: bool = False) -> None:
        """Read the steps that are new; all of them after a resume, which may have replaced some.

        is_asynchronous: whether tokens can be stale, and are to be counted by it.  Raises StoreError where segments
        cannot be read.
        """
        if attempt != self._attempt:
            self._attempt, self._eval_step, self._bins = attempt, -1, (-1, [])
            self.steps, self.evaluations, self.staleness = {}, {}, {}
        found = self._reader.query(_EPISODES, [max(self.steps, default=-1), self._eval_step]).to_pylist()
        for row in found:
            spent = Spending(n=row["n"], tokens=int(row["tokens"]), successes=int(row["successes"]))
            if row["phase"] == "rl":
                self.steps[row["step"]] = spent
            else:
                self._eval_step = row["step"]
                label, split, mode = row["id"].split("/")[1:4]
                self.evaluations[label, split, mode] = spent
        if is_asynchronous:
            self._read_staleness()

    def _read_staleness(self) -> None:
        for row in self._reader.query(_STALENESS, [max(self.staleness, default=-1)]).to_pylist():
            counts = self.staleness.setdefault(row["step"], [0] * len(STALENESS))
            counts[_bucket(row["staleness"])] += row["n"]

    def bins(self) -> list[dict[str, Any]]:
        """Success by length over the newest `BIN_STEPS` RL steps; see `length_bins`."""
        newest = max(self.steps, default=-1)
        if newest != self._bins[0]:
            rows = self._reader.query(
                _NEWEST, [sorted(self.steps)[-BIN_STEPS] - 1 if len(self.steps) > BIN_STEPS else -1]
            )
            columns = rows.to_pydict()
            made = length_bins(columns["action_tokens"], columns["success"], columns["group_id"])
            self._bins = (newest, made)
        return self._bins[1]


def cost_view(costs: CostReadings, evaluations: Sequence[EvaluationRow]) -> dict[str, Any]:
    """The part of the overview about cost: `{"tradeoff": [...], "bins": {...}, "staleness": {...}}`.

    tradeoff: curves of points (mean action tokens of an episode, success) in the order of training.
    """
    shown = sorted(costs.steps)[-BIN_STEPS:]
    steps = sorted(costs.staleness)
    return {
        "tradeoff": [curve for curve in [_training(costs.steps), *_held_out(costs, evaluations)] if curve["points"]],
        "bins": {"first": shown[0] if shown else None, "last": shown[-1] if shown else None, "rows": costs.bins()},
        "staleness": {
            "steps": steps,
            "buckets": [
                {"title": _bucket_title(low, high), "tokens": [costs.staleness[step][index] for step in steps]}
                for index, (low, high) in enumerate(STALENESS)
            ],
        },
    }


def start_and_end(steps: Mapping[int, Spending]) -> tuple[Spending, Spending] | None:
    """The first and the last tenth of the RL steps, at least one each; None below two steps."""
    ordered = sorted(steps)
    if len(ordered) < 2:
        return None
    size = max(1, len(ordered) // 10)
    return (
        Spending.total(steps[step] for step in ordered[:size]),
        Spending.total(steps[step] for step in ordered[-size:]),
    )


def length_bins(tokens: Sequence[int], successes: Sequence[bool], groups: Sequence[str]) -> list[dict[str, Any]]:
    """Success of the episodes in bins of about equal number by their action tokens, short to long.

    `[{"low": 12, "high": 20, "n": 40, "success": 0.9, "interval": [0.8, 0.97]}]`: low and high are the shortest and
    the longest of the bin.  Groups, whose members share a task, are the independent observations of the 95% interval.
    Episodes of one length share a bin.
    """
    if not tokens:
        return []
    lengths, right, names = np.asarray(tokens), np.asarray(successes, dtype=np.float64), np.asarray(groups)
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, MAX_BINS + 1)[1:-1], method="lower"))
    places = np.searchsorted(edges, lengths, side="left")
    made = []
    for place in np.unique(places):
        inside = places == place
        clusters = {name: right[inside & (names == name)].tolist() for name in np.unique(names[inside])}
        interval = _interval(clusters)
        made.append(
            {
                "low": int(lengths[inside].min()),
                "high": int(lengths[inside].max()),
                "n": int(inside.sum()),
                "success": number(float(right[inside].mean())),
                "interval": [number(interval.low), number(interval.high)],
            }
        )
    return made


def _interval(clusters: Mapping[str, Sequence[float]]) -> Estimate:
    """The 95% interval of a share over groups.  Where all agree, resampling knows no spread, so that Wilson's over
    groups stands in."""
    values = {value for cluster in clusters.values() for value in cluster}
    if len(values) == 1 or len(clusters) == 1:
        n = len(clusters)
        return wilson(n * sum(map(sum, clusters.values())) / sum(map(len, clusters.values())), n)
    return clustered_bootstrap(clusters, np.random.default_rng(0))


def _training(steps: Mapping[int, Spending]) -> dict[str, Any]:
    """Training episodes in up to `MAX_WINDOWS` windows of steps."""
    ordered = sorted(steps)
    windows = [part.tolist() for part in np.array_split(ordered, min(MAX_WINDOWS, len(ordered)) or 1) if len(part)]
    points = []
    for window in windows:
        at = f"step {window[0]}" if len(window) == 1 else f"steps {window[0]} to {window[-1]}"
        points.append(_point(at, Spending.total(steps[step] for step in window)))
    return {"title": "training episodes", "points": points}


def _held_out(costs: CostReadings, evaluations: Sequence[EvaluationRow]) -> list[dict[str, Any]]:
    """A curve for each split and mode.  The untrained policy, which talks to its limit, is left out where an
    evaluation after SFT can stand at the start."""
    has_sft = any(row.label == "after_sft" for row in evaluations)
    curves: dict[str, dict[str, dict[str, Any]]] = {}
    for row in evaluations:
        spent = costs.evaluations.get((row.label, row.split, row.mode))
        if spent is None or (has_sft and row.label == "before"):
            continue
        at = STAGES.get(row.label, f"step {row.step}")
        point = _point(at, spent) | {"success": number(row.mean), "interval": [number(row.low), number(row.high)]}
        curves.setdefault(title_of(row.split, row.mode), {})[row.label] = point
    return [{"title": title, "points": list(points.values())} for title, points in sorted(curves.items())]


def _point(at: str, spent: Spending) -> dict[str, Any]:
    return {
        "at": at,
        "n": spent.n,
        "tokens": number(spent.tokens_per_episode),
        "success": number(spent.success),
        "interval": None,
    }


def _bucket(staleness: int) -> int:
    return next(index for index, (_, high) in enumerate(STALENESS) if high is None or staleness <= high)


def _bucket_title(low: int, high: int | None) -> str:
    if high is None:
        return f"{low} or more"
    return str(low) if low == high else f"{low} to {high}"
