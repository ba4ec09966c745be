"""Choosing a rung by running it: the best that keeps what it promises on this machine, or a refusal.

That a program is installed or a kernel knows a system call proves nothing.  Each rung is tried with its real command
line on a program that says the secret word it was given and tries five harmless escapes; a rung counts only if the
word comes back and every escape fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from burnish.core.errors import BurnishError
from burnish.core.sandbox import PYTHON, Rung, SandboxError, SandboxLimits, SandboxRefused
from burnish.sandbox import bpf, kernel
from burnish.sandbox.cage import readable_for
from burnish.sandbox.local import LocalSandbox, Spawner
from burnish.sandbox.plan import Plan, default_interpreter, interpreter_folders

LADDER = (Rung.BWRAP, Rung.BWRAP_NOPROC, Rung.LANDLOCK)
_PROBE_LIMITS = SandboxLimits(wall_s=30.0, cpu_s=10.0, memory_bytes=256 * 2**20, processes=16, disk_bytes=4 * 2**20)
_PROBE = """
import json, os, socket, sys
word, secret, outside, port, pid, needs_proc = sys.argv[1:]
escapes = []
def attempt(name, action):
    try:
        action()
        escapes.append(name)
    except OSError:
        pass
attempt("reads a file of the harness", lambda: open(secret).read())
attempt("writes outside its folder", lambda: open(outside, "w"))
attempt("reaches the network", lambda: socket.create_connection(("127.0.0.1", int(port)), 2))
attempt("reads the environment of the harness", lambda: open(f"/proc/{pid}/environ", "rb").read(1) or 1 / 0)
attempt("signals the harness", lambda: os.kill(int(pid), 0))
if needs_proc == "yes" and not os.path.exists("/proc/self/stat"):
    sys.exit("/proc is not there")
