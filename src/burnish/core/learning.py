"""What the learner is fed."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from burnish.core.images import ImageSpan
from burnish.core.kept import KeptSets


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSample:
    """One root-to-leaf path of a trajectory, aligned token by token (T tokens).

    token_ids: array('i').  loss_mask: array('b'), 1 where the token was sampled *and* is trained here (a token shared
    by two branches is trained once).  behaviour_logprobs: array('f'), 0 outside the mask.  versions: array('i'), -1
    outside.  advantages: array('f'), 0 outside (all 1 for SFT).  kept: the sets that the tokens were drawn from, where
    top-k or top-p cut the vocabulary.  proximal_logprobs: array('f'), of the policy that the trust region is around,
    0 outside; None where the loss has none.  images: which tokens show which image.

    Example: prompt of 2 tokens, action of 2: loss_mask [0, 0, 1, 1], advantages [0, 0, .5, .5].
    """

    trajectory_id: str
    group_id: str
    token_ids: array[int]
    loss_mask: array[int]
    behaviour_logprobs: array[float]
    versions: array[int]
    advantages: array[float]
    kept: KeptSets | None = None
    proximal_logprobs: array[float] | None = None
    images: tuple[ImageSpan, ...] = ()

    def __post_init__(self) -> None:
        streams = (self.token_ids, self.loss_mask, self.behaviour_logprobs, self.versions, self.advantages)
        lengths = {len(stream) for stream in streams}
        if self.kept is not None:
            lengths.add(len(self.kept.counts))
        if self.proximal_logprobs is not None:
            lengths.add(len(self.proximal_logprobs))
        if len(lengths) != 1:
            raise ValueError(f"streams of {self.trajectory_id} must be equally long, got lengths {sorted(lengths)}")

    @property
    def length(self) -> int:
        """T, the number of tokens."""
        return len(self.token_ids)

    @property
    def trained_tokens(self) -> int:
        """Number of tokens under the loss mask."""
        return sum(self.loss_mask)
