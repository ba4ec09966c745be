"""The teacher of drawn shapes: it finds what is there, answers by looking, and says where it cannot."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from burnish.core.detector import DetectorError, Pixels
from burnish.environments.scenes import Scenes
from burnish.environments.scenes.questions import KINDS
from burnish.environments.scenes.scene import Scene, Thing, render, scene_from_json, visible_masks
from burnish.integrations.classical_detectors import pixels_of
from burnish.integrations.classical_shapes import ShapeDetector
from burnish.integrations.shape_questions import ShapeTeacher

TEACHER = ShapeTeacher()


def drawn(*things: tuple[str, str, float, float], size: str = "large", side: int = 48) -> Pixels:
    made = tuple(Thing(shape=s, colour=c, size=size, x_px=x, y_px=y) for s, c, x, y in things)
    return pixels_of(render(Scene(size_px=side, things=made)))


def test_things_are_found_with_names_places_and_masks() -> None:
    exact = 0
    tasks = list(Scenes(kinds=["inventory"], heldout=24).tasks("heldout", Random(7)))
    for task in tasks:
        scene = scene_from_json(task.setup["frames"][0])
        found = ShapeDetector().shapes(pixels_of(render(scene)))
        masks = {thing.label: mask for thing, mask in zip(scene.things, visible_masks(scene), strict=True)}
        exact += {shape.label for shape in found} == set(masks)
        for shape in found:
            seen, mask = shape.seen, masks.get(shape.label)
            if mask is None:
                continue
            place = np.s_[int(seen.top_px) : int(seen.bottom_px), int(seen.left_px) : int(seen.right_px)]
            mine = np.zeros_like(mask)
            mine[place] = np.frombuffer(seen.mask, np.uint8).reshape(mine[place].shape)
            assert (mine & mask).sum() / (mine | mask).sum() > 0.7
    assert exact >= 22


def test_grey_specks_and_noise_are_nothing() -> None:
    blank = Scene(size_px=48, things=(), clutter=((10.0, 10.0), (30.0, 20.0)), noise_seed=3)
    assert ShapeDetector().shapes(pixels_of(render(blank))) == []


def test_only_what_is_asked_for_is_detected() -> None:
    image = drawn(("circle", "red", 12, 12), ("cross", "blue", 34, 34))
    detector = ShapeDetector()
    assert [found.label for found in detector.detect(image, ["blue cross", "red square"])] == ["blue cross"]
    assert detector.knows("red circle")
    assert not detector.knows("dog")
    assert not detector.knows("red")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_question_is_answered_by_looking(kind: str) -> None:
    tasks = list(Scenes(kinds=[kind], heldout=8).tasks("heldout", Random(11)))
    right = 0
    for task in tasks:
        images = [pixels_of(render(scene_from_json(frame))) for frame in task.setup["frames"]]
        read = TEACHER.read(images, task.prompt_text + " /think")
        right += read.answer == task.reference["answer"]
        grounding = task.reference["grounding"]
        if read.frames is not None:
            (span,) = grounding["spans"]
            assert (read.frames[0], read.frames[1] + 1) == (span["start_s"], span["end_s"])
            assert read.event == span["event"]
        else:
            wanted = sorted((gold["labels"][0], gold["frame"]) for gold in grounding["objects"])
            assert sorted((item.detection.label, item.frame) for item in read.things) == wanted
        assert (read.counts, read.names) == (grounding["counts"], grounding["names"])
    assert right == len(tasks)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("What does it mean?", "cannot read the question"),
        ("Where is the green cross?", "0 things look like a green cross"),
        ("What colour is the circle?", "2 things look like a circle"),
        ("Which moved, the red circle or the blue circle?", "two images"),
        ("In which frame does the green cross appear?", "no one stretch"),
    ],
)
def test_what_it_cannot_say_is_an_error(question: str, said: str) -> None:
    image = drawn(("circle", "red", 12, 12), ("circle", "blue", 34, 34))
    with pytest.raises(DetectorError, match=said):
        TEACHER.read([image], question)


def test_a_thing_that_is_none_of_its_shapes_makes_the_image_unreadable() -> None:
    array = np.frombuffer(drawn().rgb, np.uint8).reshape(48, 48, 3).copy()
    array[10:13, 5:43] = array[30:33, 5:43] = (220, 50, 47)
    array[10:33, 5:8] = (220, 50, 47)
    with pytest.raises(DetectorError, match="fits no template"):
        TEACHER.read([pixels_of(array)], "How many things are red?")
    lenient = replace(TEACHER, worst_misfit=10.0)
    assert lenient.read([pixels_of(array)], "How many things are red?").answer == "1"


def test_what_stands_still_has_not_moved() -> None:
    image = drawn(("circle", "red", 12, 12), ("cross", "blue", 34, 34))
    with pytest.raises(DetectorError, match="neither moved"):
        TEACHER.read([image, image], "Which moved, the red circle or the blue cross?")
