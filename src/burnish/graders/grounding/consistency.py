"""Does the reasoning lead to the answer?  Rules over what was parsed; no model is asked.

Each rule passes, fails, or has nothing to say; the score is the share that pass.  Three things make it 0 outright: a
conclusion that is another than the answer, a statement that contradicts another one, and no evidence where some is
expected (nothing follows from nothing, so silence would otherwise be the safest reasoning).

Nothing follows from evidence that is not there either: where the true places or times are known, the score is cut by
min(1, 2 F1).  Sound reasoning over half of the evidence is sound; pointing anywhere is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from burnish.core.detector import Detector
from burnish.core.task import Task
from burnish.graders.evidence import Claim, Parsed
from burnish.graders.evidence.syntax import clean_label
from burnish.graders.grounding.result import Case, Component, ToolResult
from burnish.graders.grounding.spatial_tools import BoxOverlap, PointInRegion
from burnish.graders.grounding.spec import Expected, GroundingSpec
from burnish.graders.grounding.temporal_tool import TemporalOverlap
from burnish.graders.rules import normalised, parse_number


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleConsistency:
    """Counts agree with what is cited, the conclusion is the answer, the named thing was cited, nothing contradicts.

    A task that expects no grounding asks for no reasoning either, so the tool does not apply to it.
    """

    name: str = "consistency"
    version: str = "1"
    component: Component = Component.REASONING
    cost_ms: float = 0.1

    def applies(self, task: Task, spec: GroundingSpec) -> bool:
        return spec.expects_grounding

    def available(self, spec: GroundingSpec, detectors: Sequence[Detector]) -> str:
        return ""

    def verify(self, case: Case) -> ToolResult:
        spec, parsed = case.spec, case.parsed
        broken = fatal(spec, parsed)
        checks = {} if broken else checked(spec, parsed)
        known = [passed for passed in checks.values() if passed is not None]
        score = 0.0 if broken else sum(known) / len(known) if known else 1.0
        score *= borne_out(case)
        return ToolResult(
            tool=self.name,
            component=self.component,
            score=score,
            detail={"broken": broken, **{rule: passed for rule, passed in checks.items() if passed is not None}},
        )


def borne_out(case: Case) -> float:
    """min(1, 2 F1) of the evidence where its truth is known, else 1."""
    tools = [tool for tool in (PointInRegion(), BoxOverlap(), TemporalOverlap()) if tool.applies(case.task, case.spec)]
    scores = [tool.verify(case).score or 0.0 for tool in tools]
    return min(1.0, 2 * sum(scores) / len(scores)) if scores else 1.0


def fatal(spec: GroundingSpec, parsed: Parsed) -> str:
    """What makes the reasoning worth nothing; empty for nothing."""
    if parsed.answer is None:
        return "no_single_answer"
    if not _cited(spec, parsed):
        return "no_evidence"
    if parsed.conclusion and not _agrees(parsed.conclusion, parsed.answer):
        return "other_conclusion"
    return "contradiction" if contradicts(parsed.claims) else ""


def checked(spec: GroundingSpec, parsed: Parsed) -> dict[str, bool | None]:
    """Each rule: passed, failed, or None where it has nothing to say."""
    labels = [point.label for point in parsed.points] + [box.label for box in parsed.boxes]
    n_cited = len({(round(p.x_px), round(p.y_px), p.frame) for p in parsed.points}) or len(parsed.boxes)
    number = parse_number(parsed.answer or "")
    counted = [claim for claim in parsed.claims if claim.count is not None and claim.about]
    return {
        "count": (number == n_cited) if spec.counts else None,
        "named": (clean_label(parsed.answer or "") in labels) if spec.names else None,
        "claims": all(_borne_out(claim, labels) for claim in counted) if counted and labels else None,
    }


def contradicts(claims: Sequence[Claim]) -> bool:
    """Whether two claims give different counts of one thing.

    >>> contradicts([Claim(text="", about="pear", count=2), Claim(text="", about="pears", count=3)])
    True
    """
    counts: dict[str, int] = {}
    for claim in claims:
        if claim.count is not None and claim.about:
            name = claim.about.removesuffix("s")
            if counts.setdefault(name, claim.count) != claim.count:
                return True
    return False


def _borne_out(claim: Claim, labels: Sequence[str]) -> bool:
    name = claim.about.removesuffix("s")
    cited = sum(label.removesuffix("s") == name for label in labels)
    return cited in (0, claim.count)


def _cited(spec: GroundingSpec, parsed: Parsed) -> bool:
    kinds = {
        Expected.POINT: parsed.points,
        Expected.BOX: parsed.boxes,
        Expected.SPAN: parsed.spans,
        Expected.PLAN: parsed.actions,
    }
    return any(kinds[kind] for kind in spec.expected)


def _agrees(conclusion: str, answer: str) -> bool:
    one, other = normalised(conclusion), normalised(answer)
    if one == other or clean_label(one) == clean_label(other):
        return True
    numbers = parse_number(one), parse_number(other)
    return numbers[0] is not None and numbers[0] == numbers[1]
