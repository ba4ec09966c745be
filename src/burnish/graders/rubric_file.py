"""Rubrics in files: TOML for people, JSONL for programs.  docs/rubrics.md describes both."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from burnish.core.errors import ConfigError
from burnish.core.hints import did_you_mean
from burnish.core.judge import Criterion, CriterionExample
from burnish.graders.rubric_criteria import Judging, Polarity, Rubric, RubricCriterion, TextRule

MAX_LINE_CHARS = 200_000

T = TypeVar("T", bound=BaseModel)


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Example(_Row):
    text: str
    value: int
    reason: str = ""


class _Rule(_Row):
    any_of: tuple[str, ...] = ()
    all_of: tuple[str, ...] = ()
    none_of: tuple[str, ...] = ()
    headings: tuple[str, ...] = ()
    min_words: int = Field(default=0, ge=0)
    max_words: int = Field(default=0, ge=0)


class _Criterion(_Row):
    id: str
    text: str
    weight: float = 1.0
    polarity: Polarity = Polarity.POSITIVE
    evidence: Literal["none", "quote"] = "none"
    levels: int = 1
    rule: _Rule | None = None
    examples: tuple[_Example, ...] = ()
    tasks: tuple[str, ...] = ()

    def value(self) -> RubricCriterion:
        criterion = Criterion(
            id=self.id,
            text=self.text.strip(),
            levels=self.levels,
            needs_evidence=self.evidence == "quote",
            examples=tuple(CriterionExample(**example.model_dump()) for example in self.examples),
        )
        rule = None if self.rule is None else TextRule(**self.rule.model_dump())
        return RubricCriterion(
            criterion=criterion, weight=self.weight, polarity=self.polarity, rule=rule, tasks=self.tasks
        )


if TYPE_CHECKING:
    _Judging = _Row
else:
    _HINTS = get_type_hints(Judging)
    _Judging = create_model(
        "_Judging", __base__=_Row, **{field.name: (_HINTS[field.name], field.default) for field in fields(Judging)}
    )


class _Head(_Row):
    name: str = "rubric"
    context: str = ""
    judging: _Judging = _Judging()


def load_rubric(path: Path | str) -> Rubric:
    """The rubric in a .toml or .jsonl file.  Raises ConfigError that names file, line or criterion, and key."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"rubric {path} cannot be read: {error}") from error
    try:
        return rubric_from_jsonl(text) if path.suffix == ".jsonl" else rubric_from_toml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def rubric_from_toml(text: str) -> Rubric:
    """The rubric in the text of a TOML file."""
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"not TOML: {error}") from error
    rows = data.get("criteria", [])
    if not isinstance(rows, list):
        raise ConfigError("criteria are a list: write each under [[criteria]]")
    items = []
    for index, row in enumerate(rows):
        name = row.get("id") if isinstance(row, dict) else None
        items.append(_criterion(row, f"criterion {name or index + 1}"))
    head = _checked(_Head, {key: value for key, value in data.items() if key != "criteria"}, "rubric")
    return _rubric(head, items)


def rubric_from_jsonl(text: str) -> Rubric:
    """The rubric in the text of a JSONL file: an optional first line with "rubric", then one criterion a line."""
    head = _Head()
    items: list[RubricCriterion] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = _line(line, number)
        if "rubric" in row:
            if items or number > 1:
                raise ConfigError(f"line {number}: what describes the rubric stands in the first line")
            head = _checked(_Head, {("name" if key == "rubric" else key): row[key] for key in row}, f"line {number}")
        else:
            items.append(_criterion(row, f"line {number}"))
    return _rubric(head, items)


def rubric_to_jsonl(rubric: Rubric) -> str:
    """The JSONL form; `rubric_from_jsonl` gives an equal rubric."""
    judging = {key: getattr(rubric.judging, key) for key in _Judging.model_fields}
    lines: list[Mapping[str, Any]] = [{"rubric": rubric.name, "context": rubric.context, "judging": judging}]
    for item in rubric.criteria:
        criterion, rule = item.criterion, item.rule
        row: dict[str, Any] = {"id": criterion.id, "text": criterion.text, "weight": item.weight}
        row |= {"polarity": str(item.polarity), "levels": criterion.levels}
        row |= {"evidence": "quote" if criterion.needs_evidence else "none", "tasks": item.tasks}
        row["examples"] = [
            {"text": example.text, "value": example.value, "reason": example.reason} for example in criterion.examples
        ]
        row["rule"] = None if rule is None else {key: getattr(rule, key) for key in _Rule.model_fields}
        lines.append(row)
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _rubric(head: _Head, items: Sequence[RubricCriterion]) -> Rubric:
    judging = Judging(**head.judging.model_dump())
    return Rubric(name=head.name, context=head.context.strip(), judging=judging, criteria=tuple(items))


def _criterion(row: Any, place: str) -> RubricCriterion:
    if not isinstance(row, dict):
        raise ConfigError(f"{place}: a criterion is a table of keys, got {type(row).__name__}")
    checked = _checked(_Criterion, row, place)
    try:
        return checked.value()
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def _line(line: str, number: int) -> dict[str, Any]:
    if len(line) > MAX_LINE_CHARS:
        raise ConfigError(f"line {number} has {len(line)} characters; at most {MAX_LINE_CHARS} are read")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"line {number} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ConfigError(f"line {number}: a line is a JSON object, got {type(row).__name__}")
    return row


def _checked(model: type[T], row: Mapping[str, Any], place: str) -> T:
    try:
        return model.model_validate(row)
    except ValidationError as error:
        raise ConfigError(f"{place}: {_explained(error, model)}") from error


def _explained(error: ValidationError, model: type[BaseModel]) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return f"{key}: {first['msg']}, got {str(first['input'])[:80]!r}"
    nested: dict[str, type[BaseModel]] = {"rule": _Rule, "judging": _Judging, "examples": _Example}
    known = list(nested.get(str(first["loc"][0]), model).model_fields if len(first["loc"]) > 1 else model.model_fields)
    return f"unknown key {key}; " + did_you_mean(str(first["loc"][-1]), known, f"keys are {', '.join(known)}")
