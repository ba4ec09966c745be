"""Scenes: rendered objects, questions about them, and answers that point at what they rest on."""

from burnish.environments.scenes.scenes import Scenes

__all__ = ["Scenes"]
