"""The report of many diagnoses as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from burnish.diagnosis.comparison import Change
from burnish.diagnosis.overview import PLACES, Overview, accuracy, over_steps
from burnish.diagnosis.timeline import rows_of, why_of

SHOWN_CASES = 20
SPANS = 8
"""Spans of steps that a run is told in."""
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!])")


def plain(text: object, most: int = 300) -> str:
    """A text that stays one line and no markup.

    >>> plain("a|b\\n<c>")
    'a\\\\|b \\\\<c\\\\>'
    """
    one = "".join(char if char.isprintable() else " " for char in str(text)[:most])
    return _SPECIAL.sub(r"\\\1", one)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(plain(cell) for cell in row) + " |"
    yield ""


def markdown(overview: Overview, changes: Sequence[Change] = ()) -> str:
    """The whole report."""
    lines = [f"# Diagnosis of {plain(overview.name)}", "", headline(overview), ""]
    if changes:
        lines += ["## Compared", "", *_table(("", "now", "before", "difference", "95%"), compared(changes))]
    if overview.clusters:
        rows = [(c.count, *key, ", ".join(c.examples[:2])) for key, c in overview.ordered_clusters()[:30]]
        head = ("n", "category", "owner", "cause", "tool", "such as")
        lines += ["## Clusters of failures", "", *_table(head, rows)]
        lines += ["## Category by place", "", "Tenths of a trajectory, from its first message to its last.", ""]
        lines += _table(("", *(str(n) for n in range(1, PLACES + 1))), heat_rows(overview))
    lines += _slices(overview)
    if overview.cases:
        lines += ["## Trajectories", ""]
    for case in overview.cases[:: -(-len(overview.cases) // SHOWN_CASES) or 1]:
        critical = case.critical
        lines += [
            f"### {plain(case.record.id)}: message {critical.index}, {critical.category}, {plain(critical.party)}",
            "",
            f"{plain(why_of(case))} (p {critical.p:.2f})",
            "",
        ]
        told: list[tuple[object, ...]] = []
        for row in rows_of(case):
            mark = "**critical**" if row.is_critical else ""
            found = "; ".join(f"{v.constraint}: {v.why}" for v in row.violations)
            told.append((row.index, row.role, row.text.replace("\n", " "), found, mark))
        lines += [line.replace(r"\*\*critical\*\*", "**critical**") for line in _table(_TIMELINE, told)]
    return "\n".join(lines) + "\n"


_TIMELINE = ("message", "who", "says or calls", "violations", "")


def headline(overview: Overview, *, review: bool = True) -> str:
    """Counts in a sentence; with `review` also what people said of the diagnoses."""
    text = (
        f"{overview.runs} trajectories: {overview.passed} passed, {overview.accused} with a critical step, "
        f"{overview.unknown} without (don't know); {overview.bad} bad record{'' if overview.bad == 1 else 's'}."
    )
    said = reviewed_line(overview) if review else ""
    return f"{text} {said}." if said else text


def reviewed_line(overview: Overview) -> str:
    """How often people found the diagnosis right, "" where nobody looked."""
    shares = ", ".join(
        f"{name} {share:.0%} [{low:.0%}, {high:.0%}]" for name, (share, low, high) in accuracy(overview).items()
    )
    return f"Of {overview.reviewed['n']} that people looked at, right were: {shares}" if shares else ""


def heat_rows(overview: Overview) -> list[list[object]]:
    """Category and its failures in each tenth."""
    return [
        [category, *(overview.heat[category, place] or "" for place in range(PLACES))]
        for category, _ in overview.categories.most_common()
    ]


def compared(changes: Sequence[Change]) -> list[tuple[str, str, str, str, str]]:
    """Cells of a comparison."""
    return [
        (
            change.name + (" (worse)" if change.is_worse else " (better)" if change.is_better else ""),
            f"{change.now:.1%}",
            f"{change.before:.1%}",
            f"{change.difference:+.1%}",
            f"[{change.low:+.1%}, {change.high:+.1%}]",
        )
        for change in changes
    ]


def slice_rows(overview: Overview, most: int = 80, spans: int = 3) -> list[tuple[str, str, str, str, str]]:
    """(slice, steps, runs, share that failed, most frequent categories): all runs over time, then the slices with the
    most failures first, each over `spans` spans of steps."""
    totals = {key: sum(row["failed"] for row in steps.values()) for key, steps in overview.slices.items()}
    runs = {key: sum(row["runs"] for row in steps.values()) for key, steps in overview.slices.items()}
    told = [key for key in overview.slices if key == ("all", "") or runs[key] < overview.runs]
    found = []
    for name, value in sorted(told, key=lambda key: (key != ("all", ""), -totals[key], key)):
        for steps, counts in over_steps(overview.slices[name, value], most=spans if value else SPANS):
            kinds = [(k, n) for k, n in counts.most_common() if k not in ("runs", "failed") and ":" not in k]
            top = ", ".join(f"{kind} {count}" for kind, count in kinds[:2])
            title = f"{name}={value}" if value else name
            found.append((title, steps, str(counts["runs"]), f"{counts['failed'] / counts['runs']:.0%}", top))
    return found[:most]


def _slices(overview: Overview) -> list[str]:
    if not any(len(steps) > 1 for steps in overview.slices.values()) and len(overview.slices) < 2:
        return []
    head = ("slice", "steps", "runs", "failed", "most frequent")
    return ["## Slices over steps", "", *_table(head, slice_rows(overview))]
