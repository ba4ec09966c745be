"""docs/metrics.md names every scalar that a run stores, and none that no code stores."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from token_streams import make_step

from burnish.algorithms.loss import LossInputs
from burnish.algorithms.registry import make_loss
from burnish.core.grade import Grade
from burnish.core.judge import Criterion
from burnish.graders.aggregate import WeightedSum
from burnish.graders.integrity.canaries import CanaryOutcome
from burnish.graders.integrity.metrics import canary_scalars, integrity_scalars
from burnish.graders.judge_budget import judge_scalars
from burnish.graders.judge_check import JudgeCheck
from burnish.graders.rubric_criteria import Rubric, RubricCriterion
from burnish.graders.rubric_labelled import LabelledCase
from burnish.health.panels import input_independence
from burnish.health.slices import SliceNames
from burnish.health.sums import HealthSums
from burnish.health.watch import Watch, WatchSpec
from burnish.loop.conductor import start_run
from burnish.loop.grading import honey_read
from burnish.loop.recipes import load_recipe
from burnish.loop.reinforce import PROGRAM_COUNTERS, describe
from burnish.loop.step_work import Batch
from burnish.store.reader import RunReader
from burnish.testing.fakes import ScriptedJudge

ROOT = Path(__file__).parents[2]
SMALL = (
    *("run.workers=1", "run.in_process=true", "warm_start.steps=4", "warm_start.traces=60", "rl.steps=2"),
    *(
        "rl.groups=4",
        "rl.group_size=4",
        "rl.kl_weight=0.01",
        "rl.entropy_floor=0.01",
        "rl.filter_zero_signal=false",
        "evaluation.tasks=8",
    ),
    *("evaluation.every=1", "evaluation.quick_tasks=4", "model.tiny.hidden_size=32", "model.tiny.layers=1"),
)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    names: set[str] = set()
    for mode in ("sync", "async"):
        folder = tmp_path_factory.mktemp("metrics") / mode
        words = (*SMALL, f"rollout.mode={mode}", "control.mode=act", "curriculum.draw=diagnosis")
        start_run(load_recipe("demo", words), folder)
        names |= {name for phase in ("sft", "rl", "eval") for name in RunReader(folder).scalar_names(phase)}
    return names


def documented() -> set[str]:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").split("## Names of scalars")[1]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def off_policy() -> set[str]:
    """What a loss adds with a correction, a mask, scores of the proximal policy and known versions."""
    one = torch.zeros(1)
    inputs = LossInputs(
        logprobs_N=one,
        behaviour_logprobs_N=one,
        proximal_logprobs_N=one,
        reference_logprobs_N=one,
        advantages_N=one,
        sequence_N=torch.zeros(1, dtype=torch.int64),
        sequence_tokens_N=torch.ones(1),
        staleness_N=torch.zeros(1, dtype=torch.int64),
        entropy_N=one,
        sequences=1,
        normaliser=1.0,
    )
    return set(make_loss("m2po", {"correction": "token_mask"})(inputs).statistics.metrics())


def health() -> set[str]:
    """What a watch says of streams that have everything."""
    names = SliceNames(tools=("search",), sources=("shop", "forms"), skills=("s",))
    watch = Watch(WatchSpec(names=names, baseline_steps=10))
    for step in range(12):
        streams = [replace(one, proximal=one.behaviour, skill="s") for one in make_step(step, 128, step=step)]
        found = set(watch.step(step, HealthSums.of(streams, names)).scalars)
    return found | set(input_independence(np.eye(8), np.arange(8)))


def plain(names: set[str]) -> set[str]:
    """Outcomes are documented as one family, and so is each figure of the three ratios and of the slices."""
    return {_plain(name) for name in names}


def _plain(name: str) -> str:
    if name.startswith("outcome/"):
        return "outcome/LABEL"
    if name.startswith("curriculum/"):
        return "curriculum/KIND"
    if name.startswith("health/"):
        name = re.sub("^health/[^/]+/", "health/SLICE/", name)
        name = re.sub("(/ess_.+)_(proximal|reference)$", r"\1", name)
        return re.sub("(ratio|m2|k3|chi2)_(behaviour|proximal|reference)", r"\1_NAME", name)
    name = re.sub("^judge_check/.+/", "judge_check/NAME/", name)
    return re.sub("ratio_(behaviour|proximal|reference)_", "ratio_NAME_", name)


def of_programs() -> set[str]:
    """What is counted where a program plays the episodes."""
    return {f"count/{name}" for name in PROGRAM_COUNTERS}


def of_rewards() -> set[str]:
    """What a step adds whose rewards and verifiable graders both tell members apart."""
    return set(describe(Batch(groups=(), advantages={}, fates={}, agreement=0.5), []))


def of_integrity() -> set[str]:
    """What a step adds whose graders include one of integrity."""
    clean = Grade(grader="integrity", version="1", score=1.0)
    return set(integrity_scalars([[clean]], [1.0]))


def of_judges() -> set[str]:
    """What a step adds whose graders asked a judge."""
    evidence = {"judges": {}, "requests": 1, "cost_usd": 0.0}
    return set(judge_scalars([Grade(grader="memo", version="1", score=1.0, evidence=evidence)]))


def of_canaries() -> set[str]:
    """What a recipe's canaries add: twins, honeyfiles, a judge that was adopted and asked once more."""
    criterion = RubricCriterion(criterion=Criterion(id="a", text="It is so."))
    cases = [LabelledCase(id=f"m{number}", answer=f"text {number}", labels={"a": 1.0}) for number in range(9)]
    check = JudgeCheck(rubric=Rubric(name="one", criteria=(criterion,)), judge=ScriptedJudge(), cases=cases)
    kept, adopted = asyncio.run(check.adopt())
    assert kept is not None
    asked = asyncio.run(check.check(kept, step=1))
    recipe = load_recipe("demo", ("canaries.honeyfile=true",))
    honey, _ = honey_read(recipe, WeightedSum(), [], 1)
    return {*canary_scalars(list(CanaryOutcome)), *honey, *adopted.scalars, *asked.scalars}


def everything(logged: set[str]) -> set[str]:
    """All names that code stores."""
    elsewhere = off_policy() | health() | of_programs() | of_rewards() | of_integrity() | of_judges() | of_canaries()
    return plain(logged | elsewhere)


def test_every_scalar_is_documented(logged: set[str]) -> None:
    assert everything(logged) - documented() == set()


def test_nothing_is_documented_that_is_never_stored(logged: set[str]) -> None:
    assert documented() - everything(logged) == set()


def test_a_new_name_would_be_noticed(logged: set[str]) -> None:
    assert plain(logged | {"surprise/mean"}) - documented() == {"surprise/mean"}
