"""What a turn of talk does, by its words: agree, decline, propose, refuse, take leave.  English only."""

from __future__ import annotations

import re

YES = re.compile(
    r"\b(?:yes|yep|yeah|yup|sure|ok(?:ay)?|confirm(?:ed)?|correct|absolutely|definitely|of course|go ahead|proceed|"
    r"please do|do it|let'?s (?:do|go|roll)|sounds good|that'?s (?:fine|right|correct)|works for me|agreed|deal)\b",
    re.I,
)
NO = re.compile(
    r"\b(?:no(?! longer)|nope|don'?t|do not|instead|never ?mind|leave (?:it|that|the)\b.{0,40}\bfor now|no need|"
    r"rather not|without making|forget (?:it|about)|changed? my mind|hold on|wait)\b",
    re.I,
)
REFUSES = re.compile(
    r"\b(?:unfortunately|cannot|can'?t|unable|not (?:possible|able|allowed|eligible|supported)|isn'?t possible)\b", re.I
)
PROPOSES = re.compile(
    r"\b(?:would you like|do you want|shall i|should i|can i go ahead|please confirm|let me know if you'?d like|"
    r"could you (?:please )?confirm|ready to proceed|like me to|i'?ll proceed)\b",
    re.I,
)
LEAVES = re.compile(
    r"###(?:STOP|TRANSFER|OUT-OF-SCOPE)|\b(?:that'?s all|that'?ll be all|that is all|all i needed|all for now|"
    r"good for now|goodbye|bye)\b",
    re.I,
)
ASKS_TO_ACT = re.compile(
    r"\b(?:go ahead|proceed|finalize|please (?:do|process|make|cancel|return|change|update|book|rebook|move|add|remove|"
    r"create|delete|send|submit|schedule|reschedule|upgrade|restart|deploy|fix|install|assign))\b",
    re.I,
)
BARRED = re.compile(
    r"\b(?:access denied|permission denied|forbidden|captcha|log ?in (?:is )?required|sign in to continue|paywall|"
    r"subscribers only|blocked by (?:the )?(?:\w+ )?policy|content policy|verify (?:that )?you are (?:a )?human)\b",
    re.I,
)
"""What stands in the way is a limit of access, not the call."""
GUESSES = re.compile(
    r"\b(?:(?:i(?:'ll| will| can| must)?|let(?:'s| us|me)|we(?:'ll| will| can)?) (?:just |simply )?(?:assume|guess)|"
    r"assuming (?:that|the)|(?:general|prior|background|my own|common) knowledge|"
    r"(?:rough|reasonable|plausible) estimate|best guess|make an (?:educated )?guess|"
    r"hypothetical (?:data|value|answer|example)|(?:simulated|fabricated|made-up|placeholder|dummy|mock) "
    r"(?:data|value|result|output|number|answer)s?)\b",
    re.I,
)
"""The speaker says that what follows rests on nothing seen."""
_WORD = re.compile(r"[a-z0-9][a-z0-9'-]*")
_FILLER = frozenset(
    _WORD.findall(
        "a about actually all alright also am an and are as at be been but by can could did do does done for "
        "from get go good got great had has have hello help hi i i'd i'll i'm if in is it it's its just know "
        "let like make me my need no not now of oh ok okay on one or other out please proceed right so some "
        "still sure thank thanks that that's the them then there these they this those to too up us use want "
        "was we well what when which will with would yeah yes you your ahead change confirm fine"
    )
)


def words(text: str) -> list[str]:
    """Lower-case words."""
    return _WORD.findall(text.lower())


def content_words(text: str) -> set[str]:
    """Words that carry content.

    >>> sorted(content_words("Yes, please return the Coffee Maker"))
    ['coffee', 'maker', 'return']
    """
    return {word for word in words(text[:20_000]) if word not in _FILLER and len(word) > 1}


def is_mere_consent(text: str) -> bool:
    """A yes that adds next to nothing.

    >>> is_mere_consent("Yep, let's do that. Please go ahead!")
    True
    >>> is_mere_consent("Yes, return the red lamp, cancel order 7, exchange rugs")
    False
    """
    return YES.search(text) is not None and len(content_words(text)) <= 5


def consents(text: str) -> bool:
    """A yes somewhere, and no refusal in the first words."""
    return YES.search(text) is not None and NO.match(text.lstrip()[:40]) is None
