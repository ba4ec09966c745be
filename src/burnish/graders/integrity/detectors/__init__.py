"""One detector for each family of exploits, in the order in which they are asked."""

from __future__ import annotations

from burnish.graders.integrity.detectors.answers import AnswersDetector
from burnish.graders.integrity.detectors.degenerate import DegenerateDetector
from burnish.graders.integrity.detectors.grader_access import GraderAccessDetector
from burnish.graders.integrity.detectors.interpreter import InterpreterDetector
from burnish.graders.integrity.detectors.judge import JudgeDetector
from burnish.graders.integrity.detectors.memory import MemoryDetector
from burnish.graders.integrity.detectors.simulated_user import SimulatedUserDetector
from burnish.graders.integrity.detectors.tests import TestsDetector
from burnish.graders.integrity.detectors.timing import TimingDetector
from burnish.graders.integrity.detectors.tool_world import ToolWorldDetector
from burnish.graders.integrity.flag import Detector

DETECTORS: tuple[Detector, ...] = (
    TimingDetector(),
    GraderAccessDetector(),
    TestsDetector(),
    MemoryDetector(),
    ToolWorldDetector(),
    SimulatedUserDetector(),
    JudgeDetector(),
    InterpreterDetector(),
    AnswersDetector(),
    DegenerateDetector(),
)
"""Of several families that fit, the one asked first names the episode: the more specific before the more general."""
