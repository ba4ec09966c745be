"""One question, one answer, no tools: for tasks that come from a file or another package."""

from __future__ import annotations

from typing import ClassVar

from burnish.core.environment import Script
from burnish.core.errors import TaskError
from burnish.core.grade import Grader
from burnish.core.message import Message, message_from_json
from burnish.core.task import Limits
from burnish.environments.base import Environment


class Question(Environment):
    """Shows the prompt, or the conversation in `setup["messages"]`, and takes the next turn as the answer.

    The tasks are handed in from outside.  `Question(graders=("numeric",))`
    """

    name: ClassVar[str] = "question"

    def __init__(self, *, graders: tuple[str | Grader, ...] = ("exact",), limits: Limits | None = None) -> None:
        self.graders = tuple(graders)
        self.limits = limits or Limits(max_turns=1)

    def observe(self) -> list[Message]:
        """The conversation so far, or the prompt alone."""
        earlier = [message_from_json(message) for message in self.task.setup.get("messages", ())]
        return earlier or [super().observe()]

    def solve(self) -> Script:
        """The reference answer; raises TaskError where the task has none."""
        answer = self.task.reference.get("answer")
        if answer is None:
            raise TaskError(f"task {self.task.id} stores no answer: its oracle is unavailable")
        return str(answer)
        yield  # A script is a generator, also where it needs no tool.
