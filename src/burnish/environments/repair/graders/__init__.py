"""The graders of a production coding agent, one file each; `graders.toml` beside the environment makes them a graph."""

from __future__ import annotations

from burnish.core.grade import Grader
from burnish.environments.repair.graders.behaviour import BehaviourGrader
from burnish.environments.repair.graders.ethics import EthicsGrader
from burnish.environments.repair.graders.experience import ExperienceGrader
from burnish.environments.repair.graders.hidden_tests import HiddenTestsGrader
from burnish.environments.repair.graders.length import LengthGrader
from burnish.environments.repair.graders.patch_format import PatchFormatGrader
from burnish.environments.repair.graders.tool_use import ToolUseGrader
from burnish.environments.repair.grading import Defences
from burnish.sandbox.ladder import SandboxSpec

__all__ = [
    "BehaviourGrader",
    "EthicsGrader",
    "ExperienceGrader",
    "HiddenTestsGrader",
    "LengthGrader",
    "PatchFormatGrader",
    "ToolUseGrader",
    "all_graders",
]


def all_graders(spec: SandboxSpec, defences: Defences) -> tuple[Grader, ...]:
    """All of them, in the order of the graph."""
    return (
        HiddenTestsGrader(
            rung=spec.rung or "",
            unsafe=spec.unsafe,
            clean_world=defences.clean_world,
            values_outside=defences.values_outside,
            nonce=defences.nonce,
        ),
        PatchFormatGrader(),
        ToolUseGrader(),
        BehaviourGrader(),
        ExperienceGrader(),
        LengthGrader(),
        EthicsGrader(),
    )
