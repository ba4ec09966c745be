"""Losses by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from burnish.algorithms.cispo import CispoLoss
from burnish.algorithms.grpo import GrpoLoss
from burnish.algorithms.gspo import GspoLoss
from burnish.algorithms.loss import Loss
from burnish.algorithms.m2po import M2poLoss
from burnish.algorithms.sft import SftLoss
from burnish.core.errors import ConfigError
from burnish.core.hints import did_you_mean

LOSSES: Mapping[str, Any] = {"sft": SftLoss, "grpo": GrpoLoss, "gspo": GspoLoss, "cispo": CispoLoss, "m2po": M2poLoss}


def make_loss(name: str, options: Mapping[str, Any] | None = None) -> Loss:
    """The loss called `name` with its options; ConfigError (with a suggestion) for an unknown name, option or value.

    >>> make_loss("grpo", {"clip_high": 0.3, "correction": "token_truncate"}).needs_reference
    False
    """
    if name not in LOSSES:
        raise ConfigError(f"unknown loss {name!r}{_suggestion(name, LOSSES)}")
    kind = LOSSES[name]
    known = [field.name for field in dataclasses.fields(kind)]
    for option in options or {}:
        if option not in known:
            raise ConfigError(f"loss {name} has no option {option!r}{_suggestion(option, known)}")
    try:
        loss: Loss = kind(**(options or {}))
        return loss
    except (TypeError, ValueError) as error:
        raise ConfigError(f"loss {name}: {error}") from error


def _suggestion(word: str, known: Iterable[str]) -> str:
    names = list(known)
    return "; " + did_you_mean(word, names, f"known: {', '.join(names)}")
