"""The update size without a backward pass follows the norm of the true gradient; a smaller statistic would not."""

from __future__ import annotations

import random
from array import array

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tiny_models import SPECS, VOCABULARY, make_model

from burnish.algorithms.grpo import GrpoLoss
from burnish.core.learning import TrainingSample
from burnish.core.streams import ActionSpan, TokenStream
from burnish.health.slices import SliceNames
from burnish.health.sums import HealthSums
from burnish.training.gradients import flatten_gradients, zero_gradients
from burnish.training.learner import Learner
from burnish.training.token_record import TokenRecord

torch.set_num_threads(1)


def made_samples(learner: Learner, count: int) -> list[TrainingSample]:
    """Answers of 2 to 40 tokens with advantages of all sizes; every second one is of likely tokens."""
    rng, samples = random.Random(1), []
    for index in range(count):
        n = rng.randint(2, 40)
        ids = array("i", [rng.randrange(VOCABULARY) for _ in range(3)])
        for _ in range(n):
            with torch.no_grad():
                logits = learner.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
            ids.append(int(logits.argmax()) if index % 2 else rng.randrange(VOCABULARY))
        samples.append(
            TrainingSample(
                trajectory_id=f"rl/000001/{index:04}/00",
                group_id=str(index),
                token_ids=ids,
                loss_mask=array("b", [0] * 3 + [1] * n),
                behaviour_logprobs=array("f", bytes(4 * (n + 3))),
                versions=array("i", [-1] * 3 + [0] * n),
                advantages=array("f", [0.0] * 3 + [rng.uniform(-2, 2)] * n),
            )
        )
    scores = learner.score(samples)
    return [
        TrainingSample(
            **{name: getattr(sample, name) for name in ("trajectory_id", "group_id", "token_ids", "loss_mask")},
            **{name: getattr(sample, name) for name in ("versions", "advantages")},
            behaviour_logprobs=score,
        )
        for sample, score in zip(samples, scores, strict=True)
    ]


@pytest.fixture(scope="module")
def measured() -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """True norms, update sizes of both forms, and lengths."""
    model = make_model(SPECS["qwen3"]).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20.0)  # a policy that is sure of something
    learner = Learner(model, GrpoLoss())
    samples = made_samples(learner, 24)
    true = []
    for sample in samples:
        zero_gradients(model)
        learner.accumulate([sample], 1.0)
        true.append(float(flatten_gradients(model).norm()))
    record = TokenRecord(score_norm=True)
    learner.accumulate(samples, 1.0, record=record)
    forms = {}
    for form in ("softmax", "bound"):
        streams = []
        for place, sample in enumerate(samples):
            part = record.part(place)
            streams.append(
                TokenStream(
                    id=sample.trajectory_id,
                    group_id=sample.group_id,
                    step=1,
                    behaviour=sample.behaviour_logprobs[3:],
                    learner=array("f", record.streams["logprobs"][part].tobytes()),
                    score_norm=array("f", record.streams["score_norm"][part].tobytes()) if form == "softmax" else None,
                    spans=(ActionSpan(start=0, end=sample.trained_tokens, turn=0),),
                    advantage=sample.advantages[-1],
                )
            )
        forms[form] = HealthSums.of(streams, SliceNames()).table.column("update_size")
    return np.array(true), forms, np.array([sample.trained_tokens for sample in samples], dtype=np.float64)


@pytest.mark.parametrize("form", ["softmax", "bound"])
def test_it_follows_the_true_norm(measured: tuple, form: str) -> None:
    true, forms, _ = measured
    assert spearmanr(forms[form], true).statistic > 0.85


def test_length_alone_does_not(measured: tuple) -> None:
    true, forms, lengths = measured
    assert spearmanr(lengths, true).statistic < 0.85
    assert spearmanr(np.roll(forms["softmax"], 1), true).statistic < 0.85
