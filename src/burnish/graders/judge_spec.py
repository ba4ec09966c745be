"""A judge as data: what a grader graph writes down, and every process of a run builds an equal judge from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from pydantic import ConfigDict

from burnish.core.errors import ConfigError
from burnish.core.judge import Judge
from burnish.graders.graph_files import GraphFiles
from burnish.graders.importing import imported
from burnish.graders.judge_budget import BudgetedJudge, JudgeLedger, JudgePrice
from burnish.graders.judge_cache import CachedJudge, JudgeCache
from burnish.graders.judge_policy import OwnPolicyJudge


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSpec:
    """How a judge is made.  `JudgeSpec(use="judge.py:Judge", cache="judge.jsonl")`

    use: "package.module:attribute" or "file.py:attribute", a class or a function that gives a judge from `options`;
    "policy" is the policy itself (`OwnPolicyJudge`).
    cache: file of kept replies, "" for none; processes share it.  offline: only ever answer from the cache.  prices: US
    dollars for a million tokens.  max_usd, max_tokens, max_requests: what one process may spend, None for no limit.
    A file's `[judges.NAME]` is read as one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid", "allow_inf_nan": False}

    use: str
    options: Mapping[str, Any] = field(default_factory=dict)
    cache: str = ""
    offline: bool = False
    prompt_usd: float = 0.0
    completion_usd: float = 0.0
    max_usd: float | None = None
    max_tokens: int | None = None
    max_requests: int | None = None


POLICY = "policy"
"""`use` of the judge that is the policy itself."""

MakeJudge = Callable[[JudgeSpec, GraphFiles], Judge]
"""Gives the judge of a spec, which may name files of its graph."""


def make_judge(spec: JudgeSpec, files: GraphFiles) -> Judge:
    """The judge, behind its budget and its cache; making it asks nobody.

    Raises ConfigError for what cannot be imported or made, and offline without a cache; StoreError where the cache
    cannot be opened.
    """
    if ":" not in spec.use and spec.use != POLICY:
        raise ConfigError(f"use is {POLICY}, package.module:attribute or file.py:attribute, got {spec.use!r}")
    if spec.use == POLICY and spec.cache:
        raise ConfigError("a policy that learns is another judge after each step; leave its cache out")
    try:
        asked = (OwnPolicyJudge if spec.use == POLICY else imported(spec.use, files))(**spec.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{spec.use} cannot be made with options {dict(spec.options)}: {error}") from error
    if missing := [name for name in ("name", "version", "judge") if not hasattr(asked, name)]:
        raise ConfigError(f"{spec.use} gives no judge: {asked!r} has no {', '.join(missing)}")
    ledger = JudgeLedger(max_usd=spec.max_usd, max_tokens=spec.max_tokens, max_requests=spec.max_requests)
    price = JudgePrice(prompt_usd=spec.prompt_usd, completion_usd=spec.completion_usd)
    cache = str(files.folder / spec.cache) if spec.cache else ""
    # The policy itself is there in its own run alone, so it is never asked from elsewhere, and has nothing to replay.
    offline = spec.offline and spec.use != POLICY
    return kept(BudgetedJudge(asked, ledger, price), cache, offline=offline)


def replayed(spec: JudgeSpec, files: GraphFiles) -> Judge:
    """As `make_judge`, but only ever answering from the cache, whatever the spec says."""
    return make_judge(replace(spec, offline=True), files)


def kept(judge: Judge, cache: str, *, offline: bool = False) -> Judge:
    """The judge behind the cache in a file ("" for none); offline it is never asked.

    Raises ConfigError where it is offline without a cache, StoreError where the cache cannot be opened.
    """
    if offline:
        if not cache:
            raise ConfigError(f"{judge.name} is offline and has no cache to answer from; name the one that it filled")
        return CachedJudge.offline(judge.version, JudgeCache(cache, read_only=True), judge.name)
    return CachedJudge(judge, JudgeCache(cache)) if cache else judge
