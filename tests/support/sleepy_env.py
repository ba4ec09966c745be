"""A small world for tests of whole runs: an asynchronous tool that takes its time, and a reward with degrees."""

import asyncio
import random

from burnish import Environment, Task, ToolError, tool

DOORS = ("ash", "bay", "cob", "dew", "elm", "fir", "gum", "hay")
LONGEST_NAP_S = 0.02
SIZES = {"train": 26, "heldout": 8}


class Sleepy(Environment):
    """Knock at two doors and say the digits that come back; half of the reward is for the right digits."""

    def __init__(self):
        self.knocks = 0

    def tasks(self, split, rng):
        for _ in range(SIZES[split]):
            one, two = rng.sample(DOORS, 2)
            digits = {door: rng.randint(0, 3) for door in DOORS}
            answer = f"{digits[one]}{digits[two]}"
            yield Task(
                prompt=f"{one} {two}?", setup={"digits": digits, "ask": [one, two]}, reference={"answer": answer}
            )

    @tool
    async def knock(self, door: str) -> str:
        """Knock at a door and wait for its digit.

        Args:
            door: name of the door
        """
        self.knocks += 1
        # Real time, other in every process: it must not show in anything but times.
        await asyncio.sleep(random.SystemRandom().uniform(0.0, LONGEST_NAP_S))
        return self.digit(door)

    def digit(self, door):
        digits = self.task.setup["digits"]
        if door not in digits:
            raise ToolError(f"no door {door}")
        return str(digits[door])

    def get_reward(self, answer):
        wanted = self.task.reference["answer"]
        right = sum(a == b for a, b in zip(answer, wanted, strict=False)) / len(wanted)
        return 0.5 * right + 0.125 * min(self.knocks, 2) + 0.25 * (len(answer) == len(wanted))

    def solve(self):
        one, two = self.task.setup["ask"]
        first = yield self.knock.call(one)
        second = yield self.knock.call(two)
        return f"{first}{second}"
