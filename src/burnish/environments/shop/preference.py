"""A noisy scorer of preferences: what a customer thinks of a conversation, knowing nothing of the right outcome.

    quality = .2 + .4 grounded + .2 clean + .2 brief                     in [0, 1], 0 for an episode without an answer
    score   = min(1, max(0, quality + sd[source] z)),  z ~ N(0, 1)       a function of (seed, conversation, source)

    grounded  the answer stands in the last tool result, or follows a change that the shop accepted
    clean     no call was refused
    brief     1 / (1 + tool calls / 4)

Quality goes along with being right, and yet it is not that: an answer may be grounded in the wrong row, and `brief`
pays for stopping early.  It is therefore a reward to be staged in behind a verifier, and something to be hacked.
Sources differ in noise as people who rate by phone and by letter do.  The cut at 0 and 1 takes a little off the noise
near the ends: at quality .8, a standard deviation of .3 becomes about .22.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

from burnish.core.errors import ConfigError
from burnish.core.grade import Grade
from burnish.core.hashing import content_hash, derive_seed
from burnish.core.message import Message, Role, message_to_json
from burnish.core.outcome import Ending
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.environments.shop.mistakes import WRITES

BRIEF_CALLS = 4
SEEDS = 2**63
_STANDARD = NormalDist()
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceGrader:
    """Score in [0, 1] of a conversation, with noise.  `PreferenceGrader(seed=7, noise={"phone": 0.1, "mail": 0.3})`

    seed: of the noise.  noise: its standard deviation by source, in units of the score; other sources have none.
    The same conversation on the same task gets the same score, so grading a stored run again changes nothing.
    """

    name = "preference"
    version = "1"

    seed: int = 0
    noise: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for source, sd in self.noise.items():
            if not (isinstance(sd, (int, float)) and math.isfinite(sd) and sd >= 0):
                raise ConfigError(f"shop: the noise of a source is a number from 0 on, got {sd!r} for {source!r}")

    async def grade(self, task: Task, trajectory: Trajectory) -> Grade:
        return self.judge(task, trajectory)

    def judge(self, task: Task, trajectory: Trajectory) -> Grade:
        """The same without waiting: a pure function of its arguments."""
        outcome = trajectory.outcome
        if not outcome.may_carry_reward:
            cause = f"excluded:{outcome.label}"
            return Grade(grader=self.name, version=self.version, score=None, cause=cause)
        quality = 0.0
        if outcome.ending is Ending.COMPLETED:
            messages = trajectory.messages
            n_calls = sum(len(message.tool_calls) for message in messages)
            brief = 1.0 / (1.0 + n_calls / BRIEF_CALLS)
            quality = 0.2 + 0.4 * is_grounded(messages, trajectory.answer) + 0.2 * is_clean(messages) + 0.2 * brief
        noise = self._noise(task, trajectory)
        return Grade(
            grader=self.name,
            version=self.version,
            score=min(1.0, max(0.0, quality + noise)),
            evidence={"quality": round(quality, 6), "noise": round(noise, 6)},
        )

    def _noise(self, task: Task, trajectory: Trajectory) -> float:
        source = task.tags.get("source", "")
        sd = self.noise.get(source, 0.0)
        if sd == 0.0:
            return 0.0
        said = content_hash((task.content_hash, [message_to_json(message) for message in trajectory.messages]))
        return sd * _STANDARD.inv_cdf((derive_seed(self.seed, said, source) + 0.5) / SEEDS)


def is_grounded(messages: Sequence[Message], answer: str) -> bool:
    """Whether the answer stands in the last tool result, or that result is a change that the shop accepted.

    The words of the answer must all be words of the result; an empty answer is grounded in nothing.
    """
    results = [message for message in messages if message.role is Role.TOOL]
    if not results or results[-1].is_error:
        return False
    words = _WORD.findall(answer.casefold())
    if results[-1].name in WRITES:
        return bool(words)
    return bool(words) and set(words) <= set(_WORD.findall(results[-1].text.casefold()))


def is_clean(messages: Sequence[Message]) -> bool:
    """Whether no tool call was answered with an error."""
    return not any(message.is_error for message in messages)
