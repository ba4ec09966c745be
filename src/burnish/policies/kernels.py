"""What a decode step does between its matrix products, as compiled functions, where this machine has a C compiler.

`kernels.c` is compiled once for this machine's instruction set (under a second) and kept in the user's cache.  Without
a compiler, on other devices, in other types or with several torch threads the step is made of torch's operations, which
compute the same up to rounding.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("kernels.c")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O2", "-march=native", "-std=gnu11", "-fPIC", "-shared")
TIMEOUT_S = 60.0
LANES, BLOCK = 8, 16
"""Widths are multiples of the first, columns of the second (see the source)."""


class Refused(Exception):
    """There are no compiled functions; says why."""


class Kernels:
    """The functions of a compiled `kernels.c`, bound to memory once and then called without arguments.

    Tensors are float32 on the CPU and stay where they are; what is bound keeps them alive.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def norm(self, x: Tensor, floor_square: float, out: Tensor) -> Callable[[], object]:
        """out = x / sqrt(sum of squares + floor_square); x [R, width] with any stride between its rows."""
        given = _Norm(_at(x), _at(out), floor_square, *x.shape, x.stride(0))
        return self._bound("burnish_norm", given, (x, out))

    def silu(self, gate_up: Tensor, out: Tensor) -> Callable[[], object]:
        """out [R, width] = silu(gate) * up, of [R, 2 * width]."""
        return self._bound("burnish_silu", _Gate(_at(gate_up), _at(out), *out.shape), (gate_up, out))

    def attend(
        self,
        qkv: Tensor,
        positions: Tensor,
        gain: tuple[Tensor, float] | None,
        turns: Tensor | None,
        memory: tuple[Tensor, Tensor],
        mixed: Tensor,
        window: int | None,
    ) -> Callable[[], object]:
        """Normalise and rotate queries and keys, write new keys and values, read what is seen.

        qkv: [R, (heads + 2 kv_heads) * size], changed.  positions: int64 [R].  gain: [heads + kv_heads, size], and the
        floor under the sum of squares.  turns: complex64 [places, size / 2].  memory: keys [slots, kv_heads, size,
        columns] and values [slots, kv_heads, columns, size].  mixed: [R, heads * size].
        """
        keys, values = memory
        _, kv_heads, size, columns = keys.shape
        scores = torch.empty(4, columns)
        given = _Attend(
            _at(qkv),
            _at(positions),
            None if gain is None else _at(gain[0]),
            None if turns is None else _at(turns),
            _at(keys),
            _at(values),
            _at(mixed),
            _at(scores),
            0.0 if gain is None else gain[1],
            len(qkv),
            mixed.numel() // (len(qkv) * size),
            kv_heads,
            size,
            columns,
            window or 0,
        )
        return self._bound("burnish_attend", given, (qkv, positions, gain, turns, memory, mixed, scores))

    def draw(self, logits: Tensor, uniforms: Tensor, reach: tuple[float, float]) -> tuple[Tensor, Tensor] | None:
        """Token ids int64 [R] and log-probabilities [R] at temperature 1 over the whole vocabulary; None where a row is
        not finite.  A row is shifted first where its weights e^logit add up to something outside `reach`."""
        rows, width = logits.shape
        tokens, logprobs, weights = torch.empty(rows, dtype=torch.int64), torch.empty(rows), torch.empty(width + LANES)
        given = _Draw(_at(logits), _at(uniforms), _at(weights), _at(tokens), _at(logprobs), *reach, rows, width)
        return (tokens, logprobs) if self._library.burnish_draw(ctypes.byref(given)) else None

    def _bound(self, name: str, given: ctypes.Structure, kept: object) -> Callable[[], object]:
        given.kept = kept
        return partial(getattr(self._library, name), ctypes.byref(given))


def present_kernels() -> Kernels | None:
    """Compiled functions for this process as it is: None without a compiler, and with several torch threads, which
    divide the work of torch's own operations among them."""
    return loaded_kernels() if torch.get_num_threads() == 1 else None


