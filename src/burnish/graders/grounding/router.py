"""Which tools check a task: by its answer type, the evidence it expects, what is available, and a budget.

The choice looks at the task alone, never at a response, so that all members of a group are scored by the same
components with the same weights.  Weights that depended on the response would let a dominated response win.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from burnish.core.detector import Detector
from burnish.core.task import Task
from burnish.graders.grounding.answer_tools import ANSWER_TOOLS
from burnish.graders.grounding.consistency import RuleConsistency
from burnish.graders.grounding.plan_tool import PlanExecutor
from burnish.graders.grounding.result import Component, VerificationTool
from burnish.graders.grounding.spatial_tools import BoxOverlap, PointInRegion
from burnish.graders.grounding.spec import Expected, GroundingSpec
from burnish.graders.grounding.teacher_tool import DetectorTeacher
from burnish.graders.grounding.temporal_tool import TemporalOverlap


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The tools of a task.  missing: (component, why) of what the task asks for and nobody can check."""

    tools: tuple[VerificationTool, ...]
    missing: tuple[tuple[Component, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """Picks tools.  `Router(tools=default_tools()).route(task, spec)`

    tools: in order of preference; of those for one kind of evidence the first that applies and is available is taken.
    budget_ms: what all tools of one response may usually cost; those past it are missing, by name.
    """

    tools: tuple[VerificationTool, ...]
    detectors: tuple[Detector, ...] = ()
    budget_ms: float = 5_000.0

    def route(self, task: Task, spec: GroundingSpec) -> Route:
        """The tools of a task, in a fixed order."""
        chosen: list[VerificationTool] = []
        missing: list[tuple[Component, str]] = []
        left_ms = self.budget_ms
        for component in Component:
            found, why = self._one_of(component, task, spec, left_ms)
            chosen += found
            left_ms -= sum(tool.cost_ms for tool in found)
            if why and not found:
                missing.append((component, why))
        return Route(tools=tuple(chosen), missing=tuple(missing))

    def _one_of(
        self, component: Component, task: Task, spec: GroundingSpec, left_ms: float
    ) -> tuple[list[VerificationTool], str]:
        """The tools of a component, one for each name; or why there is none although the task asks for it."""
        asked = [tool for tool in self.tools if tool.component is component and tool.applies(task, spec)]
        why = "" if asked else _unmet(component, spec)
        chosen: dict[str, VerificationTool] = {}
        for tool in asked:
            problem = tool.available(spec, self.detectors)
            if not problem and tool.cost_ms > left_ms:
                problem = f"{tool.name} takes {tool.cost_ms:g} ms, and {left_ms:g} ms of the budget are left"
            if problem:
                why = why or problem
            elif tool.name not in chosen:
                chosen[tool.name] = tool
                left_ms -= tool.cost_ms
        return list(chosen.values()), why


def default_tools(detectors: Sequence[Detector] = ()) -> tuple[VerificationTool, ...]:
    """Every tool; a teacher for each detector."""
    return (
        *(make() for make in ANSWER_TOOLS),
        PointInRegion(),
        BoxOverlap(),
        *(DetectorTeacher(detector=detector) for detector in detectors),
        TemporalOverlap(),
        RuleConsistency(),
        PlanExecutor(),
    )


def _unmet(component: Component, spec: GroundingSpec) -> str:
    """What no tool offers although the task asks for it."""
    if component is Component.ANSWER:
        return "no tool for this type of answer"
    places = {Expected.POINT, Expected.BOX} & set(spec.expected)
    if component is Component.SPATIAL and spec.expects_grounding and places:
        return "no true regions, and no detector to ask"
    return ""
