"""The shop: a retail world in SQLite; levels 1 to 3, alone or mixed."""

from burnish.environments.shop.grader import ShopGrader
from burnish.environments.shop.preference import PreferenceGrader
from burnish.environments.shop.shop import INSTRUCTIONS, Shop

__all__ = ["INSTRUCTIONS", "PreferenceGrader", "Shop", "ShopGrader"]
