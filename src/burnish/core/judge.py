"""The protocol between rubrics and the models that judge by them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from burnish.core.errors import BurnishError


class JudgeCause(StrEnum):
    """Why a judge gave no verdict; never a reason for a score of 0."""

    UNAVAILABLE = "unavailable"
    RATE_LIMITED = "rate_limited"
    TIMEOUT = "timeout"
    MALFORMED = "malformed"
    REFUSED = "refused"
    CONTEXT_TOO_LONG = "context_too_long"
    CANARY_TRIPPED = "canary_tripped"
    EVIDENCE_NOT_FOUND = "evidence_not_found"
    VERSION_CHANGED = "version_changed"
    BUDGET_EXHAUSTED = "budget_exhausted"
    NOT_IN_CACHE = "not_in_cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeUsage:
    """What a judge spent.  `JudgeUsage(requests=1, prompt_tokens=900, completion_tokens=120, cost_usd=0.0004)`

    requests: answers that were asked for and came from the model, replies from a cache left out.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0

    @property
    def tokens(self) -> int:
        """Prompt and completion."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: JudgeUsage) -> JudgeUsage:
        return JudgeUsage(
            requests=self.requests + other.requests,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cost_usd=self.cost_usd + other.cost_usd,
        )


class JudgeError(BurnishError):
    """A judge gave no usable verdict.  `cause` is for counts; `usage` is what the attempt cost all the same."""

    def __init__(self, cause: JudgeCause, detail: str, usage: JudgeUsage | None = None) -> None:
        self.cause = cause
        self.detail = detail
        self.usage = usage or JudgeUsage()
        super().__init__(f"judge {cause}: {detail}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CriterionExample:
    """A text and the value that it deserves.  `CriterionExample(text="No authority is cited.", value=0)`

    value: a whole number from 0 to the criterion's levels.
    """

    text: str
    value: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """One statement about a text, as a judge sees it: neither its weight nor whether it is praise or blame.

    `Criterion(id="cites_statute", text="The memorandum cites the controlling statute.", needs_evidence=True)`

    levels: 1 for yes or no; above that a value from 0 (not at all) to levels (wholly).  needs_evidence: a value above 0
    counts only with a passage of the judged text, word for word.
    """

    id: str
    text: str
    levels: int = 1
    needs_evidence: bool = False
    examples: tuple[CriterionExample, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPart:
    """A text that is judged or shown, already made harmless.  `JudgedPart(name="answer", text="...")`"""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRequest:
    """A question to a judge.

    system, prompt: the two messages to send as they are; in the prompt every part stands between fences that carry the
    nonce.  parts: what stands there.  criteria: in the order shown.  controls: value that each control criterion must
    get; a judge that follows instructions in the judged text betrays itself there.  schema: JSON schema of the
    reply.  content_key: SHA-256 of everything but the nonce; equal questions have equal keys.
    """

    system: str
    prompt: str
    nonce: str
    parts: tuple[JudgedPart, ...]
    criteria: tuple[Criterion, ...]
    controls: Mapping[str, int] = field(default_factory=dict)
    schema: Mapping[str, Any] = field(default_factory=dict)
    content_key: str = ""
    seed: int = 0
    max_tokens: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A judge's word on one criterion.  `Verdict(criterion="cites_statute", value=1.0, quote="Section 2-207(1)")`

    value: share of the criterion that is met, in [0, 1]; None where the judge says that it cannot tell.  quote: the
    passage that it rests on.
    """

    criterion: str
    value: float | None
    quote: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        if self.value is not None and not (math.isfinite(self.value) and 0.0 <= self.value <= 1.0):
            raise ValueError(f"verdict on {self.criterion}: a value lies in [0, 1], got {self.value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeReply:
    """Verdicts, one for each criterion of the request but its controls, in that order.

    version: of whoever judged, as exact as is known.  cached: nothing was asked; usage is then zero.
    """

    verdicts: tuple[Verdict, ...]
    version: str
    usage: JudgeUsage = field(default_factory=JudgeUsage)
    cached: bool = False


class Judge(Protocol):
    """A model that judges texts by criteria."""

    name: str
    version: str

    async def judge(self, request: JudgeRequest) -> JudgeReply:
        """The verdicts.  Raises JudgeError where there are none."""
        ...
