"""The figure that a run is about: held-out success before SFT, after SFT and after RL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from burnish.store.rows import EvaluationRow

STAGES = {"before": "before SFT", "after_sft": "after SFT", "after_rl": "after RL"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """What a column measures.  `Column(split="heldout", mode="greedy", title="greedy")`"""

    split: str
    mode: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A row: one moment of the run; evaluations by (split, mode), those that were not made left out.

    `Stage(title="after SFT", evaluations={("heldout", "greedy"): EvaluationRow(...)})`
    """

    title: str
    evaluations: Mapping[tuple[str, str], EvaluationRow]


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """`Headline(columns=(Column(...),), stages=(Stage(...),))`; both empty before the first evaluation."""

    columns: tuple[Column, ...]
    stages: tuple[Stage, ...]


def headline(evaluations: Sequence[EvaluationRow]) -> Headline:
    """The evaluations of a run as a table; the newest of each label, split and mode counts.

    A run that has no evaluation after RL (yet) shows its newest one on the way there as the last row.
    """
    by_label: dict[str, dict[tuple[str, str], EvaluationRow]] = {}
    for row in evaluations:
        by_label.setdefault(row.label, {})[row.split, row.mode] = row
    titles = STAGES if "after_sft" in by_label else STAGES | {"before": "before RL"}
    stages = [Stage(title=title, evaluations=by_label[label]) for label, title in titles.items() if label in by_label]
    on_the_way = [row for row in evaluations if row.phase == "rl" and row.label not in STAGES]
    if on_the_way and "after_rl" not in by_label:
        newest = on_the_way[-1]
        stages.append(Stage(title=f"RL step {newest.step}", evaluations=by_label[newest.label]))
    keys = {key for stage in stages for key in stage.evaluations}
    columns = tuple(
        Column(split=split, mode=mode, title=title_of(split, mode)) for split, mode in sorted(keys, key=_order)
    )
    return Headline(columns=columns, stages=tuple(stages))


def title_of(split: str, mode: str) -> str:
    """What to call an evaluation; the usual split goes without saying.

    >>> title_of("heldout", "greedy"), title_of("unseen", "greedy")
    ('greedy', 'unseen templates, greedy')
    """
    if split == "heldout":
        return mode
    return f"{'unseen templates' if split == 'unseen' else split}, {mode}"


def _order(key: tuple[str, str]) -> tuple[bool, str, str]:
    split, mode = key
    return split != "heldout", split, mode
