"""What the claims share: flags, simulated streams, the runs of the fault benchmark, and how a verdict is kept."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from burnish.core.streams import ActionSpan, TokenStream
from burnish.health.signals import signals
from burnish.health.slices import SliceNames
from burnish.health.sums import HealthSums
from burnish.stats.ess import ess_share_of_sums

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "benchmarks"))

from fault_runs.cache import SUFFIX, Evaluation, Replay, RunSpec, StepData, read_replay  # noqa: E402
from fault_runs.catalogue import CONTROLS  # noqa: E402
from fault_runs.jobs import Job, Planner, Setting, replays, run_jobs, wanted_jobs  # noqa: E402
from fault_runs.plain import plain_scalars  # noqa: E402
from fault_runs.scoring import Pair, healthy_of, pairs_of  # noqa: E402

VERDICTS = ("reproduced", "not reproduced", "mixed", "not testable here")
SETTING = ("recipe", "rl_words", "onset", "steps", "last", "kinds", "controls")
"""Flags that say in which world a claim was measured; those that were given are kept with its verdict."""
console = Console(width=80)

__all__ = ["Pair", "Replay", "healthy_of", "pairs_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a claim found.  verdict: one of `VERDICTS`, "" where nothing may be said (--quick).  rows: for the table."""

    figures: Mapping[str, Any]
    verdict: str = ""
    rows: Sequence[tuple[str, str]] = field(default_factory=list)


def run_claim(name: str, doc: str | None, quick: Callable[[], Reading], full: Callable[[Any], Reading]) -> int:
    """Parse the flags, measure, print a table and the last line of JSON; keep the verdict of a full run.

    --reason is asked for where another verdict stands already: it is kept below the new one.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small simulated stream, at most 10 s, no verdict")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path("runs/faults"))
    parser.add_argument("--workers", type=int, default=max(2, os.cpu_count() or 2))
    parser.add_argument("--onset", type=int, default=100)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--last", type=int, default=0, help="where runs that leave their twin end; 0: as the twin")
    parser.add_argument("--tuning-seeds", type=int, default=0, help="seeds to calibrate on; 0: as many as --seeds")
    parser.add_argument("--kinds", default="", help="faults to look at, where not all that the claim names")
    parser.add_argument("--controls", default=",".join(CONTROLS), help="healthy controls to run, of the benchmark's")
    parser.add_argument("--recipe", default="long")
    parser.add_argument("--rl-words", default="", help='overrides after the warm start: "rl.groups=6 rl.lr=1e-4"')
    parser.add_argument("--note", default="", help="what was tried and what was cut, kept with the verdict")
    parser.add_argument("--reason", default="", help="why a new verdict supersedes the one that stands")
    options = parser.parse_args()
    given = {name: getattr(options, name) for name in SETTING}
    options.setting = {name: value for name, value in given.items() if value != parser.get_default(name)}
    reading = quick() if options.quick else full(options)
    table = Table(title=f"claim {name}", box=None, pad_edge=False, title_justify="left")
    table.add_column("figure")
    table.add_column("value")
    for label, value in [*reading.rows, ("verdict", reading.verdict or "none (quick)")]:
        table.add_row(label, value)
    console.print(table)
    if not options.quick:
        _keep(name, reading, options)
    holds = {"reproduced": True, "not reproduced": False}.get(reading.verdict)
    print(json.dumps({"claim": name, "verdict": reading.verdict or None, **finite(reading.figures), "holds": holds}))
    return 0


def finite(value: Any) -> Any:
    """The same for JSON, which knows no infinity: an interval of one seed has no ends, which are None there.

    >>> finite({"gap": [0.1, -math.inf, math.inf]})
    {'gap': [0.1, None, None]}
    """
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _keep(name: str, reading: Reading, options: argparse.Namespace) -> None:
    if reading.verdict not in VERDICTS:
        raise ValueError(f"a verdict is one of {', '.join(VERDICTS)}, got {reading.verdict!r}")
    path = HERE / name / "verdict.json"
    command = ["git", "-C", str(HERE), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    entry: dict[str, Any] = {
        "verdict": reading.verdict,
        "figures": finite(reading.figures),
        "seeds": options.seeds,
        "commit": commit,
    }
    entry |= {name: value for name, value in (("setting", options.setting), ("note", options.note)) if value}
    if path.exists():
        if not options.reason:
            raise SystemExit(f"{path} holds a verdict already; say with --reason why this one supersedes it")
        before = json.loads(path.read_text(encoding="utf-8"))
        entry |= {"reason": options.reason, "superseded": [*before.pop("superseded", []), before]}
    path.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")


# -- runs --------------------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class ClaimPlanner(Planner):
    """A planner whose changed runs may end before their twins.  last: their last step; 0 is the twin's."""

    last: int = 0

    def changed(self, arm: str, kind: str, seed: int, dose: float, words: tuple[str, ...] = ()) -> Job:
        # Slots make the class anew, so that `super()` without arguments would not find it.
        job = Planner.changed(self, arm, kind, seed, dose, words)
        if not self.last:
            return job
        return self._fork(replace(job.spec, steps=self.last), self.twin(seed), job.spec.checkpoint)


