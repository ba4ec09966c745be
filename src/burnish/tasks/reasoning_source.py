"""Makes entries of reasoning-gym in a process of its own: `python -m burnish.tasks.reasoning_source`.

Several datasets draw from sets, so that their questions depend on the hash seed of the process; here it is fixed.  The
package also takes seconds to import and prints as it goes, which the caller is spared.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

MAX_MEASURED = 200
MEASURE_S = 10.0
ONE_SCORE_S = 2.0
_CONSTANTS = 3


def main() -> None:
    """Read `{"dataset", "size", "seed", "options"}` from stdin; write entries and chance, or an error, to stdout."""
    request = json.load(sys.stdin)
    with contextlib.redirect_stdout(io.StringIO()):
        answer = make_entries(**request)
    json.dump(answer, sys.stdout)


def make_entries(dataset: str, size: int, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Up to `size` entries with distinct questions and the measured chance, or `{"error": ...}`."""
    try:
        gym = importlib.import_module("reasoning_gym")
    except ImportError:
        return {"error": 'tasks of reasoning-gym need its package: pip install "burnish[gym]"'}
    known = sorted(importlib.import_module("reasoning_gym.factory").DATASETS)
    if dataset not in known:
        close = difflib.get_close_matches(dataset, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        return {"error": f"reasoning-gym has no dataset {dataset!r}; {hint}"}
    try:
        instance = gym.create_dataset(dataset, size=size, seed=seed, **options)
    except (TypeError, ValueError, AssertionError) as error:
        return {"error": f"reasoning-gym refuses {options} for {dataset}: {error}"}
    entries = list({entry["question"]: entry for entry in instance}.values())
    return {
        "entries": [
            {
                "question": str(entry["question"]),
                "answer": None if entry["answer"] is None else str(entry["answer"]),
                "literal": repr(literal(entry)),
            }
            for entry in entries
        ],
        "chance": _measured_chance(instance, entries),
    }


def literal(value: Any) -> Any:
    """The value made of types that `ast.literal_eval` reads back; numpy scalars become Python's, the rest text."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return float(value) if value - value == 0.0 else str(value)
    if isinstance(value, Mapping):
        return {literal(key): literal(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(literal(item) for item in value) if type(value) in (list, tuple) else list(value)
    if isinstance(value, (set, frozenset)):
        return {literal(item) for item in sorted(value, key=repr)} or []
    return literal(value.item()) if hasattr(value, "item") else str(value)


def _measured_chance(instance: Any, entries: Sequence[Mapping[str, Any]]) -> float:
    """Mean score of the best of the policies without skill: another task's answer, and the commonest answers.

    Measured on up to 200 entries, and on fewer where scoring is slow.
    """
    answers = [entry["answer"] for entry in entries if entry["answer"] is not None]
    commonest = sorted(set(answers), key=lambda answer: (-answers.count(answer), answer))[:_CONSTANTS]
    sums = [0.0] * (2 + len(commonest))
    measured = 0
    end_s = time.monotonic() + MEASURE_S
    for index, entry in enumerate(entries[:MAX_MEASURED]):
        shifted = answers[(index + 1) % len(answers)] if answers else ""
        for policy, answer in enumerate(["", shifted, *commonest]):
            sums[policy] += _score(instance, entry, answer)
        measured += 1
        if time.monotonic() > end_s:
            break
    return max(sums) / measured if measured else 0.0


def _score(instance: Any, entry: Mapping[str, Any], answer: str) -> float:
    """The score in [0, 1]; a scorer that breaks or hangs on an answer has not accepted it."""

    def stop(signum: int, frame: Any) -> None:
        raise ValueError("scoring takes too long")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, ONE_SCORE_S)
    try:
        return min(1.0, max(0.0, float(instance.score_answer(answer, dict(entry)))))
    except Exception:  # noqa: BLE001 - somebody else's scorer on a foreign answer: whatever it raises is a refusal
        return 0.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


if __name__ == "__main__":
    main()
