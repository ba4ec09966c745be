"""`burnish curate`: each stage reads a JSONL file and writes another one; images lie beside them by content hash."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from burnish.cli.evaluating import parse_options, policy_subject
from burnish.core.content import images_beside
from burnish.core.detector import DetectorError, QuestionTeacher
from burnish.core.errors import ConfigError, TaskError
from burnish.core.images import SHELF, ImageError
from burnish.graders.curation import (
    Answers,
    Example,
    FilterSpec,
    Verdict,
    asked,
    cited,
    example_from_row,
    example_to_row,
    filtered,
    found,
    overlaid,
    reference_of,
)
from burnish.graders.curation.pixels import decoder
from burnish.graders.curation.references import TRUTH, LabelTeacher
from burnish.graders.graph_files import GraphFiles
from burnish.graders.importing import imported
from burnish.loop.answering import responses
from burnish.loop.standalone import parse_taskset
from burnish.loop.worlds import load_world
from burnish.reports.curation import sheet
from burnish.tasks.lines import read_lines

OWN = "references"
TOLD = 5


def curate(arguments: argparse.Namespace, console: Console) -> int:
    """Run one stage."""
    stages: Mapping[str, Callable[[argparse.Namespace, Console], int]] = {
        "find": _find,
        "overlay": _overlay,
        "trace": _trace,
        "filter": _filter,
        "sheet": _sheet,
    }
    if arguments.options and arguments.action != "find":
        raise ConfigError(f"{arguments.options[0]}: only find takes options of an environment")
    # Images of a large file do not stay in memory once there is a folder for them.
    SHELF.keep_in(images_beside(Path(arguments.out)).folder)
    return stages[arguments.action](arguments, console)


def _find(arguments: argparse.Namespace, console: Console) -> int:
    teacher = _teacher(arguments.teacher or TRUTH)
    decode, left_out = decoder(SHELF), Counter[str]()

    def look(example: Example) -> Example:
        return example if teacher is None else found(replace(example, reference={}), teacher, decode)

    made = _each(_sources(arguments, left_out), look, left_out)
    return _done(console, _write(Path(arguments.out), made), left_out, arguments.out)


def _each(
    examples: Iterable[Example], stage: Callable[[Example], Example], left_out: Counter[str]
) -> Iterator[Example]:
    """What a stage makes of the examples; those that it cannot do are counted by their problem."""
    for example in examples:
        try:
            made = stage(example)
        except (DetectorError, ImageError, TaskError) as error:
            left_out[str(error).removeprefix(f"{example.id}: ")] += 1
        else:
            yield made


def _sources(arguments: argparse.Namespace, left_out: Counter[str]) -> Iterator[Example]:
    """Examples of a file, or of an environment's tasks."""
    if arguments.source.endswith(".jsonl"):
        if arguments.options:
            raise ConfigError(f"{arguments.options[0]}: a file has no options; an environment has")
        for number, example in enumerate(_read(Path(arguments.source), left_out)):
            if number == arguments.tasks:
                return
            if (arguments.teacher or TRUTH) == TRUTH and "grounding" not in example.reference:
                raise TaskError(f"{arguments.source} has no references of its own: name a --teacher")
            yield example
        return
    name, split = parse_taskset(arguments.source)
    split = split if arguments.source != name else "train"
    world = load_world(name, parse_options(arguments.options), seed=arguments.seed)
    for task in world.tasks(split, arguments.tasks):
        yield reference_of(task)


def _overlay(arguments: argparse.Namespace, console: Console) -> int:
    left_out: Counter[str] = Counter()
    examples = _read(Path(arguments.source), left_out)
    made = _each(examples, lambda example: overlaid(example, SHELF), left_out)
    return _done(console, _write(Path(arguments.out), made), left_out, arguments.out)


def _trace(arguments: argparse.Namespace, console: Console) -> int:
    left_out: Counter[str] = Counter()
    examples = list(_read(Path(arguments.source), left_out))
    if arguments.writer == OWN:
        made: Iterable[Example] = _each(examples, cited, left_out)
    else:
        subject, _ = policy_subject(arguments.writer, Path(arguments.root), arguments.base_url)
        # A run is asked as it was trained, whoever else sees the references.
        prompts = [asked(one) if subject.renderer is None else one.task({}) for one in examples]
        with console.status(f"{len(prompts) * arguments.samples} traces by {subject.name}"):
            written = responses(
                subject, prompts, samples=arguments.samples, temperature=arguments.temperature, seed=arguments.seed
            )
        left_out["the episode was not completed"] += sum(text is None for row in written for text in row)
        made = (
            replace(one, id=f"{one.id}/{number:02d}", response=text, writer=subject.name)
            for one, texts in zip(examples, written, strict=True)
            for number, text in enumerate(texts)
            if text
        )
    return _done(console, _write(Path(arguments.out), made), +left_out, arguments.out)


