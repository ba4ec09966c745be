"""Why a run is ill: findings grouped into ranked hypotheses, each with its evidence, its lead and what to do.

The ranking rule.  `CAUSES` says of every cause which findings speak for it, with a weight: 3 where the finding all but
names it, 2 where the cause is expected to show so, 1 where it often does.  A sign counts once however many monitors
show it, by half where they all only warned.  A *circumstance* is a stored scalar that moved, or did not, between the
time before the onset and the time since: it adds to a cause that some finding already speaks for, or takes away from
it.  A cause's score is the sum; causes with a hard rule among their signs come first (it cannot be chance), then the
larger score, then the earlier onset, then the name.  Findings that no cause has a sign for are listed by themselves as
unexplained.  The weights are judgement: what they are worth is measured by the attribution of benchmarks/faults.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from statistics import median

from burnish.core.finding import Finding
from burnish.reports.causes import CAUSES, DAMAGE, Cause, Circumstance, Sign
from burnish.store.rows import EvaluationRow

Points = Sequence[tuple[int, float]]

MAX_TRAJECTORIES = 6
MAX_EVIDENCE = 6
MOVED_SPREADS = 3.0
"""A scalar moved where its median changed by so many robust standard deviations (1.4826 MAD) of the time before."""
MOVED_SHARE = 0.1
"""... and by at least this share of its size: a flat series has no spread to speak of."""
MIN_POINTS = 3
STRONG, LIKELY = 5.0, 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What was watched: the denominator of every claim that nothing was found.

    monitors, false_alarms_per_1000 (steps, over all monitors together): None where the run does not say.
    baseline_steps: those before, which the baselines were made of and no calibrated alarm looks at.

    `Watched(steps=300, monitors=24, false_alarms_per_1000=0.5)`
    """

    steps: int = 0
    monitors: int | None = None
    false_alarms_per_1000: float | None = None
    baseline_steps: int = 0

    @property
    def expected(self) -> float | None:
        """Findings expected by chance alone.  `Watched(steps=300, false_alarms_per_1000=0.5).expected` is 0.15."""
        rate = self.false_alarms_per_1000
        return None if rate is None else self.steps * rate / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Held-out success fell: the first evaluation whose whole 95% interval lies below that of the best one before it.

    `Damage(step=120, before=0.62, after=0.41, best_step=80)`
    """

    step: int
    before: float
    after: float
    best_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """A cause with what speaks for it.

    score: see the ranking rule.  onset_step: the earliest estimate of its findings, -1 for none.  alarm_step: where the
    first of them fired.  lead_steps: from there to the damage, None where held-out success did not fall; negative where
    the alarm came after it.  is_rule: a hard rule is among the findings.

    `Hypothesis(cause=CAUSES[0], score=5.0, findings=(...), evidence=("...",), onset_step=40, alarm_step=52,
    lead_steps=28, trajectory_ids=("rl/000052/0003/05",), is_rule=False)`
    """

    cause: Cause
    score: float
    findings: tuple[Finding, ...]
    evidence: tuple[str, ...]
    onset_step: int
    alarm_step: int
    lead_steps: int | None
    trajectory_ids: tuple[str, ...]
    is_rule: bool

    @property
    def strength(self) -> str:
        """The score in a word."""
        if self.is_rule:
            return "certain"
        return "strong" if self.score >= STRONG else "likely" if self.score >= LIKELY else "possible"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Hypotheses, the best one first; unexplained: findings that no known cause has a sign for.

    by_chance: upper bound of the probability that so many findings or more occur without any cause, None where no rate
    is known.

    `Diagnosis(watched=Watched(steps=300), hypotheses=(), unexplained=(), damage=None, by_chance=None)`
    """

    watched: Watched
    hypotheses: tuple[Hypothesis, ...] = ()
    unexplained: tuple[Finding, ...] = ()
    damage: Damage | None = None
    by_chance: float | None = None

    @property
    def silence(self) -> str:
        """What can be said where nothing was found."""
        return silence(self.watched, self.damage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptoms:
    """What a diagnosis is made of.  scalars: (step, value) by name, of RL steps.

    `Symptoms(findings=(Finding(...),), scalars={"health/post_tool_share": [(1, 0.4)]}, watched=Watched(steps=300))`
    """

    findings: Sequence[Finding]
    scalars: Mapping[str, Points] = field(default_factory=dict)
    evaluations: Sequence[EvaluationRow] = ()
    watched: Watched = field(default_factory=Watched)


def diagnose(symptoms: Symptoms, causes: Sequence[Cause] = CAUSES) -> Diagnosis:
    """Rank the causes of what was found; the rule stands at the top of this module."""
    fell = damage(symptoms.evaluations)
    made = [_hypothesis(cause, symptoms, fell) for cause in causes]
    hypotheses = sorted(
        (one for one in made if one is not None and one.score > 0),
        key=lambda one: (not one.is_rule, -one.score, _first(one), one.cause.key),
    )
    explained = {id(finding) for one in hypotheses for finding in one.findings}
    return Diagnosis(
        watched=symptoms.watched,
        hypotheses=tuple(hypotheses),
        unexplained=tuple(finding for finding in symptoms.findings if id(finding) not in explained),
        damage=fell,
        by_chance=_by_chance(symptoms),
    )


def damage(evaluations: Sequence[EvaluationRow]) -> Damage | None:
    """The first clear fall of held-out success during RL; None where there was none.

    Intervals that do not overlap, since the best of many evaluations is high by selection.  Each split and mode is
    compared with itself; what was measured before RL counts as step 0.
    """
    best: dict[tuple[str, str], tuple[int, EvaluationRow]] = {}
    for row in sorted(evaluations, key=lambda row: row.step if row.phase == "rl" else 0):
        step = row.step if row.phase == "rl" else 0
        if row.label == "before" or not math.isfinite(row.mean):
            continue
        known = best.get((row.split, row.mode))
        if known is not None and row.high < known[1].low:
            return Damage(step=step, before=known[1].mean, after=row.mean, best_step=known[0])
        if known is None or row.mean > known[1].mean:
            best[row.split, row.mode] = (step, row)
    return None


def silence(watched: Watched, fell: Damage | None) -> str:
    """What can be said of a run without findings; never that it is healthy.

    >>> silence(Watched(steps=300, monitors=24, false_alarms_per_1000=0.5), None)
    'No finding; 300 steps watched by 24 monitors at 0.5 false alarms per 1,000 steps.'
    >>> silence(Watched(), None)
    'Nothing is known: this run stored no health signals (recipe key health.on).'
    >>> silence(Watched(baseline_steps=6), None)
    'Nothing is known yet: all 6 steps went into the baseline (recipe key health.baseline_steps).'
    """
    if not watched.steps:
        if watched.baseline_steps:
            steps = "the one step" if watched.baseline_steps == 1 else f"all {watched.baseline_steps:,} steps"
            return f"Nothing is known yet: {steps} went into the baseline (recipe key health.baseline_steps)."
        return "Nothing is known: this run stored no health signals (recipe key health.on)."
    monitors = "an unknown number of" if watched.monitors is None else f"{watched.monitors:,}"
    rate = watched.false_alarms_per_1000
    at = "at an unstated rate of false alarms" if rate is None else f"at {rate:g} false alarms per 1,000 steps"
    text = f"No finding; {watched.steps:,} steps watched by {monitors} monitors {at}."
    if fell is None:
        return text
    return (
        f"{text} Yet held-out success fell from {fell.before:.0%} to {fell.after:.0%} between steps {fell.best_step} "
        f"and {fell.step}: its cause is none that the monitors see."
    )


def moved(points: Points, onset: int, alarm: int) -> tuple[float, float, int] | None:
    """Medians before `onset` and since `alarm`, and the direction of the change: 1, -1 or 0 for none to speak of.

    None where either side has fewer than three finite values.

    >>> moved([(step, 1.0 if step < 10 else 2.0) for step in range(20)], 10, 12)
    (1.0, 2.0, 1)
    """
    before = [value for step, value in points if step < onset and math.isfinite(value)]
    since = [value for step, value in points if step >= alarm and math.isfinite(value)]
    if len(since) < MIN_POINTS:
        since = [value for step, value in points if step >= onset and math.isfinite(value)][-MIN_POINTS:]
    if min(len(before), len(since)) < MIN_POINTS:
        return None
    low, high = median(before), median(since)
    spread = 1.4826 * median(abs(value - low) for value in before)
    least = max(MOVED_SPREADS * spread, MOVED_SHARE * abs(low))
    change = high - low
    return low, high, 0 if abs(change) <= least else 1 if change > 0 else -1


def _hypothesis(cause: Cause, symptoms: Symptoms, fell: Damage | None) -> Hypothesis | None:
    score, found = 0.0, dict[int, Finding]()
    for sign in cause.signs:
        shown = [finding for finding in symptoms.findings if _shows(sign, finding, symptoms.scalars)]
        if shown:
            score += sign.weight * (1.0 if any(one.severity == "alarm" for one in shown) else 0.5)
            found |= {id(finding): finding for finding in shown}
    if not found:
        return None
    findings = tuple(sorted(found.values(), key=lambda one: (_onset(one), one.step, one.monitor)))
    onset, alarm = min(map(_onset, findings)), min(one.step for one in findings)
    evidence = [_line(finding, symptoms.scalars) for finding in _distinct(findings)][:MAX_EVIDENCE]
    for circumstance in cause.circumstances:
        spoken = _circumstance(circumstance, symptoms.scalars, (onset, alarm), fell)
        if spoken is not None:
            score += circumstance.weight
            evidence.append(spoken)
    ids = dict.fromkeys(one for finding in findings for one in finding.trajectory_ids)
    return Hypothesis(
        cause=cause,
        score=score,
        findings=findings,
        evidence=tuple(evidence),
        onset_step=min((one.onset_step for one in findings if one.onset_step >= 0), default=-1),
        alarm_step=alarm,
        lead_steps=None if fell is None else fell.step - alarm,
        trajectory_ids=tuple(ids)[:MAX_TRAJECTORIES],
        is_rule=any(
            finding.false_alarms_per_1000 is None and finding.severity == "alarm" and _names(cause, finding)
            for finding in findings
        ),
    )


def _matches(sign: Sign, finding: Finding) -> bool:
    return any(fnmatchcase(finding.monitor, pattern) for pattern in sign.monitors) or (
        bool(finding.kind) and any(fnmatchcase(finding.kind, pattern) for pattern in sign.kinds)
    )


def _names(cause: Cause, finding: Finding) -> bool:
    return any(sign.weight >= 3 and _matches(sign, finding) for sign in cause.signs)


def _shows(sign: Sign, finding: Finding, scalars: Mapping[str, Points]) -> bool:
    """Whether it is what the sign says, moved the way that the sign says; an unknown way is given the benefit."""
    if not _matches(sign, finding):
        return False
    if sign.direction == 0:
        return True
    rising = finding.evidence.get("rising")
    if isinstance(rising, bool):
        return rising == (sign.direction > 0)
    change = moved(_series(finding, scalars), _onset(finding), finding.step)
    return change is None or (change[1] - change[0]) * sign.direction >= 0


def _series(finding: Finding, scalars: Mapping[str, Points]) -> Points:
    """What the monitor looked at, where the run stored it."""
    return scalars.get(f"health/{finding.monitor}") or scalars.get(finding.monitor, ())


def _onset(finding: Finding) -> int:
    return min(finding.onset_step, finding.step) if finding.onset_step >= 0 else finding.step


def _first(hypothesis: Hypothesis) -> int:
    return hypothesis.onset_step if hypothesis.onset_step >= 0 else hypothesis.alarm_step


def _distinct(findings: Iterable[Finding]) -> list[Finding]:
    """The first finding of each monitor: repeated alarms say nothing new."""
    known: dict[str, Finding] = {}
    for finding in findings:
        known.setdefault(finding.monitor, finding)
    return list(known.values())


def _line(finding: Finding, scalars: Mapping[str, Points]) -> str:
    rate = finding.false_alarms_per_1000
    at = "rule" if rate is None else f"{rate:.2g} false/1,000"
    change = moved(_series(finding, scalars), _onset(finding), finding.step)
    figures = f" {_figure(change[0])} -> {_figure(change[1])}" if change else ""
    onset = f"onset ~{finding.onset_step}, " if finding.onset_step >= 0 else ""
    told = "" if figures or not finding.summary else f": {finding.summary}"
    return f"{finding.monitor}{figures} ({onset}{finding.severity} at {finding.step}, {at}){told}"


def _circumstance(
    one: Circumstance, scalars: Mapping[str, Points], since: tuple[int, int], fell: Damage | None
) -> str | None:
    """What to say where it holds; None where it does not, or cannot be told.  since: onset and alarm."""
    if DAMAGE in one.scalars:
        return f"{one.text}: {fell.before:.0%} -> {fell.after:.0%} at step {fell.step}" if fell else None
    for name in one.scalars:
        change = moved(scalars.get(name, ()), *since)
        if change is not None:
            low, high, direction = change
            return f"{one.text}: {name} {_figure(low)} -> {_figure(high)}" if direction == one.direction else None
    return None


def _figure(value: float) -> str:
    """Three significant digits.

    >>> _figure(0.20512), _figure(15234.0)
    ('0.205', '15,234')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _by_chance(symptoms: Symptoms) -> float | None:
    """At most P(so many calibrated findings or more | nothing is wrong); rules are never chance.

    Markov's bound, expected / count: monitors look at the same tokens, so that their alarms are not independent.
    """
    expected = symptoms.watched.expected
    counted = sum(one.false_alarms_per_1000 is not None for one in symptoms.findings)
    return None if expected is None or not counted else min(1.0, expected / counted)
