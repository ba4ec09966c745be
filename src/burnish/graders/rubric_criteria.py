"""Rubrics: weighted criteria, what decides each of them, and the score that their values make."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from burnish.core.errors import ConfigError
from burnish.core.hashing import content_hash
from burnish.core.judge import Criterion


class Polarity(StrEnum):
    """Whether meeting a criterion is good or bad."""

    POSITIVE = "positive"
    NEGATIVE = "negative"


SHOWN = ("task", "answer", "transcript")
"""What a judge may be shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRule:
    """Decides a criterion without a judge: met where all that is given here holds of the answer.

    `TextRule(headings=("Facts", "Discussion"), max_words=2500)`

    any_of, all_of, none_of: phrases of whole words; case and runs of white space do not count.  headings: lines in this
    order, marks such as "##", "1." or "**" around them left out.  There are no regular expressions, since a text
    could make one hang.
    """

    any_of: tuple[str, ...] = ()
    all_of: tuple[str, ...] = ()
    none_of: tuple[str, ...] = ()
    headings: tuple[str, ...] = ()
    min_words: int = 0
    max_words: int = 0

    def __post_init__(self) -> None:
        if not self._says_something():
            raise ConfigError("a rule gives at least one of any_of, all_of, none_of, headings, min_words, max_words")

    def _says_something(self) -> bool:
        phrases = (*self.any_of, *self.all_of, *self.none_of, *self.headings)
        return bool(phrases or self.min_words or self.max_words) and all(phrase.strip() for phrase in phrases)

    def met(self, text: str) -> bool:
        """Whether the text keeps the rule.

        >>> TextRule(all_of=("brief answer",), max_words=5).met("Brief  Answer: no.")
        True
        """
        plain = _plain(text)
        n_words = len(plain.split())
        return (
            (not self.any_of or any(_occurs(phrase, plain) for phrase in self.any_of))
            and all(_occurs(phrase, plain) for phrase in self.all_of)
            and not any(_occurs(phrase, plain) for phrase in self.none_of)
            and self.min_words <= n_words
            and (not self.max_words or n_words <= self.max_words)
            and self._has_headings(text)
        )

    def _has_headings(self, text: str) -> bool:
        wanted = [_plain(heading) for heading in self.headings]
        for line in text.splitlines() if wanted else ():
            if wanted and _heading(line) == wanted[0]:
                wanted.pop(0)
        return not wanted


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _occurs(phrase: str, plain: str) -> bool:
    """Whether a phrase stands in a plain text without being part of longer words.

    >>> _occurs("an AI", "it is an air"), _occurs("an AI", "i am an ai.")
    (False, True)
    """
    wanted = _plain(phrase)
    at = plain.find(wanted)
    while at >= 0:
        end = at + len(wanted)
        inside = (at > 0 and plain[at - 1].isalnum() and wanted[0].isalnum()) or (
            end < len(plain) and plain[end].isalnum() and wanted[-1].isalnum()
        )
        if not inside:
            return True
        at = plain.find(wanted, at + 1)
    return False


def _heading(line: str) -> str:
    """A line without the marks of a heading.

    >>> _heading("## II. **Brief Answer:**")
    'brief answer'
    """
    plain = _plain(line[:200]).strip("#*_=- ")
    number, dot, rest = plain.partition(". ")
    if dot and (number.isdigit() or set(number) <= set("ivxlc")):
        plain = rest
    return plain.strip("*_:. ")


