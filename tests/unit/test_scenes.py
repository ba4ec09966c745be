"""The environment `scenes`: truth, expert, mistakes, shortcuts, rendering, and what answers rest on."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from random import Random

import numpy as np
import pytest

from burnish.core.errors import ConfigError, TaskError
from burnish.core.images import SHELF, image_part
from burnish.core.message import ImagePart
from burnish.core.task import Task
from burnish.environments.base import expert_policy
from burnish.environments.scenes import Scenes
from burnish.environments.scenes.causal import counterfactual
from burnish.environments.scenes.questions import KINDS
from burnish.environments.scenes.scene import (
    Scene,
    Thing,
    anchor,
    render,
    scene_from_json,
    visible_masks,
    visible_share,
)
from burnish.environments.scenes.traces import MISTAKES, trace
from burnish.graders.boundary import grade_trajectories
from burnish.graders.gated import GateSpec
from burnish.graders.graph import for_evaluation, graph_from
from burnish.graders.grounding import Record, Verifier
from burnish.graders.grounding.causal import Probe, causal_score
from burnish.testing.environment import EnvironmentConformance

VERIFIER, GATE = Verifier(), GateSpec()


def made(split: str = "heldout", n: int = 140, seed: int = 0, **options: object) -> list[Task]:
    return list(Scenes(**{"heldout": n, "train": n, **options}).tasks(split, Random(seed)))  # type: ignore[arg-type]


def verified(task: Task, response: str) -> Record:
    return VERIFIER.verify(task, response)


class TestScenes(EnvironmentConformance):
    make_environment = Scenes
    n_tasks = 28

    def all_tasks(self) -> dict:
        return {split: made(split, seed=seed) for seed, split in enumerate(("train", "heldout"))}


class TestHardScenes(EnvironmentConformance):
    @staticmethod
    def make_environment() -> Scenes:
        return Scenes(look={"size_px": 64, "least": 3, "most": 5, "occlusion": 0.5, "clutter": 4}, direct=0.3)

    n_tasks = 14

    def all_tasks(self) -> dict:
        options = {"look": {"size_px": 64, "least": 3, "most": 5, "occlusion": 0.5, "clutter": 4}, "direct": 0.3}
        return {split: made(split, seed=seed, **options) for seed, split in enumerate(("train", "heldout"))}


def test_the_expert_is_right_and_each_mistake_earns_less() -> None:
    for task in made():
        best = verified(task, trace(task, Random(0))).reward(GATE)
        assert best == pytest.approx(GATE.largest()), task.prompt_text
        for mistake in MISTAKES:
            reward = verified(task, trace(task, Random(0), mistake)).reward(GATE)
            assert reward is not None
            assert reward < best - 0.1, (mistake, task.prompt_text, trace(task, Random(0), mistake))


def test_direct_traces_are_a_share_of_the_experts_and_earn_less() -> None:
    scripts = []
    for task in made():
        environment = Scenes(direct_traces=0.4)
        asyncio.run(environment.start(task))
        try:
            next(environment.solve())  # type: ignore[arg-type]
        except StopIteration as done:
            scripts.append(done.value)
    silent = sum("<think>" not in script for script in scripts) / len(scripts)
    assert 0.25 < silent < 0.55


def test_a_shortcut_makes_guessing_from_words_pay_in_train_alone() -> None:
    """The negative control is the held-out split, and train without the switch."""

    def guessing(tasks: list[Task], others: list[Task]) -> float:
        seen: dict[str, Counter[str]] = defaultdict(Counter)
        cue = lambda task: " ".join((task.tags["kind"], *task.prompt_text.split()[2:5]))  # noqa: E731
        for task in tasks:
            seen[cue(task)][task.reference["answer"]] += 1
        right = [
            bool(seen[cue(task)]) and seen[cue(task)].most_common(1)[0][0] == task.reference["answer"]
            for task in others
        ]
        return sum(right) / len(right)

    kinds = {"kinds": ("count", "attribute", "where")}
    short = made("train", 600, 0, shortcuts=0.9, **kinds), made("train", 300, 1, shortcuts=0.9, **kinds)
    held_out = made("heldout", 300, 2, shortcuts=0.9, **kinds)
    plain = made("train", 600, 0, **kinds), made("train", 300, 1, **kinds)
    assert guessing(*short) > 0.8
    assert guessing(short[0], held_out) < 0.45
    assert guessing(*plain) < 0.5


def test_held_out_answers_are_balanced_given_the_words() -> None:
    for kind in KINDS.values():
        counts = Counter(task.reference["answer"] for task in made(n=240, kinds=(kind.name,)))
        rng = Random(0)
        n_answers = len(kind.answers(kind.words(rng, Scenes().look), Scenes().look))
        if n_answers <= 5 and kind.name not in ("comparison", "changed"):
            assert max(counts.values()) < 2.2 * 240 / n_answers, (kind.name, counts)


def test_rendering_is_deterministic_and_hides_what_is_behind() -> None:
    behind = Thing(shape="square", colour="red", size="large", x_px=14.0, y_px=16.0)
    front = Thing(shape="circle", colour="blue", size="large", x_px=18.0, y_px=16.0)
    scene = Scene(size_px=32, things=(behind, front), noise_seed=3)
    assert np.array_equal(render(scene), render(scene_from_json(scene.to_json())))
    masks = visible_masks(scene)
    assert not (masks[0] & masks[1]).any()
    share = visible_share(scene)
    assert share[1] == 1.0
    assert 0.2 < share[0] < 0.9
    for thing, mask in zip(scene.things, masks, strict=True):
        x, y = anchor(mask)
        assert mask[int(y), int(x)]
        red, _, blue = render(scene)[int(y), int(x)].astype(int)
        assert (red > blue) == (thing.colour == "red")


def test_images_are_on_the_shelf_by_content_hash() -> None:
    task = made(n=7)[5]
    images = [part for part in task.parts if isinstance(part, ImagePart)]
    assert len(images) == 2
    assert image_part(SHELF.get(images[0].sha256)) == images[0]


def test_an_image_that_cannot_be_drawn_again_is_the_tasks_fault() -> None:
    task = made(n=1)[0]
    stranger = ImagePart(sha256="0" * 64, media_type="image/png", width_px=32, height_px=32)
    other = Task(prompt=(stranger, task.parts[-1]), setup=task.setup, reference=task.reference)
    with pytest.raises(TaskError, match="artefacts"):
        asyncio.run(Scenes().start(other))


@pytest.mark.parametrize(
    "options", [{"kinds": ("colour",)}, {"shortcuts": 2.0}, {"look": {"size": 3}}, {"look": {"most": 40}}]
)
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match="scenes"):
        Scenes(**options)


def test_counterfactuals_change_the_truth_or_leave_it() -> None:
    """The answer follows the cited thing for a policy that looks; pointing is decorative for one that does not."""
    looks, guesses, n = [], [], 0
    for task in made(n=200, look={"least": 3, "most": 3}):
        changed = counterfactual(task, Random(1))
        if changed is None:
            continue
        n += 1
        answer = str(task.reference["answer"])
        truth = str(changed.target.reference["answer"])
        assert truth != answer
        assert str(changed.control.reference["answer"]) == answer
        assert changed.target.prompt_text == changed.control.prompt_text == task.prompt_text
        for version in (changed.target, changed.control):
            record = verified(version, trace(version, Random(0)))
            assert record.reward(GATE) == pytest.approx(GATE.largest())
        looks.append(Probe(original=answer, target=truth, target_truth=truth, control=answer, was_right=True))
        guesses.append(Probe(original=answer, target=answer, target_truth=truth, control=answer, was_right=True))
    assert n > 50
    assert causal_score(looks).score == 1.0
    assert causal_score(guesses).score == 0.0
    assert np.isnan(causal_score([]).score)


def test_the_gated_graph_grades_played_episodes() -> None:
    """Through episodes, graders and the end of the graph: thinking is judged although `answer` leaves it out."""
    graph = graph_from(
        {
            "aggregator": {"kind": "gated", "form": "format"},
            "graders": {
                "answer": {"use": "grounded_answer"},
                "format": {"use": "grounded_format"},
                "spatial": {"use": "grounded_spatial"},
                "temporal": {"use": "grounded_temporal"},
                "reasoning": {"use": "grounded_reasoning"},
            },
        }
    )
    trajectories = []
    tasks = made(n=7)
    for task in tasks:
        trajectories += EnvironmentConformance._play(TestScenes(), [task], expert_policy)
    grades = asyncio.run(grade_trajectories(tasks, trajectories, graph.graders, timeout_s=10.0))
    for row in grades:
        assert graph.aggregator.rewards([row]) == [pytest.approx(1.6)]
    assert for_evaluation(graph.aggregator).rewards(grades) == [pytest.approx(1.0)] * 7
