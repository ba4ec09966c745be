"""Mixed reasoning: which tasks are to be thought about, which to be answered directly, by a tag in the prompt.

Thinking costs tokens and helps with some questions alone; a policy that is trained on both manners, told apart by a
tag, keeps both.  The shares hold over any run of consecutive tasks, so that a batch has the mixture of the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

from burnish.core.errors import ConfigError
from burnish.core.message import Part, TextPart
from burnish.core.task import Task, Taskset
from burnish.tasks.changed import ChangedTaskset

MODE_TAG = "mode"


class Mode(StrEnum):
    """How a task is to be answered."""

    THINK = "think"
    DIRECT = "direct"


PROMPT_TAGS: Mapping[Mode, str] = {Mode.THINK: "/think", Mode.DIRECT: "/direct"}
SHARES: Mapping[Mode, float] = {Mode.THINK: 0.2, Mode.DIRECT: 0.8}
"""To start with: one task in five is thought about."""


class ModeMixture:
    """Tasks with a mode each, in stated shares.

    shares: of each mode, adding up to 1; a mode that is left out is not used.  Raises ConfigError for other numbers.

    >>> [task.tags["mode"] for task in ModeMixture()(Task(prompt=f"{n}?") for n in range(5))]
    ['direct', 'think', 'direct', 'direct', 'direct']
    """

    def __init__(self, shares: Mapping[str, float] | None = None) -> None:
        given = SHARES if shares is None else shares
        unknown = [name for name in given if name not in set(Mode)]
        if unknown:
            raise ConfigError(f"unknown mode {unknown[0]!r}; there are {', '.join(Mode)}")
        if any(share < 0 for share in given.values()) or abs(sum(given.values()) - 1.0) > 1e-9:
            raise ConfigError(f"the shares of modes lie in [0, 1] and add up to 1, got {dict(given)}")
        self.shares = {Mode(name): float(share) for name, share in given.items() if share > 0}

    def __call__(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """Each task in the mode that lags behind its share most; ties go to the mode named first.

        After n tasks a mode was given to within one of share * n of them.
        """
        given = dict.fromkeys(self.shares, 0)
        for count, task in enumerate(tasks, start=1):
            mode = max(self.shares, key=lambda name: self.shares[name] * (count - 0.5) - given[name])
            given[mode] += 1
            yield with_mode(task, mode)

    def split(self, tasks: Sequence[Task]) -> dict[Mode, list[Task]]:
        """The same tasks by mode."""
        found: dict[Mode, list[Task]] = {mode: [] for mode in self.shares}
        for task in self(tasks):
            found[Mode(task.tags[MODE_TAG])].append(task)
        return found


class ModedTaskset(ChangedTaskset):
    """Another taskset whose tasks have a mode each: by the mixture, and outside train `elsewhere` where it is given.

    `ModedTaskset(taskset, ModeMixture({"think": 0.2, "direct": 0.8}), elsewhere=Mode.DIRECT).tasks("heldout")` are
    all to be answered directly.
    """

    def __init__(self, inner: Taskset, mixture: ModeMixture, *, elsewhere: Mode | None = None) -> None:
        def moded(split: str, tasks: Sequence[Task]) -> Iterable[Task]:
            forced = None if split == "train" else elsewhere
            return mixture(tasks) if forced is None else (with_mode(task, forced) for task in tasks)

        super().__init__(inner, moded)


def with_mode(task: Task, mode: Mode) -> Task:
    """The task in one mode, whatever it had before: the tag stands at the end of its prompt and among its tags.

    An evaluation forces a mode this way: `[with_mode(task, Mode.DIRECT) for task in tasks]`.

    >>> with_mode(with_mode(Task(prompt="Why?"), Mode.THINK), Mode.DIRECT).prompt_text
    'Why? /direct'
    """
    parts = list(task.parts)
    place = next((at for at in range(len(parts) - 1, -1, -1) if isinstance(parts[at], TextPart)), None)
    tag = PROMPT_TAGS[mode]
    last = parts[place] if place is not None else None
    if place is None or not isinstance(last, TextPart):
        parts.append(TextPart(text=tag))
    else:
        parts[place] = TextPart(text=f"{_untagged(last.text)} {tag}")
    prompt: str | tuple[Part, ...] = tuple(parts)
    if isinstance(task.prompt, str):
        prompt = "".join(part.text for part in parts if isinstance(part, TextPart))
    own_id = "" if task.id == task.content_hash else task.id
    return replace(task, prompt=prompt, tags={**task.tags, MODE_TAG: mode.value}, id=own_id, content_hash="")


def _untagged(text: str) -> str:
    for tag in PROMPT_TAGS.values():
        text = text.removesuffix(tag).rstrip() if text.endswith(tag) else text
    return text
