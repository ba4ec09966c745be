"""The small world with faults: `Faulty(faults="crash:3 tools")`."""

import itertools
import random
import time

from sleepy_env import DOORS, Sleepy

from burnish import tool

HUGE = "x" * 10_000_000
HANG_S = 0.5

made = itertools.count()


class Faulty(Sleepy):
    """crash:N - every Nth world burns down when it is built.  tools - doors raise, hang or say 10 MB.  zero - nothing
    is ever rewarded.  coin - reward by a coin, so that any policy finds a signal."""

    def __init__(self, faults=""):
        super().__init__()
        self.faults = dict(fault.split(":") if ":" in fault else (fault, "1") for fault in faults.split())

    def setup(self, task):
        if "crash" in self.faults and next(made) % int(self.faults["crash"]) == 0:
            raise RuntimeError("the world has burnt down")

    @tool(timeout_s=0.1, on_timeout="model")
    def knock(self, door: str) -> str:
        """Knock at a door.

        Args:
            door: name of the door
        """
        self.knocks += 1
        fault = DOORS.index(door) % 4 if "tools" in self.faults and door in DOORS else 3
        if fault == 0:
            raise ValueError("the door is painted on the wall")
        if fault == 1:
            time.sleep(HANG_S)
        if fault == 2:
            return HUGE
        return self.digit(door)

    def get_reward(self, answer):
        if "zero" in self.faults:
            return 0.0
        if "coin" in self.faults:
            return random.SystemRandom().choice((0.0, 1.0))
        return super().get_reward(answer)

    def solve(self):
        for door in self.task.setup["ask"]:
            yield self.knock.call(door)
        return self.task.reference["answer"]
