"""A user's own questions and answers from a JSONL file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.core.errors import ConfigError, TaskError
from burnish.core.hashing import derive_seed
from burnish.core.message import Message, Role, message_to_json
from burnish.core.task import Task
from burnish.tasks.lines import Line, read_lines
from burnish.tasks.taskset import HeldTasks, best_constant_share, check_disjoint, problem_key

_LISTED = 5
_ROLES = (Role.SYSTEM, Role.USER, Role.ASSISTANT)


class JsonlTaskset(HeldTasks):
    """Rows such as `{"prompt": "What is 2 + 2?", "answer": "4"}`, one to a line.

    prompt: text, or a list of `{"role": ..., "content": ...}` that ends with the user.  answer: text, a number, or a
    list of answers each of which is right.  Optional: system (text), choices (list of texts), tags (texts by name),
    id.  Other keys are left alone.

    A malformed row is set aside and reported in `problems` as "file:line: reason"; no good row is lost to it.  More
    than `max_bad_share` of them is a TaskError that lists the first five.  Held-out rows come from `heldout_path`, else
    they are `heldout_share` of the rows, chosen by (seed, row).  `chance` is the success of the best constant answer.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        heldout_share: float = 0.1,
        heldout_path: str | Path | None = None,
        seed: int = 0,
        max_bad_share: float = 0.1,
        name: str = "",
    ) -> None:
        if not 0.0 <= heldout_share < 1.0:
            raise ConfigError(f"heldout_share lies in [0, 1), got {heldout_share!r}")
        self.name = name or Path(path).stem
        self.problems: list[str] = []
        rows = self._load(Path(path), max_bad_share)
        if heldout_path is None:
            train, heldout = _divided(rows, heldout_share, seed)
        else:
            train, heldout = rows, self._load(Path(heldout_path), max_bad_share)
            check_disjoint(self.name, train, {"heldout": heldout})
        self._tasks = {"train": train, "heldout": heldout}
        self.chance = best_constant_share([task.reference["answer"] for task in (*train, *heldout)])

    def _load(self, path: Path, max_bad_share: float) -> tuple[Task, ...]:
        tasks: list[Task] = []
        first_line: dict[str, int] = {}
        problems: list[str] = []
        n_rows = 0
        for line in read_lines(path):
            n_rows += 1
            try:
                task = _task(line)
                for key in (f"problem {problem_key(task)}", f"id {task.id}"):
                    if key in first_line:
                        raise TaskError(f"repeats the {key.split()[0]} of line {first_line[key]}")
            except TaskError as error:
                problems.append(f"{path}:{line.number}: {error}")
                continue
            first_line |= {f"problem {problem_key(task)}": line.number, f"id {task.id}": line.number}
            tasks.append(task)
        self.problems += problems
        if not tasks or len(problems) > max_bad_share * n_rows:
            listed = "".join(f"\n  {problem}" for problem in problems[:_LISTED])
            raise TaskError(
                f"{path}: {len(problems)} of {n_rows} rows cannot be used (at most {max_bad_share:.0%} may be); "
                f"mend them or raise max_bad_share{listed}"
            )
        return tuple(tasks)


def _divided(rows: Sequence[Task], share: float, seed: int) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """Chosen by what each row says, so that adding rows elsewhere in the file moves few across."""
    wanted = round(share * len(rows))
    if share > 0.0 and len(rows) > 1:
        wanted = max(1, wanted)
    ranked = sorted(rows, key=lambda task: derive_seed(seed, "heldout", problem_key(task)))
    chosen = {task.id for task in ranked[:wanted]}
    train = tuple(task for task in rows if task.id not in chosen)
    return train, tuple(task for task in rows if task.id in chosen)


def _task(line: Line) -> Task:
    """The task of a line; TaskError says what is wrong with it, without file and line."""
    row = line.value
    if row is None:
        raise TaskError(line.problem)
    prompt, system, messages = _prompt(_required(row, "prompt"))
    system = _text(row, "system") or system
    reference = _reference(_required(row, "answer")) | _choices(row)
    return Task(
        prompt=prompt,
        system=system,
        setup={"messages": messages} if messages else {},
        reference=reference,
        tags=_tags(row),
        id=_text(row, "id"),
    )


def _required(row: Mapping[str, Any], key: str) -> Any:
    if row.get(key) is None:
        close = difflib.get_close_matches(key, row, n=1)
        hint = f" (is {close[0]!r} meant?)" if close and close[0] != key else ""
        raise TaskError(f"no {key!r}{hint}")
    return row[key]


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool) and key == "id":
        return str(value)
    if not isinstance(value, str):
        raise TaskError(f"{key!r} must be text, got {type(value).__name__}")
    return value


def _prompt(value: Any) -> tuple[str, str, list[dict[str, Any]]]:
    """Prompt, system text, and the whole conversation where it has more than one user turn."""
    if isinstance(value, str):
        if not value.strip():
            raise TaskError("'prompt' is empty")
        return value, "", []
    if not isinstance(value, list) or not value:
        raise TaskError(f"'prompt' must be text or a list of messages, got {type(value).__name__}")
    messages = [_message(item) for item in value]
    system = messages.pop(0).text if messages[0].role is Role.SYSTEM else ""
    if not messages or messages[-1].role is not Role.USER or any(message.role is Role.SYSTEM for message in messages):
        raise TaskError("'prompt' must be messages that end with the user; system may only come first")
    earlier = [message_to_json(message) for message in messages] if len(messages) > 1 else []
    return messages[-1].text, system, earlier


def _message(item: Any) -> Message:
    if not isinstance(item, dict) or not isinstance(item.get("content"), str) or item.get("role") not in _ROLES:
        raise TaskError("a message of 'prompt' must be {role: system, user or assistant; content: text}")
    make = {"system": Message.system, "user": Message.user, "assistant": Message.assistant}[item["role"]]
    return make(item["content"])


def _reference(value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        if not value:
            raise TaskError("'answer' is an empty list")
        answers = [_answer(item) for item in value]
        return {"answer": answers[0], "answers": answers}
    return {"answer": _answer(value)}


def _answer(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise TaskError(f"'answer' must be text, a number or a list of them, got {type(value).__name__}")
    text = str(value)
    if not text.strip():
        raise TaskError("'answer' is empty")
    return text


def _choices(row: Mapping[str, Any]) -> dict[str, Any]:
    choices = row.get("choices")
    if choices is None:
        return {}
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise TaskError("'choices' must be a list of texts")
    return {"choices": choices}


def _tags(row: Mapping[str, Any]) -> dict[str, str]:
    tags = row.get("tags")
    if tags is None:
        return {}
    if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
        raise TaskError("'tags' must be texts by name")
    return tags