@cache
def loaded_kernels() -> Kernels | None:
    """Compiled and loaded once in a process."""
    try:
        return load_kernels(cache_folder())
    except Refused:
        return None


def cache_folder() -> Path:
    """Where compiled functions are kept, by the rules of the XDG base directories.  Raises Refused without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "burnish"
    except RuntimeError as error:
        raise Refused(f"this user has no home folder ({error}); set XDG_CACHE_HOME to an absolute path") from error


def load_kernels(folder: Path) -> Kernels:
    """From `folder`, compiled into it where there is nothing that can be loaded.  Raises Refused where that cannot be
    done, and where other users could have written the folder or the file, since what is in it is executed."""
    path = folder / f"kernels-{_fingerprint()}.so"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        library = _opened(path) if path.exists() else None
        if library is None:
            _compile(path)
            library = _opened(path)
    except OSError as error:
        raise Refused(f"no compiled kernels in {folder}: {error}") from error
    if library is None:
        raise Refused(f"{path} has just been compiled and cannot be loaded")
    return Kernels(library)


def _opened(path: Path) -> ctypes.CDLL | None:
    """None for a file that is no library with these functions."""
    for one in (path.parent, path):
        found = one.stat()
        if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise Refused(f"{one} can be written by other users")
    try:
        library = ctypes.CDLL(str(path))
        for name in ("burnish_norm", "burnish_silu", "burnish_attend"):
            getattr(library, name).restype = None
        library.burnish_draw.restype = ctypes.c_int
    except (OSError, AttributeError):
        return None
    return library


def processor_lines(*names: str) -> set[str]:
    """Lines of these names in what the system tells of its processors; empty where it tells nothing.

    `processor_lines("model name")` is {"model name\\t: ..."} on a machine with one kind of them.
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    return {line for line in lines if line.split("\t")[0] in names}


def _fingerprint() -> str:
    """Of the source and of everything that the result depends on; another processor gets its own."""
    kinds = processor_lines("model name", "flags", "Features", "CPU part")
    processor = platform.platform() + "\n".join(sorted(kinds))
    text = "\n".join([SOURCE.read_text(encoding="utf-8"), *FLAGS, platform.machine(), processor])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _compile(path: Path) -> None:
    """Into a file of its own first, so that no process ever loads half of one."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise Refused(f"none of {', '.join(COMPILERS)} is installed")
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        made = Path(work) / path.name
        command = [compiler, *FLAGS, "-o", str(made), str(SOURCE), "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise Refused(f"{compiler} took more than {TIMEOUT_S:.0f} s") from error
        if done.returncode != 0:
            raise Refused(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")
        made.chmod(0o700)
        with made.open("rb") as file:
            os.fsync(file.fileno())  # half a library after a power cut would end every process that loads it
        os.replace(made, path)


def _at(tensor: Tensor) -> int:
    return tensor.data_ptr()


_POINTER, _NUMBER, _COUNT = ctypes.c_void_p, ctypes.c_double, ctypes.c_int64


class _Norm(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("x", "out")),
        ("floor_square", _NUMBER),
        *((name, _COUNT) for name in ("rows", "width", "stride")),
    )


class _Gate(ctypes.Structure):
    _fields_ = (*((name, _POINTER) for name in ("gate_up", "out")), *((name, _COUNT) for name in ("rows", "width")))


class _Attend(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("qkv", "positions", "gain", "turns", "keys", "values", "mixed", "scores")),
        ("floor_square", _NUMBER),
        *((name, _COUNT) for name in ("rows", "heads", "kv_heads", "size", "columns", "window")),
    )


class _Draw(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("logits", "uniforms", "weights", "tokens", "logprobs")),
        *((name, _NUMBER) for name in ("smallest", "largest")),
        *((name, _COUNT) for name in ("rows", "width")),
    )
