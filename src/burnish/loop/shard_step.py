"""A shard's own half of a step: samples with control's knobs applied to them, and token streams for health.

Streams are built from what has been computed anyway; nothing that is trained depends on them.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from burnish.algorithms.m2po import moment_limit
from burnish.core.learning import TrainingSample
from burnish.core.streams import TokenColumns, TokenStream
from burnish.core.trajectory import Trajectory
from burnish.health.sums import HealthSums
from burnish.loop.members import members
from burnish.loop.step_order import Seen, StepOrder
from burnish.rollout.samples import training_samples
from burnish.rollout.streams import (
    ControlTokens,
    LearnerStreams,
    SampledColumns,
    action_spans,
    in_trained_order,
    sampled_columns,
)
from burnish.training.learner import Learner
from burnish.training.token_record import TokenRecord

Samples = dict[str, list[TrainingSample]]
"""The samples of each trained trajectory, by its id."""

MOST_AS_COLUMNS = 20_000
"""Sampled tokens whose columns are about as many bytes as sums; fewer are sent as they are, so that the reduction,
which costs the same for one token as for a thousand, is done once for all shards."""


class ShardStep:
    """`step = ShardStep(order, held, control)`, then `make_samples`, `see_untrained`, and for each update
    `without_tails` and `look_ahead` before it and `see_trained` after it."""

    def __init__(self, order: StepOrder, held: Mapping[str, Trajectory], control: ControlTokens) -> None:
        self.order = order
        self._trajectories = {**held, **{t.id: t for t in order.replayed}}
        self._control = control
        self._masked_tokens = 0
        self._untold: list[str] = []
        self._ahead: tuple[list[str], SampledColumns] | None = None
        self._ahead_s = 0.0

    def make_samples(self, learner: Learner) -> Samples:
        """The samples of everything that has an advantage, scored where the loss or a tail cap needs that."""
        order, knobs = self.order, self.order.knobs
        samples = {
            key: training_samples(self._trajectories[key], judgement.advantage)
            for key, judgement in order.judgements.items()
            if judgement.advantage is not None
        }
        if learner.loss.needs_proximal(order.updates):
            scored = iter(learner.with_proximal([sample for group in samples.values() for sample in group]))
            samples = {key: [next(scored) for _ in group] for key, group in samples.items()}
        if knobs.post_tool_factor != 1.0:
            samples = {
                key: _weighted(group, self._post_tool_weights(self._trajectories[key]))
                for key, group in samples.items()
            }
        return samples

    def see_untrained(self) -> Seen:
        """What is not trained on (filtered, failed), where no update will tell of it: an update there will be where any
        sampled token is trained on."""
        started_s = time.thread_time()
        untrained = [key for key, judgement in self.order.judgements.items() if judgement.advantage is None]
        trained = self.order.judgements.keys() - set(untrained)
        if any(self._trajectories[key].action_tokens for key in trained):
            self._untold = untrained
            return Seen()
        if self.order.names is None or not untrained:
            return Seen()
        return self._seen(self._sampled(untrained, 0).columns, started_s)

    def look_ahead(self, keys: Sequence[str]) -> None:
        """Read what the next update trains on, for `see_trained`: now, when its samples were just made, it is in the
        processor's caches, and after the gradient it has to be fetched again."""
        started_s = time.thread_time()
        if self.order.names is not None and (self._untold or keys):
            self._ahead = [*self._untold, *keys], self._sampled([*self._untold, *keys], len(self._untold))
        self._ahead_s = time.thread_time() - started_s

    def see_trained(self, keys: Sequence[str], samples: Samples, record: TokenRecord, *, first: bool) -> Seen:
        """What one update trained on, and with the first of a step what is not trained on; `record` holds the samples
        of `keys` one after the other."""
        started_s = time.thread_time() - self._ahead_s
        untold = self._untold if first else []
        wanted, ahead, masked_tokens = [*untold, *keys], self._ahead, self._masked_tokens if keys else 0
        self._untold, self._ahead = [], None
        if self.order.names is None or not wanted:
            return Seen(masked_tokens=masked_tokens)
        # in a process that took the place of another within a step, what is not trained on was told by that one
        sampled = ahead[1] if ahead is not None and ahead[0] == wanted else self._sampled(wanted, len(untold))
        columns = sampled.columns
        if keys:
            columns = sampled.scored(_learner_streams([sample for key in keys for sample in samples[key]], record))
        return self._seen(columns, started_s, masked_tokens)

    def _seen(self, columns: TokenColumns, started_s: float, masked_tokens: int = 0) -> Seen:
        if columns.tokens > MOST_AS_COLUMNS and not self.order.keep_streams and self.order.names is not None:
            seen = Seen(sums=HealthSums.of(columns, self.order.names).to_bytes(), masked_tokens=masked_tokens)
        else:
            seen = Seen(columns=columns, masked_tokens=masked_tokens)
        return replace(seen, cpu_s=time.thread_time() - started_s)

    def _sampled(self, keys: Sequence[str], untrained: int) -> SampledColumns:
        return sampled_columns(
            [self._trajectories[key] for key in keys],
            [self.order.judgements[key] for key in keys],
            step=self.order.step,
            version=self.order.version,
            control=self._control,
            untrained=untrained,
        )

    # -- knobs ---------------------------------------------------------------------------------------------------

    def without_tails(self, keys: Sequence[str], all_samples: Samples, learner: Learner) -> Samples:
        """The samples of `keys`, for an update at the weights as they are: the advantage is taken from the tokens with
        the largest squared log-ratios, until the mean of what stays in each capped slice is within its cap (the rule of
        M2PO, arXiv 2510.01161, slice by slice).  The normaliser stays, as with every mask."""
        self._masked_tokens = 0
        samples = {key: all_samples[key] for key in keys}
        if not self.order.knobs.tail_caps or not samples:
            return samples
        flat = [sample for group in samples.values() for sample in group]
        scored = [_trained(sample, scores) for sample, scores in zip(flat, learner.score(flat), strict=True)]
        columns = self._sampled(list(samples), 0).scored(LearnerStreams(logprobs=np.concatenate(scored)))
        streams = dict(zip(samples, columns.split(), strict=True))
        weights = {key: np.ones(stream.length, dtype=np.float32) for key, stream in streams.items()}
        squares = {key: _squared_log_ratios(stream) for key, stream in streams.items()}
        for name, cap in self.order.knobs.tail_caps.items():
            inside = {key: members(stream, name) for key, stream in streams.items()}
            chosen = [squares[key][inside[key]] for key in streams]
            limit = moment_limit(np.concatenate([np.empty(0), *chosen]), cap)
            for key in streams:
                weights[key][inside[key] & (squares[key] > limit)] = 0.0
        self._masked_tokens = sum(int((weight == 0.0).sum()) for weight in weights.values())
        return {
            key: _weighted(group, in_trained_order(self._trajectories[key], weights[key]))
            for key, group in samples.items()
        }

    def _post_tool_weights(self, trajectory: Trajectory) -> NDArray[np.float32]:
        return in_trained_order(trajectory, post_tool_weights(trajectory, self.order.knobs.post_tool_factor))


