"""Runs on text alone need no Pillow: every module of the policies imports with it blocked."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = """
import sys
sys.modules["PIL"] = None
import importlib, pkgutil
import burnish.policies as room
names = [found.name for found in pkgutil.iter_modules(room.__path__, "burnish.policies.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""

DECODED = """
import sys
sys.modules["PIL"] = None
from burnish.policies.pixels import decode_image
decode_image(b"", "0" * 64)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_policies_import_without_pillow() -> None:
    done = run(BLOCKED)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 20


def test_the_block_bites_where_an_image_is_decoded() -> None:
    done = run(DECODED)
    assert done.returncode != 0
    assert "PIL" in done.stderr
