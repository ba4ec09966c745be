"""What judging costs, counted over a run, and a limit that is not passed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from burnish.core.errors import ConfigError
from burnish.core.grade import Grade
from burnish.core.judge import Judge, JudgeCause, JudgeError, JudgeReply, JudgeRequest, JudgeUsage

CHARS_PER_TOKEN = 3.0
"""For the estimate before a request; English has about 4, so that the estimate errs on the high side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePrice:
    """US dollars for a million tokens.  `JudgePrice(prompt_usd=0.15, completion_usd=0.6)`"""

    prompt_usd: float = 0.0
    completion_usd: float = 0.0

    def __post_init__(self) -> None:
        if not all(math.isfinite(price) and price >= 0 for price in (self.prompt_usd, self.completion_usd)):
            raise ConfigError(f"prices are 0 or more, got {self.prompt_usd} and {self.completion_usd}")

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Dollars.

        >>> JudgePrice(prompt_usd=2.0, completion_usd=8.0).of(1000, 500)
        0.006
        """
        return (prompt_tokens * self.prompt_usd + completion_tokens * self.completion_usd) / 1e6


class JudgeLedger:
    """The account of a run's judges.  `JudgeLedger(max_usd=5.0)`

    A request is let through only where what is spent, what is under way and its own largest cost stay within the
    limits, so that parallel requests do not pass them together.  None: no limit.
    """

    def __init__(
        self, *, max_usd: float | None = None, max_tokens: int | None = None, max_requests: int | None = None
    ) -> None:
        for name, limit in (("max_usd", max_usd), ("max_tokens", max_tokens), ("max_requests", max_requests)):
            if limit is not None and not (math.isfinite(limit) and limit >= 0):
                raise ConfigError(f"{name} is 0 or more, got {limit}")
        self.limits = JudgeUsage(
            requests=-1 if max_requests is None else max_requests,
            prompt_tokens=-1 if max_tokens is None else max_tokens,
            cost_usd=-1.0 if max_usd is None else max_usd,
        )
        self.spent = JudgeUsage()
        self.failures: Counter[str] = Counter()
        self._held = JudgeUsage()

    @contextmanager
    def holding(self, estimate: JudgeUsage) -> Iterator[None]:
        """Hold the largest cost of a request while it is under way.  Raises BUDGET_EXHAUSTED where it does not fit."""
        would_be = self.spent + self._held + estimate
        limits = self.limits
        for what, value, limit in (
            ("requests", would_be.requests, limits.requests),
            ("tokens", would_be.tokens, limits.prompt_tokens),
            ("US dollars", would_be.cost_usd, limits.cost_usd),
        ):
            if limit >= 0 and value > limit:
                self.failures[JudgeCause.BUDGET_EXHAUSTED] += 1
                raise JudgeError(
                    JudgeCause.BUDGET_EXHAUSTED,
                    f"the budget of {limit:g} {what} would be passed ({value:.6g} with this request); raise it",
                )
        self._held += estimate
        try:
            yield
        finally:
            self._held += JudgeUsage(
                requests=-estimate.requests,
                prompt_tokens=-estimate.prompt_tokens,
                completion_tokens=-estimate.completion_tokens,
                cost_usd=-estimate.cost_usd,
            )

    def to_json(self) -> dict[str, Any]:
        """The account, for a report."""
        return {
            "requests": self.spent.requests,
            "prompt_tokens": self.spent.prompt_tokens,
            "completion_tokens": self.spent.completion_tokens,
            "cost_usd": self.spent.cost_usd,
            "failures": dict(self.failures),
        }


def judge_scalars(grades: Sequence[Grade]) -> dict[str, float]:
    """What the judges of one step cost, and the share of their grades without a score; {} where none was asked.

    >>> grade = Grade(grader="memo", version="1", score=1.0, evidence={"judges": {}, "requests": 2, "cost_usd": 0.5})
    >>> judge_scalars([grade])["judge/requests"]
    2.0
    """
    judged = [grade for grade in grades if "judges" in grade.evidence]
    if not judged:
        return {}
    return {
        "judge/requests": float(sum(grade.evidence["requests"] for grade in judged)),
        "judge/tokens": float(sum(grade.cost_tokens for grade in judged)),
        "judge/cost_usd": float(sum(grade.evidence["cost_usd"] for grade in judged)),
        "judge/no_score_share": sum(grade.score is None for grade in judged) / len(judged),
    }


class BudgetedJudge:
    """A judge whose requests are paid from a ledger.  `BudgetedJudge(judge, ledger, JudgePrice(prompt_usd=0.15))`

    Stands inside a cache, never around it: what is cached is free.  Failed requests are paid for too.
    """

    def __init__(self, judge: Judge, ledger: JudgeLedger, price: JudgePrice | None = None) -> None:
        self.name = judge.name
        self.version = judge.version
        self.ledger = ledger
        self.price = price or JudgePrice()
        self._judge = judge

    async def judge(self, request: JudgeRequest) -> JudgeReply:
        """The judge's reply, its price in `usage`."""
        prompt = math.ceil((len(request.system) + len(request.prompt)) / CHARS_PER_TOKEN)
        estimate = JudgeUsage(
            requests=1,
            prompt_tokens=prompt,
            completion_tokens=request.max_tokens,
            cost_usd=self.price.of(prompt, request.max_tokens),
        )
        with self.ledger.holding(estimate):
            try:
                reply = await self._judge.judge(request)
            except JudgeError as error:
                usage = self._priced(error.usage)
                self.ledger.spent += usage
                self.ledger.failures[error.cause] += 1
                raise JudgeError(error.cause, error.detail, usage) from error
            usage = self._priced(reply.usage)
            self.ledger.spent += usage
            return JudgeReply(verdicts=reply.verdicts, version=reply.version, usage=usage, cached=reply.cached)

    def _priced(self, usage: JudgeUsage) -> JudgeUsage:
        return JudgeUsage(
            requests=usage.requests,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cost_usd=usage.cost_usd or self.price.of(usage.prompt_tokens, usage.completion_tokens),
        )