@dataclass(frozen=True, slots=True, kw_only=True)
class RubricCriterion:
    """A criterion with what it is worth.  `RubricCriterion(criterion=Criterion(id="a", text="It is short."))`

    weight: above 0; polarity says which way it counts.  rule: decides it where there is one, else a judge does.
    tasks: ids of the tasks that it is for, empty for all.
    """

    criterion: Criterion
    weight: float = 1.0
    polarity: Polarity = Polarity.POSITIVE
    rule: TextRule | None = None
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        criterion, name = self.criterion, self.criterion.id or "without id"
        if not criterion.id or not criterion.id.replace("_", "").replace("-", "").isalnum() or len(criterion.id) > 64:
            raise ConfigError(f"a criterion's id has letters, digits, - and _, at most 64, got {criterion.id!r}")
        if not criterion.text.strip():
            raise ConfigError(f"criterion {name}: its text is empty; write the statement that is to be judged")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ConfigError(
                f"criterion {name}: a weight is above 0, got {self.weight!r}; blame has polarity = 'negative'"
            )
        if not 1 <= criterion.levels <= 10:
            raise ConfigError(f"criterion {name}: levels lie in 1..10, got {criterion.levels}")
        for example in criterion.examples:
            if not 0 <= example.value <= criterion.levels:
                raise ConfigError(
                    f"criterion {name}: an example's value lies in 0..{criterion.levels}, got {example.value}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """How a rubric's criteria are put to a judge.  `Judging(batch_size=6, show=("task", "answer"))`

    batch_size: criteria in one request.  show: parts of an episode, of "task", "answer", "transcript".  attempts:
    requests for one batch, each with a fresh nonce, where the reply cannot be used.  timeout_s: of one request, the
    judge's own retries included.  quorum: judges that must have a verdict on a criterion, 0 for all.
    max_chars: of a part; more is cut from its middle.  max_answer_chars: a longer answer scores 0.  controls:
    whether each batch has control criteria.  known_good: an answer that the judge is known to be able to judge;
    where it can still judge that one and repeatedly not another, the other scores 0.
    """

    batch_size: int = 8
    show: tuple[str, ...] = ("task", "answer")
    attempts: int = 2
    timeout_s: float = 120.0
    quorum: int = 0
    max_chars: int = 24_000
    max_answer_chars: int = 200_000
    max_tokens: int = 2048
    controls: bool = True
    scrub: bool = True
    seed: int = 0
    known_good: str = ""

    def __post_init__(self) -> None:
        if min(self.batch_size, self.attempts, self.max_tokens) < 1 or self.quorum < 0:
            raise ConfigError("judging: batch_size, attempts and max_tokens are at least 1, quorum at least 0")
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise ConfigError(f"judging: timeout_s is a number above 0, got {self.timeout_s!r}")
        if self.max_chars < 200 or self.max_answer_chars < 200:
            raise ConfigError("judging: max_chars and max_answer_chars are at least 200")
        unknown = [part for part in self.show if part not in SHOWN]
        if unknown or not {"answer", "transcript"} & set(self.show):
            raise ConfigError(f"judging: show names answer or transcript, of {', '.join(SHOWN)}, got {self.show}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubric:
    """A weighted set of criteria.  `Rubric(name="memo", criteria=(...))`

    context: what a judge is told of the kind of text, in a sentence or two.
    """

    name: str
    criteria: tuple[RubricCriterion, ...]
    context: str = ""
    judging: Judging = Judging()

    def __post_init__(self) -> None:
        ids = [item.criterion.id for item in self.criteria]
        if not ids:
            raise ConfigError(f"rubric {self.name} has no criteria")
        for name in ids:
            if ids.count(name) > 1:
                raise ConfigError(f"rubric {self.name} has two criteria with the id {name!r}")

    @property
    def version(self) -> str:
        """Hash of all that bears on a verdict."""
        return content_hash(self)

    def of_task(self, task_id: str) -> tuple[RubricCriterion, ...]:
        """The criteria for a task."""
        return tuple(item for item in self.criteria if not item.tasks or task_id in item.tasks)


def rubric_score(items: Sequence[RubricCriterion], values: Mapping[str, float]) -> float:
    """The score that values in [0, 1] make, clipped to [0, 1]:

        (sum of weight * value over positive - the same over negative) / sum of positive weights

    as in HealthBench (Arora et al. 2025, arXiv 2505.08775, section 3).  Where all criteria are negative: 1 minus their
    weighted mean.  Raises KeyError where a value is missing, ValueError for one outside [0, 1].

    >>> a = RubricCriterion(criterion=Criterion(id="a", text="Says why."), weight=3.0)
    >>> b = RubricCriterion(criterion=Criterion(id="b", text="Rambles."), weight=2.0, polarity=Polarity.NEGATIVE)
    >>> rubric_score([a, b], {"a": 1.0, "b": 0.5}), rubric_score([a, b], {"a": 0.0, "b": 1.0})
    (0.6666666666666666, 0.0)
    """
    gained = lost = positive = negative = 0.0
    for item in items:
        value = values[item.criterion.id]
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"the value of criterion {item.criterion.id} lies in [0, 1], got {value!r}")
        if item.polarity is Polarity.POSITIVE:
            positive, gained = positive + item.weight, gained + item.weight * value
        else:
            negative, lost = negative + item.weight, lost + item.weight * value
    if positive == 0.0:
        return min(1.0, max(0.0, 1.0 - lost / negative))
    return min(1.0, max(0.0, (gained - lost) / positive))
