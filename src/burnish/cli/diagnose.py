"""`burnish diagnose`: which step of a trajectory was the critical one, in which category, and whose fault it was."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from burnish.cli.diagnose_judge import Panel, open_panel
from burnish.core.errors import BurnishError, ConfigError, StoreError
from burnish.diagnosis.built_in import engine_of, policy_of_run
from burnish.diagnosis.comparison import Change, compare, regressed
from burnish.diagnosis.corrections import LABEL, Correction, last_words, of_run, read_corrections
from burnish.diagnosis.diagnose import Diagnosis, Engine, diagnosis_json
from burnish.diagnosis.formats.atif import write_atif
from burnish.diagnosis.formats.run import read_run
from burnish.diagnosis.generated import admit
from burnish.diagnosis.markdown import compared, headline, markdown, reviewed_line, slice_rows
from burnish.diagnosis.overview import Case, Overview, Thinned, overview_json
from burnish.diagnosis.page import page
from burnish.diagnosis.pairs import Passing, exported
from burnish.diagnosis.plain import RecordError, parse_json
from burnish.diagnosis.policy import Policy
from burnish.diagnosis.reading import BadRecord, read_records
from burnish.diagnosis.record import Record
from burnish.diagnosis.tags import selects, tag_row
from burnish.diagnosis.timeline import why_of
from burnish.store.overrides import Override, OverrideKind
from burnish.store.reader import RunReader
from burnish.store.runs import find_run
from burnish.store.writer import RunWriter

WIDTH = 80
ID_WIDTH = 22
"""A longer id stands in a line of its own."""
NAME_WIDTH = 26
MOST_CHARS = 300
SHOWN = 20
SHOWN_CLUSTERS = 8
SHOWN_SLICES = 20
TAGS_FILE = "diagnosis.jsonl"
EXIT_REGRESSED = 4


@dataclass(slots=True)
class _Out:
    """Where rows go: files by what is in them, and what is shown in the end.  panel: the judge, if any."""

    panel: Panel | None = None
    files: dict[str, TextIO] = field(default_factory=dict)
    written: Counter[str] = field(default_factory=Counter)
    bad_shown: list[BadRecord] = field(default_factory=list)
    shown: Thinned[Case] = field(default_factory=lambda: Thinned(most=SHOWN))

    def row(self, name: str, row: Mapping[str, Any]) -> None:
        """One more line, where it is wanted."""
        if name in self.files:
            self.files[name].write(json.dumps(row) + "\n")
            self.written[name] += 1


def diagnose(arguments: argparse.Namespace, console: Console) -> int:
    """Diagnose every record, and print a summary or JSON lines.

    1 where no record could be read, `EXIT_REGRESSED` where a comparison shows that something became worse.
    """
    engine = engine_of(arguments.policy or _own_policy(arguments), arguments.weights)
    _check(arguments)
    if arguments.constraints:
        engine.generated = _generated(arguments, engine.policy, console)
    found = _Out(panel=open_panel(arguments))
    with ExitStack() as stack:
        if found.panel:
            stack.callback(found.panel.close)
        return _written(arguments, engine, found, console)


def _written(arguments: argparse.Namespace, engine: Engine, found: _Out, console: Console) -> int:
    overview = _diagnosed(arguments, engine, found, console)
    changes: list[Change] = []
    if arguments.compare and overview.runs:
        changes = _changes(arguments, engine, found, overview)
    if arguments.report:
        text = page(overview, changes) if arguments.report.endswith(".html") else markdown(overview, changes)
        _write(Path(arguments.report), text)
    _report(arguments, overview, found, changes, console)
    if not overview.runs:
        return 1
    return EXIT_REGRESSED if regressed(changes) else 0


def _check(arguments: argparse.Namespace) -> None:
    if arguments.report and not arguments.report.endswith((".html", ".md")):
        raise ConfigError(f"a report is an .html or an .md file, got {arguments.report!r}")
    if arguments.tag and Path(arguments.path).is_file():
        raise ConfigError(f"--tag writes beside a run, and {arguments.path!r} is a file; use --out")
    for word in arguments.where:
        if "=" not in word:
            raise ConfigError(f"--where is TAG=VALUE, such as category=invention; got {word!r}")


def _diagnosed(arguments: argparse.Namespace, engine: Engine, found: _Out, console: Console) -> Overview:
    """Every record, its rows written as they come."""
    overview = Overview(name=Path(arguments.path).name)
    wanted = dict(word.split("=", 1) for word in arguments.where)
    corrections = _corrections(arguments)
    passing = Passing()
    for record in _records(arguments) if arguments.export or arguments.tag else ():
        if isinstance(record, Record):
            passing.add(record)
    with ExitStack() as files:
        found.files = _files(arguments, files)
        for record, diagnosis in _looked(arguments, engine, found):
            if isinstance(record, BadRecord):
                overview.bad += 1
                found.bad_shown += [record] if len(found.bad_shown) < SHOWN else []
                continue
            if "atif" in found.files:
                found.row("atif", write_atif(record))
            case = overview.add(record, diagnosis, corrections.get(record.id))
            if diagnosis is not None and (not wanted or (case is not None and selects(tag_row(case), wanted))):
                _rows(arguments, found, record, diagnosis, case, passing, console)
    if arguments.tag:
        _tagged(arguments).with_suffix(".tmp").replace(_tagged(arguments))
    return overview


def _looked(
    arguments: argparse.Namespace, engine: Engine, found: _Out
) -> Iterator[tuple[Record | BadRecord, Diagnosis | None]]:
    """Every record with its diagnosis, after the word of the judge where there is one."""
    rows = ((record, _diagnosis(arguments, engine, record)) for record in _records(arguments))
    return found.panel.looked(rows) if found.panel else rows


def _diagnosis(arguments: argparse.Namespace, engine: Engine, record: Record | BadRecord) -> Diagnosis | None:
    """With `--failed`, a record that does not say how it ended counts as failed."""
    if isinstance(record, BadRecord) or (record.passed and not arguments.all):
        return None
    failed = True if arguments.failed and record.passed is None else None
    return engine.diagnose(record, use_reference=not arguments.no_reference, known_failed=failed)


def _rows(
    arguments: argparse.Namespace,
    found: _Out,
    record: Record,
    diagnosis: Diagnosis,
    case: Case | None,
    passing: Passing,
    console: Console,
) -> None:
    """Everything that is written of one diagnosis."""
    row = diagnosis_json(diagnosis)
    if case is not None and case.correction is not None:
        row["corrected"] = {"label": case.correction.label, "by": case.correction.by, "reason": case.correction.reason}
    found.row("out", row)
    if arguments.json:
        console.out(json.dumps(row), highlight=False)
    if case is None:
        return
    found.shown.add(case)
    if "tags" in found.files:
        found.row("tags", tag_row(case, passing.shortest(record)))
    # outcomes that nobody stated are guesses, and pairs of guesses are no preferences
    if arguments.export and record.passed is False:
        for name, made in exported([case], passing):
            found.row(name, made)


def _files(arguments: argparse.Namespace, stack: ExitStack) -> dict[str, TextIO]:
    """New files for all that is wanted."""
    names = {"out": arguments.out, "atif": arguments.to_atif}
    if arguments.export:
        folder = Path(arguments.export)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder} cannot be made: {error}") from error
        names |= {name: str(folder / f"{name}.jsonl") for name in ("pairs", "prefixes")}
    opened = {name: stack.enter_context(_opened(path)) for name, path in names.items() if path}
    if arguments.tag:
        opened["tags"] = stack.enter_context(_tagged(arguments).with_suffix(".tmp").open("w", encoding="utf-8"))
    return opened


def _tagged(arguments: argparse.Namespace) -> Path:
    return _folder(arguments) / TAGS_FILE


def _folder(arguments: argparse.Namespace) -> Path:
    try:
        return find_run(arguments.root, arguments.path)
    except BurnishError as error:
        raise ConfigError(f"{arguments.path!r} is neither a file of trajectories nor a run: {error}") from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error}") from error


def _changes(arguments: argparse.Namespace, engine: Engine, found: _Out, overview: Overview) -> list[Change]:
    """The comparison with what came before, diagnosed in the same way."""
    other = argparse.Namespace(**{**vars(arguments), "path": arguments.compare, "corrections": ""})
    before, corrections = Overview(name=Path(arguments.compare).name), _corrections(other)
    for record, diagnosis in _looked(other, engine, found):
        if isinstance(record, Record):
            before.add(record, diagnosis, corrections.get(record.id))
    if not before.runs:
        raise ConfigError(f"{arguments.compare!r} holds no trajectory to compare with")
    return compare(overview, before)


def _corrections(arguments: argparse.Namespace) -> dict[str, Correction]:
    """The last word of people on each trajectory: of the file, which a run keeps from then on, and of the run."""
    given = list(read_corrections(Path(arguments.corrections))) if arguments.corrections else []
    if Path(arguments.path).is_file():
        return last_words(given)
    folder = _folder(arguments)
    known = list(of_run(RunReader(folder)))
    new = [row for row in given if row not in known]
    if new:
        with RunWriter.open(folder) as writer:
            for row in new:
                writer.override(
                    Override(
                        trajectory_id=row.trajectory_id,
                        kind=OverrideKind.LABEL,
                        name=LABEL,
                        label=row.label,
                        person=row.by,
                        reason=row.reason,
                    )
                )
    return last_words([*known, *new])


def _own_policy(arguments: argparse.Namespace) -> str:
    """The policy of the world that a run was in; "" for a file, or where the run does not say."""
    if Path(arguments.path).is_file():
        return ""
    return policy_of_run(_folder(arguments))


def _generated(arguments: argparse.Namespace, policy: Policy, console: Console) -> Any:
    path = Path(arguments.constraints)
    try:
        proposals = parse_json(path.read_text(encoding="utf-8", errors="replace"))
        passing = [r for r in _records(arguments) if isinstance(r, Record) and r.passed]
        admitted = admit(proposals, passing, policy.kinds)
    except (OSError, RecordError) as error:
        raise ConfigError(f"{path} holds no generated constraints: {error}") from error
    for row in admitted:
        if row.refused and not arguments.json:
            console.print(f"constraint {row.name} has no vote: {row.refused}", markup=False, highlight=False)
    return tuple(row.constraint for row in admitted if row.constraint is not None)


def _records(arguments: argparse.Namespace) -> Iterator[Record | BadRecord]:
    path = Path(arguments.path)
    if path.is_file():
        return read_records(path, arguments.format)
    return read_run(_folder(arguments), arguments.phase)


def _opened(name: str) -> TextIO:
    try:
        return Path(name).open("x", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{name} cannot be written: {error}; name a new file") from error


def _report(
    arguments: argparse.Namespace, overview: Overview, found: _Out, changes: list[Change], console: Console
) -> None:
    if arguments.json:
        for bad in found.bad_shown:
            console.out(json.dumps({"bad": f"{bad.path}:{bad.line}", "why": bad.why}), highlight=False)
        console.out(json.dumps({"overview": overview_json(overview)}), highlight=False)
        if changes:
            console.out(json.dumps({"compared": [asdict(change) for change in changes]}), highlight=False)
        if found.panel:
            console.out(json.dumps(found.panel.to_json()), highlight=False)
        return
    _failures(console, found.shown.items)
    if found.shown.seen > SHOWN:
        text = (
            f"{len(found.shown.items)} of {found.shown.seen} are shown; --report FILE.html, --out FILE.jsonl have more."
        )
        console.print(text, highlight=False, width=_width(console))
    if overview.accused > SHOWN:
        clusters = [(c.count, key[0], key[1], f"{key[2]} {key[3]}") for key, c in overview.ordered_clusters()]
        _table(console, ("n", "category", "owner", "where"), clusters[:SHOWN_CLUSTERS])
    if any(len(steps) > 1 for steps in overview.slices.values()):
        _table(
            console, ("slice", "steps", "runs", "failed", "most frequent"), slice_rows(overview, SHOWN_SLICES, spans=1)
        )
    if changes:
        _table(
            console, (f"against {Path(arguments.compare).name}", "now", "before", "change", "95%"), compared(changes)
        )
    for name, counts in (("category", overview.categories), ("owner", overview.owners)):
        if counts:
            console.print(f"{name}: " + ", ".join(f"{key} {n}" for key, n in counts.most_common()), highlight=False)
    console.print(headline(overview, review=False), highlight=False)
    for path, count in _made(arguments, found):
        console.print(f"wrote {path}{count}", markup=False, highlight=False, soft_wrap=True)
    for line in found.panel.summary() if found.panel else ():
        console.print(line, markup=False, emoji=False, highlight=False, width=_width(console))
    if overview.reviewed:
        console.print(reviewed_line(overview), highlight=False)
    for bad in found.bad_shown:
        console.print(f"{bad.path}:{bad.line}: {bad.why}", markup=False, highlight=False, soft_wrap=True)
    if changes and regressed(changes):
        worse = ", ".join(change.name for change in changes if change.is_worse)
        console.print(f"regressed: {worse}", markup=False, highlight=False)


def _made(arguments: argparse.Namespace, found: _Out) -> Iterator[tuple[str, str]]:
    """Each file that was written, with its rows: an export without any should not look like one with many."""
    for name, file in found.files.items():
        path = str(_tagged(arguments)) if name == "tags" else file.name
        count = found.written[name]
        yield path, f" ({count} row{'' if count == 1 else 's'})"
    if arguments.report:
        yield arguments.report, ""


def _failures(console: Console, cases: Sequence[Case]) -> None:
    """A line for each failure, and below it the reason in full width."""
    if not cases:
        return
    width = min(ID_WIDTH, max(len(_line(case.record.id)) for case in cases))
    head = Text(f"\n{'trajectory':<{width}}  message     p  {'category':<24}  owner", style="bold")
    console.print(head, width=_width(console))
    for case in cases:
        critical, name = case.critical, _line(_visible(case.record.id))
        if len(name) > width:
            console.print(Text(name, overflow="fold"), width=_width(console))
            name = ""
        party = _line(_visible(critical.party))
        line = f"{name:<{width}}  {critical.index:>7}  {critical.p:.2f}  {critical.category:<24}  {party}"
        console.print(Text(line), width=_width(console))
        why = Text(_line(_visible(why_of(case))), style="dim", overflow="fold")
        console.print(Padding(why, (0, 0, 0, 4)), width=_width(console))
    console.print()


def _line(text: str) -> str:
    return " ".join(text.split())


def _width(console: Console) -> int:
    return min(WIDTH, console.width)


def _table(console: Console, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as they need to be, but for the last one, which folds."""
    if not rows:
        return
    table = Table(box=box.SIMPLE_HEAD, width=_width(console), pad_edge=False)
    for number, name in enumerate(head):
        is_last = number == len(head) - 1
        is_number = name in ("n", "runs", "failed", "now", "before", "change")
        table.add_column(
            name,
            overflow="fold",
            justify="right" if is_number else "left",
            max_width=None if is_last else NAME_WIDTH,
            ratio=1 if is_last else None,
        )
    for row in rows:
        table.add_row(*(Text(_visible(str(cell))) for cell in row))
    console.print(table)


def _visible(text: str) -> str:
    """Safe in a terminal: no control characters."""
    return "".join(char if char.isprintable() or char == "\n" else " " for char in text[:MOST_CHARS])
