"""Sequential tests of single signals: what is watched, in which direction, and what counts as nothing.

Only signals that healthy learning leaves alone may raise an alarm by themselves.  Entropy, length, the post-tool
share, groups without signal and the concentration of the update (on the tokens that are not yet certain) move *because*
a policy learns: their monitors stand still while success is above its baseline and near its best
(`explained_by_success`).  The ratio to the reference grows from zero in every run: only
its speed is watched.  Every other figure is shown, never alarmed.  A rise of at most `allowance` is nothing, however
certain it is.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from burnish.health.slices import SliceNames
from burnish.stats.sequential import (
    Baseline,
    Threshold,
    change_point,
    cusum,
    cusum_threshold,
    detrended_baseline,
    e_detector,
    fit_baseline,
    known_baseline,
    standardise,
)

HISTORY = 128
"""Standardised values that a monitor keeps for the onset estimate."""

NOTHING_YET = -700.0
"""Logarithm of a Shiryaev-Roberts sum of nothing, finite so that it can stand in JSON."""

TRANSFORMS = ("plain", "log", "shortfall")
TESTS = ("cusum", "e_detector")


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorSpec:
    """One signal under test.

    name: of the scalar, without "health/" where it has one.  kind: what a Finding of it means (docs/health.md).
    rising: a fault moves it up, else down.  transform: x itself, "log": ln(x + floor), or "shortfall": ln(1 - x +
    floor) for an ESS, which then rises in a fault.  floor: what is too small to matter.  allowance: change of the
    transformed value that is no fault.  rank: `offenders` sorts trajectories by it.  explained_by_success: see above.
    known_mean: of the oriented value in health, where it need not be estimated: the warm-up then gives the spread
    alone, from differences of neighbours, so that a trend in it does no harm.  detrended: health moves it away from
    what a fault does, so that its spread is that around the line through the warm-up, and its mean errs on the safe
    side.

    `MonitorSpec(name="gini_update", kind="concentration", allowance=0.05, rank="update_size")`
    """

    name: str
    kind: str
    rising: bool = True
    transform: str = "plain"
    floor: float = 0.0
    allowance: float = 0.0
    rank: str = "update_size"
    slice_name: str = ""
    explained_by_success: bool = False
    known_mean: float | None = None
    detrended: bool = False
    test: str = "cusum"

    def __post_init__(self) -> None:
        if self.transform not in TRANSFORMS or self.test not in TESTS or self.allowance < 0 or self.floor < 0:
            raise ValueError(
                f"monitor {self.name}: transform is one of {TRANSFORMS}, test one of {TESTS}, floor and allowance are "
                f"at least 0; got {self.transform!r}, {self.test!r}, {self.floor}, {self.allowance}"
            )

    def oriented(self, value: float) -> float:
        """The transformed value with a fault pointing up.

        >>> MonitorSpec(name="a", kind="ess_drop", transform="shortfall").oriented(0.0)
        0.0
        """
        if self.transform == "shortfall":
            return math.log(max(1 - value + self.floor, 1e-300))
        x = math.log(max(value + self.floor, 1e-300)) if self.transform == "log" else value
        return x if self.rising else -x

    def plain(self, oriented: float) -> float:
        """The value again."""
        if self.transform == "shortfall":
            return 1 + self.floor - math.exp(oriented)
        x = oriented if self.rising else -oriented
        return math.exp(x) - self.floor if self.transform == "log" else x


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A monitor fired.  statistic and threshold are in the test's own units; onset_step: estimated start."""

    value: float
    usual: float
    statistic: float
    threshold: float
    onset_step: int
    baseline: Baseline


