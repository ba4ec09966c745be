"""What happened in an episode, read from its messages alone: works on stored trajectories and on other people's."""

from __future__ import annotations

import re
from dataclasses import dataclass

from burnish.core.message import Role
from burnish.core.trajectory import Trajectory

EDITS = ("edit_file", "write_file")
LOOKS = ("list_files", "read_file", "search")
_TESTS = re.compile(r"(?:^|[;&|]\s*|\s)(?:python3?\s+(?:-\S+\s+)*-m\s+(?:unittest|pytest)|pytest|python3?\s+tests/)")
_ASIDE = re.compile(r"^\s*(?:echo|printf|cat|grep|ls|sed|head|tail|#)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One tool call.  said: the text of its turn, on its first call.  turn: number of the turn.

    `Step(name="run", arguments={"command": "ls"}, result="exit 0", is_error=False, said="Step 1: I look.", turn=0)`
    """

    name: str
    arguments: dict[str, str]
    result: str
    is_error: bool
    said: str
    turn: int

    @property
    def command(self) -> str:
        """The command line, "" where none was run."""
        return self.arguments.get("command", "") if self.name == "run" else ""

    @property
    def is_edit(self) -> bool:
        """Whether it changed a file."""
        return self.name in EDITS and not self.is_error

    @property
    def is_test(self) -> bool:
        """Whether it ran tests, whatever came of it; a command that only speaks of them is none."""
        return bool(_TESTS.search(self.command)) and not _ASIDE.match(self.command)

    @property
    def passed(self) -> bool:
        """Whether the tests that it ran said that they passed."""
        return self.is_test and self.result.startswith("exit 0") and "FAILED" not in self.result


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """Calls in order, what was said in each turn (the last answer left out), and the answer."""

    steps: tuple[Step, ...]
    said: tuple[str, ...]
    answer: str

    @staticmethod
    def of(trajectory: Trajectory) -> Story:
        """The story of a trajectory; forks are read in the order that they happened."""
        steps: list[Step] = []
        said: list[str] = []
        pending: list[Step] = []
        for message in trajectory.messages:
            if message.role is Role.ASSISTANT:
                steps += pending
                said.append(message.text.strip())
                pending = [
                    Step(
                        name=call.name,
                        arguments={key: str(value) for key, value in call.arguments.items()},
                        result="",
                        is_error=True,
                        said=said[-1] if not index else "",
                        turn=len(said) - 1,
                    )
                    for index, call in enumerate(message.tool_calls)
                ]
            elif message.role is Role.TOOL and pending:
                call = pending.pop(0)
                steps.append(
                    Step(
                        name=call.name,
                        arguments=call.arguments,
                        result=message.text,
                        is_error=message.is_error,
                        said=call.said,
                        turn=call.turn,
                    )
                )
        if said and said[-1].endswith(trajectory.answer.strip()):
            said.pop()
        return Story(steps=(*steps, *pending), said=tuple(said), answer=trajectory.answer.strip())

    @property
    def last_edit(self) -> int:
        """Index of the last call that changed a file, -1 for none."""
        return max((index for index, step in enumerate(self.steps) if step.is_edit), default=-1)

    @property
    def final_tests(self) -> tuple[Step, ...]:
        """Runs of tests after the last edit."""
        return tuple(step for step in self.steps[self.last_edit + 1 :] if step.is_test)
