"""A shard's own half of a step: samples with control's knobs applied to them, and token streams for health.

Streams are built from what has been computed anyway; nothing that is trained depends on them.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from burnish.algorithms.m2po import moment_limit
from burnish.core.learning import TrainingSample
from burnish.core.streams import TokenStream
from burnish.core.trajectory import Trajectory
from burnish.health.sums import HealthSums
from burnish.loop.members import members
from burnish.loop.step_order import Seen, StepOrder
from burnish.rollout.samples import training_samples
from burnish.rollout.streams import ControlTokens, LearnerStreams, action_spans, in_trained_order, token_stream
from burnish.training.learner import Learner
from burnish.training.token_record import SampleScores, TokenRecord

Samples = dict[str, list[TrainingSample]]
"""The samples of each trained trajectory, by its id."""


class ShardStep:
    """`step = ShardStep(order, held, control)`, then `make_samples`, `see_untrained`, and for each update
    `without_tails` before it and `see_trained` after it."""

    def __init__(self, order: StepOrder, held: Mapping[str, Trajectory], control: ControlTokens) -> None:
        self.order = order
        self._trajectories = {**held, **{t.id: t for t in order.replayed}}
        self._control = control
        self._masked_tokens = 0

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
        """Everything that is not trained on: filtered, failed."""
        started_s = time.process_time()
        if self.order.names is None:
            return Seen()
        keys = [key for key, judgement in self.order.judgements.items() if judgement.advantage is None]
        streams = [self._stream(key, None) for key in keys]
        return self._seen(streams, started_s)

    def see_trained(self, keys: Sequence[str], samples: Samples, record: TokenRecord) -> Seen:
        """What was trained on in one update; `record` holds the samples of `keys` one after the other."""
        started_s = time.process_time()
        streams, place = [], 0
        for key in keys:
            group = samples[key]
            scores = [record.of(place + offset) for offset in range(len(group))]
            place += len(group)
            streams.append(self._stream(key, _learner_streams(group, scores)))
        return self._seen(streams, started_s, self._masked_tokens)

    def _seen(self, streams: Sequence[TokenStream], started_s: float, masked_tokens: int = 0) -> Seen:
        names = self.order.names
        sums = b"" if names is None or not streams else HealthSums.of(streams, names).to_bytes()
        return Seen(
            sums=sums,
            streams=tuple(streams) if self.order.keep_streams else (),
            masked_tokens=masked_tokens,
            cpu_s=time.process_time() - started_s,
        )

    def _stream(self, key: str, learner: LearnerStreams | None) -> TokenStream:
        return token_stream(
            self._trajectories[key],
            self.order.judgements[key],
            step=self.order.step,
            version=self.order.version,
            control=self._control,
            learner=learner,
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
        scores = iter(learner.score([sample for group in samples.values() for sample in group]))
        streams = {}
        for key, group in samples.items():
            logprobs = _joined(_trained(sample, next(scores)) for sample in group)
            streams[key] = self._stream(key, LearnerStreams(logprobs=logprobs))
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


def _learner_streams(samples: Sequence[TrainingSample], scores: Sequence[SampleScores]) -> LearnerStreams:
    """The scores of one trajectory's samples joined."""
    return LearnerStreams(
        logprobs=_joined(one.logprobs for one in scores),
        entropy=_joined(one.entropy for one in scores),
        score_norm=_joined_if_all([one.score_norm for one in scores]),
        proximal=_joined_if_all(
            [
                None if sample.proximal_logprobs is None else _trained(sample, sample.proximal_logprobs)
                for sample in samples
            ]
        ),
        reference=_joined_if_all([one.reference for one in scores]),
    )


def _trained(sample: TrainingSample, values: array[float]) -> array[float]:
    """Of a stream over all tokens of a sample, those under the loss mask."""
    trained = np.frombuffer(sample.loss_mask, dtype=np.int8) != 0
    return array("f", np.frombuffer(values, dtype=np.float32)[trained].tobytes())


def _joined(parts: Iterable[array[float]]) -> array[float]:
    joined = array("f")
    for part in parts:
        joined.extend(part)
    return joined


def _joined_if_all(parts: Sequence[array[float] | None]) -> array[float] | None:
    known = [part for part in parts if part is not None]
    return _joined(known) if known and len(known) == len(parts) else None
