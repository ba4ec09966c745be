"""Every claim replays a small generated stream through the code that its verdict rests on, and writes none."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

HEALTH = {"ess_leads", "near_misses", "variance_correction", "staging", "post_tool_tails", "calibrated_kl"}
MOST_S = 10.0
"""Of processor time, which does not depend on what else the machine does."""
CLAIMS = Path(__file__).resolve().parents[2] / "claims"
NAMES = sorted(path.parent.name for path in CLAIMS.glob("*/run.py"))
QUICK = [name for name in NAMES if name not in ("failures_with_effort", "grounding_collapse")]
"""Those two train for 20 s: `make bench` runs them."""


@pytest.mark.parametrize("name", QUICK)
def test_quick_form_of_a_claim(name: str) -> None:
    verdict = CLAIMS / name / "verdict.json"
    before = verdict.read_bytes() if verdict.exists() else None
    command = [sys.executable, str(CLAIMS / name / "run.py"), "--quick"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    if name in HEALTH:
        assert now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime < MOST_S
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["claim"], found["verdict"], found["holds"]) == (name, None, None)
    assert (verdict.read_bytes() if verdict.exists() else None) == before
    text = " ".join((CLAIMS / name / "claim.md").read_text(encoding="utf-8").split())
    assert "**Criterion** (before the first reported run)" in text
    assert "not testable here" in text


def test_the_claims_of_estimator_health_are_there() -> None:
    assert set(NAMES) >= HEALTH


@pytest.mark.parametrize("name", sorted(HEALTH))
def test_the_page_of_claims_tells_the_verdict_that_stands(name: str) -> None:
    page = (CLAIMS.parent / "docs" / "claims.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    kept = json.loads((CLAIMS / name / "verdict.json").read_text(encoding="utf-8"))
    assert row.split("|")[2].strip() == kept["verdict"]
    assert kept["note"]
