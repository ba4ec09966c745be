"""A grader with what it declares: what it needs, whether it is a gate, its weight over training, cost and limits.

Nodes are the whole graph: a list of them is one, and a plain grader in such a list is a node that needs nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from burnish.core.errors import ConfigError
from burnish.core.grade import Grade, Grader
from burnish.core.hints import did_you_mean
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class WeightSchedule:
    """A weight over training: straight lines between (share of training done, weight), flat outside.

    >>> ramp = WeightSchedule(((0.25, 0.0), (0.75, 1.0)))
    >>> [ramp.at(share) for share in (0.0, 0.5, 1.0)]
    [0.0, 0.5, 1.0]

    Two points at one share are a jump.  Raises ConfigError for no points, shares outside [0, 1] or out of order, and
    weights that are not finite.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        shares = [share for share, _ in self.points]
        if not shares or not all(0.0 <= share <= 1.0 for share in shares) or shares != sorted(shares):
            raise ConfigError(f"a weight schedule has points at rising shares of training in [0, 1], got {self.points}")
        if not all(math.isfinite(weight) for _, weight in self.points):
            raise ConfigError(f"weights must be finite, got {[weight for _, weight in self.points]}")

    @staticmethod
    def constant(weight: float) -> WeightSchedule:
        """The same weight all along."""
        return WeightSchedule(((0.0, float(weight)),))

    def at(self, share: float) -> float:
        """The weight after a share of training; a share outside of [0, 1] counts as the nearer end."""
        if not math.isfinite(share):
            raise ValueError(f"the share of training done is a number in [0, 1], got {share}")
        share = min(max(share, 0.0), 1.0)
        if share < self.points[0][0]:
            return self.points[0][1]
        for (left, low), (right, high) in pairwise(self.points):
            if left <= share < right:
                return low + (high - low) * (share - left) / (right - left)
        return self.points[-1][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraderNode:
    """A grader in a graph; itself a grader, whose grades carry the node's name.

    `GraderNode(name="answer", grader=ExactGrader(), requires=("format",), weight=WeightSchedule.constant(1.0))`

    name: default the grader's.  requires: nodes that must have judged before; where one of them is a closed gate, or
    was skipped by one, this node is skipped; where one has no score for another reason, this node cannot judge either.
    gate: None, or the score from which on this gate is open.  cost_s: expected wall seconds of one grade; of nodes that
    are ready together the cheaper starts first.  timeout_s: of one grade; None: the caller's.  parallel: most grades
    of this node at a time, 0 for as many as the grader says, else any number.  preference: counts in training alone;
    held-out success leaves it out.
    """

    grader: Grader
    name: str = ""
    requires: tuple[str, ...] = ()
    gate: float | None = None
    weight: WeightSchedule = WeightSchedule(((0.0, 1.0),))
    cost_s: float = 0.0
    timeout_s: float | None = None
    parallel: int = 0
    preference: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.grader.name)
        problem = ""
        if self.gate is not None and not 0.0 < self.gate <= 1.0:
            problem = f"its gate opens from a score in (0, 1] on, got {self.gate!r}"
        elif self.timeout_s is not None and not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            problem = f"its timeout_s is a number above 0, got {self.timeout_s!r}"
        elif not (math.isfinite(self.cost_s) and self.cost_s >= 0) or self.parallel < 0:
            problem = f"cost_s and parallel are 0 or more, got {self.cost_s!r} and {self.parallel!r}"
        if problem:
            raise ConfigError(f"grader {self.name}: {problem}")

    @property
    def version(self) -> str:
        """The grader's."""
        return self.grader.version

    async def grade(self, task: Task, trajectory: Trajectory) -> Grade:
        """The grader's verdict under the node's name."""
        grade = await self.grader.grade(task, trajectory)
        if not isinstance(grade, Grade):
            raise TypeError(f"grade() of {self.name} returned {type(grade).__name__}, not a Grade")
        return dataclasses.replace(grade, grader=self.name)

    def is_open(self, grade: Grade) -> bool:
        """Whether what hangs on this node may be judged, given its score."""
        return self.gate is None or (grade.score is not None and grade.score >= self.gate)


def as_nodes(graders: Sequence[Grader | GraderNode]) -> tuple[GraderNode, ...]:
    """Every grader as a node.  Raises ConfigError where names repeat, a requirement is unknown, or they form a ring."""
    nodes = tuple(item if isinstance(item, GraderNode) else GraderNode(grader=item) for item in graders)
    names = [node.name for node in nodes]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two graders are named {name!r}; give one of them another name")
    for node in nodes:
        for needed in node.requires:
            if needed not in names:
                hint = did_you_mean(needed, names, f"there are {', '.join(names)}")
                raise ConfigError(f"grader {node.name} requires {needed!r}, which is not in the graph; {hint}")
    running_order(nodes)
    return nodes


def running_order(nodes: Sequence[GraderNode]) -> list[GraderNode]:
    """Nodes after all that they require, cheaper ones first.  Raises ConfigError for a ring.

    >>> from burnish.graders.rules import ExactGrader
    >>> a = GraderNode(name="a", grader=ExactGrader(), requires=("b",))
    >>> [node.name for node in running_order([a, GraderNode(name="b", grader=ExactGrader())])]
    ['b', 'a']
    """
    waiting = sorted(nodes, key=lambda node: node.cost_s)
    ordered: list[GraderNode] = []
    while waiting:
        done = {node.name for node in ordered}
        ready = [node for node in waiting if done.issuperset(node.requires)]
        if not ready:
            raise ConfigError(f"graders require each other in a ring: {', '.join(node.name for node in waiting)}")
        ordered += ready
        waiting = [node for node in waiting if node not in ready]
    return ordered
