"""A world to look at: which of two colours is the picture, after a closer look by a tool."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from burnish.core.environment import Script
from burnish.core.images import image_part, png_bytes
from burnish.core.message import ImagePart, TextPart, ToolCall
from burnish.core.task import Limits, Task
from burnish.environments.base import Environment, expert_policy
from burnish.environments.tool import tool

COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220)}
SIDE = 16


def picture(colour: str, seed: int, side: int = SIDE) -> ImagePart:
    """A square of one colour with a little noise."""
    rng = Random(seed)
    pixels = bytes(max(0, min(255, c + rng.randint(-20, 20))) for _ in range(side * side) for c in COLOURS[colour])
    return image_part(png_bytes(side, side, pixels))


class Eyes(Environment):
    """closer: the expert calls `zoom` before it answers.  leak: the colour stands in the question too."""

    name = "eyes"
    graders = ("exact",)
    chance = 0.5
    limits = Limits(max_turns=3, max_turn_tokens=64, max_context_tokens=1024)

    def __init__(self, *, closer: bool = True, leak: bool = False, train: int = 200, heldout: int = 60) -> None:
        self.closer, self.leak = closer, leak
        self.sizes = {"train": train, "heldout": heldout}

    def task_of(self, seed: int) -> Task:
        """The task of a seed."""
        colour = Random(seed).choice(sorted(COLOURS))
        words = f"Which colour {colour}?" if self.leak else "Which colour?"
        return Task(
            prompt=(picture(colour, seed), TextPart(text=words)),
            setup={"colour": colour, "seed": seed},
            reference={"answer": colour},
        )

    def tasks(self, split: str, rng: Random) -> Iterator[Task]:
        """As many as asked for."""
        for _ in range(self.sizes[split]):
            yield self.task_of(rng.randrange(2**31))

    @tool(inline=True)
    def zoom(self) -> ImagePart:
        """Look closer."""
        return picture(self.task.setup["colour"], self.task.setup["seed"] + 1, 8)

    def solve(self) -> Script:
        """Looks closer, then says what is there."""
        if self.closer:
            yield ToolCall(id="call_0", name="zoom", arguments={})
        return str(self.task.reference["answer"])

    @staticmethod
    def expert(environment: Any, task: Task, rng: Random) -> Script:
        """`solve` as a scripted policy."""
        return expert_policy(environment, task, rng)
