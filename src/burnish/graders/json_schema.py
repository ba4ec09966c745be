"""Answers that must fit a JSON schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from burnish.core.task import Task
from burnish.graders.killable import KillableRule, fenced, verdict


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JsonSchemaGrader(KillableRule):
    """1 where the answer, or its last fenced block, is JSON that fits `reference["schema"]`.

    It runs in a process of its own since a pattern in a schema may take for ever on the wrong text.  References to
    other documents are not followed, and a schema that takes anything judges nothing.
    """

    name = "json_schema"
    function = "burnish.graders.json_schema:check"

    def arguments(self, task: Task, text: str) -> Mapping[str, Any] | None:
        schema = task.reference.get("schema")
        return {"schema": schema, "given": fenced(text, "json")} if isinstance(schema, Mapping) else None


def check(schema: dict[str, Any], given: str) -> dict[str, Any]:
    """The verdict on one text."""
    from jsonschema import validators
    from jsonschema.exceptions import SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    kind = validators.validator_for(schema, default=validators.Draft202012Validator)
    samples: tuple[Any, ...] = (None, {}, [], "", 0)
    try:
        kind.check_schema(schema)
        validator = kind(schema, registry=Registry())
        if all(validator.is_valid(empty) for empty in samples):
            return verdict(None, "task_cannot_be_judged", schema="takes anything")
    except (SchemaError, Unresolvable) as error:
        return verdict(None, "task_cannot_be_judged", schema=str(error)[:200])
    try:
        value = json.loads(given, parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        return verdict(0.0, "no_json", error=str(error)[:200])
    try:
        problem = next(validator.iter_errors(value), None)
    except RecursionError:
        return verdict(0.0, "too_deep")
    if problem is None:
        return verdict(1.0)
    return verdict(0.0, "does_not_fit", at=problem.json_path[:200], rule=str(problem.validator))


def _no_json(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")
