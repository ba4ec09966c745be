"""Post-tool tails grow while text tails do not: see claim.md.

python claims/post_tool_tails/run.py [--quick] [--seeds N] [--data DIR] [--workers N]
"""

from __future__ import annotations

import math
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import (
    Reading,
    Replay,
    Simulation,
    benchmark_replays,
    late_over_early,
    pairs_of,
    run_claim,
    series,
    simulated,
)

from burnish.stats.intervals import mean_interval

KINDS = ("tool_format", "noisy_tool", "failing_tool", "tool_share")
POST, TEXT = "health/post_tool/log_ratio_behaviour_p95", "health/text/log_ratio_behaviour_p95"
GROWN, FLAT, SEEN = 1.25, 1.10, 0.10
SHOWN = ("fault_runs", "pattern_share", "pattern_share_in_health", "post_tool_growth", "text_growth", "log_quotient")


def growths(replay: Replay, onset: int) -> tuple[float, float]:
    """Of post-tool and of text tails."""
    found = series(replay, POST, TEXT)
    return late_over_early(*found[POST], onset), late_over_early(*found[TEXT], onset)


def pattern(growth: tuple[float, float]) -> bool:
    """What the claim describes."""
    return growth[0] >= GROWN and growth[1] < FLAT


def by_kind(faults: list[Replay], onset: int) -> dict[str, list[list[float]]]:
    """Growth of post-tool and of text tails, run by run."""
    found: dict[str, list[list[float]]] = {}
    for replay in faults:
        found.setdefault(replay.spec.kind, []).append([round(value, 4) for value in growths(replay, onset)])
    return found


def reading(faults: list[Replay], healthy: list[Replay], onset: int) -> Reading:
    """The figures, and the verdict that the criterion gives."""
    wrong = [pair for pair in (growths(replay, onset) for replay in faults) if not any(map(math.isnan, pair))]
    fine = [pair for pair in (growths(replay, onset) for replay in healthy) if not any(map(math.isnan, pair))]
    quotients = [math.log(post / text) for post, text in wrong if post > 0 and text > 0]
    share = statistics.fmean(map(pattern, wrong)) if wrong else 0.0
    in_health = statistics.fmean(map(pattern, fine)) if fine else 1.0
    interval = mean_interval(quotients) if quotients else None
    moved = any(abs(value - 1) >= SEEN for pair in wrong for value in pair)
    if not moved:
        verdict = "not testable here"
    elif share >= 0.6 and in_health <= 0.1:
        verdict = "reproduced"
    elif interval is not None and interval.low > 0 and statistics.fmean(q > 0 for q in quotients) >= 0.8:
        verdict = "mixed"
    else:
        verdict = "not reproduced"
    figures: dict[str, Any] = {
        "fault_runs": len(wrong),
        "pattern_share": share,
        "healthy_runs": len(fine),
        "pattern_share_in_health": in_health,
        "post_tool_growth": statistics.median(pair[0] for pair in wrong) if wrong else None,
        "text_growth": statistics.median(pair[1] for pair in wrong) if wrong else None,
        "log_quotient": None if interval is None else [interval.mean, interval.low, interval.high],
        "by_kind": by_kind(faults, onset),
        "in_health": [[round(value, 4) for value in pair] for pair in fine],
    }
    return Reading(figures=figures, verdict=verdict, rows=[(name, str(figures[name])) for name in SHOWN])


def quick() -> Reading:
    spec = Simulation(steps=90, onset=60)
    grows = Simulation(steps=90, onset=60, growth=0.4)
    faults = [simulated(grows, seed, arm="fault", kind="tool_format") for seed in (0, 1)]
    found = reading(faults, [simulated(spec, 0, arm="twin")], 60)
    return Reading(figures=found.figures, rows=found.rows)


def full(options: Any) -> Reading:
    replays = benchmark_replays(options, options.kinds.split(",") if options.kinds else KINDS)
    faults = [pair.changed for pair in pairs_of(replays, "fault")]
    return reading(faults, [replay for replay in replays if replay.spec.arm == "twin"], options.onset)


if __name__ == "__main__":
    sys.exit(run_claim("post_tool_tails", __doc__, quick, full))
