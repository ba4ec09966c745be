"""Changed versions of a task: one in which the cited thing is another, one in which only something else is.

Both ask the same question.  `graders.grounding.causal` scores the answers to the three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random

from burnish.core.task import Task
from burnish.environments.scenes.questions import KINDS, Posed
from burnish.environments.scenes.scene import COLOURS, Scene, Thing, scene_from_json
from burnish.environments.scenes.scenes import make_task


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterfactual:
    """A task's two changed versions; the answer of `target` differs from the original's, that of `control` does not."""

    target: Task
    control: Task


def counterfactual(task: Task, rng: Random) -> Counterfactual | None:
    """The changed versions of a task of `Scenes`; None where the scene leaves no room for one, such as for a control
    where everything is cited, and for clips.

    Pixels outside of the changed thing stay as they are, noise included.
    """
    change = _CHANGES.get(task.tags["kind"])
    if change is None:
        return None
    scene = scene_from_json(task.setup["frames"][0])
    labels = {item["label"] for item in task.reference["evidence"]}
    cited = [index for index, thing in enumerate(scene.things) if thing.label in labels]
    changed = change(scene, cited, str(task.reference["answer"]), rng)
    control = _control(scene, cited, task, rng)
    if changed is None or control is None:
        return None
    return Counterfactual(
        target=_posed(task, changed[0], changed[1], changed[2]),
        control=_posed(task, control, str(task.reference["answer"]), cited),
    )


Changed = tuple[Scene, str, list[int]]
"""The scene, its true answer, and what should be cited then."""


def _recoloured(scene: Scene, index: int, colour: str) -> Scene:
    return _with(scene, index, replace(scene.things[index], colour=colour))


def _with(scene: Scene, index: int, thing: Thing) -> Scene:
    return replace(scene, things=(*scene.things[:index], thing, *scene.things[index + 1 :]))


def _free_colours(scene: Scene, index: int) -> list[str]:
    """Colours that give a thing a name of its own."""
    taken = {thing.label for thing in scene.things}
    shape = scene.things[index].shape
    return [colour for colour in COLOURS if f"{colour} {shape}" not in taken]


def _count(scene: Scene, cited: list[int], answer: str, rng: Random) -> Changed | None:
    """One fewer of the colour; a single one has no fewer that can be pointed at."""
    colours = [c for c in _free_colours(scene, cited[0]) if c != scene.things[cited[0]].colour]
    if len(cited) < 2 or not colours:
        return None
    return _recoloured(scene, cited[0], rng.choice(colours)), str(int(answer) - 1), cited[1:]


def _attribute(scene: Scene, cited: list[int], answer: str, rng: Random) -> Changed | None:
    colours = [colour for colour in _free_colours(scene, cited[0]) if colour != answer]
    colour = rng.choice(colours)
    return _recoloured(scene, cited[0], colour), colour, cited


def _relation(scene: Scene, cited: list[int], answer: str, rng: Random) -> Changed | None:
    """The two change places, if their sizes leave room there."""
    one, other = (scene.things[index] for index in cited)
    if one.size != other.size:
        one, other = replace(one, size="small"), replace(other, size="small")
    swapped = _with(scene, cited[0], replace(one, x_px=other.x_px, y_px=other.y_px))
    swapped = _with(swapped, cited[1], replace(other, x_px=one.x_px, y_px=one.y_px))
    return swapped, "no" if answer == "yes" else "yes", cited


def _comparison(scene: Scene, cited: list[int], answer: str, rng: Random) -> Changed | None:
    """They change sizes; the one that grows must stay inside and apart."""
    flipped = scene
    for index in cited:
        thing = scene.things[index]
        flipped = _with(flipped, index, replace(thing, size="small" if thing.size == "large" else "large"))
    (loser,) = (scene.things[index].label for index in cited if scene.things[index].label != answer)
    return flipped, loser, cited


def _where(scene: Scene, cited: list[int], answer: str, rng: Random) -> Changed | None:
    """Mirrored to the other side, where nothing else may stand."""
    thing = scene.things[cited[0]]
    new = replace(thing, x_px=scene.size_px - thing.x_px)
    others = [other for index, other in enumerate(scene.things) if index != cited[0]]
    if any(abs(new.x_px - o.x_px) + abs(new.y_px - o.y_px) < 0.35 * scene.size_px for o in others):
        return None
    vertical, horizontal = answer.split()
    return _with(scene, cited[0], new), f"{vertical} {'right' if horizontal == 'left' else 'left'}", cited


_CHANGES: Mapping[str, Callable[[Scene, list[int], str, Random], Changed | None]] = {
    "count": _count,
    "attribute": _attribute,
    "relation": _relation,
    "comparison": _comparison,
    "where": _where,
}


def _control(scene: Scene, cited: list[int], task: Task, rng: Random) -> Scene | None:
    """Another thing gets another colour, one that the question does not ask about."""
    others = [index for index in range(len(scene.things)) if index not in cited]
    if not others:
        return None
    index = rng.choice(others)
    asked = {scene.things[at].colour for at in cited}
    colours = [c for c in _free_colours(scene, index) if c not in asked and c != scene.things[index].colour]
    return _recoloured(scene, index, rng.choice(colours)) if colours else None


def _posed(task: Task, scene: Scene, answer: str, cited: list[int]) -> Task:
    text = task.prompt_text
    found = Posed(text=text, frames=(scene,), answer=answer, cited=tuple((0, index) for index in cited))
    return make_task(found, KINDS[task.tags["kind"]], is_direct=task.tags["mode"] == "direct")
