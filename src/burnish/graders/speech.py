"""Transcripts, judged by their word or character error rate (jiwer)."""

from __future__ import annotations

import importlib
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal

from burnish.core.grade import Grade
from burnish.core.task import Task
from burnish.core.text import clean_text
from burnish.graders.killable import require
from burnish.graders.rules import RuleGrader

MAX_LENGTH_RATIO = 4.0
"""A transcript this many times longer than the reference has an error rate above 1 whatever it says: endless
repetition is not even aligned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechGrader(RuleGrader):
    """1 - error rate against `reference["answer"]`, at least 0: no edits 1, one word of four wrong .75.

    unit: "word" (WER) or "character" (CER, for languages without spaces).  Case, punctuation and runs of white space do
    not count.  Needs the extra `graders`.
    """

    unit: Literal["word", "character"] = "word"
    name = "speech"

    def __post_init__(self) -> None:
        if self.unit not in ("word", "character"):
            raise ValueError(f"unit is word or character, got {self.unit!r}")
        require("jiwer", "jiwer")

    def decide(self, task: Task, text: str) -> Grade:
        right, given = spoken(str(task.reference.get("answer", ""))), spoken(text)
        if not right:
            return self.verdict(None, cause="task_cannot_be_judged", evidence={"reference": sorted(task.reference)})
        if len(given) > MAX_LENGTH_RATIO * len(right) + 10:
            return self.verdict(0.0, cause="too_long", evidence={"chars": len(given), "expected": len(right)})
        if not given:
            return self.verdict(0.0, cause="empty")
        jiwer: Any = importlib.import_module("jiwer")
        found = (jiwer.process_words if self.unit == "word" else jiwer.process_characters)(right, given)
        rate = found.wer if self.unit == "word" else found.cer
        counts = {name: getattr(found, name) for name in ("substitutions", "deletions", "insertions")}
        return self.verdict(max(0.0, 1.0 - rate), evidence={"error_rate": round(rate, 6), **counts})


def spoken(text: str) -> str:
    """What of a transcript counts.

    >>> spoken("Well,  it's FINE.")
    "well it's fine"
    """
    plain = unicodedata.normalize("NFKC", clean_text(text)).casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    kept = ("" if unicodedata.category(character)[0] in "PC" and character not in "' \n\t" else character
            for character in plain)  # fmt: skip
    return " ".join("".join(kept).split())