open("inside", "w").write("x")
print(json.dumps([word, escapes]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What to open.

    rung: this one and no other; None for the best that holds.  unsafe: go on without isolation where none holds (or
    where `rung` is `unsafe`); the rung "unsafe" is then in every result and trajectory.  interpreter: what "python"
    means inside, "" for the one that this process runs on, without its virtual environment.  readable: further
    folders that commands may read, such as a virtual environment; never one with secrets.  scratch: where work
    folders are made.

    `SandboxSpec(rung=Rung.LANDLOCK)`
    """

    rung: Rung | None = None
    unsafe: bool = False
    interpreter: str = ""
    readable: tuple[str, ...] = ()
    scratch: str = field(default_factory=tempfile.gettempdir)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """One rung, tried.  problem: why it does not count here, "" where it does."""

    rung: Rung
    problem: str

    @property
    def holds(self) -> bool:
        """Whether it can be used."""
        return not self.problem


async def open_sandbox(spec: SandboxSpec | None = None) -> LocalSandbox:
    """The best rung that holds here, ready to run.  Raises SandboxRefused where none does and `unsafe` is not set."""
    spec = spec or SandboxSpec()
    spawner = Spawner()
    if spec.rung is Rung.UNSAFE:
        if not spec.unsafe:
            raise SandboxRefused('the rung "unsafe" isolates nothing; it is used only with unsafe=True')
        return LocalSandbox(plan_for(Rung.UNSAFE, spec), spawner)
    tried: list[Probed] = []
    for rung in LADDER if spec.rung is None else (spec.rung,):
        tried.append(await probe(rung, spec, spawner))
        if tried[-1].holds:
            return LocalSandbox(plan_for(rung, spec), spawner)
    if spec.unsafe:
        return LocalSandbox(plan_for(Rung.UNSAFE, spec), spawner)
    spawner.close()
    raise SandboxRefused(_refusal(tried))


async def probe_all(spec: SandboxSpec | None = None) -> tuple[Probed, ...]:
    """Every rung of the ladder, tried."""
    spawner = Spawner()
    try:
        return tuple([await probe(rung, spec or SandboxSpec(), spawner) for rung in LADDER])
    finally:
        spawner.close()


async def probe(rung: Rung, spec: SandboxSpec, spawner: Spawner) -> Probed:
    """Try one rung with its real command line."""
    try:
        problem = _missing(rung) or await _try(LocalSandbox(plan_for(rung, spec), spawner))
    except (BurnishError, OSError) as error:
        problem = str(error)
    return Probed(rung=rung, problem=problem)


def plan_for(rung: Rung, spec: SandboxSpec) -> Plan:
    """How `rung` is done on this machine, tried or not."""
    if rung not in (*LADDER, Rung.UNSAFE):
        raise SandboxRefused(f"{rung} is a provider and has to be configured (sandbox.docker, sandbox.remote)")
    interpreter = spec.interpreter or default_interpreter()
    return Plan(
        rung=rung,
        interpreter=interpreter,
        readable=readable_for(rung, (*interpreter_folders(interpreter), *spec.readable)),
        scratch=spec.scratch,
        as_root=os.getuid() == 0,
        abi=kernel.landlock_abi() if bpf.supported() else 0,
    )


def _missing(rung: Rung) -> str:
    if sys.platform != "linux":
        return f"needs Linux, this is {sys.platform}"
    if not bpf.supported():
        return "no system call table for this architecture, only for x86-64"
    if rung is Rung.LANDLOCK and not kernel.landlock_abi():
        return "this kernel has no Landlock (5.13 or later, and `landlock` among its security modules)"
    return ""


async def _try(sandbox: LocalSandbox) -> str:
    """What keeps a rung from counting, "" for nothing."""
    with _bait(sandbox.plan.scratch) as (secret, outside, port):
        word = secrets.token_hex(8)
        needs_proc = "yes" if sandbox.rung is Rung.BWRAP else "no"
        arguments = (word, secret, outside, str(port), str(os.getpid()), needs_proc)
        run = await sandbox.run([PYTHON, "-I", "-c", _PROBE, *arguments], limits=_PROBE_LIMITS, collect=["inside"])
        # One look at a local file, beside which the run took an eternity.
        written = os.path.exists(outside)  # noqa: ASYNC240
    if run.exit != 0:
        said = run.stderr.decode(errors="replace").strip().splitlines()
        return f"its probe ended with {run.killed_for or run.exit}: {said[-1] if said else 'no message'}"
    try:
        said_word, escapes = json.loads(run.stdout)
    except ValueError:
        return f"its probe printed {run.stdout[:100]!r}"
    if said_word != word or run.files_out.get("inside") != b"x":
        return "its probe did not give back what it was given"
    if written:
        escapes.append("wrote outside its folder")
    return f"a command in it {' and '.join(escapes)}" if escapes else ""


@contextlib.contextmanager
def _bait(scratch: str) -> Iterator[tuple[str, str, int]]:
    """A secret that anybody may read by its permissions, a path that anybody may write, a port that listens."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder, socket.create_server(("127.0.0.1", 0)) as server:
        os.chmod(folder, 0o777)
        secret = Path(folder, "secret")
        secret.write_text("a secret of the harness")
        secret.chmod(0o644)
        yield str(secret), str(Path(folder, "outside")), server.getsockname()[1]


def _refusal(tried: Sequence[Probed]) -> str:
    found = "; ".join(f"{one.rung}: {one.problem}" for one in tried)
    return (
        f"no sandbox holds on this machine ({found}). Remedy: apt install bubblewrap, allow user namespaces, or "
        "configure a Docker or remote provider. unsafe=True runs untrusted code with nothing but limits, and says so "
        "in every trajectory"
    )


def probe_here(spec: SandboxSpec | None = None) -> tuple[Probed, ...]:
    """`probe_all` for callers without an event loop."""
    return asyncio.run(probe_all(spec))


__all__ = [
    "LADDER",
    "Probed",
    "SandboxError",
    "SandboxSpec",
    "open_sandbox",
    "plan_for",
    "probe",
    "probe_all",
    "probe_here",
]
