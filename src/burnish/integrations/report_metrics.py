"""Metrics of reports that need other people's packages and weights; None, never 0, where these are not there."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from burnish.core.errors import ConfigError

_PACKAGES = {"bertscore": "bert_score", "radgraph": "radgraph", "chexbert": "f1chexbert"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetric:
    """A function of (given, reference) by a package's model, loaded at the first call.

    `ModelMetric(kind="bertscore")("no effusion", "no pleural effusion")`

    kind: "bertscore", "radgraph" or "chexbert".  None where the package or its weights are missing; `reason` says so.
    """

    kind: str
    _loaded: list[Any] = field(default_factory=list, repr=False, compare=False)
    _reason: list[str] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in _PACKAGES:
            raise ConfigError(f"no model metric {self.kind!r}; there are {', '.join(_PACKAGES)}")

    @property
    def reason(self) -> str:
        """Why it is unavailable; empty where it is not, or was not asked yet."""
        return self._reason[0] if self._reason else ""

    def __call__(self, given: str, reference: str) -> float | None:
        scorer = self._scorer()
        return None if scorer is None else float(_CALLS[self.kind](scorer, given, reference))

    def _scorer(self) -> Any:
        if not self._loaded and not self._reason:
            package = _PACKAGES[self.kind]
            if importlib.util.find_spec(package) is None:
                self._reason.append(f"package {package} is not installed")
                return None
            try:
                self._loaded.append(_MAKERS[self.kind](importlib.import_module(package)))
            except (OSError, ValueError, ImportError) as error:
                self._reason.append(f"{package} cannot load its weights: {error}")
        return self._loaded[0] if self._loaded else None


_MAKERS: dict[str, Callable[[Any], Any]] = {
    "bertscore": lambda module: module.BERTScorer(lang="en"),
    "radgraph": lambda module: module.F1RadGraph(reward_level="partial"),
    "chexbert": lambda module: module.F1CheXbert(),
}
_CALLS: dict[str, Callable[[Any, str, str], float]] = {
    "bertscore": lambda scorer, given, reference: scorer.score([given], [reference])[2][0].item(),
    "radgraph": lambda scorer, given, reference: scorer(hyps=[given], refs=[reference])[0],
    "chexbert": lambda scorer, given, reference: scorer(hyps=[given], refs=[reference])[0],
}
