"""The small world with doors that take their time: `Slow(nap_s=0.3)`."""

import asyncio
import time
from multiprocessing import parent_process

from sleepy_env import Sleepy

from burnish import tool


class Slow(Sleepy):
    """nap_s: seconds of every knock.  From the world with number `after` on, counted in each process: stuck, a door
    that never answers; blocking, a door that stops a worker's event loop for good."""

    worlds = 0

    def __init__(self, nap_s=0.0, after=0, stuck="", blocking=""):
        super().__init__()
        self.nap_s, self.after, self.stuck, self.blocking = nap_s, after, stuck, blocking

    def setup(self, task):
        Slow.worlds += 1
        self.number = Slow.worlds

    @tool(timeout_s=60)
    async def knock(self, door: str) -> str:
        """Knock at a door and wait for its digit.

        Args:
            door: name of the door
        """
        self.knocks += 1
        if self.stuck and door == self.stuck and self.number > self.after:
            await asyncio.sleep(1e6)
        if self.blocking and door == self.blocking and self.number > self.after and parent_process():
            time.sleep(1e6)  # noqa: ASYNC251 - that is the fault
        await asyncio.sleep(self.nap_s)
        return self.digit(door)
