"""A teacher with known error rates: the true verdict on the evidence, flipped at random."""

from __future__ import annotations

from random import Random

from burnish.core.grade import Grade
from burnish.core.hashing import derive_seed
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.graders.grounding.graders import GroundedGrader

GOOD_AT = 0.5
"""One-to-one F1 from which evidence counts as good."""


class NoisyTeacher:
    """Says good (1) or bad (0): of bad evidence wrongly in a share `fpr`, of good evidence wrongly in a share `fnr`.

    The draw depends on the trajectory's id alone, so that grading again gives the same verdict.  The true verdict
    stands in the evidence under `good`.
    """

    name = "teacher"
    version = "1"

    def __init__(self, *, fpr: float = 0.0, fnr: float = 0.0) -> None:
        self.fpr, self.fnr = fpr, fnr
        self._truth = GroundedGrader(component="spatial")

    async def grade(self, task: Task, trajectory: Trajectory) -> Grade:
        found = self._truth.judge(task, trajectory)
        if found.score is None:
            return Grade(grader=self.name, version=self.version, score=None, cause=found.cause)
        good = found.score >= GOOD_AT
        draw = Random(derive_seed("teacher", trajectory.id)).random()
        says = draw >= self.fnr if good else draw < self.fpr
        return Grade(grader=self.name, version=self.version, score=float(says), evidence={"good": good})
