"""The scripted customer: what he wants is fixed, what he says follows from what he hears."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from burnish.environments.shop.world import pick

WORDINGS: Mapping[str, tuple[str, ...]] = {
    "move": (
        "I have moved to {city}. Please change the city of my account.",
        "My new city is {city}. Could you note that?",
        "Please move my account to {city}.",
    ),
    "cancel": (
        "Please cancel order {order}.",
        "I no longer need order {order} and want to cancel it.",
        "Could you cancel my order {order}?",
    ),
    "refund": (
        "In order {order}, {units} units of {product} came broken. I want my money back for those.",
        "{units} units of {product} of order {order} are broken. Please refund them.",
        "I would like a refund for {units} units of {product} in order {order}.",
    ),
    "stock": (
        "How many units of {product} do you have in stock?",
        "What is your stock of {product}?",
        "Could you tell me how many units of {product} are in stock?",
    ),
}
"""What a customer says for each kind of wish; the fields are those of the wish."""

YES = ("Yes, please go ahead.", "Yes, please do.", "That is right, go ahead.")
LEAVES = ("No, that is all. Thank you.", "That's all, thanks.", "No, thank you, that is all.")
_ASKS_WHO = re.compile(r"\b(?:number|name|id)\b.*\?", re.I | re.S)
_PROPOSES = re.compile(r"\b(?:shall i|should i|go ahead|confirm|proceed)\b.*\?", re.I | re.S)
_ELSE = re.compile(r"\banything else\b|\belse\b.*\?", re.I | re.S)
MAX_PATIENCE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One thing that a customer wants.  `Wish(kind="move", values={"city": "Oslo"})`

    kind: a key of `WORDINGS`.  values: what he knows and will say.
    """

    kind: str
    values: Mapping[str, Any]

    def said(self, rng: Random) -> str:
        """The wish in one of its wordings."""
        return pick(rng, WORDINGS[self.kind]).format_map(self.values)

    def fits(self, text: str) -> bool:
        """Whether a proposal names what was wished for: the city, or the order and the product."""
        lowered = text.lower()
        wanted = [str(value).lower() for key, value in self.values.items() if key != "units"]
        return all(re.search(rf"(?<!\w){re.escape(value)}(?!\w)", lowered) for value in wanted)


class Customer:
    """Says who he is when asked, agrees to a proposal that names what he wants, corrects any other, and leaves at the
    end.  One wish at a time.  A turn that asks him nothing ends the call.

    `consents`: whether his last words were a yes.  A customer who is not understood too often leaves.
    """

    def __init__(self, *, key: int, name: str, wishes: Sequence[Wish], rng: Random) -> None:
        if not wishes:
            raise ValueError("a customer wants at least one thing")
        self.key, self.name, self.wishes, self.rng = key, name, tuple(wishes), rng
        self.at = 0
        self.consents = False
        self.has_left = False
        self._patience = MAX_PATIENCE

    @property
    def wish(self) -> Wish:
        """What he wants now."""
        return self.wishes[self.at]

    def opening(self) -> str:
        """His first words."""
        return f"Hello. {self.wish.said(self.rng)}"

    def hears(self, text: str) -> str | None:
        """His answer to a turn of the agent; None where the call is over."""
        self.consents = False
        if self.has_left or "?" not in text:
            return None
        if _PROPOSES.search(text):
            return self.proposed(text)
        if _ASKS_WHO.search(text) and not _ELSE.search(text):
            return f"I am {self.name}, customer {self.key}."
        if _ELSE.search(text) or self._patience == 0:
            return self.next_wish()
        self._patience -= 1
        return f"I see. {self.wish.said(self.rng)}"

    def proposed(self, text: str) -> str:
        """His answer to a proposal."""
        if self.wish.fits(text):
            self.consents = True
            return pick(self.rng, YES)
        self._patience -= 1
        return self.leaves() if self._patience < 0 else f"No, that is not what I asked for. {self.wish.said(self.rng)}"

    def next_wish(self) -> str:
        """His next wish, or his last words."""
        if self.at + 1 >= len(self.wishes):
            return self.leaves()
        self.at += 1
        self._patience = MAX_PATIENCE
        return f"Yes. {self.wish.said(self.rng)}"

    def leaves(self) -> str:
        """His last words; the agent's next turn ends the episode."""
        self.has_left = True
        return pick(self.rng, LEAVES)
