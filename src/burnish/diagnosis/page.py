"""The report of many diagnoses as one HTML file that asks nothing of any network.

Trajectories are strangers' words: everything is escaped, and the one script reads nothing but the form of a case.  A
reader corrects a diagnosis there; the page gives the corrections as lines of a file, which `--corrections` adds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from burnish.diagnosis.comparison import Change
from burnish.diagnosis.markdown import compared, headline, heat_rows, slice_rows
from burnish.diagnosis.overview import PLACES, Case, Overview
from burnish.diagnosis.taxonomy import Category, Fault
from burnish.diagnosis.timeline import Row, rows_of, why_of

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --bad: #c0392b; --warm: 192, 57, 43; }
@media (prefers-color-scheme: dark) { :root { --bad: #ef8a80; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; } .wide { overflow-x: auto; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.heat, th.heat { text-align: center; min-width: 2rem; } .worse { color: var(--bad); font-weight: 600; }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0; }
summary { cursor: pointer; padding: .5rem .8rem; overflow-wrap: anywhere; } details > div { padding: 0 .8rem .8rem; }
.muted { opacity: .7; } .text { white-space: pre-wrap; overflow-wrap: anywhere; }
tr.critical > td { background: rgba(var(--warm), .14); }
tr.critical > td:first-child { border-left: 4px solid var(--bad); }
.found { color: var(--bad); font-size: .85rem; overflow-wrap: anywhere; }
form { display: flex; flex-wrap: wrap; gap: .5rem; align-items: end; margin-top: .8rem; }
label { display: flex; flex-direction: column; font-size: .8rem; }
input, select, button { font: inherit; padding: .2rem .4rem; }
input[name=step] { width: 5rem; } pre { background: var(--soft); padding: .6rem; overflow-x: auto; }
"""

_SCRIPT = """
const lines = [];
document.addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target, row = { trajectory_id: form.dataset.id };
  for (const name of ["step", "category", "owner", "by", "reason"]) row[name] = form.elements[name].value;
  row.step = Number(row.step);
  lines.push(JSON.stringify(row));
  document.getElementById("corrections").hidden = false;
  document.getElementById("lines").textContent = lines.join("\\n") + "\\n";
  document.getElementById("save").href = URL.createObjectURL(new Blob([lines.join("\\n") + "\\n"]));
  form.querySelector("output").textContent = "noted below";
});
"""


def page(overview: Overview, changes: Sequence[Change] = ()) -> str:
    """The whole file."""
    return "".join(_parts(overview, changes))


def _parts(overview: Overview, changes: Sequence[Change]) -> Iterator[str]:
    name = escape(overview.name)
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Diagnosis of {name}</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<style>{_STYLE}</style></head><body><h1>Diagnosis of {name}</h1><p>{escape(headline(overview))}</p>"
    if changes:
        yield "<h2>Compared</h2>"
        yield _table(("", "now", "before", "difference", "95%"), compared(changes), numbers=(1, 2, 3, 4))
    if overview.clusters:
        rows = [(str(c.count), *key, ", ".join(c.examples[:2])) for key, c in overview.ordered_clusters()[:30]]
        yield "<h2>Clusters of failures</h2>"
        yield _table(("n", "category", "owner", "cause", "tool", "such as"), rows, numbers=(0,))
        yield "<h2>Category by place</h2><p class=muted>Tenths of a trajectory, from its first message to its last.</p>"
        yield _heat(overview)
    if len(overview.slices) > 1 or any(len(steps) > 1 for steps in overview.slices.values()):
        yield "<h2>Slices over steps</h2>"
        yield _table(("slice", "steps", "runs", "failed", "most frequent"), slice_rows(overview), numbers=(2, 3))
    if overview.cases:
        yield "<h2>Trajectories</h2>"
    for number, case in enumerate(overview.cases):
        yield _case(case, is_open=number == 0)
    if overview.accused > len(overview.cases):
        yield f"<p class=muted>{overview.accused - len(overview.cases)} more are not shown.</p>"
    yield '<section id="corrections" hidden><h2>Corrections</h2><p>Save these lines and add them with '
    yield '<code>--corrections FILE</code>; what was said before stays. <a id="save" download="corrections.jsonl">'
    yield f'Save</a></p><pre id="lines"></pre></section><script>{_SCRIPT}</script></body></html>\n'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    marks = [' class="n"' if place in numbers else "" for place in range(len(head))]
    cells = "".join(f"<th{mark}>{escape(text)}</th>" for mark, text in zip(marks, head, strict=True))
    body = []
    for row in rows:
        worse = ' class="worse"' if "(worse)" in str(row[0]) else ""
        cell = "".join(f"<td{mark}>{escape(str(text))}</td>" for mark, text in zip(marks, row, strict=True))
        body.append(f"<tr{worse}>{cell}</tr>")
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _heat(overview: Overview) -> str:
    most = max(overview.heat.values(), default=1)
    head = "<th></th>" + "".join(f'<th class="heat">{place}</th>' for place in range(1, PLACES + 1))
    body = []
    for category, *counts in heat_rows(overview):
        cells = "".join(
            f'<td class="heat" style="background: rgba(var(--warm), {0.7 * (count or 0) / most:.2f})">{count}</td>'  # type: ignore[operator]
            for count in counts
        )
        body.append(f"<tr><td>{escape(str(category))}</td>{cells}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _case(case: Case, *, is_open: bool) -> str:
    critical = case.critical
    title = f"{escape(case.record.id)}: message {critical.index}, {critical.category}, {escape(critical.party)}"
    said = f" (corrected by {escape(case.correction.by)})" if case.correction is not None else ""
    rows = "".join(_row(row) for row in rows_of(case))
    return (
        f"<details{' open' if is_open else ''}><summary><b>{title}</b>{said} "
        f'<span class="muted">p {critical.p:.2f}. {escape(why_of(case))}</span></summary><div><div class="wide"><table>'
        f"<thead><tr><th>message</th><th>who</th><th>says or calls</th></tr></thead><tbody>{rows}</tbody></table></div>"
        f"{_form(case)}</div></details>"
    )


def _row(row: Row) -> str:
    mark = ' class="critical"' if row.is_critical else ""
    chance = f' <span class="muted">p {row.p:.2f}</span>' if row.p is not None and row.p >= 0.005 else ""
    found = "".join(
        f'<div class="found">{escape(v.constraint)}: {escape(v.why)} <span class="muted">({v.origin}, severity '
        f"{v.severity:g})</span></div>"
        for v in row.violations
    )
    return (
        f"<tr{mark}><td>{row.index}{chance}</td><td>{escape(row.role)}</td>"
        f'<td><div class="text">{escape(row.text)}</div>{found}</td></tr>'
    )


def _form(case: Case) -> str:
    def options(values: Sequence[str], chosen: str) -> str:
        return "".join(f"<option{' selected' if value == chosen else ''}>{value}</option>" for value in values)

    categories = options([str(c) for c in Category], str(case.critical.category))
    owners = options([str(f) for f in Fault], str(case.critical.owner))
    return (
        f'<form data-id="{escape(case.record.id, quote=True)}"><label>message<input name="step" type="number" required '
        f'value="{case.critical.index}"></label><label>category<select name="category">{categories}</select></label>'
        f'<label>owner<select name="owner">{owners}</select></label><label>by<input name="by" required></label>'
        '<label>reason<input name="reason" required></label><button>Correct</button><output></output></form>'
    )
