"""Tasks that nobody here wrote: any dataset of the reasoning-gym package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from burnish.core.errors import ConfigError, TaskError
from burnish.core.hashing import derive_seed
from burnish.core.task import Task
from burnish.tasks.taskset import HeldTasks

_SOURCE_TIMEOUT_S = 600.0
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from burnish.tasks.reasoning_source import main; main()"
)


class ReasoningGymTaskset(HeldTasks):
    """A dataset of reasoning-gym with its own scorer, for the grader "reasoning_gym".

    size: tasks in train; heldout_size in heldout (default: a tenth, at least 50).  options go to the dataset, such as
    `max_digits=1`.  A question that occurs twice is kept once, and in one split; a dataset with few questions thus
    gives fewer tasks, in the same proportion.  chance is measured: the mean score of the best policy without skill.
    oracle_available: whether every task stores a gold answer.

    setup holds the dataset's name and options, and the entry as a Python literal (`ast.literal_eval` reads it), since
    scorers tell tuples from lists, which JSON does not.  reference holds the stored gold answer where there is one.

    `ReasoningGymTaskset("chain_sum", size=500, seed=0, max_terms=2, max_digits=1)`

    Raises ConfigError where the package is missing, or refuses the dataset's name or options.
    """

    def __init__(
        self, dataset: str, *, size: int = 2000, seed: int = 0, heldout_size: int | None = None, **options: Any
    ) -> None:
        held = max(50, size // 10) if heldout_size is None else heldout_size
        if size < 1 or held < 1:
            raise ConfigError(f"size and heldout_size must be at least 1, got {size!r} and {held!r}")
        self.name = f"reasoning-gym:{dataset}"
        self._dataset = dataset
        self._options = options
        made = _source(dataset, size + held, derive_seed(seed, self.name) % 2**31, options)
        if "error" in made:
            raise ConfigError(made["error"])
        entries: list[dict[str, Any]] = made["entries"]
        if len(entries) < 2:
            raise TaskError(f"{self.name} has {len(entries)} distinct questions with {options}; widen the options")
        heldout, train = _divided(entries, held / (size + held), seed)
        self._tasks = {
            "train": tuple(self._task(entry) for entry in train),
            "heldout": tuple(self._task(entry) for entry in heldout),
        }
        self.chance: float = made["chance"]
        self.oracle_available = all(entry["answer"] is not None for entry in entries)

    def _task(self, entry: Mapping[str, Any]) -> Task:
        return Task(
            prompt=entry["question"],
            setup={"dataset": self._dataset, "options": self._options, "entry": entry["literal"]},
            reference={} if entry["answer"] is None else {"answer": entry["answer"]},
            tags={"source": "reasoning-gym", "skill": self._dataset},
        )


def _divided(entries: Sequence[dict[str, Any]], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Held-out entries and the others, the same share of a small dataset as of a large one."""
    ranked = sorted(entries, key=lambda entry: derive_seed(seed, "heldout", entry["question"]))
    chosen = {entry["question"] for entry in ranked[: min(len(ranked) - 1, max(1, round(share * len(ranked))))]}
    heldout = [entry for entry in entries if entry["question"] in chosen]
    return heldout, [entry for entry in entries if entry["question"] not in chosen]


def _source(dataset: str, size: int, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """What `reasoning_source` answers; its process has a fixed hash seed, so that equal arguments give equal tasks."""
    try:
        request = json.dumps({"dataset": dataset, "size": size, "seed": seed, "options": dict(options)})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"options of {dataset} must be JSON-able: {error}") from error
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, json.dumps([os.path.abspath(path) for path in sys.path])],
            input=request,
            capture_output=True,
            text=True,
            timeout=_SOURCE_TIMEOUT_S,
            env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TaskError(f"reasoning-gym made no {size} entries of {dataset} in {_SOURCE_TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        raise TaskError(f"reasoning-gym failed on {dataset} with {dict(options)}: {done.stderr.strip()[-500:]}")
    made: dict[str, Any] = json.loads(done.stdout)
    return made
