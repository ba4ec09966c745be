"""Which kinds of tasks a run draws more of, by what its own failures can teach; `curriculum` in the recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from burnish.control.teachable import Tally, Teachable
from burnish.core.errors import ConfigError
from burnish.core.task import Task
from burnish.diagnosis.diagnose import Engine
from burnish.diagnosis.formats.run import trajectory_record
from burnish.diagnosis.record import Record
from burnish.diagnosis.tags import lessons
from burnish.loop.config import Recipe
from burnish.loop.state import LoopState
from burnish.rollout.group import GroupResult

MOST_KINDS = 64
"""More kinds than this are seen too seldom for their failures to say anything."""


class Curriculum:
    """`curriculum.probabilities()` before a step, `curriculum.learn(groups)` after it.

    What was learnt is kept in the state, so that a resumed run draws the same.  Raises ConfigError where the tasks
    have no such tag, one value of it, or too many.
    """

    def __init__(self, recipe: Recipe, tasks: Sequence[Task], state: LoopState, engine: Engine) -> None:
        self._settings, self._state, self._engine = recipe.curriculum, state, engine
        counts = Counter(task.tags.get(self._settings.tag, "") for task in tasks)
        if not 1 < len(counts) <= MOST_KINDS:
            raise ConfigError(
                f"curriculum.tag {self._settings.tag!r} has {len(counts)} values among the training tasks; it takes 2 "
                f"to {MOST_KINDS}. Their tags: {', '.join(sorted({name for task in tasks for name in task.tags}))}"
            )
        self._base = {kind: count / len(tasks) for kind, count in sorted(counts.items())}

    def probabilities(self) -> dict[str, float]:
        """Probability by kind, adding up to 1."""
        return self._seen().probabilities(self._base, self._settings.floor)

    def learn(self, groups: Sequence[GroupResult], step: int) -> dict[str, float]:
        """Look at the failures of a step; returns the next step's probabilities as scalars (docs/metrics.md)."""
        found: dict[str, Tally] = {}
        for group in groups:
            kind = group.trajectories[0].tags.get(self._settings.tag, "")
            found[kind] = found.get(kind, Tally()) + self._tally(records_of(group, step))
        seen = self._seen()
        seen.learn(found)
        self._state.teachable = seen.state()
        return {f"curriculum/{kind or 'none'}": share for kind, share in self.probabilities().items()}

    def _tally(self, records: Sequence[Record]) -> Tally:
        if self._settings.draw == "failures":
            return Tally(runs=len(records), lessons=sum(record.passed is not True for record in records))
        taught, others = lessons(self._engine, records)
        return Tally(runs=len(records), lessons=taught, others=others)

    def _seen(self) -> Teachable:
        return Teachable.restore(self._settings.memory_steps, self._state.teachable or {})


def records_of(group: GroupResult, step: int) -> list[Record]:
    """The members of a group as diagnosis reads them; what a success was charged does not make it a failure."""
    return [
        trajectory_record(trajectory, reward=None if reward is None else reward + charge, step=step)
        for trajectory, reward, charge in zip(group.trajectories, group.rewards_G, group.charges_G, strict=True)
    ]
