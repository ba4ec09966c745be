"""Engines by the name of a policy: the policies and weights that stand in this package, or files of the user's."""

from __future__ import annotations

from pathlib import Path

from burnish.core.errors import StoreError
from burnish.diagnosis.diagnose import Engine, load_model
from burnish.diagnosis.policy import NO_POLICY, Policy, load_policy
from burnish.store.reader import RunReader

HERE = Path(__file__).resolve().parent
WEIGHTS = {"": "weights.json", "labelled": "weights.json", "injected": "weights_injected.json"}
INJECTED = ("shop", "shop_dialogue", "repair")
"""Policies of worlds on whose runs the weights "injected" were fitted."""
NONE = "none"


def engine_of(policy: str = "", weights: str = "") -> Engine:
    """The engine with a policy and the weights that go with it.  Raises ConfigError for a file that is neither.

    policy: a name of this package's, a TOML file; "" or "none" for no rules of a domain.  weights: "labelled",
    "injected", a JSON file; "" for those that were fitted where the policy holds.

    >>> engine_of("shop").policy.constraints[0].id
    'values_shown'
    """
    name = weights or ("injected" if policy in INJECTED else "")
    model = load_model(HERE / WEIGHTS[name] if name in WEIGHTS else Path(name))
    return Engine(policy=_policy(policy), model=model)


def policy_of_world(environment: str) -> str:
    """The policy for runs in a built-in world, "" where there is none.

    >>> policy_of_world("shop"), policy_of_world("my_env.py")
    ('shop', '')
    """
    return environment if environment in INJECTED else ""


def policy_of_run(folder: Path) -> str:
    """The policy of the world that a run's recipe names, "" where it names none."""
    try:
        recipe = RunReader(folder).manifest().get("recipe")
    except StoreError:
        return ""
    world = recipe.get("environment") if isinstance(recipe, dict) else None
    return policy_of_world(str(world.get("name"))) if isinstance(world, dict) else ""


def _policy(name: str) -> Policy:
    if name in ("", NONE):
        return NO_POLICY
    built_in = HERE / "policies" / f"{name}.toml"
    return load_policy(built_in if name.isidentifier() and built_in.exists() else Path(name))
