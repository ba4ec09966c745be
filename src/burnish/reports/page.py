"""The report: one HTML file that holds everything it shows and asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from burnish.core.errors import StoreError
from burnish.reports.data import RunData
from burnish.reports.sample import MAX_BYTES
from burnish.store.layout import RunLayout

SCRIPTS = (
    "echarts/echarts.min.js",
    "dom.js",
    "format.js",
    "theme.js",
    "timeline.js",
    "charts.js",
    "overview.js",
    "cost.js",
    "curves.js",
    "health.js",
    "images.js",
    "overrides.js",
    "diagnosis.js",
    "detail.js",
    "trajectories.js",
    "page.js",
)
"""In the order in which they run; each is one inline script."""

_SLOT = re.compile(r"\{\{(\w+)\}\}")


def write_report(run_dir: Path | str, out: Path | str | None = None, *, max_bytes: int = MAX_BYTES) -> Path:
    """Write the report of a run, finished or not, to `out` (default: report.html in its folder); returns the path.

    The file opens offline.  It carries a bounded sample of the trajectories (at most `max_bytes` of JSON) and says of
    how many.  Raises StoreError where the run cannot be read or the file cannot be written.
    """
    data = RunData(run_dir)
    path = RunLayout(data.root).report if out is None else Path(out)
    view = data.overview()
    try:
        sample = data.sample(max_bytes=max_bytes)
    except StoreError as error:
        sample = {"trajectories": [], "texts": {}}
        view = view | {"problems": [*view["problems"], f"no trajectories are shown: {error}"]}
    page = render_page({"mode": "file", "overview": view, "sample": sample}, title=view["name"])
    aside = path.with_name(path.name + ".tmp")
    try:
        aside.write_text(page, encoding="utf-8", newline="\n")
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise StoreError(f"the report cannot be written to {path}: {error}; name another file") from error
    return path


def render_page(data: Mapping[str, Any], *, title: str) -> str:
    """The page with its data inside.  `data["mode"]` is "file" or "live"; a live page fetches the rest itself."""
    is_live = data["mode"] == "live"
    filled = {
        "title": html.escape(title),
        "policy": html.escape(content_policy(is_live=is_live)),
        "style": asset("page.css"),
        "data": embedded_json(data),
        "scripts": "\n".join(f"<script>{asset(name)}</script>" for name in SCRIPTS),
    }
    # One pass, so that braces in what is filled in are never read as slots.
    return _SLOT.sub(lambda match: filled[match[1]], asset("page.html"))


def content_policy(*, is_live: bool) -> str:
    """A Content-Security-Policy: exactly the page's own scripts run, and only a live page talks to its server."""
    scripts = " ".join(_digest(asset(name)) for name in SCRIPTS)
    connect = "'self'" if is_live else "'none'"
    return (
        f"default-src 'none'; script-src {scripts}; style-src {_digest(asset('page.css'))}; img-src data:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def embedded_json(value: object) -> str:
    r"""JSON that is safe inside a script element: ASCII alone, and no character that ends or opens markup.

    >>> embedded_json({"text": "</script><!-- \u2028"})
    '{"text":"\\u003c/script\\u003e\\u003c!-- \\u2028"}'
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@cache
def asset(name: str) -> str:
    """A file of the page."""
    return resources.files("burnish.reports").joinpath("static", *name.split("/")).read_text(encoding="utf-8")


@cache
def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
