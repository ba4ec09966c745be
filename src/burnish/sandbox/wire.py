"""Frames between this process, the spawner and the supervisors: a JSON header and named byte strings."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

_LENGTHS = struct.Struct("=QI")
LENGTHS_BYTES = _LENGTHS.size
MAX_FRAME_BYTES = 2**30

Frame = tuple[dict[str, Any], dict[str, bytes]]


def pack(header: Mapping[str, Any], blobs: Mapping[str, bytes]) -> bytes:
    """One frame: length of the body, length of its JSON, the JSON, then the blobs in the order that the JSON lists.

    `pack({"kind": "run"}, {"stdin": b"x"})` is 12 + 58 + 1 bytes.
    """
    words = json.dumps({"header": header, "sizes": [[name, len(blob)] for name, blob in blobs.items()]}).encode()
    body = b"".join((words, *blobs.values()))
    return _LENGTHS.pack(len(body), len(words)) + body


def lengths(start: bytes) -> tuple[int, int]:
    """Body length and JSON length, from the first LENGTHS_BYTES of a frame."""
    body, words = _LENGTHS.unpack(start)
    if body > MAX_FRAME_BYTES or words > body:
        raise ValueError(f"a frame of {body} bytes with {words} of JSON; at most {MAX_FRAME_BYTES} are read")
    return body, words


def unpack(body: bytes, words: int) -> Frame:
    """Header and blobs of a frame's body."""
    described = json.loads(body[:words])
    blobs, at = {}, words
    for name, size in described["sizes"]:
        blobs[name] = body[at : at + size]
        at += size
    return described["header"], blobs


def receive(connection: socket.socket) -> Frame | None:
    """The next frame of a blocking socket, None where the other side is gone."""
    start = _exactly(connection, LENGTHS_BYTES)
    if start is None:
        return None
    size, words = lengths(start)
    body = _exactly(connection, size)
    return None if body is None else unpack(body, words)


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    buffer = bytearray(size)
    view = memoryview(buffer)
    at = 0
    while at < size:
        try:
            got = connection.recv_into(view[at:])
        except ConnectionError:
            return None
        if not got:
            return None
        at += got
    return bytes(buffer)
