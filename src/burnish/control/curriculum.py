"""Task sources weighed by how much their samples still count: a curriculum from estimator health.

    p_s = base_s * max(ess_s / max(ess), floor), normalised to 1

with base_s the recipe's shares and ess_s the effective share of a source's samples.  A source whose samples hardly
count is drawn less until the policy that draws them has caught up; the floor keeps every source in sight, for one
that is never drawn can never be seen to recover.  After intervention II of "Engineering and algorithmic interventions
for multimodal post-training at Microsoft scale" (2026), which controls the mixture from ESS and states no formula.
"""

from __future__ import annotations

import math
from collections.abc import Mapping


def source_probabilities(
    base: Mapping[str, float], ess: Mapping[str, float], *, floor: float = 0.25
) -> dict[str, float]:
    """Probability by source, adding up to 1.

    base: shares of the recipe, above 0, any total.  ess: effective share by source, at least 0; a source without one
    keeps its base share (weight 1), because not measured is not bad.  floor in (0, 1].  Raises ValueError otherwise.

    >>> source_probabilities({"easy": 1.0, "noisy": 1.0}, {"easy": 0.8, "noisy": 0.4})
    {'easy': 0.6666666666666666, 'noisy': 0.3333333333333333}
    """
    if not 0.0 < floor <= 1.0:
        raise ValueError(f"floor lies in (0, 1], got {floor}")
    if not base or any(not (share > 0.0 and math.isfinite(share)) for share in base.values()):
        raise ValueError(f"every source needs a share above 0, got {dict(base)}")
    if any(not (value >= 0.0 and math.isfinite(value)) for value in ess.values()):
        raise ValueError(f"an effective share is at least 0 and finite, got {dict(ess)}")
    best = max((ess[source] for source in base if source in ess), default=0.0)
    weights = {}
    for source, share in base.items():
        relative = ess[source] / best if source in ess and best > 0.0 else 1.0
        weights[source] = share * max(relative, floor)
    total = math.fsum(weights.values())
    return {source: weight / total for source, weight in weights.items()}