def _filter(arguments: argparse.Namespace, console: Console) -> int:
    teacher, decode = _teacher(arguments.teacher or OWN), decoder(SHELF)
    spec = FilterSpec(answers=Answers(arguments.answers), closing=arguments.closing)
    if arguments.report and not arguments.dropped:
        raise ConfigError("a sheet shows what was dropped too: name a file for it with --dropped")
    faults, left_out, kept, n = Counter[str](), Counter[str](), 0, 0
    with ExitStack() as stack:
        keep = stack.enter_context(_Writer(Path(arguments.out)))
        drop = stack.enter_context(_Writer(Path(arguments.dropped))) if arguments.dropped else None
        for example in _read(Path(arguments.source), left_out):
            verdict = filtered(example, spec, teacher=teacher, decode=decode)
            n, kept = n + 1, kept + verdict.kept
            faults.update(fault.value for fault in verdict.faults)
            if verdict.kept or drop is not None:
                (keep if verdict.kept or drop is None else drop).write(example, verdict)
    console.print(f"kept {kept} of {n} traces", highlight=False)
    for fault, count in faults.most_common():
        console.print(f"  {count:>6}  {fault}", highlight=False)
    if arguments.report:
        _print_sheet([Path(arguments.out), Path(arguments.dropped)], Path(arguments.report), console)
    return _done(console, kept, left_out, arguments.out)


def _sheet(arguments: argparse.Namespace, console: Console) -> int:
    _print_sheet([Path(arguments.source)], Path(arguments.out), console)
    return 0


def _print_sheet(files: Sequence[Path], out: Path, console: Console) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(sheet(files), encoding="utf-8")
    console.print(f"sheet  {out}", soft_wrap=True, highlight=False)


def _teacher(name: str) -> QuestionTeacher | None:
    """The teacher of a word; None for the references that the examples have."""
    if name in (TRUTH, OWN):
        return None
    if name == "shapes":
        from burnish.integrations.shape_questions import ShapeTeacher

        return ShapeTeacher()
    kind, _, model = name.partition(":")
    if kind == "transformers" and model:
        from burnish.integrations.transformers_detector import TransformersDetector

        return LabelTeacher(TransformersDetector(model=model))
    if not model:
        raise ConfigError(f"unknown teacher {name!r}: truth, references, shapes, transformers:MODEL, or FILE.py:NAME")
    made = imported(name, GraphFiles(Path()))()
    return made if hasattr(made, "read") else LabelTeacher(made)


def _read(path: Path, left_out: Counter[str]) -> Iterator[Example]:
    """The examples of a file; a line that is none is counted.  Raises TaskError where none can be used."""
    usable = 0
    for line in read_lines(path):
        try:
            if line.value is None:
                raise TaskError(f"{path}:{line.number}: {line.problem}")
            example = example_from_row(line.value, path, line.number, SHELF)
        except TaskError as error:
            left_out[str(error)] += 1
            continue
        usable += 1
        yield example
    if not usable:
        raise TaskError(next(iter(left_out), f"{path} is empty"))


class _Writer:
    """A JSONL file of examples, whose images are kept beside it; whole, or not there at all."""

    def __init__(self, path: Path) -> None:
        self._path, self._images = path, images_beside(path)
        self._part = path.with_name(f"{path.name}.part")
        self._file: TextIO | None = None

    def __enter__(self) -> _Writer:
        if self._path.exists():
            raise ConfigError(f"{self._path} exists; name a new file")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._part.open("w", encoding="utf-8")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if kind is None:
            self._part.replace(self._path)
        else:
            self._part.unlink(missing_ok=True)

    def write(self, example: Example, verdict: Verdict | None = None) -> None:
        """One line."""
        for part in (*example.images, *example.overlays):
            self._images.put(SHELF.get(part.sha256))
        row: dict[str, Any] = example_to_row(example)
        if verdict is not None:
            row["verdict"] = verdict.to_json()
        if self._file is None:
            raise ValueError(f"{self._path} is not open")
        self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def _write(path: Path, examples: Iterable[Example]) -> int:
    written = 0
    with _Writer(path) as writer:
        for example in examples:
            writer.write(example)
            written += 1
    return written


def _done(console: Console, written: int, left_out: Mapping[str, int], out: str) -> int:
    """Say what was written and what was not; 1 where nothing was."""
    for problem, count in Counter(left_out).most_common(TOLD):
        console.print(f"left out {count}: {problem}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"wrote {written} examples to {out}", highlight=False, soft_wrap=True)
    return 0 if written else 1
