"""The quick form of the cost benchmark runs and gives no verdict."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "health_cost.py"


@pytest.mark.slow
def test_quick_form() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--quick"], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["holds"] is None
    assert found["worst_ms_per_million"] > 0
