"""The doctor's image ablation: does a policy look, or does it answer from the question alone?

The same tasks are played twice, once as they are and once with every image replaced by a flat grey one of its size, in
prompts, replies and tool results alike.  A policy that looks falls to about what the question alone gives away: the
best fixed answer to each wording, learnt on the training split.  One that stays above that knows something that is not
in the pixels (an answer in a file name, in the size of the image, in the order of the tasks); one that does not fall
has learnt to ignore them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import sqrt
from typing import Any

from burnish.core.environment import Environment
from burnish.core.hashing import derive_seed
from burnish.core.images import SHELF, ImageStore, image_part, png_bytes
from burnish.core.message import ImagePart, Message
from burnish.core.sampling import Renderer, Sampler, SamplingParams
from burnish.core.task import Task
from burnish.core.tool import ShownResult, Tool
from burnish.evaluation.doctor import Check
from burnish.evaluation.heldout import SUCCESS_AT
from burnish.evaluation.probes import Scorable
from burnish.graders.boundary import grade_trajectories
from burnish.graders.graph import for_evaluation
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.runner import run_episodes

GREY = 128
MARGIN = 0.05
"""How far above the text-only level a blinded policy may stand, beside two standard errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """Shares of right answers in [0, 1]: `Ablation(n=300, seen=0.81, blind=0.34, text_only=0.35, se=0.028)`

    n: tasks.  text_only: of the best fixed answer to each wording.  se: standard error of a share of one half over n
    tasks, the widest there is.
    """

    n: int
    seen: float
    blind: float
    text_only: float
    se: float

    @property
    def looks(self) -> bool:
        """Whether answers are lost with the pixels, and down to what the question gives away."""
        return self.seen - self.blind > 2 * self.se and self.blind <= self.text_only + MARGIN + 2 * self.se

    def check(self) -> Check:
        """As one of the doctor's checks; not made where the policy is no better than the question alone."""
        ok: bool | None = self.looks
        said = f"{self.seen:.3f} with images, {self.blind:.3f} without, {self.text_only:.3f} from the question alone"
        if self.seen <= self.text_only + 2 * self.se:
            ok, said = None, f"{said}: the policy has nothing to lose; train it until it beats the question alone"
        measured = {"seen": self.seen, "blind": self.blind, "text_only": self.text_only, "n": self.n}
        return Check(name="image_ablation", ok=ok, detail=said, measured=measured)


async def image_ablation(
    subject: Scorable,
    tasks: Sequence[Task],
    training: Sequence[Task],
    *,
    sampler: Sampler,
    renderer: Renderer,
    params: SamplingParams | None = None,
    seed: int = 0,
    grader_timeout_s: float = 30.0,
) -> Ablation:
    """Play `tasks` with and without their images; `training` is what the text-only level is learnt on.

    Episodes that failed count as wrong in both.  params: greedy by default.
    """
    shares = {}
    for name in ("seen", "blind"):
        plans = [
            EpisodePlan(
                id=f"ablation/{name}/{index:05d}",
                group_id=f"ablation/{name}/{index:05d}",
                task=task,
                sample_index=0,
                seed=derive_seed(seed, task.id, 0, 0),
            )
            for index, task in enumerate(tasks)
        ]

        def make(task: Task, name: str = name) -> Environment:
            made = subject.make(task)
            return blinded(made) if name == "blind" else made

        done = await run_episodes(
            plans,
            make_environment=make,
            renderer=renderer,
            sampler=sampler,
            params=params or SamplingParams(temperature=0.0),
            limits=subject.limits,
        )
        grades = await grade_trajectories(tasks, done, subject.graders, timeout_s=grader_timeout_s)
        rewards = for_evaluation(subject.aggregator).rewards(grades)
        right = sum(reward is not None and reward >= SUCCESS_AT for reward in rewards)
        shares[name] = right / len(tasks)
    return Ablation(
        n=len(tasks),
        seen=shares["seen"],
        blind=shares["blind"],
        text_only=text_only_level(training, tasks),
        se=0.5 / sqrt(len(tasks)),
    )


def text_only_level(training: Sequence[Task], tasks: Sequence[Task]) -> float:
    """Share of `tasks` that the most frequent training answer to the same wording gets right; for a wording that is
    not in `training`, the most frequent answer of all.  Tasks without a reference answer are left out.

    >>> text_only_level([Task(prompt="a?", reference={"answer": "1"})], [Task(prompt="a?", reference={"answer": "1"})])
    1.0
    """
    by_words: dict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for task in training:
        answer = _answer(task)
        if answer is not None:
            by_words[task.prompt_text][answer] += 1
            overall[answer] += 1
    asked = [(task.prompt_text, _answer(task)) for task in tasks]
    known = [(words, answer) for words, answer in asked if answer is not None]
    if not known or not overall:
        return 0.0
    right = sum(answer == (by_words.get(words) or overall).most_common(1)[0][0] for words, answer in known)
    return right / len(known)


def _answer(task: Task) -> str | None:
    answer = task.reference.get("answer")
    return None if answer is None else str(answer)


def blinded(environment: Environment) -> Environment:
    """The same environment, whose images are flat grey; its methods are replaced on the instance."""
    start, reply, tools = environment.start, environment.reply, environment.tools

    async def blind_start(task: Task) -> Sequence[Message]:
        return [without_pixels(message) for message in await start(task)]

    async def blind_reply(message: Message) -> Sequence[Message] | None:
        shown = await reply(message)
        return None if shown is None else [without_pixels(item) for item in shown]

    def blind_tools() -> list[Tool]:
        return [replace(tool, call=partial(_blind_call, tool)) for tool in tools()]

    for name, method in (("start", blind_start), ("reply", blind_reply), ("tools", blind_tools)):
        setattr(environment, name, method)
    return environment


async def _blind_call(tool: Tool, arguments: Mapping[str, Any]) -> str:
    shown = await tool.call(arguments)
    if not isinstance(shown, ShownResult):
        return shown
    return ShownResult(str(shown), tuple(blank(part) for part in shown.images))


def without_pixels(message: Message) -> Message:
    """The message with grey in place of its images."""
    if not message.images:
        return message
    return replace(message, parts=tuple(blank(p) if isinstance(p, ImagePart) else p for p in message.parts))


def blank(part: ImagePart, shelf: ImageStore = SHELF) -> ImagePart:
    """A flat grey image of the same size."""
    return image_part(_grey(part.width_px, part.height_px), shelf)


@lru_cache(maxsize=64)
def _grey(width_px: int, height_px: int) -> bytes:
    return png_bytes(width_px, height_px, bytes([GREY]) * (width_px * height_px * 3))
