"""The server that a recipe's section `sampler` names."""

from __future__ import annotations

import os
from pathlib import Path

from burnish.core.served import PolicyServer
from burnish.loop.config import Recipe

API_KEY = "BURNISH_SAMPLER_API_KEY"


def policy_server(recipe: Recipe, folder: Path) -> PolicyServer | None:
    """The server, None where the policy is sampled by Burnish itself.  Its key comes from BURNISH_SAMPLER_API_KEY."""
    settings = recipe.sampler
    if not settings.url:
        return None
    from burnish.integrations.vllm_policy import VllmPolicy

    return VllmPolicy(
        settings.url,
        settings.name,
        Path(settings.folder) if settings.folder else folder / "weights",
        api_key=os.environ.get(API_KEY, ""),
        max_in_flight=settings.max_in_flight,
        interrupt=recipe.rollout.mode == "async" and recipe.rollout.weights == "in_flight",
    )
