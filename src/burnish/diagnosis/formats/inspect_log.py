"""Inspect evaluation logs in their JSON form: one record for each sample, or one sample a line.

Lost: events, model usage, attachments, images.  A score of "C", True or 1 passes, "I", "N", "P" or less fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from burnish.diagnosis.formats.chat import items_of, tools_of
from burnish.diagnosis.plain import RecordError, listed, mapping, name_of, real
from burnish.diagnosis.record import Record


def samples_of(log: Any) -> Iterator[Any]:
    """The samples of a log, unread."""
    yield from listed(mapping(log, "a log").get("samples"), "samples")


def read_sample(row: Any, position: int) -> Record:
    """One sample.  Raises RecordError where it holds no messages."""
    data = mapping(row, "a sample")
    items = items_of(data.get("messages"))
    if not items:
        raise RecordError("the sample holds no messages")
    reward, passed = _score(data.get("scores", data.get("score")))
    sample = name_of(data.get("id")) or str(position)
    epoch = name_of(data.get("epoch"))
    error = data.get("error")
    return Record(
        id=f"{sample}/{epoch}" if epoch not in ("", "1") else sample,
        task_id=sample,
        items=items,
        source="inspect",
        instruction=data["input"] if isinstance(data.get("input"), str) else "",
        tools=tools_of(data.get("tools")),
        reward=reward,
        passed=passed,
        outcome="error:infrastructure" if error else "",
    )


def _score(scores: Any) -> tuple[float | None, bool | None]:
    if isinstance(scores, Mapping) and "value" not in scores:
        scores = next(iter(scores.values()), None)
    value = scores.get("value") if isinstance(scores, Mapping) else scores
    if isinstance(value, str):
        known = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}.get(value)
        return known, None if known is None else known >= 1.0
    number = real(value)
    return number, None if number is None else number >= 1.0 - 1e-9
