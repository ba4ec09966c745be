"""A tool that checks stretches of time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from burnish.core.detector import Detector
from burnish.core.task import Task
from burnish.graders.evidence import Span
from burnish.graders.grounding.matching import match
from burnish.graders.grounding.result import Case, Component, ToolResult
from burnish.graders.grounding.spec import Expected, GoldSpan, GroundingSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TemporalOverlap:
    """One-to-one F1 of spans with their IoU as credit, times the share of event pairs cited in the true order."""

    name: str = "temporal_iou"
    version: str = "1"
    component: Component = Component.TEMPORAL
    cost_ms: float = 0.2

    def applies(self, task: Task, spec: GroundingSpec) -> bool:
        return spec.expects_grounding and Expected.SPAN in spec.expected

    def available(self, spec: GroundingSpec, detectors: Sequence[Detector]) -> str:
        return ""

    def verify(self, case: Case) -> ToolResult:
        n_malformed = len(case.parsed.malformed)
        cited, n_void = settled_spans(case.parsed.spans)
        found = match(cited, case.spec.spans, span_credit, n_malformed=n_malformed + n_void)
        order = _order([(cited[i].start_s, case.spec.spans[j].start_s) for i, j, _ in found.pairs])
        return ToolResult(
            tool=self.name,
            component=self.component,
            score=found.f1 * order,
            detail={
                "f1": found.f1,
                "order": order,
                "n_cited": found.n_cited,
                "n_true": found.n_true,
                "n_malformed": n_malformed,
                "n_void": n_void,
                "matched": [[cited_at, true, round(credit, 4)] for cited_at, true, credit in found.pairs],
            },
        )


def settled_spans(spans: Sequence[Span]) -> tuple[list[Span], int]:
    """Spans with repeats left out, and how many are void because several events are said of the same stretch.

    >>> settled_spans([Span(start_s=0, end_s=1, event="a"), Span(start_s=0, end_s=1, event="b")])
    ([], 2)
    """
    kept = {(span.start_s, span.end_s, span.event): span for span in spans}
    said = Counter((start, end) for start, end, _ in kept)
    clear = [span for (start, end, _), span in kept.items() if said[start, end] == 1]
    return clear, len(kept) - len(clear)


def span_credit(span: Span, gold: GoldSpan) -> float:
    """IoU of two spans; 0 where the events differ.

    >>> span_credit(Span(start_s=0.0, end_s=2.0), GoldSpan(start_s=1.0, end_s=3.0))
    0.3333333333333333
    """
    if gold.event and span.event != gold.event:
        return 0.0
    shared = min(span.end_s, gold.end_s) - max(span.start_s, gold.start_s)
    if shared <= 0:
        return 0.0
    return shared / (max(span.end_s, gold.end_s) - min(span.start_s, gold.start_s))


def _order(pairs: Sequence[tuple[float, float]]) -> float:
    """Share of pairs of matched events that are cited in their true order; 1 for fewer than two."""
    checks = [
        (a[0] - b[0]) * (a[1] - b[1]) >= 0 for index, a in enumerate(pairs) for b in pairs[index + 1 :] if a[1] != b[1]
    ]
    return sum(checks) / len(checks) if checks else 1.0
