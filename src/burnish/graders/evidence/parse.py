"""From a free-form response to its parts: mode, reasoning, evidence, conclusion and final answer.

A reference that cannot be read is counted, never repaired: a policy that writes percent where pixels are due is wrong,
and a parser that guessed would teach it to stay so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from burnish.graders.evidence import syntax
from burnish.graders.evidence.coordinates import Convention, Frame
from burnish.graders.evidence.kinds import Claim, Evidence, Malformed, Mode, Parsed, Source
from burnish.graders.rules import MAX_ANSWER_CHARS, normalised, parse_number

_OPEN, _CLOSE = "<think>", "</think>"
_ANSWER = re.compile(r"<answer>([^<]{0,2000})</answer>", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\{([^{}]{0,500})\}")
_CONCLUSION = re.compile(
    r"\b(?:(?:the|my|final) answer(?: is| must be| should be| has to be|:)|answer:|conclusion:)\s{0,3}([^.;\n<]{1,80})"
    # These also begin sentences that restate no answer: a few words and no more are taken for one.
    r"|\b(?:(?:so|hence|thus|therefore),? it (?:is|must be|has to be)|hence|thus|therefore|(?:i|we) conclude(?: that)?"
    r"(?: it is)?|(?:that|this|which) (?:makes|means|gives)(?: it)?)[:,]?\s{1,3}"
    r"([^\s.;:,\n<]{1,30}(?:\s[^\s.;:,\n<]{1,30}){0,3})\s{0,3}(?=[.;\n<]|$)",
    re.IGNORECASE,
)
_YES_NO = ("yes", "no")
_FINDERS = (syntax.tags, syntax.json_objects, syntax.times, syntax.inline, syntax.named, syntax.actions)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParseSpec:
    """What a policy's numbers mean.  `ParseSpec(frame=Frame(width_px=32, height_px=32))`

    convention: of JSON and inline coordinates.  tag_convention: of point tags, percent as Molmo writes them.
    """

    frame: Frame
    convention: Convention = Convention.ABSOLUTE
    tag_convention: Convention = Convention.PERCENT


def parse(response: str, spec: ParseSpec) -> Parsed:
    """The parts of a response.  Total: every text gives a result, in time linear in its (capped) length.

    Evidence is read from the reasoning where there is a thinking block, else from the whole response.

    >>> found = parse("<think>red circle (4, 5)</think> 1", ParseSpec(frame=Frame(width_px=8, height_px=8)))
    >>> found.answer, found.points[0].label, found.points[0].x_px
    ('1', 'red circle', 4.0)
    """
    if len(response) > MAX_ANSWER_CHARS:
        return Parsed(mode=Mode.DIRECT, reasoning="", answer=None, problems=("too_long",))
    mode, reasoning, rest, problems = _split(response)
    answer, answer_problems = _answer(rest)
    where = reasoning if mode is Mode.THINK else response
    evidence, malformed = _evidence(
        where, syntax.Reading(frame=spec.frame, convention=spec.convention, tag_convention=spec.tag_convention)
    )
    stated = [said or _restated(loose, answer or "") for said, loose in _CONCLUSION.findall(reasoning)]
    conclusions = [text for text in stated if text]
    return Parsed(
        mode=mode,
        reasoning=reasoning,
        answer=answer,
        evidence=evidence,
        malformed=malformed,
        problems=(*problems, *answer_problems),
        conclusion=conclusions[-1].strip() if conclusions else "",
    )


def _split(response: str) -> tuple[Mode, str, str, tuple[str, ...]]:
    """Mode, reasoning, the rest with the answer, and what is wrong.  An opening tag may stand in the prompt."""
    opened, closed = response.count(_OPEN), response.count(_CLOSE)
    if opened == 0 and closed == 0:
        return Mode.DIRECT, "", response.strip(), ()
    if closed == 0:
        return Mode.THINK, response.partition(_OPEN)[2], "", ("think_unclosed",)
    before, _, rest = response.rpartition(_CLOSE)
    reasoning = before.partition(_OPEN)[2] if opened else before
    problems = ("think_repeated",) if opened > 1 or closed > 1 else ()
    if not reasoning.strip() and not problems:
        return Mode.DIRECT, "", rest.strip(), ()  # An empty block is how direct mode is forced.
    return Mode.THINK, reasoning, rest.strip(), problems


def _answer(rest: str) -> tuple[str | None, tuple[str, ...]]:
    """The one answer, None where there is none or more than one."""
    stated = [(match.end(), match[1].strip()) for match in _ANSWER.finditer(rest)]
    stated = stated or [(match.end(), match[1].strip()) for match in _BOXED.finditer(rest)]
    if not stated:
        return (rest, ()) if rest else (None, ("no_answer",))
    if len({normalised(text) for _, text in stated}) > 1:
        return None, ("several_answers",)
    if normalised(rest[stated[-1][0] :]).strip("$ \\)]"):
        return None, ("text_after_answer",)
    return (stated[-1][1], ()) if stated[-1][1] else (None, ("no_answer",))


def holds(text: str, answer: str) -> bool:
    """Whether the words of an answer stand in a text, one after another.

    >>> holds("it is in the top left", "Top left"), holds("it is left", "top left")
    (True, False)
    """
    words, given = syntax.clean_label(text).split(), syntax.clean_label(answer).split()
    return any(words[at : at + len(given)] == given for at in range(len(words)))


def _restated(text: str, answer: str) -> str:
    """What a loose "therefore" concludes: the answer where its words are there, else what is of the answer's own kind.

    "therefore it is left of it" does not speak against "yes".
    """
    if holds(text, answer):
        return answer
    if parse_number(answer) is not None:
        return text if parse_number(text) is not None else ""
    if normalised(answer) in _YES_NO:
        return text if normalised(text) in _YES_NO else ""
    return text


def _evidence(text: str, reading: syntax.Reading) -> tuple[tuple[Evidence, ...], tuple[Malformed, ...]]:
    """Everything found, in order; a stretch of text belongs to the first syntax that reads it (claims overlap all)."""
    taken: list[Source] = []
    found: list[Evidence | Malformed] = []
    for finder in _FINDERS:
        mine: list[Source] = []
        for item in finder(text, reading):
            if not isinstance(item, Claim) and _overlaps(item.source, taken):
                continue
            found.append(item)
            if not isinstance(item, Claim):
                mine.append(item.source)
        taken += mine
    found.sort(key=lambda item: item.source)
    return (
        tuple(item for item in found if not isinstance(item, Malformed)),
        tuple(item for item in found if isinstance(item, Malformed)),
    )


def _overlaps(source: Source, taken: list[Source]) -> bool:
    return any(source[0] < end and start < source[1] for start, end in taken)
