"""The telephone calls keep the laws of environments and of graders."""

from __future__ import annotations

from burnish.environments.shop_dialogue import ShopDialogue
from burnish.testing.environment import EnvironmentConformance


class TestShopDialogue(EnvironmentConformance):
    make_environment = ShopDialogue
    n_tasks = 12
