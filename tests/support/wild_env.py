"""A world whose tools do what tools must not do: hang, hold the interpreter lock, die, flood, return too much."""

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time

from burnish import Environment, Limits, Task, ToolError, tool

LIMIT_S = 0.3


class NoSuchShelf(LookupError):
    """A kind that only this file knows."""


class Wild(Environment):
    limits = Limits(max_turns=4, max_turn_tokens=20)

    def __init__(self, slow_start_s=0.0, broken=""):
        self.calls = 0
        self.slow_start_s = slow_start_s
        if broken == "constructor":
            raise OSError("no such database")

    def tasks(self, split, rng):
        for number in range(8):
            yield Task(prompt=f"Go {number}", setup={"number": number}, reference={"answer": "done"})

    async def setup(self, task):
        await asyncio.sleep(self.slow_start_s)
        if task.setup.get("spin_in_setup"):
            re.match(r"(a+)+$", "a" * 40 + "b")

    def respond(self, text):
        return "go on" if text == "more" else None

    @tool(timeout_s=LIMIT_S)
    def backtrack(self, n: int = 40) -> str:
        """Match a pattern that takes for ever, and never lets go of the interpreter."""
        return str(re.match(r"(a+)+$", "a" * n + "b"))

    @tool(timeout_s=LIMIT_S, on_timeout="model")
    def backtrack_for_model(self) -> str:
        """The same, and the policy is told."""
        return str(re.match(r"(a+)+$", "a" * 40 + "b"))

    @tool(timeout_s=LIMIT_S)
    def nap(self, seconds: float) -> str:
        """Sleep on a thread."""
        time.sleep(seconds)
        return "rested"

    @tool(timeout_s=LIMIT_S, on_timeout="model")
    def nap_for_model(self, seconds: float) -> str:
        """Sleep on a thread, and the policy is told."""
        time.sleep(seconds)
        return "rested"

    @tool(timeout_s=30.0)
    async def wait(self, seconds: float) -> str:
        """Sleep on the event loop."""
        await asyncio.sleep(seconds)
        return "waited"

    @tool(timeout_s=LIMIT_S)
    async def refuse_to_stop(self, seconds: float) -> str:
        """Swallow every cancellation for a while."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)
        return "stopped at last"

    @tool
    def count(self) -> int:
        """Count the calls so far."""
        self.calls += 1
        return self.calls

    @tool
    def echo(self, text: str) -> str:
        """Say it again."""
        return text

    @tool
    def odd_text(self) -> str:
        """Text that encoders refuse."""
        return "a\ud800b\x00c\udfff\ud83d\ude00"

    @tool
    def long_text(self, length: int, text: str = "é") -> str:
        """A long text."""
        return text * length

    @tool
    def die(self, code: int = 3) -> str:
        """End the process."""
        os._exit(code)

    @tool
    def crash(self) -> str:
        """Read memory that is not there."""
        return ctypes.string_at(0).decode()

    @tool
    def kill_me(self) -> str:
        """As the kernel does where memory runs out."""
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
        return ""

    @tool
    def pid(self) -> int:
        """The process that this environment lives in."""
        return os.getpid()

    @tool
    def child(self) -> int:
        """Start a program that goes on, and give its number."""
        return subprocess.Popen(["sleep", "600"]).pid

    @tool
    def flood(self, megabytes: int) -> str:
        """Print a lot."""
        for _ in range(megabytes):
            sys.stdout.write("x" * 2**20)
            sys.stderr.write("y" * 2**20)
            os.write(1, b"\x00\x00\x00\x05hello")
        return "printed"

    @tool
    def scribble(self) -> str:
        """Write rubbish wherever something can be written."""
        for fd in range(3, 1024):
            with contextlib.suppress(OSError):
                os.write(fd, b"\xff" * 64)
        return "scribbled"

    @tool
    def fail(self, kind: str) -> str:
        """Raise."""
        raise {
            "ToolError": ToolError("no order A9"),
            "ValueError": ValueError("bad value"),
            "KeyError": KeyError("A"),
            "NoSuchShelf": NoSuchShelf("Z"),
            "ZeroDivisionError": ZeroDivisionError("by zero"),
            "AssertionError": AssertionError(""),
            "UnicodeDecodeError": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad start"),
            "RuntimeError": RuntimeError("the database is gone"),
            "OSError": OSError(2, "No such file"),
            "SystemExit": SystemExit(4),
            "CancelledError": asyncio.CancelledError(),
        }[kind]

    @tool
    async def fail_later(self, kind: str) -> str:
        """Raise on the event loop."""
        await asyncio.sleep(0)
        return self.fail(kind)

    def final_state(self):
        return {"calls": self.calls, "text": "a\ud800", "nested": {"rows": [1, None, 2.5]}}
