"""The Python that waits inside a sandbox: imports once, forks once for each run.  Standard library alone.

Its text is handed to the interpreter in the sandbox as `-c`, so it may import nothing of Burnish.  It speaks over one
socket: a length and JSON with three descriptors comes in, the exit status and a line feed go out.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import runpy
import socket
import sys
import threading
import traceback
import types

_PR_SET_DUMPABLE = 4
_libc = ctypes.CDLL(None)
_FLAGS = frozenset(("-I", "-B", "-E", "-s", "-S", "-u"))


def source() -> str:
    """The text of this module, as the interpreter in the sandbox is given it."""
    with open(__file__, encoding="utf-8") as file:
        return file.read()


def main(control_fd: int, imports: list[str]) -> None:
    """Import, report, serve until the other side is gone."""
    control = socket.socket(fileno=control_fd)
    # -I ignores PYTHONDONTWRITEBYTECODE, and two edits of equal size within a second would run the older bytecode.
    sys.dont_write_bytecode = True
    for name in imports:
        importlib.import_module(name)
    # What is there now is never collected: children would copy every page whose counts a collection touches.
    gc.collect()
    gc.freeze()
    # A run must not reach into the process that the next run is forked from.
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    control.sendall(b"r")
    while True:
        message, fds, _, _ = socket.recv_fds(control, 4, 3)
        if len(message) < 4:
            return
        size, words = int.from_bytes(message, "little"), b""
        while len(words) < size:
            words += control.recv(size - len(words))
        pid = os.fork()
        if pid == 0:
            control.close()
            _run(json.loads(words), fds)
        for fd in fds:
            os.close(fd)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        control.sendall(b"%d\n" % (code if code >= 0 else 128 - code))


def _run(request: dict[str, object], fds: list[int]) -> None:
    """Become the run; never returns."""
    _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    for target, fd in enumerate(fds):
        os.dup2(fd, target)
        os.close(fd)
    argv = [str(word) for word in request["argv"]]  # type: ignore[attr-defined]
    os.environ.update(request["env"])  # type: ignore[call-overload]
    status = 1
    try:
        if argv[0] == "python":
            status = _python(argv[1:])
        else:
            os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        status = 127
    finally:
        os._exit(status)


def _python(argv: list[str]) -> int:
    """What `python ARGV` does, in this process; the exit status."""
    isolated = False
    while argv and argv[0] in _FLAGS:
        isolated = isolated or argv[0] == "-I"
        argv = argv[1:]
    status = 0
    try:
        _interpret(argv, isolated)
    except SystemExit as error:
        status = _exit_status(error.code)
    except BaseException:  # noqa: BLE001 - the boundary of a run, as it is of an interpreter
        traceback.print_exc()
        status = 1
    return max(status, _wind_up())


def _interpret(argv: list[str], isolated: bool) -> None:
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    if argv[:1] == ["-c"]:
        sys.argv = ["-c", *argv[2:]]
        _first_on_path("", isolated)
        exec(compile(argv[1], "<string>", "exec"), module.__dict__)
    elif argv[:1] == ["-m"]:
        sys.argv = ["-m", *argv[2:]]
        _first_on_path(os.getcwd(), isolated)
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    elif argv[:1] in ([], ["-"]):
        sys.argv = ["-", *argv[1:]]
        _first_on_path("", isolated)
        exec(compile(sys.stdin.read(), "<stdin>", "exec"), module.__dict__)
    else:
        sys.argv = argv
        _first_on_path(os.path.dirname(os.path.abspath(argv[0])), isolated)
        with open(argv[0], "rb") as file:
            code = compile(file.read(), argv[0], "exec")
        module.__dict__["__file__"] = argv[0]
        exec(code, module.__dict__)


def _first_on_path(folder: str, isolated: bool) -> None:
    if not isolated:
        sys.path.insert(0, folder)


def _exit_status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    sys.stderr.write(f"{code}\n")
    return 1


def _wind_up() -> int:
    """What an interpreter does at its end, without taking the imported modules apart: 0, or 1 where it fails."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 - handlers of the run's own
        return 1
    return 0


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
