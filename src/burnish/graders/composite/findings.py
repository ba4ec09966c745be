"""Structured findings: read from a report by a lexicon, compared as sets, and the errors between two lists counted.

The formulas of RadGraph F1 (Jain et al. 2021; Delbrouck et al. 2022) over annotations, whoever made them, and the six
kinds of error of CheXprompt (false finding, omission, location, severity, false comparison, omitted comparison), here
counted by rules instead of by a language model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

_NEGATION = re.compile(r"\b(no|without|absent|free of|not|denies)\b")
_SENTENCE = re.compile(r"[.;\n]")


class ErrorKind(StrEnum):
    """What can be wrong about a finding."""

    FALSE_FINDING = "false_finding"
    OMISSION = "omission"
    LOCATION = "location"
    SEVERITY = "severity"
    FALSE_COMPARISON = "false_comparison"
    OMITTED_COMPARISON = "omitted_comparison"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A thing that is (or is said not to be) there.

    `Finding(name="effusion", location="left", severity="small", change="new")`; "" for what is not said.
    """

    name: str
    location: str = ""
    severity: str = ""
    change: str = ""
    present: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Lexicon:
    """Words by what they say; longer ones are looked for first.  `Lexicon(names=("effusion",), locations=("left",))`"""

    names: tuple[str, ...]
    locations: tuple[str, ...] = ()
    severities: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Lexicon:
        """Of a mapping with these keys."""
        return Lexicon(**{key: tuple(value) for key, value in data.items()})


def read_findings(text: str, lexicon: Lexicon) -> tuple[Finding, ...]:
    """The findings that a report states, one for each clause that names one; repeats count each.

    >>> lexicon = Lexicon(names=("effusion", "nodule"), locations=("left", "right"), severities=("small",))
    >>> [(f.name, f.location, f.present) for f in read_findings("Small left effusion. No nodule.", lexicon)]
    [('effusion', 'left', True), ('nodule', '', False)]
    """
    found: list[Finding] = []
    for sentence in _SENTENCE.split(text[:20_000].lower()):
        negated = _NEGATION.search(sentence) is not None
        clauses = re.split(r",| and ", sentence)
        for clause in clauses:
            name = _first(clause, lexicon.names)
            if name:
                found.append(
                    Finding(
                        name=name,
                        location=_first(clause, lexicon.locations),
                        severity=_first(clause, lexicon.severities),
                        change=_first(clause, lexicon.changes),
                        present=not negated,
                    )
                )
    return tuple(found)


def findings_f1(given: Sequence[Finding], true: Sequence[Finding], *, level: str = "complete") -> float:
    """F1 of two multisets of findings.  level: "simple" compares name and presence, "partial" the location too,
    "complete" everything.  Two empty lists agree.

    >>> findings_f1([Finding(name="effusion", location="left")], [Finding(name="effusion", location="right")])
    0.0
    """
    fields = {"simple": 1, "partial": 2, "complete": 4}[level]

    def key(item: Finding) -> tuple[object, ...]:
        return (item.present, *(item.name, item.location, item.severity, item.change)[:fields])

    ours, theirs = Counter(key(item) for item in given), Counter(key(item) for item in true)
    total = sum(ours.values()) + sum(theirs.values())
    return 2 * sum((ours & theirs).values()) / total if total else 1.0


def count_errors(given: Sequence[Finding], true: Sequence[Finding]) -> dict[ErrorKind, int]:
    """Errors by kind.  Findings of one name are paired, those with the same location first; what is left over is false
    or omitted.  Statements that something is absent are errors only where it is present.

    >>> made = count_errors([Finding(name="effusion", location="left")], [Finding(name="effusion", location="right")])
    >>> made[ErrorKind.LOCATION], sum(made.values())
    (1, 1)
    """
    counts = dict.fromkeys(ErrorKind, 0)
    left = [item for item in given if item.present]
    for gold in (item for item in true if item.present):
        same = [item for item in left if item.name == gold.name]
        if not same:
            counts[ErrorKind.OMISSION] += 1
            continue
        paired = max(same, key=lambda item: _alike(item, gold))
        left.remove(paired)
        counts[ErrorKind.LOCATION] += paired.location != gold.location
        counts[ErrorKind.SEVERITY] += paired.severity != gold.severity
        counts[ErrorKind.FALSE_COMPARISON] += bool(paired.change) and paired.change != gold.change
        counts[ErrorKind.OMITTED_COMPARISON] += bool(gold.change) and not paired.change
    counts[ErrorKind.FALSE_FINDING] += len(left)
    return counts


def _alike(one: Finding, other: Finding) -> tuple[bool, bool, bool]:
    return (one.location == other.location, one.severity == other.severity, one.change == other.change)


def _first(clause: str, options: Sequence[str]) -> str:
    places = [
        (match.start(), -len(option), option)
        for option in options
        if (match := re.search(rf"\b{re.escape(option)}\b", clause)) is not None
    ]
    return min(places)[2] if places else ""
