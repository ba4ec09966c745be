"""What travels between a training process and the processes that host its environments.

Frames of four bytes of length and a payload.  Requests are pickled tuples, since a host runs what it is told anyway;
what comes back is JSON, so that code of an environment can hand its parent nothing but data.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePath
from typing import Any

from burnish.core.errors import BurnishError, ConfigError, RelayedError, TaskError, ToolError
from burnish.core.images import SHELF
from burnish.core.message import Message, Role, message_from_json, message_to_json
from burnish.core.outcome import Owner
from burnish.core.text import cap_text, clean_text
from burnish.core.tool import ShownResult, Tool, ToolSpec
from burnish.environments.base import EnvironmentFault
from burnish.environments.source import EnvironmentSource

MAX_FRAME_BYTES = 16 * 2**20
_CHUNK_BYTES = 2**18
_HEADER_BYTES = 4
_MAX_NAME_CHARS = 80
_WORST_BYTES_PER_CHAR = 6
"""A control character is six bytes of JSON."""
_ENVELOPE_BYTES = 1024
"""Room in a frame for what stands around a text: the number of the call, the kind and place of an error, a marker."""

_KINDS: Mapping[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        *(ToolError, TaskError, ConfigError, EnvironmentFault, BurnishError),
        *(KeyError, IndexError, LookupError, ValueError, AssertionError),
        *(ZeroDivisionError, OverflowError, FloatingPointError, ArithmeticError),
        *(TypeError, AttributeError, NotImplementedError, RuntimeError, MemoryError, OSError, Exception),
    )
}

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """The first frame that a host is sent.  memory_bytes: its address space (0: no limit of its own)."""

    source: EnvironmentSource
    max_frame_bytes: int = MAX_FRAME_BYTES
    memory_bytes: int = 0


class FrameError(BurnishError):
    """The other side sent what is no frame of this protocol."""


class Channel:
    """Frames both ways over a socket, on whichever event loop it is attached to.

    Sending never waits and reading never depends on it, so that two sides with full buffers cannot block each other;
    what is sent within one turn of the loop leaves in one write.  on_end is called once, when the other side has
    closed or broken the stream.
    """

    def __init__(
        self, sock: socket.socket, *, on_frame: Callable[[bytes], None], on_end: Callable[[str], None], max_bytes: int
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_frame = on_frame
        self._on_end = on_end
        self._max_bytes = max_bytes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._read = bytearray()
        self._out: list[bytes] = []
        self._left = memoryview(b"")
        self._flushing = False
        self._open = True

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read and write on this loop from now on; the one before must have been closed."""
        self._loop = loop
        loop.add_reader(self._sock, self._readable)
        self._flushing = False
        if self._left or self._out:
            self._flush_soon()

    def send(self, payload: bytes) -> None:
        """Queue one frame."""
        self._out.append(len(payload).to_bytes(_HEADER_BYTES, "big") + payload)
        if not self._flushing:
            self._flush_soon()

    def drain(self) -> None:
        """Read what the other side had still sent, without waiting."""
        while self._open and self._receive():
            pass

    def close(self) -> None:
        """Stop; on_end is not called any more."""
        if not self._open:
            return
        self._open = False
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
        self._sock.close()

    def _readable(self) -> None:
        if self._open:
            self._receive()

    def _receive(self) -> bool:
        """Read once; whether there may be more."""
        try:
            data = self._sock.recv(_CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._end(f"{error}")
            return False
        if not data:
            self._end("the stream was closed")
            return False
        try:
            self._feed(data)
        except FrameError as error:
            self._end(str(error))
        return self._open

    def _feed(self, data: bytes) -> None:
        self._read += data
        start = 0
        while self._open and len(self._read) - start >= _HEADER_BYTES:
            size = int.from_bytes(self._read[start : start + _HEADER_BYTES], "big")
            if size > self._max_bytes:
                raise FrameError(f"a frame of {size} bytes was announced, at most {self._max_bytes} are allowed")
            body = start + _HEADER_BYTES
            if len(self._read) - body < size:
                break
            frame = bytes(self._read[body : body + size])
            start = body + size
            self._on_frame(frame)
        del self._read[:start]

    def _flush_soon(self) -> None:
        if self._loop is not None and self._open:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if not self._open or self._loop is None:
            return
        if not self._left:
            self._left = memoryview(b"".join(self._out))
            self._out.clear()
        try:
            while self._left:
                self._left = self._left[self._sock.send(self._left) :]
                if not self._left and self._out:
                    self._left = memoryview(b"".join(self._out))
                    self._out.clear()
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._sock, self._flush)
            return
        except OSError:
            # The other side is gone: the reader says so, after it has read what was still sent.
            self._left = memoryview(b"")
            self._out.clear()
        self._loop.remove_writer(self._sock)
        self._flushing = False

    def _end(self, why: str) -> None:
        if self._open:
            self.close()
            self._on_end(why)


