"""The verifier: a response in, one record out: every tool's result, and the score of each component.

Tools are the boundary for their own failures: what one raises is its result with the status error, and changes no
other component.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from burnish.core.detector import Detector, Pixels
from burnish.core.task import Task
from burnish.core.text import cap_text, clean_text
from burnish.graders.evidence import Mode, Parsed, parse
from burnish.graders.gated import GateSpec, gated_reward
from burnish.graders.grounding.result import Case, Component, Status, ToolResult, VerificationTool
from burnish.graders.grounding.router import Router, default_tools
from burnish.graders.grounding.spec import GroundingSpec
from burnish.graders.isolation import WorkerFailure

ImageSource = Callable[[Task, int], Pixels]
"""The pixels of frame i of a task's images; raises DetectorError where there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What was found about one response.

    results: of each tool, the answer's first.  format_score: 1 where mode and form are what the task asks for.
    cited: pieces of the expected kind of evidence, readable or not.  grounding: F1 over the expected evidence, None
    where the task expects none; missing evidence counts 0.
    """

    results: tuple[ToolResult, ...]
    format_score: float
    parsed: Parsed
    cited: int = 0
    grounding: float | None = None

    def component(self, component: Component) -> tuple[float | None, float]:
        """Score and weight of a component: the mean of its tools' scores by reliability; None where one has none."""
        if component is Component.FORMAT:
            return self.format_score, 1.0
        mine = [result for result in self.results if result.component is component]
        if not mine or any(result.score is None for result in mine):
            return None, 0.0
        total = sum(result.reliability for result in mine)
        return sum((r.score or 0.0) * r.reliability for r in mine) / total, total / len(mine)

    def reward(self, spec: GateSpec) -> float | None:
        """The gated reward of this response alone; None where the answer could not be judged."""
        answer, _ = self.component(Component.ANSWER)
        if answer is None:
            return None
        parts = {
            component.value: self.component(component)
            for component in (Component.SPATIAL, Component.TEMPORAL, Component.REASONING, Component.PROCESS)
        }
        return gated_reward(answer, self.format_score, parts, spec)[0]

    def to_json(self) -> dict[str, Any]:
        """What a grade carries as evidence."""
        return {
            "answer": self.parsed.answer,
            "format": self.format_score,
            "cited": self.cited,
            "grounding": self.grounding,
            "n_malformed": len(self.parsed.malformed),
            "problems": list(self.parsed.problems),
            "tools": [
                {
                    "tool": result.tool,
                    "component": result.component.value,
                    "score": result.score,
                    "status": result.status.value,
                    "reliability": result.reliability,
                    "detail": dict(result.detail),
                }
                for result in self.results
            ],
            "places": [[p.label, round(p.x_px, 2), round(p.y_px, 2), p.frame] for p in self.parsed.points[:32]],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifier:
    """Checks responses.  `Verifier().verify(task, "<think>red circle (4, 5)</think>1")`

    detectors: teachers for places that nobody marked, in order of preference.  images: the pixels of a task's images,
    needed by teachers alone.  tools: instead of all built-in ones.
    """

    detectors: tuple[Detector, ...] = ()
    images: ImageSource | None = None
    tools: tuple[VerificationTool, ...] = ()
    budget_ms: float = 5_000.0
    _router: Router = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        router = Router(
            tools=self.tools or default_tools(self.detectors), detectors=self.detectors, budget_ms=self.budget_ms
        )
        object.__setattr__(self, "_router", router)

    def verify(self, task: Task, response: str) -> Record:
        """The record of one response.  Raises TaskError for a task that cannot be read, nothing else."""
        spec = GroundingSpec.of(task)
        parsed = parse(response, spec.parsing)
        route = self._router.route(task, spec)
        source = self.images
        images = None if source is None else (lambda frame: source(task, frame))
        case = Case(task=task, spec=spec, parsed=parsed, images=images)
        results = [_run(tool, case) for tool in route.tools]
        results += [
            ToolResult(
                tool="none", component=component, score=None, status=Status.UNAVAILABLE, detail={"problem": clean}
            )
            for component, clean in route.missing
        ]
        return Record(
            results=tuple(results),
            format_score=float(parsed.format_ok and parsed.mode is spec.mode),
            parsed=parsed,
            cited=_cited(spec, parsed),
            grounding=_grounding(spec, results),
        )

    def verify_batch(self, tasks: Sequence[Task], responses: Sequence[str]) -> list[Record]:
        """One record for each pair, in order."""
        return [self.verify(task, response) for task, response in zip(tasks, responses, strict=True)]


def _run(tool: VerificationTool, case: Case) -> ToolResult:
    started_s = time.perf_counter()
    try:
        result = tool.verify(case)
    except Exception as error:  # noqa: BLE001 - the boundary of tools: any failure becomes a result without a score
        is_late = isinstance(error, TimeoutError) or (isinstance(error, WorkerFailure) and error.cause == "timeout")
        result = ToolResult(
            tool=tool.name,
            component=tool.component,
            score=None,
            status=Status.TIMEOUT if is_late else Status.ERROR,
            detail={"problem": clean_text(cap_text(f"{type(error).__name__}: {error}", 200)[0])},
        )
    return dataclasses.replace(result, cost_ms=(time.perf_counter() - started_s) * 1000)


def _cited(spec: GroundingSpec, parsed: Parsed) -> int:
    found: Mapping[str, Sequence[object]] = {
        "point": parsed.points,
        "box": parsed.boxes,
        "span": parsed.spans,
        "plan": parsed.actions,
    }
    return sum(len(found[kind.value]) for kind in spec.expected)


def _grounding(spec: GroundingSpec, results: Sequence[ToolResult]) -> float | None:
    """Mean F1 over the kinds of evidence that the task expects; None where it expects none or a tool failed."""
    if spec.mode is Mode.DIRECT or not spec.expects_grounding:
        return None
    scores = [r.score for r in results if r.component in (Component.SPATIAL, Component.TEMPORAL, Component.PROCESS)]
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known and len(known) == len(scores) else None
