"""Replies of judges on disk: never asked twice, and a run can be judged again without any judge.

The file has one JSON object a line, is only ever appended to, and each line carries its own checksum: a line that a
crash or a full disk tore is not read.  Several processes may share a file.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any

from burnish.core.errors import ConfigError, StoreError
from burnish.core.hashing import bytes_hash, canonical_json
from burnish.core.judge import Judge, JudgeCause, JudgeError, JudgeReply, JudgeRequest, Verdict

_SUM_CHARS = 16


class JudgeCache:
    """Replies by content.  `JudgeCache(Path("judge.jsonl"))`

    torn: lines that could not be read.  Raises StoreError where the file cannot be opened.
    """

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        self.path = Path(path)
        self.torn = 0
        self._read_only = read_only
        self._replies: dict[str, JudgeReply] = {}
        self._read_bytes = 0
        self._lock = threading.Lock()
        if read_only and not self.path.is_file():
            raise StoreError(f"there is no judge cache {self.path}; judge once with a cache, then replay from it")
        if not read_only:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.touch(exist_ok=True)
            except OSError as error:
                raise StoreError(f"judge cache {self.path} cannot be written: {error}") from error
        self._refresh()

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> JudgeReply | None:
        """The reply under a key, of whichever process put it there; None where there is none."""
        with self._lock:
            if key not in self._replies:
                self._refresh()
            return self._replies.get(key)

    def put(self, key: str, reply: JudgeReply) -> None:
        """Keep a reply for good: it is on disk, whole, when this returns.  The first one under a key stays.

        Raises OSError (ENOSPC for a full disk); the file is then as it was.
        """
        if self._read_only:
            raise StoreError(f"judge cache {self.path} was opened to be read only")
        with self._lock:
            if key in self._replies:
                return
            self._append(_line(key, reply))
            self._replies[key] = reply

    def _append(self, line: bytes) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            # A crash may have left half a line; it must not take the next one with it.
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line
            try:
                written = 0
                while written < len(line):
                    written += os.write(descriptor, line[written:])
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)

    def _refresh(self) -> None:
        """Read what is new up to the last whole line."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read_bytes)
                data = file.read()
        except OSError as error:
            raise StoreError(f"judge cache {self.path} cannot be read: {error}") from error
        whole = data[: data.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.split(b"\n"):
            if line.strip():
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            checksum = row.pop("sum")
            if checksum != _checksum(row):
                raise ValueError("checksum")
            reply = JudgeReply(
                verdicts=tuple(Verdict(**verdict) for verdict in row["verdicts"]), version=row["version"], cached=True
            )
            self._replies.setdefault(row["key"], reply)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.torn += 1


def _line(key: str, reply: JudgeReply) -> bytes:
    row: dict[str, Any] = {"key": key, "version": reply.version}
    row["verdicts"] = [
        {"criterion": verdict.criterion, "value": verdict.value, "quote": verdict.quote, "reason": verdict.reason}
        for verdict in reply.verdicts
    ]
    row["tokens"] = reply.usage.tokens
    row["cost_usd"] = reply.usage.cost_usd
    return (canonical_json(row | {"sum": _checksum(row)}) + "\n").encode()


def _checksum(row: dict[str, Any]) -> str:
    return bytes_hash(canonical_json(row).encode())[:_SUM_CHARS]


def cache_key(judge_version: str, request: JudgeRequest) -> str:
    """SHA-256 of everything that a reply may depend on but the nonce.

    The seed counts: a second look on purpose has another one.
    """
    return bytes_hash(canonical_json((judge_version, request.content_key, request.seed)).encode())


class CachedJudge:
    """A judge that asks once.  `CachedJudge(judge, JudgeCache("judge.jsonl"))`

    `CachedJudge.offline(version, cache)` never asks: what is not in the cache raises NOT_IN_CACHE.
    A reply that cannot be kept (a full disk) is still given, and counted in `unkept`.
    """

    def __init__(self, judge: Judge, cache: JudgeCache) -> None:
        self.name = judge.name
        self.version = judge.version
        self.cache = cache
        self.hits = 0
        self.unkept = 0
        self._judge: Judge | None = judge

    @staticmethod
    def offline(version: str, cache: JudgeCache, name: str = "replay") -> CachedJudge:
        """Replays the replies of the judge with this version."""
        if not version:
            raise ConfigError("offline replay needs the version of the judge that filled the cache")
        judge = CachedJudge(_Nobody(name, version), cache)
        judge._judge = None
        return judge

    async def judge(self, request: JudgeRequest) -> JudgeReply:
        """The kept reply, else the judge's, kept from now on; failures are never kept."""
        key = cache_key(self.version, request)
        kept = self.cache.get(key)
        if kept is not None and {v.criterion for v in kept.verdicts} == _asked(request):
            self.hits += 1
            by_id = {verdict.criterion: verdict for verdict in kept.verdicts}
            ordered = tuple(by_id[item.id] for item in request.criteria if item.id in by_id)
            return JudgeReply(verdicts=ordered, version=kept.version, cached=True)
        if self._judge is None:
            raise JudgeError(
                JudgeCause.NOT_IN_CACHE,
                f"no reply of {self.version} to this question in {self.cache.path}; judge online to add it",
            )
        reply = await self._judge.judge(request)
        try:
            self.cache.put(key, reply)
        except OSError:
            self.unkept += 1
        return reply


def _asked(request: JudgeRequest) -> set[str]:
    return {item.id for item in request.criteria if item.id not in request.controls}


class _Nobody:
    """Stands where an offline judge has no model."""

    def __init__(self, name: str, version: str) -> None:
        self.name, self.version = name, version

    async def judge(self, request: JudgeRequest) -> JudgeReply:
        raise JudgeError(JudgeCause.NOT_IN_CACHE, "there is no judge to ask")
