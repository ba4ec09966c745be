"""Evidence: what a response refers to, read from its text into original-image pixels and seconds."""

from burnish.graders.evidence.coordinates import Convention, Frame
from burnish.graders.evidence.kinds import Action, Box, Claim, Entity, Evidence, Malformed, Mode, Parsed, Point, Span
from burnish.graders.evidence.parse import ParseSpec, parse

__all__ = [
    "Action",
    "Box",
    "Claim",
    "Convention",
    "Entity",
    "Evidence",
    "Frame",
    "Malformed",
    "Mode",
    "ParseSpec",
    "Parsed",
    "Point",
    "Span",
    "parse",
]
