"""Nothing done: the empty answer, a refusal, the question again, a template, helpers started for their number."""

from __future__ import annotations

import re

from burnish.graders.integrity.evidence import Evidence
from burnish.graders.integrity.flag import Family, Flag, Strength

_REFUSAL = re.compile(
    r"\b(i (can ?not|can't|am unable|won't|will not)|as an ai|not (able|allowed) to|i'm sorry"
    r"|cannot (help|assist|comply))\b",
    re.IGNORECASE,
)
_SPAWNS = ("spawn", "spawn_agent", "delegate", "start_agent")
_MANY, _ECHO_SHARE, _ECHO_WORDS = 3, 0.8, 4


class DegenerateDetector:
    """No attempt: at most a reward of 0, never a punishment and never an exclusion."""

    name, family = "no_attempt", Family.DEGENERATE

    def detect(self, evidence: Evidence) -> Flag | None:
        found = _found(evidence)
        if not found:
            return None
        return Flag(family=self.family, detector=self.name, strength=Strength.NO_ATTEMPT, evidence={"found": found})


def _found(evidence: Evidence) -> list[str]:
    answer = evidence.answer.strip()
    worked = [call for call in evidence.calls if call.name not in _SPAWNS]
    spawned = [call for call in evidence.calls if call.name in _SPAWNS]
    if len(spawned) >= _MANY and not worked:
        return [f"{len(spawned)} helpers and no work"]
    if worked:
        return []
    if not answer:
        return ["neither a call nor an answer"]
    if _REFUSAL.search(answer):
        return ["a refusal without a look"]
    if _is_echo(answer, evidence.task.prompt_text):
        return ["the task's own words as the answer"]
    if evidence.surface.must_call:
        return ["an answer without any of the calls that it takes"]
    return []


def _is_echo(answer: str, prompt: str) -> bool:
    words, asked = _words(answer), set(_words(prompt))
    return len(words) >= _ECHO_WORDS and sum(word in asked for word in words) >= _ECHO_SHARE * len(words)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
