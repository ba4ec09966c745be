"""The judge that a command names: an endpoint with its budget and its kept replies."""

from __future__ import annotations

import argparse
import os
from typing import Any

from burnish.core.errors import ConfigError
from burnish.core.judge import Judge
from burnish.graders.judge_budget import BudgetedJudge, JudgeLedger
from burnish.graders.judge_spec import kept


def open_judge(name: str, arguments: argparse.Namespace, ledger: JudgeLedger, **options: Any) -> Judge:
    """The judge of a word such as openai:MODEL, by --base-url, --cache and --offline.  Raises ConfigError.

    options: those of `OpenAIJudgeOptions` that are not the default.
    """
    from burnish.integrations.openai_judge import OpenAIJudge, OpenAIJudgeOptions

    kind, _, model = name.partition(":")
    if kind != "openai" or not model:
        raise ConfigError(f"a judge is named openai:MODEL, got {name!r}")
    base_url = arguments.base_url or os.environ.get("OPENAI_BASE_URL", "")
    if not base_url and not arguments.offline:
        raise ConfigError("give the endpoint with --base-url or in OPENAI_BASE_URL, such as http://127.0.0.1:8000/v1")
    key, settings = os.environ.get("OPENAI_API_KEY", ""), OpenAIJudgeOptions(**options)
    asked = OpenAIJudge(base_url or "http://127.0.0.1", model, key, options=settings)
    if arguments.offline and not arguments.cache:
        raise ConfigError("--offline needs the replies of an earlier call: --cache FILE")
    return kept(BudgetedJudge(asked, ledger), arguments.cache, offline=arguments.offline)
