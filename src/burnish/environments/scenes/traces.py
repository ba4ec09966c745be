"""What the expert writes, right or with a named mistake."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from burnish.core.task import Task
from burnish.environments.scenes.scene import COLOURS, SHAPES

Cited = dict[str, Any]


def trace(task: Task, rng: Random, mistake: str | None = None) -> str:
    """Look, then answer: `<think>red circle (12, 20), blue square (5, 7)</think>yes`.

    A task in direct mode gets its answer alone.
    """
    answer = str(task.reference["answer"])
    if task.reference["grounding"]["mode"] == "direct":
        return _other_answer(task, rng) if mistake == "wrong_answer" else answer
    if mistake is not None:
        return MISTAKES[mistake](task, rng)
    return _written(_evidence(task), task, answer)


def cited_text(items: list[Cited], task: Task) -> str:
    """The citations of a trace."""
    n_frames = task.reference["grounding"]["medium"]["frames"]
    words = [
        f"{item['event']} frames {item['first']}-{item['last']}"
        if "event" in item
        else f"{item['label']} ({item['x_px']}, {item['y_px']})" + (f"@{item['frame'] + 1}" if n_frames > 1 else "")
        for item in items
    ]
    return ", ".join(words)


def _written(items: list[Cited], task: Task, answer: str, more: str = "") -> str:
    return f"<think>{cited_text(items, task)}{more}</think>{answer}"


def _evidence(task: Task) -> list[Cited]:
    if task.reference["span"]:
        first, last = task.reference["span"]
        return [{"event": task.reference["event"], "first": first, "last": last}]
    return [dict(item) for item in task.reference["evidence"]]


def _other_answer(task: Task, rng: Random) -> str:
    answer = str(task.reference["answer"])
    pools: Mapping[str, list[str]] = {
        "count": ["1", "2", "3", "4"],
        "attribute": list(COLOURS),
        "relation": ["yes", "no"],
        "where": ["top left", "top right", "bottom left", "bottom right"],
        "when": ["1", "2", "3", "4"],
    }
    pool = pools.get(task.tags["kind"]) or [f"{c} {s}" for c in COLOURS for s in SHAPES]
    return rng.choice([other for other in pool if other != answer])


def _wrong_answer(task: Task, rng: Random) -> str:
    return _written(_evidence(task), task, _other_answer(task, rng))


def _moved_point(task: Task, rng: Random) -> str:
    """Every citation somewhere else: a place on no thing, or frames that are not the right ones."""
    items = _evidence(task)
    for item in items:
        if "event" in item:
            item |= _other_frames(item, task.reference["grounding"]["medium"]["frames"], rng)
        else:
            item["x_px"], item["y_px"] = _nowhere(task, item["frame"], rng)
    return _written(items, task, str(task.reference["answer"]))


def _swapped_label(task: Task, rng: Random) -> str:
    """Right places under names of things that are not asked about."""
    labels = {item.get("event") or item["label"] for item in _evidence(task)}
    free = [f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" not in labels]
    items = [item | {("event" if "event" in item else "label"): rng.choice(free)} for item in _evidence(task)]
    return _written(items, task, str(task.reference["answer"]))


def _contradiction(task: Task, rng: Random) -> str:
    """Reasoning that concludes something else than the answer."""
    more = f". So the answer is {_other_answer(task, rng)}"
    return _written(_evidence(task), task, str(task.reference["answer"]), more)


def _no_evidence(task: Task, rng: Random) -> str:
    """The answer alone."""
    return str(task.reference["answer"])


def _other_frames(item: Cited, n_frames: int, rng: Random) -> Cited:
    spans = [(a, b) for a in range(1, n_frames + 1) for b in range(a, n_frames + 1)]
    true = set(range(item["first"], item["last"] + 1))
    ranked = sorted(spans, key=lambda s: (len(true & set(range(s[0], s[1] + 1))) / (s[1] - s[0] + 1), rng.random()))
    return {"first": ranked[0][0], "last": ranked[0][1]}


def _nowhere(task: Task, frame: int, rng: Random) -> tuple[int, int]:
    """The one of 64 random pixels that is farthest from all things of a frame."""
    side = task.setup["frames"][frame]["size_px"]
    things = task.setup["frames"][frame]["things"]
    places = [(rng.randrange(side), rng.randrange(side)) for _ in range(64)]
    return max(places, key=lambda p: min((p[0] - t["x_px"]) ** 2 + (p[1] - t["y_px"]) ** 2 for t in things))


MISTAKES: Mapping[str, Callable[[Task, Random], str]] = {
    "wrong_answer": _wrong_answer,
    "moved_point": _moved_point,
    "swapped_label": _swapped_label,
    "contradiction": _contradiction,
    "no_evidence": _no_evidence,
}
"""Ways to be wrong by name; each earns less than the right way on every task that expects evidence."""
