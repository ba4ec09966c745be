"""From the name of a grader, as environments and recipes give it, to the grader."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from burnish.core.errors import ConfigError
from burnish.core.grade import Grader
from burnish.graders.function import FunctionGrader
from burnish.graders.reasoning import ReasoningGymGrader
from burnish.graders.rules import ChoiceGrader, ExactGrader, NumericGrader, RewardGrader, StateGrader

GRADERS: dict[str, Callable[[], Grader]] = {
    "exact": ExactGrader,
    "choice": ChoiceGrader,
    "numeric": NumericGrader,
    "last_number": lambda: NumericGrader(take="last"),
    "state": StateGrader,
    "get_reward": RewardGrader,
    "reasoning_gym": ReasoningGymGrader,
}


def make_grader(reference: str | Grader | Callable[..., Any]) -> Grader:
    """The grader of a name; a grader as it is; a function (task, trajectory) -> score, wrapped.

    Raises ConfigError, with a suggestion, for a name that is not known, and for anything that cannot grade.

    >>> make_grader("exact").name
    'exact'
    """
    if isinstance(reference, str):
        if reference not in GRADERS:
            close = difflib.get_close_matches(reference, GRADERS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(GRADERS)}"
            raise ConfigError(f"unknown grader {reference!r}; {hint}")
        return GRADERS[reference]()
    if inspect.isclass(reference):
        raise ConfigError(f"{reference.__name__} is a class; name a grader that is made: {reference.__name__}()")
    if not inspect.isroutine(reference):
        missing = [name for name in ("name", "version", "grade") if not hasattr(reference, name)]
        if missing:
            raise ConfigError(f"{reference!r} is no grader: it has no {', '.join(missing)}")
        return reference  # type: ignore[return-value]
    return FunctionGrader(reference)
