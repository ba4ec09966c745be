"""What a task says about grounding: mode, expected evidence, the medium, and the true places where they are known.

It stands under `reference["grounding"]`, as JSON, where the policy never sees it.  The task fixes mode and expected
evidence; a response that leaves them out is judged by them all the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any

from burnish.core.errors import TaskError
from burnish.core.hashing import canonical_json
from burnish.core.task import Task
from burnish.graders.evidence import Convention, Frame, Mode, ParseSpec
from burnish.graders.evidence.syntax import clean_label
from burnish.graders.grounding.regions import Region, region_from_json


class Expected(StrEnum):
    """Kinds of evidence that a task can ask for."""

    POINT = "point"
    BOX = "box"
    SPAN = "span"
    PLAN = "plan"


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldObject:
    """A thing that should be cited.  `GoldObject(labels=("dog", "puppy"), region=BoxRegion(...))`

    labels: names that count as its own, cleaned; empty where any will do.  region: None where only a teacher can say.
    """

    labels: tuple[str, ...]
    region: Region | None = None
    frame: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldSpan:
    """A stretch of time that should be cited.  `GoldSpan(event="dog", start_s=1.0, end_s=3.0)`"""

    start_s: float
    end_s: float
    event: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundingSpec:
    """`reference["grounding"]` as a value.

    counts: the answer is the number of things cited.  names: the answer names one of the things cited.  others: things
    in the image that should not be cited; a point on one of them earns no part credit.
    """

    mode: Mode
    expected: tuple[Expected, ...]
    frame: Frame
    convention: Convention = Convention.ABSOLUTE
    objects: tuple[GoldObject, ...] = ()
    others: tuple[GoldObject, ...] = ()
    spans: tuple[GoldSpan, ...] = ()
    counts: bool = False
    names: bool = False
    plan: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parsing(self) -> ParseSpec:
        """How to read a response to this task."""
        return ParseSpec(frame=self.frame, convention=self.convention)

    @property
    def expects_grounding(self) -> bool:
        """Whether a response without evidence lacks something; a task in direct mode demands none."""
        return self.mode is Mode.THINK and bool(self.expected)

    @property
    def has_regions(self) -> bool:
        """Whether the true places are known."""
        return bool(self.objects) and all(item.region is not None for item in self.objects)

    @staticmethod
    def of(task: Task) -> GroundingSpec:
        """The spec of a task; one without `reference["grounding"]` is in direct mode and expects nothing.

        Raises TaskError where it is there and cannot be read.
        """
        data = task.reference.get("grounding")
        if data is None:
            return _PLAIN
        try:
            return _read(canonical_json(data))
        except (KeyError, TypeError, ValueError) as error:
            raise TaskError(f"task {task.id}: reference.grounding cannot be read: {error!r}") from error


_PLAIN = GroundingSpec(mode=Mode.DIRECT, expected=(), frame=Frame(width_px=1, height_px=1))


@lru_cache(maxsize=4096)
def _read(text: str) -> GroundingSpec:
    data = json.loads(text)
    medium = data.get("medium", {"width_px": 1, "height_px": 1})
    spec = GroundingSpec(
        mode=Mode(data.get("mode", "think")),
        expected=tuple(Expected(item) for item in data.get("expected", ())),
        frame=Frame(**medium),
        convention=Convention(data.get("convention", "absolute")),
        objects=_objects(data.get("objects", ())),
        others=_objects(data.get("others", ())),
        spans=tuple(
            GoldSpan(start_s=item["start_s"], end_s=item["end_s"], event=clean_label(item.get("event", "")))
            for item in data.get("spans", ())
        ),
        counts=bool(data.get("counts", False)),
        names=bool(data.get("names", False)),
        plan=data.get("plan", {}),
    )
    if Expected.SPAN in spec.expected and not spec.spans:
        raise ValueError("spans are expected and none is given")
    return spec


def _objects(items: Sequence[Mapping[str, Any]]) -> tuple[GoldObject, ...]:
    return tuple(
        GoldObject(
            labels=tuple(clean_label(label) for label in item.get("labels", ())),
            region=region_from_json(item["region"]) if "region" in item else None,
            frame=item.get("frame", 0),
        )
        for item in items
    )
