"""Repair: six small repositories with seeded bugs, read, edited and run in a sandbox, judged in another."""

from burnish.environments.repair.repair import Repair

__all__ = ["Repair"]