def post_tool_weights(trajectory: Trajectory, factor: float) -> NDArray[np.float32]:
    """float32 [N]: `factor` for sampled tokens that stand after a tool result, 1 for the others."""
    spans, _ = action_spans(trajectory)
    weights = np.ones(spans[-1].end if spans else 0, dtype=np.float32)
    for span in spans:
        if span.after_tool:
            weights[span.start : span.end] = factor
    return weights


def _weighted(samples: Sequence[TrainingSample], weights_N: NDArray[np.float32]) -> list[TrainingSample]:
    """The samples with their advantages multiplied; weights over the trained tokens of all of them.

    The normaliser of the loss stays: what a weight takes away is not handed to other tokens.
    """
    weighted, start = [], 0
    for sample in samples:
        trained = np.frombuffer(sample.loss_mask, dtype=np.int8) != 0
        end = start + int(trained.sum())
        advantages = np.frombuffer(sample.advantages, dtype=np.float32).copy()
        advantages[trained] *= weights_N[start:end]
        weighted.append(replace(sample, advantages=array("f", advantages.tobytes())))
        start = end
    return weighted


def _squared_log_ratios(stream: TokenStream) -> NDArray[np.float64]:
    if stream.learner is None:
        raise ValueError(f"{stream.id} has not been scored")
    learner = np.frombuffer(stream.learner, dtype=np.float32).astype(np.float64)
    return np.square(learner - np.frombuffer(stream.behaviour, dtype=np.float32))


def _learner_streams(samples: Sequence[TrainingSample], record: TokenRecord) -> LearnerStreams:
    """What was recorded of these samples, and the proximal policy where all of them have it."""
    streams = record.streams
    proximal = [
        _trained(sample, sample.proximal_logprobs) for sample in samples if sample.proximal_logprobs is not None
    ]
    return LearnerStreams(
        logprobs=streams.get("logprobs", np.empty(0, dtype=np.float32)),
        entropy=streams.get("entropy"),
        score_norm=streams.get("score_norm"),
        proximal=np.concatenate(proximal) if proximal and len(proximal) == len(samples) else None,
        reference=streams.get("reference"),
    )


def _trained(sample: TrainingSample, values: array[float]) -> NDArray[np.float32]:
    """Of a stream over all tokens of a sample, those under the loss mask."""
    trained = np.frombuffer(sample.loss_mask, dtype=np.int8) != 0
    chosen: NDArray[np.float32] = np.frombuffer(values, dtype=np.float32)[trained]
    return chosen
