"""A shop in which the tools of some training tasks are down, as in an outage that no grader knows of.

Every template is hit alike, so what can be learnt is what the whole shop teaches; held-out tasks are all served.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from burnish.core.errors import ToolError
from burnish.core.task import Task
from burnish.core.tool import Tool
from burnish.environments.shop import Shop

OUTAGE = "503 service unavailable, try again later"


class FlakyShop(Shop):
    """The shop with a tag "desk", template and region; in the region "down" every call ends in an outage.

    down: share of the training tasks of each template that are in that region, in steps of a tenth.
    """

    def __init__(self, *, down: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.down = round(10 * down)

    def tasks(self, split: str, rng: Random) -> Iterator[Task]:
        """The shop's tasks, of which each template's first so many in ten are down."""
        seen: dict[str, int] = {}
        for task in super().tasks(split, rng):
            template = task.tags["template"]
            number = seen[template] = seen.get(template, -1) + 1
            region = "down" if split == "train" and number % 10 < self.down else "up"
            yield replace(task, tags={**task.tags, "region": region, "desk": f"{template} {region}"})

    def tools(self) -> Sequence[Tool]:
        """The shop's tools, none of which works where the region is down."""
        return [_down(tool) if self._is_down else tool for tool in super().tools()]

    def setup(self, task: Task) -> None:
        super().setup(task)
        self._is_down = task.tags["region"] == "down"

    _is_down = False


def _down(tool: Tool) -> Tool:
    async def call(arguments: Mapping[str, Any]) -> str:
        raise ToolError(OUTAGE)

    return replace(tool, call=call)
