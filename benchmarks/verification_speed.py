"""What grounded verification costs: 1,000 responses to tasks of `scenes` on one core.

    python benchmarks/verification_speed.py [--quick] [--seeds N] [--data DIR]

Bar: parsing, routing and all tools for 1,000 responses (right ones and every named mistake, in equal shares) take
under 5 s; the median over --seeds rounds counts (5 by default). Rendering is timed beside it, with nothing
remembered: at least 200 scenes of 32 pixels a second. No data is needed, --data is accepted and unused. Takes about
fifteen seconds; --quick two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from random import Random

from burnish.environments.scenes import Scenes
from burnish.environments.scenes.scene import coverage as remembered
from burnish.environments.scenes.scene import render, scene_from_json
from burnish.environments.scenes.traces import MISTAKES, trace
from burnish.graders.grounding import Verifier

BAR_S, SCENES_BAR = 5.0, 200.0


def main() -> int:
    """Measure, print, and say whether the bars hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data")
    options = parser.parse_args()
    n, rounds = (100, 1) if options.quick else (1000, options.seeds)
    verify_s, make_s, render_s, frames = [], [], [], 0
    for seed in range(rounds):
        began_s = time.perf_counter()
        tasks = list(Scenes(heldout=n).tasks("heldout", Random(seed)))
        make_s.append(time.perf_counter() - began_s)
        scenes = [scene_from_json(data) for task in tasks for data in task.setup["frames"]]
        remembered.cache_clear()
        began_s = time.perf_counter()
        for scene in scenes:
            render(scene)
        render_s.append(time.perf_counter() - began_s)
        frames += len(scenes)
        manners = (None, *MISTAKES)
        responses = [trace(task, Random(i), manners[i % len(manners)]) for i, task in enumerate(tasks)]
        verifier = Verifier()
        began_s = time.perf_counter()
        verifier.verify_batch(tasks, responses)
        verify_s.append(time.perf_counter() - began_s)
    per_1000_s = statistics.median(verify_s) * 1000 / n
    scenes_per_s = frames / sum(render_s)
    holds = None if options.quick else per_1000_s < BAR_S and scenes_per_s >= SCENES_BAR
    print(f"verification   {per_1000_s:8.2f} s per 1,000 responses   bar {BAR_S:g} s")
    print(f"               {min(verify_s) * 1000 / n:8.2f} .. {max(verify_s) * 1000 / n:.2f} over {rounds} rounds")
    print(f"rendering      {scenes_per_s:8.0f} scenes a second         bar {SCENES_BAR:g}")
    print(f"whole tasks    {n * rounds / sum(make_s):8.0f} a second, images and truth included")
    figures = {"verify_s_per_1000": per_1000_s, "scenes_per_s": scenes_per_s, "tasks_per_s": n * rounds / sum(make_s)}
    print(json.dumps({**figures, "rounds": rounds, "n": n, "holds": holds}))
    return 0 if holds in (None, True) else 1


if __name__ == "__main__":
    sys.exit(main())
