"""One example on its way to SFT, and its line of JSON.

The line is a chat (`{"messages": [...]}`) with what the stages found beside it, so that what is kept is trained on as
it lies: `warm_start.data=kept.jsonl`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from burnish.core.content import content_of, read_content
from burnish.core.errors import TaskError
from burnish.core.images import ImageError, ImageStore
from burnish.core.message import ImagePart, Part, TextPart
from burnish.core.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """`Example(id="t1", prompt=(ImagePart(...), TextPart(text="How many are red?")), answer="2")`

    prompt: images and question.  system: an optional system text.  answer: the right one as the data say it, empty
    where they do not.  labels: names of the things to be cited, where the data say them.  reference: what is known of
    the answer and of what it rests on, in the form of a task's reference; by: who says so ("truth", or a teacher).
    overlays: the images again, with the references drawn on them.  response: the trace; writer: who wrote it.
    tags: for slices.
    """

    id: str
    prompt: tuple[Part, ...]
    system: str = ""
    answer: str = ""
    labels: tuple[str, ...] = ()
    reference: Mapping[str, Any] = field(default_factory=dict)
    by: str = ""
    overlays: tuple[ImagePart, ...] = ()
    response: str = ""
    writer: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """The images of the prompt in their order."""
        return tuple(part for part in self.prompt if isinstance(part, ImagePart))

    @property
    def question(self) -> str:
        """The text of the prompt."""
        return "".join(part.text for part in self.prompt if isinstance(part, TextPart))

    def task(self, reference: Mapping[str, Any] | None = None) -> Task:
        """It as a task, with its own reference or another one."""
        return Task(
            prompt=self.prompt,
            system=self.system,
            reference=self.reference if reference is None else reference,
            tags=self.tags,
            id=self.id,
        )


def example_to_row(example: Example) -> dict[str, Any]:
    """The JSON object of a line; `example_from_row` is its inverse where the images lie beside the file."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": example.system}] if example.system else []
    messages.append({"role": "user", "content": content_of(example.prompt)})
    if example.response:
        messages.append({"role": "assistant", "content": example.response})
    row: dict[str, Any] = {"id": example.id, "messages": messages}
    if example.answer:
        row["answer"] = example.answer
    if example.labels:
        row["labels"] = list(example.labels)
    if example.reference:
        row |= {"reference": dict(example.reference), "by": example.by}
    if example.overlays:
        row["overlays"] = content_of(example.overlays)
    if example.writer:
        row["writer"] = example.writer
    if example.tags:
        row["tags"] = dict(example.tags)
    return row


def example_from_row(row: Mapping[str, Any], path: Path, number: int, shelf: ImageStore) -> Example:
    """The example of line `number` of `path`; its images go on `shelf`.  Raises TaskError that says what is wrong."""
    try:
        texts = _by_role(row.get("messages"))
        prompt = read_content(texts["user"], path, shelf)
        answer = row.get("answer", "")
        example = Example(
            id=str(row.get("id") or f"{path.stem}-{number:06d}"),
            prompt=prompt,
            system=str(texts.get("system") or ""),
            answer=str(answer) if isinstance(answer, (str, int, float)) and not isinstance(answer, bool) else "",
            labels=tuple(str(label) for label in row.get("labels", ())),
            reference=dict(row.get("reference", {})),
            by=str(row.get("by", "")),
            overlays=tuple(p for p in read_content(row.get("overlays"), path, shelf) if isinstance(p, ImagePart)),
            response=str(texts.get("assistant") or ""),
            writer=str(row.get("writer", "")),
            tags={str(key): str(value) for key, value in dict(row.get("tags", {})).items()},
        )
    except (ValueError, TypeError, KeyError, ImageError) as error:
        raise TaskError(f"{path}:{number}: {error}") from error
    if not example.images or not example.question:
        raise TaskError(f"{path}:{number}: the user's message needs an image and a question")
    return example


def _by_role(messages: Any) -> dict[str, Any]:
    """Content by role of a chat of at most one turn each, in the order system, user, assistant."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise ValueError('expected {"messages": [...]}')
    roles = [item.get("role") if isinstance(item, Mapping) else None for item in messages]
    allowed = [role for role in ("system", "user", "assistant") if role in roles]
    if roles != allowed or "user" not in roles:
        raise ValueError(f"messages are one of the user, and at most one of system and assistant, got roles {roles}")
    return {item["role"]: item.get("content") for item in messages}
