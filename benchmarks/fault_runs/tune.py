"""Finding the mildest dose of each fault that does damage, on tuning seeds.

Damage is a mean gap of `DAMAGE` and a standard error more: of doses that are tried on few tasks, the mildest that
seems to do damage is often one that does less (a gap of 12 points on a tuning seed was one of 8 on the reported ones).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from fault_runs.catalogue import FAULTS, read_doses, write_doses
from fault_runs.jobs import Planner, Say, replays, run_jobs
from fault_runs.scoring import AT_END, DAMAGE, pairs_of


def tune(planner: Planner, kinds: Sequence[str], seeds: Sequence[int], workers: int, say: Say) -> None:
    """Climb the ladders of all kinds together, a rung at a time; write `doses.toml` after each.

    Kinds whose dose is known already are left as they are.
    """
    known = read_doses()
    open_kinds = [kind for kind in kinds if kind in FAULTS and kind not in known]
    tried: dict[str, dict[float, float]] = {kind: {} for kind in open_kinds}
    for rung in range(max((len(FAULTS[kind].doses) for kind in open_kinds), default=0)):
        now = [kind for kind in open_kinds if rung < len(FAULTS[kind].doses)]
        jobs = {
            kind: [planner.changed("fault", kind, seed, FAULTS[kind].doses[rung]) for seed in seeds] for kind in now
        }
        run_jobs([job for part in jobs.values() for job in part], workers, say)
        twins = replays([planner.twin(seed) for seed in seeds])
        for kind in now:
            pairs = pairs_of([*twins, *replays(jobs[kind])], "fault")
            if pairs:
                tried[kind][FAULTS[kind].doses[rung]] = statistics.fmean(pair.gap for pair in pairs)
        needed = DAMAGE + gap_error(planner.setting.tasks, len(seeds))
        found = {kind: _entry(tried[kind], needed) for kind in now if tried[kind]}
        last = {kind for kind in now if rung + 1 == len(FAULTS[kind].doses)}
        write_doses({kind: entry for kind, entry in found.items() if entry["status"] == "damaging" or kind in last})
        open_kinds = [kind for kind in open_kinds if found.get(kind, {}).get("status") != "damaging"]
        for kind, entry in found.items():
            say(f"{kind}: dose {entry['dose']:g}, gap {entry['gap']:+.1f} points, {entry['status']}")


def gap_error(tasks: int, seeds: int) -> float:
    """Largest standard error of a mean gap: both sides evaluated `AT_END` times on so many tasks.

    >>> round(gap_error(150, 1), 3)
    0.033
    """
    return math.sqrt(2 * 0.25 / (AT_END * tasks * seeds))


def _entry(tried: dict[float, float], needed: float) -> dict[str, Any]:
    dose = next((dose for dose, gap in tried.items() if gap <= -needed), list(tried)[-1])
    return {
        "dose": dose,
        "gap": round(100 * tried[dose], 1),
        "status": "damaging" if tried[dose] <= -needed else "harmless",
        "tried": list(tried),
        "gaps": [round(100 * gap, 1) for gap in tried.values()],
    }
