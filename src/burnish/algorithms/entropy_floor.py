"""An entropy floor: a KL penalty that is there only while the entropy is below a stated value.

    coefficient = weight * clamp((floor - H) / (ramp * floor), 0, 1),  floor = share * H_warm_up

"Engineering and algorithmic interventions for multimodal post-training at Microsoft scale" (2026), intervention I: KL
penalty active only while H(pi) is under a threshold (its value is not given).  A plain entropy bonus, reported there
to keep entropy up and reinforce wrong behaviour, rewards randomness at any entropy; a floor is silent above it.  The
floor is relative to warm-up: a run at a stable 0.4 nats is not ill.  ramp: the penalty grows over the first part below
the floor rather than jump, so that it does not switch on and off from step to step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyFloor:
    """`EntropyFloor(weight=0.05)`

    weight >= 0: coefficient of the KL penalty at full strength.  share in (0, 1): of the warm-up entropy.  ramp in
    (0, 1]: part of the floor below it over which the penalty grows to full strength.
    """

    weight: float
    share: float = 0.5
    ramp: float = 0.2

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight < math.inf:
            raise ValueError(f"weight is finite and at least 0, got {self.weight}")
        if not (0.0 < self.share < 1.0 and 0.0 < self.ramp <= 1.0):
            raise ValueError(f"share lies in (0, 1) and ramp in (0, 1], got {self.share} and {self.ramp}")

    def coefficient(self, entropy_nats: float, warm_up_entropy_nats: float) -> float:
        """The coefficient of the KL penalty in a step: 0 at the floor and above it, `weight` well below.

        entropy_nats: of this step, of one slice or of all tokens; warm_up_entropy_nats: the same over warm-up, frozen.
        An entropy that is not finite says nothing: 0.

        >>> floor = EntropyFloor(weight=0.05)
        >>> [round(floor.coefficient(entropy, 2.0), 3) for entropy in (2.0, 1.0, 0.9, 0.5)]
        [0.0, 0.0, 0.025, 0.05]
        """
        if not (math.isfinite(entropy_nats) and warm_up_entropy_nats > 0.0 and math.isfinite(warm_up_entropy_nats)):
            return 0.0
        floor = self.share * warm_up_entropy_nats
        return self.weight * min(max((floor - entropy_nats) / (self.ramp * floor), 0.0), 1.0)