def planner_of(options: argparse.Namespace) -> ClaimPlanner:
    """A planner of runs with the settings of the fault benchmark."""
    setting = Setting(
        data=options.data,
        recipe=options.recipe,
        onset=options.onset,
        steps=options.steps,
        rl_words=tuple(options.rl_words.split()),
    )
    return ClaimPlanner(setting=setting, last=options.last)


def benchmark_replays(
    options: argparse.Namespace, kinds: Sequence[str], seeds: Sequence[int] | None = None
) -> list[Replay]:
    """The runs of the fault benchmark of these kinds with their twins, and the controls that are asked for, on the
    reported seeds where no others are given; makes what is missing."""
    wanted = [*kinds, *filter(None, options.controls.split(","))]
    return arms_of(
        options, wanted_jobs(planner_of(options), range(options.seeds) if seeds is None else seeds, wanted, ())
    )


def stored_replays(options: argparse.Namespace, *, tuning: bool = False) -> list[Replay]:
    """Every run of one half that lies under --data, whoever asked for it: twins of this setting and what left them."""
    folder = options.data / ("tuning" if tuning else "reported")
    found = {path.with_suffix(""): read_replay(path) for path in sorted(folder.glob(f"*{SUFFIX}"))}
    planner = planner_of(options)
    twins = {planner.twin(seed).target.with_suffix("") for seed in {replay.spec.seed for replay in found.values()}}
    return [replay for path, replay in found.items() if path in twins or Path(replay.spec.parent) in twins]


def arms_of(options: argparse.Namespace, jobs: Sequence[Job]) -> list[Replay]:
    """Runs that a claim plans for itself, made where they are missing."""
    failed = run_jobs(jobs, options.workers, lambda text: console.print(text, highlight=False))
    if failed:
        raise SystemExit(f"{len(failed)} runs failed, such as {failed[0].target.with_suffix('.log')}")
    return replays(jobs)


def effective_share(sizes: Sequence[float]) -> float:
    """(sum x)^2 / (n sum x^2) of sizes x of which some may be 0; 0 where all are, since nothing is trained then.

    >>> effective_share([1.0, 1.0, 0.0, 0.0]), effective_share([0.0, 0.0])
    (0.5, 0.0)
    """
    x = np.asarray(sizes, dtype=np.float64)
    return float(ess_share_of_sums(np.float64(len(x)), x.sum(), (x**2).sum())) if x.any() else 0.0


