"""Write a report of a scan's readings; the truth is the list of findings that the readings were drawn from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from random import Random
from typing import Any, ClassVar

from burnish.core.environment import Script
from burnish.core.grade import Grader
from burnish.core.hashing import derive_seed
from burnish.core.task import Limits, Task
from burnish.environments.base import Environment

NAMES = {"fluid": "effusion", "density": "opacity", "round density": "nodule", "air": "pneumothorax"}
"""What a reading is called in a report."""

LOCATIONS = ("left", "right")
SEVERITIES = ("small", "moderate", "large")
CHANGES = ("new", "larger", "smaller", "unchanged")
LEXICON = {
    "names": list(NAMES.values()),
    "locations": list(LOCATIONS),
    "severities": list(SEVERITIES),
    "changes": list(CHANGES),
}
TEMPLATE = "No new left effusion. No right effusion. No larger left opacity. No nodule. No pneumothorax."
"""One report for every scan: what a metric of overlap alone likes."""


class ScanReport(Environment):
    """Readings by side, on a scale from 0 to 3, with the earlier value; the answer is the report.

    "left fluid: 2 (before 1)" is a "larger moderate left effusion"; a reading of 0 is not mentioned.  Options: sizes of
    the splits.
    """

    name: ClassVar[str] = "scan_report"
    splits: ClassVar[tuple[str, ...]] = ("train", "heldout")
    graders: tuple[str | Grader, ...] = ("report",)
    limits: Limits = Limits(max_turns=1, max_turn_tokens=96)
    chance: float = 0.3
    mistakes: tuple[str, ...] = ("template", "omission", "wrong_side", "wrong_severity", "invented")

    def __init__(self, *, train: int = 1000, heldout: int = 300) -> None:
        self.sizes = {"train": train, "heldout": heldout}

    def tasks(self, split: str, rng: Random) -> Iterator[Task]:
        """Distinct readings; which of them are held out is decided by their hash."""
        made = 0
        while made < self.sizes[split]:
            readings = _readings(rng)
            text = "; ".join(f"{side} {what}: {now} (before {before})" for side, what, now, before in readings)
            if (derive_seed("scan_report", text) % 5 == 0) != (split == "heldout"):
                continue
            made += 1
            findings = [finding for reading in readings if (finding := _finding(*reading)) is not None]
            report = written(findings)
            yield Task(
                prompt=f"Write the report. Readings: {text}",
                reference={
                    "answer": report,
                    "report": {"text": report, "findings": findings, "lexicon": LEXICON},
                },
                tags={"source": "scan_report", "findings": str(len(findings))},
            )

    def solve(self, mistake: str | None = None) -> Script:
        """The report of the true findings, or one with a named mistake."""
        truth = [dict(finding) for finding in self.task.reference["report"]["findings"]]
        rng = Random(derive_seed(self.task.id, mistake or ""))
        return TEMPLATE if mistake == "template" else written(_mistaken(truth, mistake, rng))
        yield  # A script is a generator, also where it needs no tool.


def written(findings: list[dict[str, Any]]) -> str:
    """The report of a list of findings.

    >>> written([{"name": "effusion", "location": "left", "severity": "small", "change": "new"}])
    'New small left effusion.'
    """
    if not findings:
        return "Normal."
    sentences = [f"{f['change']} {f['severity']} {f['location']} {f['name']}." for f in findings]
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def _readings(rng: Random) -> list[tuple[str, str, int, int]]:
    places = rng.sample([(side, what) for side in LOCATIONS for what in NAMES], rng.randint(2, 4))
    readings = [(side, what, rng.randint(0, 3), rng.randint(0, 3)) for side, what in places]
    if not any(now for _, _, now, _ in readings):
        side, what, _, before = readings[0]
        readings[0] = (side, what, rng.randint(1, 3), before)
    return readings


def _finding(side: str, what: str, now: int, before: int) -> dict[str, Any] | None:
    if now == 0:
        return None
    change = "new" if before == 0 else "larger" if now > before else "smaller" if now < before else "unchanged"
    return {"name": NAMES[what], "location": side, "severity": SEVERITIES[now - 1], "change": change}


def _mistaken(findings: list[dict[str, Any]], mistake: str | None, rng: Random) -> list[dict[str, Any]]:
    one: Mapping[str, Any] = rng.choice(findings)
    index = findings.index(dict(one))
    if mistake == "omission":
        del findings[index]
    elif mistake == "wrong_side":
        findings[index] |= {"location": LOCATIONS[1 - LOCATIONS.index(one["location"])]}
    elif mistake == "wrong_severity":
        findings[index] |= {"severity": rng.choice([s for s in SEVERITIES if s != one["severity"]])}
    elif mistake == "invented":
        taken = {(f["name"], f["location"]) for f in findings}
        free = [(n, side) for n in NAMES.values() for side in LOCATIONS if (n, side) not in taken]
        name, side = rng.choice(free)
        findings.append({"name": name, "location": side, "severity": "small", "change": "new"})
    return findings
