"""The quick forms of the benchmarks of health run and give no verdict."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "figure"), [("update_size", "spearman/softmax/all")])
def test_quick_form(name: str, figure: str, tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines()[:-1] if not line.startswith("{")]
    assert max(map(len, lines)) <= 80
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["holds"] is None
    value = found["figures"][figure]["median"] if "figures" in found else found[figure]
    assert value > 0
