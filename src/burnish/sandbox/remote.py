"""A sandbox elsewhere, as a configured provider behind one small HTTP protocol.

    POST URL/run  {"command": [...], "limits": {...}, "env": {...}, "collect": [...], "stdin": BASE64,
                   "files": {NAME: BASE64}}
    200           {"exit", "killed_for", "wall_s", "cpu_s", "peak_memory_bytes", "peak_processes", "overshoot",
                   "skipped", "rung", "stdout": BASE64, "stderr": BASE64, "files": {NAME: BASE64}}

The limits travel with the command and are the provider's to keep; what comes back is held to them again here.  A
provider that fails, or answers something else, raises SandboxError: never the command's fault.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from burnish.core.sandbox import KilledFor, Rung, SandboxError, SandboxLimits, SandboxResult
from burnish.sandbox.folder import checked_path
from burnish.sandbox.local import DEFAULT_LIMITS, request

_RETRIED = frozenset((429, 500, 502, 503, 504))
_SLACK_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSpec:
    """name: for records.  url: of the provider.  headers: such as authorization; never written down.  attempts: how
    often a request is sent that was refused for the time being or did not arrive.

    `RemoteSpec(name="lab", url="https://sandbox.example.org")`
    """

    name: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    attempts: int = 3
    first_wait_s: float = 0.5


class RemoteSandbox:
    """Runs each command at a provider."""

    rung = Rung.REMOTE

    def __init__(self, spec: RemoteSpec, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._spec = spec
        self._client = httpx.AsyncClient(base_url=spec.url, headers=dict(spec.headers), transport=transport)

    async def run(
        self,
        command: Sequence[str],
        *,
        files: Mapping[str, bytes] | None = None,
        limits: SandboxLimits | None = None,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        collect: Sequence[str] = (),
    ) -> SandboxResult:
        """See `core.sandbox.Sandbox.run`."""
        limits = limits or DEFAULT_LIMITS
        body = request(command, limits, env, collect) | {"stdin": _text(stdin)}
        body["files"] = {"/".join(checked_path(name)): _text(content) for name, content in (files or {}).items()}
        answer = await self._posted(body, limits.wall_s + _SLACK_S)
        try:
            return self._result(answer, limits)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SandboxError(
                f"the sandbox provider {self._spec.name!r} answered something else: {error!r}"
            ) from error

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def _posted(self, body: Mapping[str, Any], timeout_s: float) -> Any:
        """The JSON of the answer.  A run that may have begun is never sent again: only one that was refused is."""
        wait_s, problem = self._spec.first_wait_s, ""
        for attempt in range(self._spec.attempts):
            if attempt:
                await asyncio.sleep(wait_s)
                wait_s *= 2
            try:
                response = await self._client.post("/run", json=body, timeout=timeout_s)
            except httpx.ConnectError as error:
                problem = f"cannot be reached: {error}"
                continue
            except httpx.HTTPError as error:
                problem = f"did not answer: {error!r}"
                break
            if response.status_code == 200:
                try:
                    return response.json()
                except ValueError as error:
                    raise SandboxError(f"the sandbox provider {self._spec.name!r} answered no JSON") from error
            problem = f"answered status {response.status_code}"
            if response.status_code not in _RETRIED:
                break
        raise SandboxError(f"the sandbox provider {self._spec.name!r} {problem}")

    def _result(self, answer: Mapping[str, Any], limits: SandboxLimits) -> SandboxResult:
        found, skipped = _held(answer["files"], dict(answer.get("skipped", {})), limits)
        killed_for = answer["killed_for"]
        return SandboxResult(
            exit=None if answer["exit"] is None else int(answer["exit"]),
            stdout=_bytes(answer["stdout"])[: limits.output_bytes],
            stderr=_bytes(answer["stderr"])[: limits.output_bytes],
            rung=Rung.REMOTE,
            killed_for=None if killed_for is None else KilledFor(killed_for),
            wall_s=_finite(answer["wall_s"]),
            cpu_s=_finite(answer.get("cpu_s", 0.0)),
            peak_memory_bytes=int(answer.get("peak_memory_bytes", 0)),
            peak_processes=int(answer.get("peak_processes", 0)),
            overshoot={str(key): _finite(value) for key, value in answer.get("overshoot", {}).items()},
            files_out=found,
            skipped=skipped,
            provider=f"{self._spec.name}:{answer.get('rung', '?')}",
        )


def _held(
    files: Mapping[str, str], skipped: dict[str, str], limits: SandboxLimits
) -> tuple[dict[str, bytes], dict[str, str]]:
    """Files within `collect_bytes`, under paths that stay below the folder."""
    found: dict[str, bytes] = {}
    left = limits.collect_bytes
    for name, text in files.items():
        content = _bytes(text)
        if len(content) > left:
            skipped[name] = "size"
            continue
        found["/".join(checked_path(name))] = content
        left -= len(content)
    return found, skipped


def answer_json(result: SandboxResult) -> dict[str, Any]:
    """The other side of the protocol: what a provider sends for a result of its own sandbox."""
    return {
        "exit": result.exit,
        "killed_for": result.killed_for,
        "wall_s": result.wall_s,
        "cpu_s": result.cpu_s,
        "peak_memory_bytes": result.peak_memory_bytes,
        "peak_processes": result.peak_processes,
        "overshoot": dict(result.overshoot),
        "skipped": dict(result.skipped),
        "rung": result.rung,
        "stdout": _text(result.stdout),
        "stderr": _text(result.stderr),
        "files": {name: _text(content) for name, content in result.files_out.items()},
    }


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is no figure")
    return number
