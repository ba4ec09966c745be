"""Two worlds: what the agent may hand in is copied over the host's own files, and hidden checks run there.

Who judges is not in that world.  A driver from the host computes one value for each check and sends them over a
descriptor of its own, in a line that carries a nonce; the expected values never leave this process, so that neither
an equal-to-everything object, nor an exit, nor a printed summary can stand for a right one.  A check without a value is
a failed one.  Code of the model runs in the driver's process, so the nonce keeps out words on other channels, not a
forger who finds it: a forger would still have to know the right values.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.core.sandbox import PYTHON, KilledFor, Rung, Sandbox, SandboxLimits

CHANNEL = "burnish-values"
_LIMITS = SandboxLimits(wall_s=10.0, cpu_s=10.0)
_DRIVER = r"""
import json, os, sys
order = json.loads(sys.stdin.read())
channel = os.dup(1)
null = os.open(os.devnull, os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(null, number)
sys.path.insert(0, os.getcwd())
dumps, write = json.dumps, os.write

def send(row):
    write(channel, (order["nonce"] + " " + dumps(row) + "\n").encode())

for check in order["checks"]:
    scope = {}
    try:
        lines = "\n".join("    " + line for line in check["code"].splitlines())
        exec("def __check__():\n" + lines, scope)
        value = {"value": json.loads(dumps(scope["__check__"]()))}
    except BaseException as error:
        value = {"raised": type(error).__name__}
    send({"id": check["id"], **value})
os._exit(0)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A hidden test: statements ending in `return VALUE`, and the JSON value that right code returns.

    `Check(id="clamp.low", code="from clamp import clamp\\nreturn clamp(-1, 0, 9)", expected=0)`
    """

    id: str
    code: str
    expected: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanResult:
    """What came over the channel.  passed, failed, missing: ids of checks.  stray: lines without the nonce."""

    passed: tuple[str, ...]
    failed: tuple[str, ...]
    missing: tuple[str, ...]
    stray: int
    rung: Rung
    killed_for: KilledFor | None = None

    @property
    def share(self) -> float:
        """Passed checks over expected ones; a missing one is not passed."""
        total = len(self.passed) + len(self.failed) + len(self.missing)
        return len(self.passed) / total if total else 0.0


async def judge_in_clean_world(
    sandbox: Sandbox,
    *,
    base: Mapping[str, bytes],
    artefacts: Mapping[str, bytes],
    checks: Sequence[Check],
    limits: SandboxLimits = _LIMITS,
) -> CleanResult:
    """Run `checks` over the host's files with the agent's artefacts laid over them.  Raises SandboxError."""
    nonce = f"{CHANNEL}-{secrets.token_hex(16)}"
    order = {"nonce": nonce, "checks": [{"id": check.id, "code": check.code} for check in checks]}
    result = await sandbox.run(
        (PYTHON, "-I", "-c", _DRIVER),
        files={**base, **artefacts},
        stdin=json.dumps(order).encode(),
        limits=limits,
    )
    values, stray = _values(result.stdout, nonce)
    expected = {check.id: check.expected for check in checks}
    right = [key for key in expected if key in values and _equal(values[key], expected[key])]
    return CleanResult(
        passed=tuple(right),
        failed=tuple(key for key in expected if key in values and key not in right),
        missing=tuple(key for key in expected if key not in values),
        stray=stray,
        rung=result.rung,
        killed_for=result.killed_for,
    )


def _values(printed: bytes, nonce: str) -> tuple[dict[str, Any], int]:
    """Values by id; the first word on an id counts, and lines without the nonce count as stray."""
    values: dict[str, Any] = {}
    stray = 0
    for line in printed.decode(errors="replace").splitlines():
        head, _, body = line.partition(" ")
        row = _row(body) if head == nonce else None
        if row is None:
            stray += 1
        else:
            values.setdefault(str(row["id"]), {"raised": row["raised"]} if "raised" in row else row.get("value"))
    return values, stray


def _row(body: str) -> dict[str, Any] | None:
    try:
        row = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and "id" in row else None


def _equal(found: Any, expected: Any) -> bool:
    """Equal as JSON, where True is not 1."""
    return json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)
