"""A rubric's judge, asked about the same labelled examples again and again while a run goes on."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from burnish.core.errors import ConfigError
from burnish.core.finding import Finding
from burnish.core.grade import Grader
from burnish.core.hashing import content_hash
from burnish.core.hints import did_you_mean
from burnish.core.judge import Judge
from burnish.graders.judge_calibration import Judgement
from burnish.graders.judge_drift import DriftBaseline, Values, check_drift, least_cases
from burnish.graders.node import GraderNode
from burnish.graders.rubric import RubricGrader
from burnish.graders.rubric_criteria import Rubric
from burnish.graders.rubric_labelled import LabelledCase, judge_labelled, values_of

FALSE_ALARM_RATE = 0.01
"""Of one check of a judge that judges as it did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What one check gave.  scalars: named in docs/metrics.md.  missing: causes of verdicts that there are not.

    `Checked(scalars={"judge_check/scripted/agreement": 0.9})`
    """

    scalars: Mapping[str, float]
    finding: Finding | None = None
    missing: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeCheck:
    """A judge with the examples that it is asked about.  `JudgeCheck(rubric=rubric, judge=judge, cases=cases)`

    The judge stands behind no cache, which could not but agree with itself.
    """

    rubric: Rubric
    judge: Judge
    cases: Sequence[LabelledCase]

    @property
    def version(self) -> str:
        """Of rubric, judge and examples: a baseline is good for this one alone."""
        return content_hash((self.rubric.version, self.judge.version, [dataclasses.astuple(one) for one in self.cases]))

    async def adopt(self) -> tuple[dict[str, Any] | None, Checked]:
        """Two passes, which later ones are compared with, as JSON, None where too many verdicts are missing; and what
        the first of them says."""
        rows = await self._judged(), await self._judged()
        first, second = (values_of(one, self.judge.name) for one in rows)
        enough = _comparable(first, second) >= least_cases(FALSE_ALARM_RATE)
        kept = {"version": self.version, "first": first, "second": second} if enough else None
        return kept, Checked(scalars=self._scalars(rows[0]), missing=_missing(rows[0]))

    async def check(self, kept: Mapping[str, Any], *, step: int) -> Checked:
        """One more pass, compared with what `adopt` gave; no comparison where too many verdicts are missing."""
        rows = await self._judged()
        scalars, now = self._scalars(rows), values_of(rows, self.judge.name)
        finding = None
        if _comparable(kept["first"], kept["second"], now) >= least_cases(FALSE_ALARM_RATE):
            baseline = DriftBaseline(judge=self.judge.version, reported="", first=kept["first"], second=kept["second"])
            drift = check_drift(baseline, now, false_alarm_rate=FALSE_ALARM_RATE)
            figures = {"level": drift.level, "changed": drift.changed, "usual": drift.usual, "drift": drift.alarm}
            scalars |= {self._named(name): float(value) for name, value in figures.items()}
            finding = drift.finding(self.judge.name, step)
        return Checked(scalars=scalars, finding=finding, missing=_missing(rows))

    async def _judged(self) -> list[Judgement]:
        return await judge_labelled(self.rubric, [self.judge], self.cases)

    def _scalars(self, rows: Sequence[Judgement]) -> dict[str, float]:
        said = [row for row in rows if row.value is not None]
        right = [abs(row.value - row.label) < 1e-9 for row in said if row.value is not None and row.label is not None]
        scalars = {self._named("missing"): 1.0 - len(said) / len(rows)}
        return scalars | ({self._named("agreement"): sum(right) / len(right)} if right else {})

    def _named(self, figure: str) -> str:
        return f"judge_check/{self.judge.name}/{figure}"


def _comparable(*passes: Values) -> int:
    """Examples of which all passes have a verdict in common."""
    cases = set(passes[0]).intersection(*passes[1:])
    return sum(bool(set(passes[0][case]).intersection(*(one[case] for one in passes[1:]))) for case in cases)


def _missing(rows: Sequence[Judgement]) -> dict[str, int]:
    return dict(Counter(row.cause for row in rows if row.value is None))


def judged_rubric(graders: Sequence[Grader], name: str = "") -> RubricGrader:
    """The rubric of that name, or the only one, that asks judges.  Raises ConfigError where it is not clear which."""
    found: dict[str, RubricGrader] = {}
    for one in graders:
        inner = one.grader if isinstance(one, GraderNode) else one
        if isinstance(inner, RubricGrader) and inner.judges:
            found[one.name] = inner
    if name and name not in found:
        raise ConfigError(
            f"no rubric {name!r} asks a judge; {did_you_mean(name, found, f'those that do: {list(found)}')}"
        )
    if not name and len(found) != 1:
        raise ConfigError(f"name one of the rubrics that ask a judge: {', '.join(found) or 'there is none'}")
    return found[name or next(iter(found))]
