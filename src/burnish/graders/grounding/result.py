"""What a verification tool says, and what a tool is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from burnish.core.detector import Detector, Pixels
from burnish.core.task import Task
from burnish.graders.evidence import Parsed
from burnish.graders.grounding.spec import GroundingSpec


class Component(StrEnum):
    """What part of a reward a tool's score is."""

    ANSWER = "answer"
    SPATIAL = "spatial"
    TEMPORAL = "temporal"
    REASONING = "reasoning"
    PROCESS = "process"
    FORMAT = "format"


class Status(StrEnum):
    """Why there is or is no score.  Only `ok` has one; a failed tool is never a zero."""

    OK = "ok"
    NOT_APPLICABLE = "not_applicable"
    UNAVAILABLE = "unavailable"
    ERROR = "error"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """A tool's verdict.

    `ToolResult(tool="point_in_region", component=Component.SPATIAL, score=0.8, detail={"matched": 2})`

    score: in [0, 1] exactly where the status is ok, else None.  reliability in (0, 1]: a constant of the tool on this
    kind of task, the same for all members of a group.  detail: JSON-able.  cost_ms: wall time.
    """

    tool: str
    component: Component
    score: float | None
    status: Status = Status.OK
    reliability: float = 1.0
    detail: Mapping[str, Any] = field(default_factory=dict)
    cost_ms: float = 0.0

    def __post_init__(self) -> None:
        if (self.score is None) == (self.status is Status.OK):
            raise ValueError(
                f"{self.tool}: a score goes with the status ok alone, got {self.score!r} and {self.status}"
            )
        if self.score is not None and not (math.isfinite(self.score) and 0.0 <= self.score <= 1.0):
            raise ValueError(f"{self.tool}: a score lies in [0, 1], got {self.score!r}")
        if not 0.0 < self.reliability <= 1.0:
            raise ValueError(f"{self.tool}: reliability lies in (0, 1], got {self.reliability!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One response to one task, taken apart: what tools look at.

    images: the pixels of frame i of the task, or None where nobody can give them; asked for by teachers alone.
    """

    task: Task
    spec: GroundingSpec
    parsed: Parsed
    images: Callable[[int], Pixels] | None = None


class VerificationTool(Protocol):
    """One check.  Deterministic for equal inputs; whatever it raises is caught by the verifier and becomes an error.

    cost_ms: what it usually takes, for the router's budget.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def component(self) -> Component: ...
    @property
    def cost_ms(self) -> float: ...

    def applies(self, task: Task, spec: GroundingSpec) -> bool:
        """Whether this task asks for it.  Looks at the task alone: all members of a group get the same tools."""
        ...

    def available(self, spec: GroundingSpec, detectors: Sequence[Detector]) -> str:
        """Empty where it can run, else what is missing."""
        ...

    def verify(self, case: Case) -> ToolResult:
        """The verdict on a response."""
        ...
