"""Text overlap between a report and its reference: BLEU, ROUGE-L, CIDEr.  Pure functions of two texts.

Alone each of them can be had cheaply: one fixed template that shares the reference's common words scores well on all
three and finds nothing.  They belong into a composite.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

MAX_WORDS = 2000
_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Lower-case words and marks, at most `MAX_WORDS`."""
    return _WORD.findall(text[: 20 * MAX_WORDS].lower())[:MAX_WORDS]


def bleu(given: str, reference: str, *, order: int = 4) -> float:
    """Sentence BLEU (Papineni et al. 2002), orders above 1 smoothed by adding one (Lin and Och 2004), in [0, 1].

    >>> round(bleu("the heart is normal", "the heart is normal"), 6), bleu("", "the heart")
    (1.0, 0.0)
    """
    ours, theirs = words(given), words(reference)
    if not ours or not theirs:
        return 0.0
    total = 0.0
    for n in range(1, order + 1):
        mine, gold = _grams(ours, n), _grams(theirs, n)
        hits, count = sum((mine & gold).values()), sum(mine.values())
        extra = 1 if n > 1 else 0
        if hits + extra == 0:
            return 0.0
        total += math.log((hits + extra) / (count + extra))
    brevity = min(0.0, 1 - len(theirs) / len(ours))
    return min(1.0, math.exp(total / order + brevity))


def rouge_l(given: str, reference: str) -> float:
    """F1 of the longest common subsequence (Lin 2004), in [0, 1].

    >>> round(rouge_l("no effusion seen", "no pleural effusion"), 3)
    0.667
    """
    ours, theirs = words(given), words(reference)
    if not ours or not theirs:
        return 0.0
    row = [0] * (len(theirs) + 1)
    for word in ours:
        before = row
        row = [0]
        for index, other in enumerate(theirs, 1):
            row.append(before[index - 1] + 1 if word == other else max(before[index], row[-1]))
    return 2 * row[-1] / (len(ours) + len(theirs))


class Cider:
    """CIDEr (Vedantam et al. 2015) against one reference, without length penalty, over 10: in [0, 1].

    references: the corpus that word frequencies are taken from, frozen.

    >>> round(Cider(["no effusion", "small effusion", "normal heart"]).score("no effusion", "no effusion"), 3)
    1.0
    """

    def __init__(self, references: Sequence[str], *, order: int = 4) -> None:
        if not references:
            raise ValueError("CIDEr needs a corpus of references to take word frequencies from, got none")
        self._order = order
        self._n = len(references)
        self._documents: Counter[tuple[str, ...]] = Counter()
        for text in references:
            tokens = words(text)
            self._documents.update({gram for n in range(1, order + 1) for gram in _grams(tokens, n)})

    def score(self, given: str, reference: str) -> float:
        """Mean cosine over the orders that the reference has."""
        ours, theirs = words(given), words(reference)
        orders = [n for n in range(1, self._order + 1) if len(theirs) >= n]
        if not ours or not orders:
            return 0.0
        return sum(_cosine(self._weighed(ours, n), self._weighed(theirs, n)) for n in orders) / len(orders)

    def _weighed(self, tokens: Sequence[str], n: int) -> dict[tuple[str, ...], float]:
        rarity = math.log(self._n + 1)
        return {
            gram: count * (rarity - math.log(1 + self._documents[gram]) + 1e-9)
            for gram, count in _grams(tokens, n).items()
        }


def _grams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[index : index + n]) for index in range(len(tokens) - n + 1))


def _cosine(one: Mapping[tuple[str, ...], float], other: Mapping[tuple[str, ...], float]) -> float:
    norms = math.sqrt(sum(x * x for x in one.values()) * sum(x * x for x in other.values()))
    return sum(value * other.get(gram, 0.0) for gram, value in one.items()) / norms if norms else 0.0
