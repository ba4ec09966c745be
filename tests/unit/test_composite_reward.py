"""The composite of report metrics: directions, scales, what is unavailable; and the report environment."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.errors import ConfigError
from burnish.core.task import Task
from burnish.environments.scan_report import ScanReport
from burnish.graders.composite.findings import ErrorKind, Finding, Lexicon, count_errors, findings_f1, read_findings
from burnish.graders.composite.grader import ReportGrader
from burnish.graders.composite.overlap import Cider, bleu, rouge_l
from burnish.graders.composite.reward import CompositeReward, Metric, Norm, Scale, Transform
from burnish.integrations.report_metrics import ModelMetric
from burnish.testing.environment import EnvironmentConformance
from burnish.testing.grader import GraderConformance, answered

ROWS = [{"f1": 0.2, "errors": 6.0}, {"f1": 0.8, "errors": 0.0}, {"f1": 0.5, "errors": 2.0}]
METRICS = (
    Metric(name="f1", weight=1.0),
    Metric(name="errors", weight=3.0, higher_is_better=False, transform=Transform.RECIPROCAL),
)


def test_directions_and_scales() -> None:
    reward = CompositeReward.fitted(METRICS, ROWS)
    assert reward.score({"f1": 0.8, "errors": 0.0}).score == 1.0
    assert reward.score({"f1": 0.2, "errors": 6.0}).score == 0.0
    assert reward.score({"f1": 0.2, "errors": 0.0}).score == pytest.approx(0.75)
    assert reward.only("f1").score({"f1": 0.5}).score == pytest.approx(0.5)
    squashed = CompositeReward.fitted([Metric(name="f1", scale=Scale.Z_SCORE)], ROWS)
    assert squashed.score({"f1": 0.5}).score == pytest.approx(0.5)


@pytest.mark.parametrize("raw", [{"f1": 0.8}, {"f1": 0.8, "errors": None}, {"f1": 0.8, "errors": float("nan")}])
def test_what_is_unavailable_is_no_zero(raw: dict) -> None:
    composed = CompositeReward.fitted(METRICS, ROWS).score(raw)
    assert composed.score is None
    assert composed.unavailable == ("errors",)
    assert composed.parts == {"f1": 1.0}


@given(st.integers(0, 20), st.integers(0, 20), st.sampled_from([Transform.RECIPROCAL, Transform.LINEAR]))
def test_fewer_errors_are_never_worse(one: int, other: int, transform: Transform) -> None:
    metric = Metric(name="errors", higher_is_better=False, transform=transform)
    assert (metric.oriented(min(one, other))) >= metric.oriented(max(one, other))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Metric(name="x", weight=0.0), "weight"),
        (lambda: Metric(name="x", transform=Transform.LINEAR), "counts of errors"),
        (lambda: CompositeReward(metrics=(), norms={}), "metrics"),
        (lambda: CompositeReward(metrics=METRICS, norms={}), "norms"),
        (lambda: Norm.of([1.0, 1.0]), "different values"),
        (
            lambda: ReportGrader(reward=CompositeReward(metrics=(Metric(name="x", scale=Scale.NONE),), norms={})),
            "no metric",
        ),
    ],
)
def test_wrong_composites_are_refused(make: object, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        make()  # type: ignore[operator]


def test_overlap() -> None:
    assert bleu("the left lung is clear", "the left lung is clear") == pytest.approx(1.0)
    assert bleu("the the the the", "the left lung is clear") < 0.3
    assert rouge_l("clear is lung", "lung is clear") == pytest.approx(1 / 3)
    cider = Cider(["no effusion seen", "no nodule seen", "large effusion"])
    assert cider.score("no nodule seen", "no nodule seen") == pytest.approx(1.0)
    assert cider.score("seen", "no nodule seen") < cider.score("nodule", "no nodule seen")


LEXICON = Lexicon(
    names=("effusion", "nodule"), locations=("left", "right"), severities=("small", "large"), changes=("new",)
)


def test_errors_by_kind() -> None:
    true = [Finding(name="effusion", location="left", severity="small", change="new")]
    for text, kind in [
        ("New small right effusion.", ErrorKind.LOCATION),
        ("New large left effusion.", ErrorKind.SEVERITY),
        ("Small left effusion.", ErrorKind.OMITTED_COMPARISON),
        ("Normal.", ErrorKind.OMISSION),
        ("No effusion.", ErrorKind.OMISSION),
        ("New small left effusion and small left nodule.", ErrorKind.FALSE_FINDING),
    ]:
        counts = count_errors(read_findings(text, LEXICON), true)
        assert {k for k, n in counts.items() if n} == {kind}, text
    assert findings_f1(read_findings("New small left effusion.", LEXICON), true) == 1.0


class TestScanReport(EnvironmentConformance):
    make_environment = ScanReport


REPORT = {
    "text": "New small left effusion.",
    "findings": [{"name": "effusion", "location": "left", "severity": "small", "change": "new"}],
    "lexicon": {"names": ["effusion"], "locations": ["left", "right"], "severities": ["small"], "changes": ["new"]},
}
TASK = Task(prompt="Write.", reference={"answer": REPORT["text"], "report": REPORT})


class TestReportGrader(GraderConformance):
    make_grader = ReportGrader
    right = ((TASK, "New small left effusion."),)
    wrong = ((TASK, "New small right effusion."), (TASK, ""))
    deadline_s = 8.0


def test_every_mistake_of_the_expert_costs() -> None:
    for task in ScanReport().tasks("heldout", Random(0)):
        environment = ScanReport()
        environment.task = task
        for mistake in environment.mistakes:
            with pytest.raises(StopIteration) as done:
                next(environment.solve(mistake))  # type: ignore[arg-type]
            score = ReportGrader().judge(task, answered(task, done.value.value)).score
            assert score is not None
            assert score < 0.95, mistake
        break


def test_a_metric_without_its_weights_leaves_the_report_without_a_score() -> None:
    metric = ModelMetric(kind="radgraph")
    reward = CompositeReward(metrics=(Metric(name="radgraph", scale=Scale.NONE),), norms={})
    grade = ReportGrader(reward=reward, measures={"radgraph": metric}).judge(TASK, answered(TASK, "x"))
    assert (grade.score, grade.cause) == (None, "unavailable:radgraph")
    assert "not installed" in metric.reason
