"""The policy that the server tests serve and train, and how the learner scores what the server drew."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import torch

from burnish.algorithms.grpo import GrpoLoss
from burnish.core.kept import KeptSets
from burnish.core.learning import TrainingSample
from burnish.core.message import Message
from burnish.core.sampling import Sample, SampleRequest, SamplingParams
from burnish.core.task import Task
from burnish.environments.calculator import Calculator
from burnish.policies.build import TinySpec, build_tiny
from burnish.policies.chat import ChatRenderer
from burnish.policies.template import conversation_text
from burnish.policies.tokenizer import train_tokenizer
from burnish.training.learner import Learner


@dataclass(kw_only=True)
class Tiny:
    model: Any
    tokenizer: Any
    renderer: ChatRenderer
    tasks: Sequence[Task]

    def prompts(self, count: int) -> list[array[int]]:
        """The first prompts of the calculator."""
        return [self.renderer.open([Message.user(task.prompt_text)], ()) for task in self.tasks[:count]]

    def requests(self, count: int, params: SamplingParams | None = None, **changes: Any) -> list[SampleRequest]:
        """Two for each prompt, with different seeds."""
        settings = {"max_tokens": 24, "stop_ids": self.renderer.stop_ids} | changes
        return [
            SampleRequest(
                key=f"{index}/{seed}", prompt_ids=prompt, params=params or SamplingParams(), seed=seed, **settings
            )
            for index, prompt in enumerate(self.prompts(count))
            for seed in (index, 1000 + index)
        ]

    def score(
        self, requests: Sequence[SampleRequest], samples: Sequence[Sample], *, model: Any = None
    ) -> list[array[float]]:
        """The learner's log-probabilities of what was drawn, teacher-forced, under the requests' own settings."""
        learner = Learner(model or self.model, GrpoLoss(), temperature=requests[0].params.temperature)
        rows = [training_sample(request.prompt_ids, sample) for request, sample in zip(requests, samples, strict=True)]
        scores = learner.score(rows)
        return [own[len(request.prompt_ids) :] for own, request in zip(scores, requests, strict=True)]

    def score_actions(
        self, prompts: Sequence[array[int]], actions: Sequence[array[int]], *, model: Any = None
    ) -> list[array[float]]:
        """For `check_arrival`."""
        requests = [
            SampleRequest(key="", prompt_ids=p, params=SamplingParams(), max_tokens=1, seed=0, stop_ids=())
            for p in prompts
        ]
        samples = [
            Sample(token_ids=a, logprobs=array("f", bytes(4 * len(a))), versions=array("i", bytes(4 * len(a))))
            for a in actions
        ]
        return self.score(requests, samples, model=model)


def training_sample(prompt: array[int], sample: Sample) -> TrainingSample:
    """A sample as the learner takes it, with advantage 0."""
    before, count = len(prompt), len(sample.token_ids)
    return TrainingSample(
        trajectory_id="t",
        group_id="g",
        token_ids=prompt + sample.token_ids,
        loss_mask=array("b", [0] * before + [1] * count),
        behaviour_logprobs=array("f", bytes(4 * before)) + sample.logprobs,
        versions=array("i", [-1] * before) + sample.versions,
        advantages=array("f", bytes(4 * (before + count))),
        kept=KeptSets.join([(None, before), (sample.kept, count)]),
    )


def tiny_policy() -> Tiny:
    """0.5M random parameters, and a tokenizer made for the calculator."""
    torch.set_num_threads(1)
    tasks = list(Calculator(level=1).tasks("train", Random(0)))
    texts = [
        conversation_text([Message.user(task.prompt_text), Message.assistant(task.reference["answer"])])
        for task in tasks[:400]
    ]
    tokenizer = train_tokenizer(texts, vocab_size=512)
    model = build_tiny(tokenizer, TinySpec(max_positions=512), seed=0)
    return Tiny(model=model, tokenizer=tokenizer, renderer=ChatRenderer(tokenizer), tasks=tasks)


def moved(model: Any, size: float = 0.02) -> Any:
    """Change every weight a little, in place."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


largest = partial(max, default=0.0)


def difference(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> float:
    """Largest absolute difference of streams of equal lengths."""
    return largest(abs(x - y) for a, b in zip(first, second, strict=True) for x, y in zip(a, b, strict=True))
