"""The benchmark of diagnosis: its split, its speed path, and that it does without data that is not there."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("diagnosis")


def test_the_split_is_a_function_of_the_ids_alone(benchmark: Any) -> None:
    ids = [str(n) for n in range(29)]
    read, held = benchmark.split_ids(reversed(ids))
    assert (read, held) == benchmark.split_ids(ids)
    assert len(read) == 14
    assert sorted([*read, *held]) == sorted(ids)


def test_frozen_rules_name_no_task_and_no_entity(benchmark: Any) -> None:
    rules = json.loads(benchmark.RULES.read_text(encoding="utf-8"))
    frozen = {row["id"] for row in rules["constraints"]} | set(rules["added_after_the_first_score"])
    assert frozen == {row["id"] for row in benchmark.rule_list()["constraints"]}
    sources = [*benchmark.SOURCE.glob("*.py"), *benchmark.SOURCE.glob("formats/*.py")]
    generic = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    for word in ("delivered_order", "get_product", "_2112", "gift_card", "paypal", "retail"):
        assert word not in generic


def test_without_the_data_it_times_and_says_what_it_skipped(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "diagnosis.py"), "--quick", "--data", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "skipped" in done.stdout
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["holds"] is None
    assert 0 < figures["seconds_per_1000"] < 60
