"""A model's second look: it reads the numbered messages, the violation log and, where it is known, what was wanted; it
never sees labels or outcomes.

Any `core.judge.Judge` will do.  Messages that could be the critical one, categories and owners become statements, asked
in the one way in which judges are asked (`core.judge_prompt`); an answer moves the chance of a message by a stated
factor, no answer moves nothing.  Category and owner are the judge's where the message is one that it said yes to.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from burnish.core.judge import Criterion, Judge, JudgeCause, JudgedPart, JudgeError, JudgeReply, JudgeRequest
from burnish.core.judge_prompt import TASK_PART, NonceSource, build_request, fresh_nonce
from burnish.diagnosis.diagnose import Diagnosis
from burnish.diagnosis.localise import Suspect
from burnish.diagnosis.record import Item, Record, Reference
from burnish.diagnosis.taxonomy import Category, Fault

ASKED = 40
"""Messages that are put to the judge, likeliest first."""
ODDS = 9.0
"""How far a plain yes or no moves the odds of a message; at half-sure it moves nothing."""
ATTEMPTS = 2
"""A reply that cannot be used is asked for once more, with another nonce."""
LEVELS = 4
MAX_MESSAGE, LEAST_MESSAGE = 8_000, 40
"""Characters of a message; of long records those that are not asked about get fewer."""
MAX_CHARS, MAX_REFERENCE = 120_000, 8_000
ROOM = MAX_CHARS // 3 - 100
"""Characters of all messages that are not asked about; the others have twice as many."""
MAX_TOKENS = 8192
_BY_ROLE = {
    "user": (Category.UNDERSPECIFIED, Fault.USER),
    "assistant": (Category.MISREADING, Fault.AGENT),
}
_ASKED_AGAIN = frozenset({JudgeCause.MALFORMED, JudgeCause.CANARY_TRIPPED})
_CONTEXT = (
    "The material is the record of an agent that used tools, alone or with others, and failed at what a user wanted. "
    "Its critical step is the first error, of the agent, the user or a tool, that was never recovered from: look ahead "
    "whether an error was repaired, and if so go on. Exactly one message is the critical step. Messages begin with "
    "their number. The log names what fixed rules found; rules are often wrong and see little. Where material for "
    "reference says what was wanted, the agent could not see it, and a simulated user was told to act by it."
)
CATEGORIES: Mapping[Category, str] = {
    Category.ADHERENCE: "the goal was right and everything was known, and a required step was skipped, added or done "
    "against the rules or the plan",
    Category.INVENTION: "what was acted on or said stands in nothing that had been seen",
    Category.INVOCATION: "a tool was called wrongly: missing or wrong arguments, a bad query, and it reported that",
    Category.MISREADING: "the output of a tool or another member was read, computed or used wrongly or in part",
    Category.MISALIGNMENT: "another goal or constraint than the user's was understood and served",
    Category.UNDERSPECIFIED: "the user did not say, or said otherwise, what was wanted, and it could not be known",
    Category.UNSUPPORTED: "there was no way to do it with the tools and rules at hand",
    Category.GUARDRAIL: "a safety policy or a limit of access blocked a sound plan",
    Category.SYSTEM: "something broke: a connection, an endpoint, or it ended too early",
}
OWNERS: Mapping[Fault, str] = {
    Fault.AGENT: "the agent's (or a member's of the team)",
    Fault.USER: "the user's",
    Fault.ENVIRONMENT: "a tool's or its data's",
}


async def judged(
    judge: Judge, record: Record, diagnosis: Diagnosis, *, votes: int = 1, nonce: NonceSource = fresh_nonce
) -> Diagnosis:
    """The diagnosis after the judge's word, the mean of `votes` answers, at least one.

    A judge that gives none leaves it as it was, and `unjudged` says why.  Raises ValueError for no votes.
    """
    if votes < 1:
        raise ValueError(f"a judge is asked at least once, got votes={votes}")
    if not diagnosis.suspects:
        return diagnosis
    answers = await asyncio.gather(*(_asked(judge, record, diagnosis, vote, nonce) for vote in range(votes)))
    replies = [answer for answer in answers if isinstance(answer, JudgeReply)]
    if not replies:
        return replace(diagnosis, unjudged=str(answers[0]))
    suspects = _moved(diagnosis, _candidates(record, diagnosis), _means(replies))
    return replace(diagnosis, suspects=_worded(suspects, replies, judge.name), judged=True)


async def _asked(
    judge: Judge, record: Record, diagnosis: Diagnosis, vote: int, nonce: NonceSource
) -> JudgeReply | JudgeError:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return await judge.judge(question(record, diagnosis, seed=vote, nonce=nonce))
        except JudgeError as error:
            if attempt == ATTEMPTS or error.cause not in _ASKED_AGAIN:
                return error
    raise AssertionError("the last attempt returns")


def question(record: Record, diagnosis: Diagnosis, *, seed: int = 0, nonce: NonceSource = fresh_nonce) -> JudgeRequest:
    """The request: messages, the violation log and, where the diagnosis used it, the reference; then the statements."""
    suspects = sorted(_candidates(record, diagnosis)[:ASKED], key=lambda suspect: suspect.position)
    parts = [
        JudgedPart(name="messages", text=_transcript(record.items, {suspect.index for suspect in suspects})),
        JudgedPart(name="log", text=_log(diagnosis)),
    ]
    if diagnosis.difference.compared and record.reference:
        parts.append(JudgedPart(name=TASK_PART, text=_wanted(record.reference)))
    return build_request(
        parts,
        _criteria(suspects),
        context=_CONTEXT,
        seed=seed,
        max_chars=MAX_CHARS,
        max_tokens=MAX_TOKENS,
        nonce=nonce,
    )


def _criteria(suspects: Iterable[Suspect]) -> list[Criterion]:
    texts = {_step(s): f"Message {s.index} is the critical step." for s in suspects}
    texts |= {str(c): f"What went wrong at the critical step is that {text}." for c, text in CATEGORIES.items()}
    texts |= {_party(fault): f"The critical step is {text} fault." for fault, text in OWNERS.items()}
    return [Criterion(id=name, text=text, levels=LEVELS) for name, text in texts.items()]


def _step(suspect: Suspect) -> str:
    return f"message_{suspect.index}"


def _party(fault: Fault) -> str:
    return f"fault_{fault}"


def _means(replies: Sequence[JudgeReply]) -> dict[str, float]:
    """Mean of each criterion over the answers that have a value."""
    values: dict[str, list[float]] = {}
    for reply in replies:
        for verdict in reply.verdicts:
            if verdict.value is not None:
                values.setdefault(verdict.criterion, []).append(verdict.value)
    return {name: sum(found) / len(found) for name, found in values.items()}


def _candidates(record: Record, diagnosis: Diagnosis) -> list[Suspect]:
    """All messages, likeliest first.  Those that were no suspects come last, each as likely as the last suspect: a
    reader may see what rules cannot."""
    known, last = {suspect.index for suspect in diagnosis.suspects}, diagnosis.suspects[-1]
    others = {}
    for position, item in enumerate(record.items):
        if item.role != "system" and item.index not in known:
            category, owner = _BY_ROLE.get(item.role, (Category.SYSTEM, Fault.ENVIRONMENT))
            others[item.index] = replace(
                last, position=position, index=item.index, category=category, owner=owner, why=(), agent=item.agent
            )
    return [*diagnosis.suspects, *others.values()]


def _moved(diagnosis: Diagnosis, candidates: Sequence[Suspect], values: Mapping[str, float]) -> list[Suspect]:
    """p(step) times ODDS^(2 value - 1), scaled to the sum that those who were asked about had; a yes makes a suspect of
    what was none.  Who was not asked about keeps his chance: a no to all others says nothing about him."""
    known = {suspect.index for suspect in diagnosis.suspects}
    kept = [s for s in candidates[:ASKED] if s.index in known or values.get(_step(s), 0.0) > 0.5]
    moved = [replace(s, p=s.p * ODDS ** (2.0 * values.get(_step(s), 0.5) - 1.0)) for s in kept]
    scale = sum(s.p for s in diagnosis.suspects[:ASKED]) / max(1e-300, sum(s.p for s in moved))
    scaled = [replace(s, p=min(1.0, s.p * scale)) for s in moved]
    return sorted([*scaled, *diagnosis.suspects[ASKED:]], key=lambda s: (-s.p, s.position))


def _worded(suspects: Sequence[Suspect], replies: Sequence[JudgeReply], name: str) -> tuple[Suspect, ...]:
    """With category and owner of the answers that said yes to the first of them, if it has most of a yes."""
    first = suspects[0]
    if _means(replies).get(_step(first), 0.0) <= 0.5:
        return tuple(suspects)
    # another answer's category and owner are those of another message
    own = [
        reply for reply in replies if any(v.criterion == _step(first) and (v.value or 0) > 0.5 for v in reply.verdicts)
    ]
    values = _means(own)
    category = max(CATEGORIES, key=lambda c: (values.get(str(c), 0.0), c is first.category))
    owner = max(OWNERS, key=lambda fault: (values.get(_party(fault), 0.0), fault is first.owner))
    reasons = [v.reason for reply in own for v in reply.verdicts if v.criterion == _step(first)]
    first = replace(
        first,
        category=category if values.get(str(category), 0.0) > 0.5 else first.category,
        owner=owner if values.get(_party(owner), 0.0) > 0.5 else first.owner,
        why=(f"{name}: {next(filter(None, reasons), 'yes')}", *first.why),
        by_judge=True,
    )
    return first, *suspects[1:]


def _wanted(reference: Reference) -> str:
    wanted: dict[str, object] = {"instruction": reference.instruction, "user must be told": reference.outputs}
    if reference.actions is not None:
        wanted["actions"] = [{"name": call.name, "arguments": call.arguments} for call in reference.actions]
    return json.dumps(wanted, default=str, ensure_ascii=False)[:MAX_REFERENCE]


def _transcript(items: Sequence[Item], asked: set[int]) -> str:
    """A line for each message, what follows in it indented.  Of long records those that are asked about get most of the
    room, others less, and of very long ones only the neighbours of the former are shown."""
    texts = [_shown(item) for item in items]
    about = [n for n, item in enumerate(items) if item.index in asked]
    others = sorted(set(range(len(items))) - set(about), key=lambda n: min((abs(n - m) for m in about), default=0))
    others = others[: ROOM // LEAST_MESSAGE]
    lengths = dict.fromkeys(about, _length([texts[n] for n in about], 2 * ROOM))
    lengths |= dict.fromkeys(others, _length([texts[n] for n in others], ROOM))
    return "\n".join(texts[n][: lengths[n]] for n in sorted(lengths))


def _length(texts: Sequence[str], room: int) -> int:
    """How much of each text can be shown so that all have room."""
    most = MAX_MESSAGE
    while most > LEAST_MESSAGE and sum(min(len(text), most) + 1 for text in texts) > room:
        most = max(LEAST_MESSAGE, most * 3 // 4)
    return most


def _shown(item: Item) -> str:
    calls = "".join(f" [calls {call.name} {call.raw or dict(call.arguments or {})}]" for call in item.calls)
    head = " ".join(filter(None, (str(item.index), item.agent or item.role, item.name)))
    return f"{head}: {item.text}{calls}".replace("\n", "\n  ")


def _log(diagnosis: Diagnosis) -> str:
    rows = [f"{v.index} {v.constraint}: {v.why}" for v in diagnosis.log.violations[:60]]
    rows += [
        f"departs: {d.kind} {d.call.name if d.call else d.wanted.name if d.wanted else ''}"
        for d in diagnosis.difference.departures
    ]
    return "\n".join(rows) or "none"
