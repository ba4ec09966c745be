"""Whether a judge still judges as it did: a fixed canary set, judged twice at the start and once now.

Two paired sign-flip tests over the texts, each at half of the false alarm rate. Under "nothing changed" the second
baseline pass and today's are drawn alike, so that swapping them flips the sign of a text's difference: the tests are
exact for any noise of the judge, however its verdicts on one text hang together.

    level:   d_i = score_now(i) - score_second(i)                                    two-sided
    flips:   d_i = changed(now, first)(i) - changed(second, first)(i)                one-sided, more than usual
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from burnish.core.errors import ConfigError
from burnish.core.finding import Finding
from burnish.stats.intervals import EXACT_SIGN_FLIPS_MAX_N

RESAMPLES = 20_000

Values = Mapping[str, Mapping[str, float]]
"""What a judge said, by case and criterion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftBaseline:
    """Two passes over the canary set by a judge whose verdicts are trusted.

    `DriftBaseline(judge="openai:x/t0.0", reported="x-2025-01", first={"m1": {"a": 1.0}}, second={"m1": {"a": 1.0}})`
    """

    judge: str
    reported: str
    first: Values
    second: Values

    def save(self, path: Path | str) -> None:
        """As JSON."""
        data = {"judge": self.judge, "reported": self.reported, "first": self.first, "second": self.second}
        Path(path).write_text(json.dumps(data, indent=1), encoding="utf-8")


def load_baseline(path: Path | str) -> DriftBaseline:
    """What `DriftBaseline.save` wrote.  Raises ConfigError for anything else."""
    try:
        data: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        passes = [
            {str(case): {str(c): float(v) for c, v in row.items()} for case, row in data[name].items()}
            for name in ("first", "second")
        ]
        return DriftBaseline(
            judge=str(data["judge"]), reported=str(data["reported"]), first=passes[0], second=passes[1]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is no drift baseline: {error!r}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Result of one check.

    alarm: one of the tests says so, or another model version answers.  false_alarm_rate: chance that a check of an
    unchanged judge raises an alarm.  level: mean change of the values; changed, usual: shares of verdicts that differ
    from the first pass now, and in the second.  cases, cells: texts and verdicts compared; missing: verdicts that one
    of the passes lacks.
    """

    alarm: bool
    reasons: tuple[str, ...]
    false_alarm_rate: float
    level: float
    level_p: float
    changed: float
    usual: float
    flips_p: float
    cases: int
    cells: int
    missing: int

    def finding(self, judge: str, step: int = 0) -> Finding | None:
        """The alarm as health and reports read alarms, None without one.  step: of the run that the judge grades for.

        >>> Drift(alarm=False, reasons=(), false_alarm_rate=0.01, level=0.0, level_p=1.0, changed=0.0, usual=0.0,
        ...     flips_p=1.0, cases=9, cells=9, missing=0).finding("openai:m") is None
        True
        """
        if not self.alarm:
            return None
        return Finding(
            monitor=f"judge/{judge}",
            step=step,
            kind="judge_drift",
            summary=f"{judge} no longer judges as it did: {'; '.join(self.reasons)}",
            evidence=asdict(self),
            false_alarms_per_1000=1000 * self.false_alarm_rate,
        )


def least_cases(false_alarm_rate: float) -> int:
    """Texts below which neither test can ever reach the rate: 2 / 2^n must be at most half of it.

    >>> least_cases(0.01)
    9
    """
    n = 1
    while 2.0 / 2.0**n > false_alarm_rate / 2:
        n += 1
    return n


def check_drift(
    baseline: DriftBaseline,
    now: Values,
    *,
    false_alarm_rate: float = 0.01,
    reported: str = "",
    rng: np.random.Generator | None = None,
) -> Drift:
    """Compare a new pass over the same canary set.

    reported: version that the judge gave of itself; where both are known and differ, that alone is an alarm, with no
    error rate.  rng: only used for more than 16 cases.  Raises ConfigError for a canary set too small for the rate.
    """
    if not 0.0 < false_alarm_rate < 1.0:
        raise ConfigError(f"a false alarm rate lies between 0 and 1, such as 0.01, got {false_alarm_rate}")
    cases = sorted(set(baseline.first) & set(baseline.second) & set(now))
    cells = {case: sorted(set(baseline.first[case]) & set(baseline.second[case]) & set(now[case])) for case in cases}
    cases = [case for case in cases if cells[case]]
    if len(cases) < least_cases(false_alarm_rate):
        raise ConfigError(
            f"a drift check with a false alarm rate of {false_alarm_rate:g} needs at least "
            f"{least_cases(false_alarm_rate)} texts that all three passes judged, got {len(cases)}"
        )
    first, second, third = (
        [[p[c][i] for i in cells[c]] for c in cases] for p in (baseline.first, baseline.second, now)
    )
    level = np.array([np.mean(b) - np.mean(a) for a, b in zip(second, third, strict=True)])
    usual, changed = _flips(first, second), _flips(first, third)
    rng = rng or np.random.default_rng(0)
    level_p = sign_flip_p(level, rng, two_sided=True)
    flips_p = sign_flip_p(changed - usual, rng, two_sided=False)
    reasons = [f"the level of its values moved by {level.mean():+.3f} (p = {level_p:.2g})"] * (
        level_p <= false_alarm_rate / 2
    )
    if flips_p <= false_alarm_rate / 2:
        reasons.append(f"{changed.mean():.1%} of its verdicts changed, usually {usual.mean():.1%} (p = {flips_p:.2g})")
    if reported and baseline.reported and reported != baseline.reported:
        reasons.append(f"{reported} answers, and the baseline is of {baseline.reported}")
    n_cells = sum(len(ids) for ids in cells.values())
    everything = {(case, name) for p in (baseline.first, baseline.second, now) for case in p for name in p[case]}
    return Drift(
        alarm=bool(reasons),
        reasons=tuple(reasons),
        false_alarm_rate=false_alarm_rate,
        level=float(level.mean()),
        level_p=level_p,
        changed=float(changed.mean()),
        usual=float(usual.mean()),
        flips_p=flips_p,
        cases=len(cases),
        cells=n_cells,
        missing=len(everything) - n_cells,
    )


def _flips(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """Share of the verdicts on each text that differ."""
    return np.array([np.mean(np.asarray(x) != np.asarray(y)) for x, y in zip(a, b, strict=True)])


def sign_flip_p(differences: npt.NDArray[np.float64], rng: np.random.Generator, *, two_sided: bool) -> float:
    """p value of the sum under random signs: exact up to 16 values, else (1 + extreme) / (1 + 20 000).

    >>> sign_flip_p(np.ones(4), np.random.default_rng(0), two_sided=True)
    0.125
    """
    moving = differences[differences != 0.0]
    observed = float(moving.sum())
    n = len(moving)
    exact = n <= EXACT_SIGN_FLIPS_MAX_N
    if exact:
        signs = ((np.arange(2**n)[:, None] >> np.arange(n)) & 1) * 2.0 - 1.0
    else:
        signs = rng.integers(0, 2, size=(RESAMPLES, n)) * 2.0 - 1.0
    sums = signs @ moving
    least = observed if not two_sided else abs(observed)
    # Sums in another order differ in the last bits, and a tie is as extreme.
    extreme = int(((np.abs(sums) if two_sided else sums) >= least - 1e-9).sum())
    return extreme / len(sums) if exact else (1 + extreme) / (1 + len(sums))
