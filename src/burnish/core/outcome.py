"""Why an episode ended, and who answers for it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from burnish.core.pickling import quickly_pickled


class Ending(StrEnum):
    """The three kinds of end."""

    COMPLETED = "completed"
    TRUNCATED = "truncated"
    ERROR = "error"


class Limit(StrEnum):
    """The limits that can cut an episode short."""

    TURNS = "turns"
    TURN_TOKENS = "turn_tokens"
    EPISODE_TOKENS = "episode_tokens"
    CONTEXT_TOKENS = "context_tokens"
    TIME = "time"


class Owner(StrEnum):
    """Whose fault an error is."""

    MODEL = "model"
    ENVIRONMENT = "environment"
    GRADER = "grader"
    INFRASTRUCTURE = "infrastructure"


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Why an episode ended.  `Outcome(ending=Ending.TRUNCATED, limit=Limit.TURNS)`

    `limit` is set exactly when `ending` is truncated, `owner` exactly when it is an error.  `cause` is a short
    code such as "tool_timeout", `detail` a sentence for people.
    """

    ending: Ending
    limit: Limit | None = None
    owner: Owner | None = None
    cause: str = ""
    detail: str = ""

    def __post_init__(self) -> None:
        if (self.ending is Ending.TRUNCATED) != (self.limit is not None):
            raise ValueError(f"an outcome names a limit exactly when it is truncated, got {self.ending} {self.limit}")
        if (self.ending is Ending.ERROR) != (self.owner is not None):
            raise ValueError(f"an outcome names an owner exactly when it is an error, got {self.ending} {self.owner}")

    @property
    def may_carry_reward(self) -> bool:
        """Failed is not zero: only completed, truncated and the model's own errors may carry a reward.

        >>> Outcome(ending=Ending.ERROR, owner=Owner.ENVIRONMENT, cause="crash").may_carry_reward
        False
        """
        return self.owner is None or self.owner is Owner.MODEL

    @property
    def label(self) -> str:
        """One word group for counts and filters, such as "truncated:turns" or "error:environment"."""
        qualifier = self.limit or self.owner
        return f"{self.ending}:{qualifier}" if qualifier else str(self.ending)


COMPLETED = Outcome(ending=Ending.COMPLETED)
