"""The environment: pictures of a few things, a question, and an answer that cites where it looked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice
from random import Random
from typing import Any

from burnish.core.environment import Script
from burnish.core.errors import ConfigError, TaskError
from burnish.core.grade import Grader
from burnish.core.hashing import derive_seed
from burnish.core.images import SHELF, ImageError, ImageStore, image_part, png_bytes
from burnish.core.message import ImagePart, TextPart
from burnish.core.task import Limits, Task
from burnish.environments.base import Environment
from burnish.environments.scenes.placing import Look
from burnish.environments.scenes.questions import KINDS, Posed, QuestionKind, fits, posed
from burnish.environments.scenes.scene import (
    COLOURS,
    SHAPES,
    Scene,
    anchor,
    mask_to_json,
    render,
    scene_from_json,
    visible_masks,
)
from burnish.environments.scenes.traces import MISTAKES, trace

THINK_TAG, DIRECT_TAG = "/think", "/direct"


class Scenes(Environment):
    """Questions about rendered things; the reasoning says where, the answer what.

    Options: kinds, names of the kinds of questions, asked in turn (count, attribute, relation, comparison, where,
    changed, when, inventory); size_px, side of the square image; least and most, number of things in it; occlusion,
    how far they may overlap, in [0, 1); clutter, grey specks; shortcuts, in [0, 1], how often the answer of a
    *training* task is the one that a word of the question points to (held-out tasks have none: there every answer is
    equally frequent whatever the words); direct, share of tasks in direct mode, which expect no evidence (tasks then
    end in /think or /direct); direct_traces, share of tasks in thinking mode on which the expert answers directly all
    the same, for a warm start that has both manners; train and heldout, sizes of the splits.

    The citation syntax is inline, in pixels of the image: `<think>red circle (12, 20)</think>yes`; the second image is
    `red circle (5, 6)@2`, a stretch of a clip `red circle frames 2-3`.  Truth (visible masks, spans) stands in
    `reference["grounding"]`.  Images are on the shelf by content hash; an episode in another process draws them anew.
    """

    name = "scenes"
    splits = ("train", "heldout")
    graders: tuple[str | Grader, ...] = ("grounded",)
    limits = Limits(max_turns=1, max_turn_tokens=64, max_episode_tokens=64, max_context_tokens=1024)
    mistakes = tuple(MISTAKES)

    def __init__(
        self,
        *,
        kinds: Sequence[str] = tuple(KINDS),
        look: Mapping[str, Any] | None = None,
        shortcuts: float = 0.0,
        direct: float = 0.0,
        direct_traces: float = 0.0,
        train: int = 2000,
        heldout: int = 1000,
    ) -> None:
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown or not kinds:
            raise ConfigError(f"scenes: unknown kind {unknown[:1]!r}; there are {', '.join(KINDS)}")
        for name, share in (("shortcuts", shortcuts), ("direct", direct), ("direct_traces", direct_traces)):
            if not 0.0 <= share <= 1.0:
                raise ConfigError(f"scenes: {name} is a share in [0, 1], got {share!r}")
        self.kinds = tuple(KINDS[kind] for kind in kinds)
        self.look = _look(look or {})
        self.shortcuts, self.direct, self.direct_traces = shortcuts, direct, direct_traces
        self.sizes = {"train": train, "heldout": heldout}
        self.chance = round(sum(_chance(kind, self.look) for kind in self.kinds) / len(self.kinds), 3)

    def tasks(self, split: str, rng: Random) -> Iterator[Task]:
        """The tasks of a split, the kinds in turn; all randomness from `rng`."""
        if split not in self.sizes:
            raise TaskError(f"scenes has no split {split!r}; it has {', '.join(self.sizes)}")
        shortcut = self.shortcuts if split == "train" else 0.0
        for kind in islice(cycle(self.kinds), self.sizes[split]):
            is_direct = rng.random() < self.direct
            found = posed(kind, rng, self.look, shortcut=shortcut)
            yield make_task(found, kind, is_direct=is_direct, is_tagged=self.direct > 0)

    def setup(self, task: Task) -> None:
        """Draw what this process does not have yet."""
        for scene, part in zip(task.setup["frames"], images_of(task), strict=True):
            try:
                SHELF.get(part.sha256)
            except ImageError:
                drawn = draw(scene_from_json(scene))
                if drawn.sha256 != part.sha256:
                    raise TaskError(
                        f"task {task.id}: image {part.sha256[:12]} was drawn by another version of numpy or zlib and "
                        "is not among the artefacts; keep these beside the tasks"
                    ) from None

    def vocabulary(self) -> list[str]:
        """Every word that an answer may be."""
        return ["yes", "no", *COLOURS, *(f"{c} {s}" for c in COLOURS for s in SHAPES), "top left", "bottom right"]

    def solve(self, mistake: str | None = None) -> Script:
        """Looks, cites what it rests on, and answers; directly where the task or `direct_traces` says so."""
        seed = derive_seed(self.task.id, "trace")
        silent = mistake is None and seed % 10_000 < self.direct_traces * 10_000
        return trace(self.task, Random(seed), mistake="no_evidence" if silent else mistake)
        yield  # A script is a generator, also where it needs no tool.


def images_of(task: Task) -> tuple[ImagePart, ...]:
    """The images of a task in their order."""
    return tuple(part for part in task.parts if isinstance(part, ImagePart))


def draw(scene: Scene, shelf: ImageStore = SHELF) -> ImagePart:
    """Render a scene and keep its PNG on the shelf."""
    return image_part(png_bytes(scene.size_px, scene.size_px, render(scene).tobytes()), shelf)


def make_task(found: Posed, kind: QuestionKind, *, is_direct: bool = False, is_tagged: bool = False) -> Task:
    """The task of a question, with its truth."""
    tag = f" {DIRECT_TAG if is_direct else THINK_TAG}" if is_tagged else ""
    masks = [visible_masks(scene) for scene in found.frames]
    evidence = []
    for frame, index in found.cited:
        x_px, y_px = anchor(masks[frame][index])
        label = found.frames[frame].things[index].label
        evidence.append({"label": label, "x_px": int(x_px), "y_px": int(y_px), "frame": frame})
    grounding: dict[str, Any] = {
        "mode": "direct" if is_direct else "think",
        "expected": ["span"] if found.span else ["point"],
        "medium": _medium(found),
        "counts": kind.counts,
        "names": kind.names,
    }
    if found.span:
        first, last = found.span
        grounding["spans"] = [{"start_s": float(first - 1), "end_s": float(last), "event": found.event}]
    else:
        grounding |= _places(found, masks)
    return Task(
        prompt=(*(draw(scene) for scene in found.frames), TextPart(text=found.text + tag)),
        setup={"frames": [scene.to_json() for scene in found.frames]},
        reference={
            "answer": found.answer,
            "answer_type": "exact",
            "grounding": grounding,
            "evidence": evidence,
            "span": list(found.span or ()),
            "event": found.event,
        },
        tags={"source": "scenes", "kind": kind.name, "skill": kind.name, "mode": grounding["mode"]},
    )


def _places(found: Posed, masks: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """The regions to cite, and those of everything else."""
    objects: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for frame, scene in enumerate(found.frames):
        for index, thing in enumerate(scene.things):
            item = {"labels": [thing.label], "region": mask_to_json(masks[frame][index]), "frame": frame}
            (objects if (frame, index) in found.cited else others).append(item)
    return {"objects": objects, "others": others}


def _medium(found: Posed) -> dict[str, Any]:
    side = found.frames[0].size_px
    return {"width_px": side, "height_px": side, "frames": len(found.frames), "fps": 1.0, "first_frame": 1}


def _look(options: Mapping[str, Any]) -> Look:
    try:
        look = Look(**options)
    except TypeError as error:
        raise ConfigError(f"scenes: look takes size_px, least, most, occlusion and clutter: {error}") from error
    if not (16 <= look.size_px <= 512 and 1 <= look.least <= look.most and 0 <= look.occlusion < 1):
        raise ConfigError(f"scenes: size_px from 16 to 512, 1 <= least <= most, occlusion in [0, 1), got {look}")
    if not fits(look):
        raise ConfigError(f"scenes: {look.most} things have no room in {look.size_px} pixels; ask for fewer")
    return look


def _chance(kind: QuestionKind, look: Look) -> float:
    """What guessing among the answers of a kind gets."""
    rng = Random(0)
    return 1.0 / len(kind.answers(kind.words(rng, look), look))
