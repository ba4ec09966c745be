"""Curation of multimodal traces for SFT: find references, overlay them, write traces that cite them, keep the good.

Each stage is a function from examples to examples, and an example is one line of a JSONL file; the images lie beside
it by content hash.
"""

from burnish.graders.curation.example import Example, example_from_row, example_to_row
from burnish.graders.curation.filter import Answers, FilterSpec, Verdict, filtered
from burnish.graders.curation.overlay import overlaid
from burnish.graders.curation.references import found, reference_of
from burnish.graders.curation.writing import asked, cited

__all__ = [
    "Answers",
    "Example",
    "FilterSpec",
    "Verdict",
    "asked",
    "cited",
    "example_from_row",
    "example_to_row",
    "filtered",
    "found",
    "overlaid",
    "reference_of",
]
