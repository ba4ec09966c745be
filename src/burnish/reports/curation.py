"""The sheet of curated traces as one HTML file: what was kept, what was dropped and why, with its images.

Reads the files of `burnish curate filter` and the images beside them.  Traces are strangers' words: everything is
escaped, and the page holds no script.
"""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from burnish.core.errors import TaskError
from burnish.core.images import SHELF
from burnish.core.message import ImagePart
from burnish.graders.curation import Example, example_from_row
from burnish.graders.grounding.regions import Bounds
from burnish.graders.grounding.spec import GroundingSpec
from burnish.tasks.lines import read_lines

SHOWN = 12
"""Examples of each kind that have a card."""
SIDE_PX = 220
KEPT = "kept"

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1b8a3a; --bad: #c0392b; }
@media (prefers-color-scheme: dark) { :root { --good: #5fce83; --bad: #ef8a80; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } .muted { opacity: .7; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(15.5rem, 1fr)); gap: .9rem; }
.card { border: 1px solid var(--line); border-radius: .4rem; padding: .7rem; overflow-wrap: anywhere; }
.card p { margin: .35rem 0; font-size: .85rem; } .card code { font-size: .8rem; white-space: pre-wrap; }
.images { display: flex; flex-wrap: wrap; gap: .3rem; } .images svg { border-radius: .2rem; flex: 1 1 6rem; }
.why { color: var(--bad); } .good { color: var(--good); }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """An example and what the filter said of it."""

    example: Example
    verdict: Mapping[str, Any]

    @property
    def fault(self) -> str:
        """The first reason to drop it; "kept" for none."""
        return next(iter(self.verdict.get("faults", ())), KEPT)


def sheet(files: Sequence[Path]) -> str:
    """The page over files that the filter wrote.  Raises TaskError for a file of another kind."""
    rows = [row for path in files for row in _rows(path)]
    return "".join(_parts(rows))


def _rows(path: Path) -> Iterator[_Row]:
    for line in read_lines(path):
        value = line.value
        if value is None or not isinstance(value.get("verdict"), Mapping):
            raise TaskError(f"{path}:{line.number}: no verdict; a sheet shows what `burnish curate filter` wrote")
        yield _Row(example=example_from_row(value, path, line.number, SHELF), verdict=value["verdict"])


def _parts(rows: Sequence[_Row]) -> Iterator[str]:
    by_fault: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        by_fault[row.fault].append(row)
    kept = len(by_fault.get(KEPT, ()))
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Curated traces</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<style>{_STYLE}</style></head><body><h1>Curated traces</h1>"
    yield f"<p>{kept:,} of {len(rows):,} traces were kept. "
    yield "Dashed: where the references are. Green: a citation that is borne out; red: one that is not.</p>"
    faults = Counter(fault for row in rows for fault in row.verdict.get("faults", ()))
    if faults:
        body = [(fault, f"{count:,}", f"{len(by_fault.get(fault, ())):,}") for fault, count in faults.most_common()]
        yield "<h2>Why traces were dropped</h2>" + _table(("reason", "traces", "first reason"), body)
    yield from _shares(rows)
    for fault in sorted(by_fault, key=lambda name: (name == KEPT, -len(by_fault[name]))):
        cards = by_fault[fault]
        title = "Kept" if fault == KEPT else f"Dropped: {fault}"
        more = f", {SHOWN} of them shown" if len(cards) > SHOWN else ""
        yield f'<h2>{escape(title)} <span class="muted">({len(cards):,}{more})</span></h2><div class="cards">'
        yield from (_card(row) for row in _spread(cards))
        yield "</div>"
    yield "</body></html>\n"


def _spread(rows: Sequence[_Row]) -> list[_Row]:
    """At most `SHOWN`, evenly from first to last."""
    if len(rows) <= SHOWN:
        return list(rows)
    return [rows[index * len(rows) // SHOWN] for index in range(SHOWN)]


def _shares(rows: Sequence[_Row]) -> Iterator[str]:
    """Kept by kind of question and by writer, where there are several."""
    for title, names in (
        ("kind", [row.example.tags.get("kind", "") for row in rows]),
        ("writer", [row.example.writer for row in rows]),
    ):
        counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for row, name in zip(rows, names, strict=True):
            counts[name][0] += row.fault == KEPT
            counts[name][1] += 1
        if len(counts) > 1:
            body = [
                (name or "-", f"{good:,}", f"{n:,}", f"{good / n:.0%}") for name, (good, n) in sorted(counts.items())
            ]
            yield f"<h2>Kept by {title}</h2>" + _table((title, "kept", "of", "share"), body)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{' class=n' if place else ''}>{escape(text)}</{tag}>" for place, text in enumerate(row))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table>"


def _card(row: _Row) -> str:
    example, verdict = row.example, row.verdict
    pictures = "".join(_picture(part, frame, row) for frame, part in enumerate(example.images))
    reasons = "".join(f'<p class="why">{escape(str(reason))}</p>' for reason in verdict.get("reasons", ()))
    return (
        f'<div class="card"><div class="images">{pictures}</div><p><b>{escape(example.question)}</b></p>'
        f"<p><code>{escape(example.response)}</code></p>{reasons or '<p class=good>correct and grounded</p>'}"
        f'<p class="muted">{escape(example.id[:24])} by {escape(example.writer or "unknown")}</p></div>'
    )


def _picture(part: ImagePart, frame: int, row: _Row) -> str:
    """An image as SVG, with regions and citations drawn in pixels of the image."""
    data = base64.b64encode(SHELF.get(part.sha256)).decode("ascii")
    width, height = part.width_px, part.height_px
    unit = max(width, height) / 100  # A hundredth of the side, so that marks look alike on every image.
    size = (width, height)
    drawn = "".join(_region(bounds, unit, size) for bounds in _bounds(row, frame))
    cited = [one for one in row.verdict.get("cited", ()) if one.get("frame") == frame]
    marks = "".join(_mark(one, unit, size) for one in cited)
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{SIDE_PX}" role="img"><image width="{width}" height="{height}" '
        f'style="image-rendering: pixelated" href="data:{part.media_type};base64,{data}"/>{drawn}{marks}</svg>'
    )


def _bounds(row: _Row, frame: int) -> list[Bounds]:
    """Where the references of an image are; the whole image within a stretch of time."""
    reference = row.verdict.get("reference")
    if not reference:
        return []
    spec = GroundingSpec.of(row.example.task(reference))
    bounds = [item.region.bounds for item in spec.objects if item.region is not None and item.frame == frame]
    for span in spec.spans:
        if span.start_s <= frame / spec.frame.fps < span.end_s:
            bounds.append((0.0, 0.0, spec.frame.width_px, spec.frame.height_px))
    return bounds


def _region(bounds: Bounds, unit: float, size: tuple[int, int]) -> str:
    """A dashed line around a reference."""
    left, top, right, bottom = _inside(
        (bounds[0] - unit, bounds[1] - unit, bounds[2] + unit, bounds[3] + unit), unit, size
    )
    return (
        f'<rect x="{left:g}" y="{top:g}" width="{right - left:g}" height="{bottom - top:g}" fill="none" stroke="#333" '
        f'stroke-width="{unit:g}" stroke-dasharray="{3 * unit:g} {2 * unit:g}"/>'
    )


def _mark(one: Mapping[str, Any], unit: float, size: tuple[int, int]) -> str:
    """A citation with its name: a dot for a point, a frame for a box or a whole image."""
    left, top, right, bottom = (float(at) for at in one["bounds"])
    colour = "#12a150" if one["ok"] else "#d7263d"
    if left == right and top == bottom:
        # A pixel's number is its left upper corner, and its middle is what is meant.
        x, top, bottom = left + 0.5, top + 0.5, top + 0.5
        drawn = (
            f'<circle cx="{x:g}" cy="{top:g}" r="{3.5 * unit:g}" fill="{colour}" stroke="#fff" '
            f'stroke-width="{unit:g}"/>'
        )
    else:
        left, top, right, bottom = _inside((left, top, right, bottom), 3 * unit, size)
        x = (left + right) / 2
        drawn = (
            f'<rect x="{left:g}" y="{top:g}" width="{right - left:g}" height="{bottom - top:g}" fill="none" '
            f'stroke="{colour}" stroke-width="{2 * unit:g}"/>'
        )
    # A name near an edge is written towards the middle.
    y = top - 5 * unit if top > 12 * unit else min(bottom + 11 * unit, size[1] - 6 * unit)
    anchor = "start" if x < size[0] / 4 else "end" if x > 3 * size[0] / 4 else "middle"
    return (
        f'{drawn}<text x="{x:g}" y="{y:g}" font-size="{7 * unit:g}" text-anchor="{anchor}" fill="{colour}" '
        f'stroke="#fff" stroke-width="{1.6 * unit:g}" paint-order="stroke">{escape(str(one["label"]))}</text>'
    )


def _inside(bounds: Bounds, margin: float, size: tuple[int, int]) -> Bounds:
    """Cut to the image less a margin, so that lines at its edge are seen."""
    left, top, right, bottom = bounds
    return max(left, margin), max(top, margin), min(right, size[0] - margin), min(bottom, size[1] - margin)