def series(replay: Replay, *names: str) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of scalars of `burnish.health.signals` by name; steps at which one is not known are left out."""
    found: dict[str, tuple[list[int], list[float]]] = {name: ([], []) for name in names}
    for item in replay.steps:
        scalars = signals(item.sums())
        for name in names:
            value = scalars.get(name, float("nan"))
            if np.isfinite(value):
                found[name][0].append(item.step)
                found[name][1].append(value)
    return found


def late_over_early(steps: Sequence[int], values: Sequence[float], onset: int, window: int = 30) -> float:
    """Median of the last `window` values over that of the `window` up to the onset; NaN without values on a side."""
    early = [value for step, value in zip(steps, values, strict=True) if step <= onset][-window:]
    late = [value for step, value in zip(steps, values, strict=True) if step > onset][-window:]
    if not early or not late or np.median(early) == 0:
        return float("nan")
    return float(np.median(late) / np.median(early))


# -- simulation --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """The generator of the sheet's section 6, as token streams.

    Text tokens have normal log-ratios of sd `text_sd`; post-tool tokens Student t with 3 degrees of freedom of scale
    post_scale + growth * ((step - onset) / (steps - onset))^2 after the onset, as text tokens do with text_growth.
    success: held-out success while healthy; drop: what it loses in the last third.  train_failed: groups that failed as
    a whole are trained on, too.
    """

    steps: int = 120
    onset: int = 60
    trajectories: int = 16
    tokens: int = 96
    text_sd: float = 0.05
    post_scale: float = 0.05
    growth: float = 0.0
    text_growth: float = 0.0
    post_share: float = 0.3
    success: float = 0.8
    drop: float = 0.0
    train_failed: bool = True


GROUP_SIZE = 4
NAMES = SliceNames(tools=("search",), sources=("desk",))


def simulated(spec: Simulation, seed: int, *, arm: str, kind: str = "") -> Replay:
    """One simulated run; runs of one seed agree up to the onset."""
    rng = np.random.default_rng(seed)
    steps = []
    for step in range(1, spec.steps + 1):
        streams = list(_streams(spec, step, rng))
        steps.append(StepData.of(step, HealthSums.of(streams, NAMES), plain_scalars(streams)))
    falls = spec.onset + 2 * (spec.steps - spec.onset) // 3
    evaluations = [
        Evaluation(step=step, success=spec.success - (spec.drop if step >= falls else 0.0), n=100)
        for step in range(10, spec.steps + 1, 10)
    ]
    onset = 0 if arm == "twin" else spec.onset
    head = RunSpec(arm=arm, kind=kind, seed=seed, onset=onset, steps=spec.steps)
    return Replay(spec=head, names=NAMES.to_dict(), steps=steps, evaluations=evaluations)


def _streams(spec: Simulation, step: int, rng: np.random.Generator) -> Iterator[TokenStream]:
    grown = max(0.0, (step - spec.onset) / (spec.steps - spec.onset)) ** 2
    cut = round(spec.tokens * (1 - spec.post_share))
    spans = (
        ActionSpan(start=0, end=cut, turn=0),
        ActionSpan(start=cut, end=spec.tokens, turn=1, tool="search", after_tool=True),
    )
    right_B = rng.random(spec.trajectories) < spec.success
    for index in range(spec.trajectories):
        group = index // GROUP_SIZE
        trained = spec.train_failed or bool(right_B[group * GROUP_SIZE : (group + 1) * GROUP_SIZE].any())
        text = rng.normal(0.0, spec.text_sd + spec.text_growth * grown, cut)
        post = rng.standard_t(3, spec.tokens - cut) * (spec.post_scale + spec.growth * grown)
        d_N = np.concatenate([text, post]).clip(-15, 15)
        behaviour_N = -np.abs(rng.normal(0.7, 0.3, spec.tokens)) - 0.01
        right = float(right_B[index])
        yield TokenStream(
            id=f"rl/{step:06d}/{group:04d}/{index % GROUP_SIZE:02d}",
            group_id=f"rl/{step:06d}/{group:04d}",
            step=step,
            behaviour=array("f", behaviour_N.tolist()),
            learner=array("f", (behaviour_N + d_N).tolist()) if trained else None,
            entropy=array("f", rng.normal(0.7, 0.05, spec.tokens).clip(0).tolist()),
            score_norm=array("f", rng.uniform(0.2, 0.8, spec.tokens).tolist()),
            spans=spans,
            advantage=float(rng.normal()) if trained else None,
            reward=right,
            success=right,
            progress=right,
            source="desk",
            turns=2,
            tool_calls=1,
            outcome="completed",
        )
