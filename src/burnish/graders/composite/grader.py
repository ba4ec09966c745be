"""The composite as a grader of written reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from burnish.core.errors import ConfigError
from burnish.core.grade import Grade
from burnish.core.task import Task
from burnish.graders.composite.findings import Finding, Lexicon, count_errors, findings_f1, read_findings
from burnish.graders.composite.overlap import bleu, rouge_l
from burnish.graders.composite.reward import CompositeReward, Measure, Metric, Scale, Transform
from burnish.graders.rules import RuleGrader

DEFAULT_METRICS = (
    Metric(name="bleu", weight=0.5, scale=Scale.NONE),
    Metric(name="rouge_l", weight=0.5, scale=Scale.NONE),
    Metric(name="findings", weight=2.0, scale=Scale.NONE),
    Metric(name="errors", weight=2.0, scale=Scale.NONE, higher_is_better=False, transform=Transform.RECIPROCAL),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportGrader(RuleGrader):
    """A report against `reference["report"]`: its text, the findings that are true, and the lexicon that they are
    written in.

    reward: the composite; by default BLEU, ROUGE-L, F1 of findings and counted errors, raw.  measures: further metrics
    by name, functions of (given, reference) that give None where they are unavailable, such as
    `integrations.report_metrics`; one unavailable ingredient leaves the report without a score, never with 0.
    """

    reward: CompositeReward = field(default_factory=lambda: CompositeReward(metrics=DEFAULT_METRICS, norms={}))
    measures: Mapping[str, Measure] = field(default_factory=dict)
    name = "report"

    def __post_init__(self) -> None:
        known = {"bleu", "rouge_l", "findings", "findings_simple", "findings_partial", "errors", *self.measures}
        for metric in self.reward.metrics:
            if metric.name not in known:
                raise ConfigError(f"no metric {metric.name!r}; there are {', '.join(sorted(known))}")

    def raw(self, task: Task, text: str) -> dict[str, float | None] | None:
        """Every metric's own value; None for a task without a report."""
        truth = task.reference.get("report")
        if not isinstance(truth, Mapping):
            return None
        reference = str(truth["text"])
        true = [Finding(**item) for item in truth["findings"]]
        given = read_findings(text, Lexicon.from_json(truth["lexicon"]))
        errors = count_errors(given, true)
        values: dict[str, float | None] = {
            "bleu": bleu(text, reference),
            "rouge_l": rouge_l(text, reference),
            "findings": findings_f1(given, true),
            "findings_partial": findings_f1(given, true, level="partial"),
            "findings_simple": findings_f1(given, true, level="simple"),
            "errors": float(sum(errors.values())),
        }
        return values | {name: measure(text, reference) for name, measure in self.measures.items()}

    def decide(self, task: Task, text: str) -> Grade:
        raw = self.raw(task, text)
        if raw is None:
            return self.verdict(None, cause="task_cannot_be_judged", evidence={"reference": sorted(task.reference)})
        composed = self.reward.score(raw)
        evidence: dict[str, Any] = {"parts": dict(composed.parts), "raw": dict(composed.raw)}
        if composed.score is None:
            return self.verdict(None, cause=f"unavailable:{composed.unavailable[0]}", evidence=evidence)
        return self.verdict(composed.score, evidence=evidence)
