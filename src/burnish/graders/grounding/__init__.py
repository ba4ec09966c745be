"""Grounded verification: tools that check an answer and the evidence it cites, chosen for each task."""

from burnish.graders.grounding.result import Component, Status, ToolResult
from burnish.graders.grounding.spec import GroundingSpec
from burnish.graders.grounding.verifier import Record, Verifier

__all__ = ["Component", "GroundingSpec", "Record", "Status", "ToolResult", "Verifier"]
