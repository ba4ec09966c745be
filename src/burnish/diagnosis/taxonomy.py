"""The ten categories of failure and the parties that can be at fault.

Categories after AgentRx (arXiv 2602.02475): the label sets of others spell them in several ways, so names are compared
by their letters alone.
"""

from __future__ import annotations

import re
from enum import StrEnum


class Category(StrEnum):
    """What kind of error the critical step is."""

    ADHERENCE = "instruction_adherence"
    INVENTION = "invention"
    INVOCATION = "invalid_invocation"
    MISREADING = "misinterpretation"
    MISALIGNMENT = "intent_plan_misalignment"
    UNDERSPECIFIED = "underspecified_intent"
    UNSUPPORTED = "unsupported_intent"
    GUARDRAIL = "guardrail"
    SYSTEM = "system_failure"
    INCONCLUSIVE = "inconclusive"


class Fault(StrEnum):
    """Whose error it is.  An inferred owner only tags; it never takes a trajectory out of the loss."""

    AGENT = "agent"
    USER = "user"
    ENVIRONMENT = "environment"
    GRADER = "grader"
    INFRASTRUCTURE = "infrastructure"
    UNKNOWN = "unknown"


_STEMS: tuple[tuple[str, Category], ...] = (
    ("adherence", Category.ADHERENCE),
    ("invention", Category.INVENTION),
    ("newinformation", Category.INVENTION),
    ("hallucinat", Category.INVENTION),
    ("invocation", Category.INVOCATION),
    ("misinterpret", Category.MISREADING),
    ("handoff", Category.MISREADING),
    ("misalign", Category.MISALIGNMENT),
    ("underspecif", Category.UNDERSPECIFIED),
    ("notsupported", Category.UNSUPPORTED),
    ("unsupported", Category.UNSUPPORTED),
    ("guardrail", Category.GUARDRAIL),
    ("systemfail", Category.SYSTEM),
    ("inconclusive", Category.INCONCLUSIVE),
)
_NUMBERED = tuple(Category)
_USERS = ("user", "customer", "human", "simulateduser", "useragent", "usersimulator")


def category_of(text: object) -> Category | None:
    """The category that a label means, by name or by number 1-10; None where it means none.

    >>> category_of("Misinterpretation of Tool Output"), category_of("6"), category_of("nonsense")
    (<Category.MISREADING: 'misinterpretation'>, <Category.UNDERSPECIFIED: 'underspecified_intent'>, None)
    """
    if isinstance(text, bool) or not isinstance(text, str | int):
        return None
    letters = re.sub(r"[^a-z0-9]", "", str(text)[:200].lower())
    if letters.isdigit():
        number = int(letters[:4])
        return _NUMBERED[number - 1] if 1 <= number <= len(_NUMBERED) else None
    return next((category for stem, category in _STEMS if stem in letters), None)


def fault_of(party: object) -> Fault | None:
    """The owner that a label's party name means; any name that is no other party is an agent's.

    >>> fault_of("User"), fault_of("WebSurfer"), fault_of("")
    (<Fault.USER: 'user'>, <Fault.AGENT: 'agent'>, None)
    """
    if not isinstance(party, str) or not party.strip():
        return None
    letters = re.sub(r"[^a-z]", "", party[:200].lower())
    if letters in _USERS:
        return Fault.USER
    for stem, fault in (
        ("environment", Fault.ENVIRONMENT),
        ("tool", Fault.ENVIRONMENT),
        ("grader", Fault.GRADER),
        ("infrastruct", Fault.INFRASTRUCTURE),
        ("unknown", Fault.UNKNOWN),
    ):
        if letters.startswith(stem):
            return fault
    return Fault.AGENT