class Monitor:
    """One sequential test: warm-up, then a frozen baseline, then alarms with a cooldown.

    rate: false alarms per step that its threshold is for.  scale: factor on the threshold.
    """

    def __init__(self, spec: MonitorSpec, *, rate: float, warm_up: int, cooldown: int, scale: float = 1.0) -> None:
        self.spec = spec
        self._rate, self._warm_up, self._cooldown, self._scale = rate, warm_up, cooldown, scale
        self._early: list[float] = []
        self._baseline: Baseline | None = None
        self._limit: Threshold | None = None
        self._statistic = self._start()
        self._climbing_since = -1
        self._quiet_until = -1
        self._history: deque[tuple[int, float]] = deque(maxlen=HISTORY)

    @property
    def ready(self) -> bool:
        """Whether its baseline is frozen."""
        return self._baseline is not None

    def step(self, step: int, value: float | None, *, explained: bool = False, weight: float = 1.0) -> Alarm | None:
        """One value; None where the step has none, which changes nothing.  explained: success accounts for a change.
        weight: factor on the standardised value, below 1 for a step that says less than one of the warm-up."""
        if value is None or not math.isfinite(value):
            return None
        x = self.spec.oriented(value)
        if self._baseline is None or self._limit is None:
            self._warm(x)
            return None
        plain_z = weight * standardise(x, self._baseline)
        self._history.append((step, plain_z))
        if step < self._quiet_until:
            return None
        still = explained and self.spec.explained_by_success
        z = 0.0 if still else weight * standardise(x, self._baseline, allowance=self.spec.allowance)
        at, threshold = self._advance(step, z, self._baseline, self._limit)
        if self._statistic < threshold:
            return None
        alarm = Alarm(
            value=value,
            usual=self.spec.plain(self._baseline.mean),
            statistic=self._statistic,
            threshold=threshold,
            onset_step=self._onset(at),
            baseline=self._baseline,
        )
        self._statistic, self._quiet_until, self._climbing_since = self._start(), step + self._cooldown, -1
        return alarm

    def state(self) -> dict[str, Any]:
        """As JSON."""
        baseline = self._baseline
        return {
            "early": list(self._early),
            "baseline": None
            if baseline is None
            else [baseline.mean, baseline.scale, baseline.autocorrelation, baseline.n],
            "statistic": self._statistic,
            "climbing_since": self._climbing_since,
            "quiet_until": self._quiet_until,
            "history": [list(pair) for pair in self._history],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`."""
        self._early = [float(value) for value in state["early"]]
        if state["baseline"] is not None:
            mean, scale, autocorrelation, n = state["baseline"]
            self._freeze(Baseline(mean=mean, scale=scale, autocorrelation=autocorrelation, n=int(n)))
        self._statistic, self._climbing_since = float(state["statistic"]), int(state["climbing_since"])
        self._quiet_until = int(state["quiet_until"])
        self._history = deque([(int(step), float(z)) for step, z in state["history"]], maxlen=HISTORY)

    def _start(self) -> float:
        return 0.0 if self.spec.test == "cusum" else NOTHING_YET

    def _warm(self, x: float) -> None:
        self._early.append(x)
        if len(self._early) >= self._warm_up:
            # a signal that never moved in the warm-up still has to move by more than its allowance
            smallest = max(self.spec.allowance / 2, 1e-9)
            if self.spec.known_mean is not None:
                baseline = known_baseline(self._early, mean=self.spec.known_mean, smallest_scale=smallest)
            elif self.spec.detrended:
                baseline = detrended_baseline(self._early, smallest_scale=smallest)
            else:
                baseline = fit_baseline(self._early, smallest_scale=smallest)
            self._freeze(baseline)
            self._early = []

    def _freeze(self, baseline: Baseline) -> None:
        self._baseline, self._limit = baseline, cusum_threshold(self._rate, baseline)

    def _advance(self, step: int, z: float, baseline: Baseline, limit: Threshold) -> tuple[int, float]:
        """One step of the test; gives the step since which it climbs, and the threshold."""
        if self.spec.test == "cusum":
            self._statistic = cusum(self._statistic, z, limit.drift)
            resting, threshold = self._statistic == 0, limit.height * self._scale
        else:
            self._statistic = max(NOTHING_YET, e_detector(self._statistic, z, baseline))
            resting, threshold = self._statistic <= 0, -math.log(self._rate) * self._scale
        if resting:
            self._climbing_since = -1
        elif self._climbing_since < 0:
            self._climbing_since = step
        return self._climbing_since, threshold

    def _onset(self, climbing_since: int) -> int:
        """The earlier of the change point of the last values and the last time that the statistic was at rest."""
        at = self._history[change_point([z for _, z in self._history])][0]
        return min(at, climbing_since) if climbing_since >= 0 else at


def default_monitors(names: SliceNames) -> tuple[MonitorSpec, ...]:
    """What a run is watched for; docs/health.md says why each is here and what its allowance comes from."""
    quarter, half, double = math.log(1.25), math.log(1.5), math.log(2.0)
    tail = MonitorSpec(name="", kind="tail_growth", transform="log", floor=0.01, allowance=quarter, rank="square")
    tails = [
        replace(tail, name=f"{name}/log_ratio_behaviour_{figure}", slice_name=name, rank=rank)
        for name, figure, rank in (
            ("post_tool", "p95", "post_tool_square"),
            ("text", "p95", "square"),
            ("control", "p95", "square"),
            ("all", "p999", "square"),
            ("all", "left_p95_negative", "square"),
        )
    ]
    moments = replace(tail, name="all/m2_behaviour", slice_name="all", floor=1e-4, allowance=half)
    speed = replace(moments, name="reference_speed", kind="kl_drift", slice_name="", floor=1e-3, allowance=double)
    norm = replace(speed, name="grad_norm", kind="learning_rate", floor=1e-3, rank="update_size")
    # of all updates of the step: the only figure that sees how far one batch moves the policy without a reference
    moved = replace(norm, name="log_ratio_behaviour_abs_nats_mean", floor=1e-5, detrended=True)
    ess = MonitorSpec(name="post_tool/ess_token_raw", kind="ess_drop", slice_name="post_tool", rank="post_tool_square")
    ess = replace(ess, rising=False, transform="shortfall", floor=0.01, allowance=half)
    variance = replace(moments, name="ess_sequence_variance_per_token", kind="ess_drop", floor=1e-4, allowance=double)
    entropy = MonitorSpec(name="all/entropy", kind="entropy_low", rising=False, transform="log", floor=0.01)
    entropy = replace(entropy, allowance=double, rank="length", slice_name="all", explained_by_success=True)
    growth = replace(entropy, kind="entropy_high", rising=True, allowance=half, detrended=True)
    after = replace(growth, name="post_tool/entropy", slice_name="post_tool", rank="post_tool_tokens")
    share = MonitorSpec(name="", kind="", allowance=0.05, rank="tool_errors")
    return (
        *tails,
        moments,
        speed,
        norm,
        moved,
        ess,
        replace(variance, slice_name=""),
        entropy,
        growth,
        after,
        *_agent_monitors(share),
        *(
            MonitorSpec(
                name=f"source:{name}/reward_sd",
                kind="source_noise",
                transform="log",
                floor=0.02,
                allowance=double,
                slice_name=f"source:{name}",
                rank="reward_surprise",
            )
            for name in names.sources
        ),
    )


def _agent_monitors(share: MonitorSpec) -> tuple[MonitorSpec, ...]:
    """Concentration, panels and agreement of reward and progress.  share: a template for rates in [0, 1]."""
    length = replace(share, name="length_mean", kind="length_blow_up", transform="log", allowance=math.log(1.3))
    return (
        *(
            replace(share, name=name, kind="concentration", rank="update_size", explained_by_success=True)
            for name in ("gini_update", "top5_update")
        ),
        replace(share, name="staleness_mean", kind="staleness", allowance=0.5, rank="staleness"),
        replace(length, rank="length", explained_by_success=True),
        replace(share, name="truncated_share", kind="length_blow_up", allowance=0.1, rank="length"),
        replace(share, name="tool_error_rate", kind="tool_errors"),
        replace(share, name="retry_rate", kind="tool_errors", rank="retries"),
        replace(share, name="excluded_share", kind="exclusion_rate", allowance=0.02, rank="excluded"),
        replace(share, name="zero_signal_share", kind="zero_signal", allowance=0.15, explained_by_success=True),
        replace(
            share, name="post_tool_share", kind="post_tool_share", rank="post_tool_tokens", explained_by_success=True
        ),
        replace(share, name="failed_despite_progress", kind="grader_failure", allowance=0.03, rank="progress-success"),
        replace(share, name="succeeded_without_progress", kind="reward_jump", allowance=0.03, rank="success-progress"),
        replace(
            share,
            name="reward_progress_correlation",
            kind="reward_jump",
            rising=False,
            allowance=0.15,
            rank="reward_surprise",
        ),
        replace(share, name="input_dependence", kind="template_collapse", rising=False, allowance=0.1, rank="length"),
        replace(
            share, name="success_shortfall", kind="success_drop", allowance=0.1, rank="progress-success", known_mean=0.0
        ),
        replace(share, name="setback", kind="success_drop", allowance=0.12, rank="progress-success", known_mean=0.0),
        replace(share, name="advantage_agreement", kind="credit", rising=False, allowance=0.15),
    )