def to_frame(value: Any, what: str, max_bytes: int) -> bytes:
    """JSON of a value that must fit a frame.  Raises EnvironmentFault where it has no such form or is too large."""
    try:
        data = _encode(value).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError) as error:
        raise EnvironmentFault(f"{what} has no JSON form: {error}") from None
    if len(data) > max_bytes:
        raise EnvironmentFault(
            f"{what} is {len(data)} bytes, at most {max_bytes} are carried to the training process; make it smaller"
        )
    return data


def from_frame(data: bytes) -> list[Any]:
    """Inverse of `to_frame`, for the lists that hosts send.  Raises FrameError for anything else."""
    try:
        value = json.loads(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a frame is no JSON: {error}") from None
    if not (isinstance(value, list) and len(value) == 3 and isinstance(value[0], int)):
        raise FrameError(f"a frame is no answer: {value!r:.80}")
    return value


def carried_text(text: str, max_bytes: int) -> str:
    """A tool's text, cut where no frame could carry it; rollouts cut results far earlier."""
    room_bytes = max_bytes - _ENVELOPE_BYTES
    if len(text) * _WORST_BYTES_PER_CHAR <= room_bytes:
        return text
    if len(_encode(text).encode("utf-8", "surrogatepass")) <= room_bytes:
        return text
    return cap_text(text, room_bytes // _WORST_BYTES_PER_CHAR)[0]


def error_to_json(error: BaseException) -> dict[str, str]:
    """Kind, nearest base that the parent knows, text and place of an exception."""
    kinds = type(error).__mro__
    base = next((kind.__name__ for kind in kinds if _KINDS.get(kind.__name__) is kind), "Exception")
    try:
        text = str(error)
    except Exception as inner:  # noqa: BLE001 - code of the environment too; an error that cannot be printed is one
        text = f"(its text raised {type(inner).__name__})"
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{PurePath(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    return {"kind": type(error).__name__, "base": base, "text": text, "place": place}


def error_from_json(data: Mapping[str, Any]) -> Exception:
    """An exception with the kind's name and text, which is an instance of its nearest known base.

    >>> error = error_from_json({"kind": "NoSuchShelf", "base": "KeyError", "text": "Z", "place": "world.py:3 in find"})
    >>> isinstance(error, KeyError), type(error).__name__, str(error)
    (True, 'NoSuchShelf', 'Z')
    """
    base = str(data.get("base"))
    kind = clean_text(str(data.get("kind")))[:_MAX_NAME_CHARS] or "Exception"
    return _relayed(kind, base if base in _KINDS else "Exception")(str(data.get("text")), str(data.get("place")))


def relayed_line(data: Mapping[str, Any]) -> str:
    """One line on such an exception, such as "KeyError: 'A' (world.py:12 in count)"."""
    line = f"{data.get('kind')}: {data.get('text')}"
    return f"{line} ({data['place']})" if data.get("place") else line


@lru_cache(maxsize=256)
def _relayed(kind: str, base: str) -> Callable[[str, str], Exception]:
    made: Any = type(kind, (RelayedError, _KINDS[base]), {})
    return made  # type: ignore[no-any-return]


def message_out(message: Message, sent: set[str]) -> dict[str, Any]:
    """A message as JSON; the bytes of its images go along the first time (`sent` holds those that went before)."""
    data = message_to_json(message)
    for part in data["parts"]:
        if "sha256" in part:
            _with_bytes(part, sent)
    return data


def message_in(data: Mapping[str, Any]) -> Message:
    """Inverse of `message_out`; the bytes of new images go to this process's shelf."""
    for part in data.get("parts", ()):
        _keep_bytes(part)
    return message_from_json(data)


def result_out(text: str, sent: set[str]) -> Any:
    """A tool's result: its text, or text and images."""
    if not isinstance(text, ShownResult) or not text.images:
        return text
    return [str(text), message_out(Message(role=Role.USER, parts=text.images), sent)]


def result_in(value: Any) -> str:
    """Inverse of `result_out`."""
    if isinstance(value, list) and len(value) == 2:
        return ShownResult(str(value[0]), message_in(value[1]).images)
    return value  # type: ignore[no-any-return]


def _with_bytes(part: dict[str, Any], sent: set[str]) -> None:
    if part["sha256"] not in sent:
        part["bytes"] = base64.b64encode(SHELF.get(part["sha256"])).decode("ascii")
        sent.add(part["sha256"])


def _keep_bytes(part: Any) -> None:
    if isinstance(part, dict) and "bytes" in part:
        data = base64.b64decode(part.pop("bytes"))
        if SHELF.put(data) != part.get("sha256"):
            raise ValueError("the bytes of an image do not have its hash")


def tools_to_json(tools: Sequence[Tool]) -> str:
    """What the parent needs of the tools, as one text: equal texts are read once."""
    return _encode(
        [[t.spec.name, t.spec.description, dict(t.spec.parameters), t.timeout_s, t.timeout_owner] for t in tools]
    )


@lru_cache(maxsize=64)
def tools_from_json(text: str) -> tuple[tuple[ToolSpec, float, Owner], ...]:
    """Spec, seconds and owner of a timeout of each tool, in order."""
    return tuple(
        (ToolSpec(name=str(name), description=str(description), parameters=parameters), float(timeout_s), Owner(owner))
        for name, description, parameters, timeout_s, owner in json.loads(text)
    )
