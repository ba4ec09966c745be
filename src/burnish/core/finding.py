"""What a monitor noticed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something noticed in a run, with its evidence; control decides what to do about it.

    `Finding(monitor="logprob_drift", step=12, summary="sampler and learner differ by 3e-3", evidence={"max": 3e-3})`
    """

    monitor: str
    step: int
    summary: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    trajectory_ids: tuple[str, ...] = ()
