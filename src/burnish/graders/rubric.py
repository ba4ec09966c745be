"""A rubric as a grader: rules where a criterion has one, else judges, in batches of shuffled order.

A criterion that no judge could decide leaves the whole grade without a score, under a named cause: a partial sum would
be another scale.  What judging failed at is never 0, with one exception that a rubric has to ask for by naming a
known-good answer (`Judging.known_good`).
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from burnish.core.errors import ConfigError
from burnish.core.grade import Grade, unanswered
from burnish.core.hashing import content_hash, derive_seed
from burnish.core.judge import Judge, JudgeCause, JudgedPart, JudgeError, JudgeReply, JudgeUsage, Verdict
from burnish.core.judge_prompt import PROMPT_VERSION, TASK_PART, NonceSource, build_request, fresh_nonce
from burnish.core.message import Message, Role
from burnish.core.task import Task
from burnish.core.text import clean_text
from burnish.core.trajectory import Trajectory
from burnish.graders.judge_calibration import Calibration, load_calibration
from burnish.graders.rubric_criteria import Judging, Rubric, RubricCriterion, rubric_score
from burnish.graders.rubric_file import load_rubric
from burnish.graders.rules import final_text
from burnish.graders.scrub import Scrubber

ABSTAINED = "abstained"
_ASKED_AGAIN = frozenset(
    {JudgeCause.MALFORMED, JudgeCause.CANARY_TRIPPED, JudgeCause.EVIDENCE_NOT_FOUND, JudgeCause.REFUSED}
)
_TEXT_MAY_CAUSE = frozenset({JudgeCause.MALFORMED, JudgeCause.REFUSED})
_DETAIL_CHARS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """What one judge said of one batch; without a reply, why.  blamed: the judge can still judge a known-good text."""

    judge: str
    items: tuple[RubricCriterion, ...]
    reply: JudgeReply | None = None
    error: JudgeError | None = None
    usage: JudgeUsage = field(default_factory=JudgeUsage)
    blamed: bool = False


class RubricGrader:
    """Grades answers by a rubric.  `RubricGrader("memo_rubric.toml", OpenAIJudge(url, "judge-7b"))`

    rubric: a value, or the path of a .toml or .jsonl file.  judge: one or several; none where every criterion has a
    rule.  calibration: a value or the path of a file that `burnish judge calibrate --out` wrote; it maps what each
    judge says to what people would.  nonce: a seam for tests.  Raises ConfigError where these do not fit together.

    The grade's evidence has each criterion's value with who decided it, votes, quote and position in its batch, what
    was missing and why, the versions of the judges, and the cost; `cost_tokens` counts failed attempts too.
    """

    keeps_deadline = True
    """Each request has `Judging.timeout_s`."""

    paths: ClassVar[tuple[str, ...]] = ("rubric", "calibration")
    """Options that a graph gives as files beside it."""

    def __init__(
        self,
        rubric: Rubric | Path | str,
        judge: Judge | Sequence[Judge] | None = None,
        *,
        judging: Judging | None = None,
        calibration: Calibration | Path | str | None = None,
        nonce: NonceSource = fresh_nonce,
    ) -> None:
        self.rubric = rubric if isinstance(rubric, Rubric) else load_rubric(rubric)
        self.judging = judging or self.rubric.judging
        self.judges: tuple[Judge, ...] = _as_tuple(judge)
        self.calibration = load_calibration(calibration) if isinstance(calibration, (str, Path)) else calibration
        self._nonce = nonce
        self._check()
        self.name = self.rubric.name
        parts = (self.rubric.version, self.judging, PROMPT_VERSION, [one.version for one in self.judges])
        self.version = content_hash((parts, self.calibration))

    def _check(self) -> None:
        names = [one.name for one in self.judges]
        undecided = [item.criterion.id for item in self.rubric.criteria if item.rule is None]
        if undecided and not names:
            raise ConfigError(
                f"rubric {self.rubric.name}: {len(undecided)} criteria have no rule, such as {undecided[0]}; "
                "hand in a judge"
            )
        if len(set(names)) < len(names):
            raise ConfigError(f"rubric {self.rubric.name}: two judges have the same name: {names}")
        if self.judging.quorum > len(names):
            raise ConfigError(
                f"rubric {self.rubric.name}: a quorum of {self.judging.quorum} needs as many judges, there are "
                f"{len(names)}"
            )

    async def grade(self, task: Task, trajectory: Trajectory) -> Grade:
        """The verdict; what judges fail at is a grade without a score."""
        early = self._unjudged(task, trajectory)
        if early is not None:
            return early
        items = self.rubric.of_task(task.id)
        answer = final_text(trajectory.answer)
        decided = {item.criterion.id: float(item.rule.met(answer)) for item in items if item.rule is not None}
        open_items = [item for item in items if item.rule is None]
        scrubber = Scrubber()
        parts = self._parts(task, trajectory, scrubber)
        batches = await self._judged(task, parts, open_items) if open_items else []
        return self._graded(items, decided, batches, scrubber)

    def _unjudged(self, task: Task, trajectory: Trajectory) -> Grade | None:
        if undone := unanswered(trajectory.outcome):
            return self._grade(undone[0], cause=undone[1])
        if len(trajectory.answer) > self.judging.max_answer_chars:
            return self._grade(0.0, cause="answer_too_long", evidence={"chars": len(trajectory.answer)})
        acted = "transcript" in self.judging.show and any(m.role is Role.ASSISTANT for m in trajectory.messages)
        if not final_text(trajectory.answer) and not acted:
            return self._grade(0.0, cause="empty_answer")
        if not self.rubric.of_task(task.id):
            return self._grade(None, cause="task_cannot_be_judged", evidence={"criteria": 0})
        return None

    def _parts(self, task: Task, trajectory: Trajectory, scrubber: Scrubber) -> list[JudgedPart]:
        texts = {
            TASK_PART: lambda: task.prompt_text,
            "answer": lambda: final_text(trajectory.answer),
            "transcript": lambda: _transcript(trajectory.messages),
        }
        shown = [(name, clean_text(texts[name]())) for name in self.judging.show]
        return [
            JudgedPart(name=name, text=scrubber.scrub(text) if self.judging.scrub else text) for name, text in shown
        ]

    async def _judged(self, task: Task, parts: Sequence[JudgedPart], items: Sequence[RubricCriterion]) -> list[_Batch]:
        """Every batch put to every judge at once."""
        seed = derive_seed(self.judging.seed, task.content_hash, *(part.text for part in parts))
        shuffled = Random(seed).sample(list(items), len(items))
        size = self.judging.batch_size
        batches = [tuple(shuffled[start : start + size]) for start in range(0, len(shuffled), size)]
        asked = [self._ask(judge, batch, parts, seed) for batch in batches for judge in self.judges]
        return list(await asyncio.gather(*asked))

    async def _ask(
        self, judge: Judge, items: tuple[RubricCriterion, ...], parts: Sequence[JudgedPart], seed: int
    ) -> _Batch:
        """One batch to one judge: asked again, with another nonce, where the reply could not be used."""
        spent = JudgeUsage()
        error = JudgeError(JudgeCause.MALFORMED, "not asked")
        for _ in range(self.judging.attempts):
            try:
                reply = await self._once(judge, items, parts, seed)
                return _Batch(judge=judge.name, items=items, reply=reply, usage=spent + reply.usage)
            except JudgeError as failed:
                error, spent = failed, spent + failed.usage
            if error.cause not in _ASKED_AGAIN:
                break
        blamed = False
        if error.cause in _TEXT_MAY_CAUSE and self.judging.known_good:
            blamed, usage = await self._judges_known_good(judge, items, parts, seed)
            spent += usage
        return _Batch(judge=judge.name, items=items, error=error, usage=spent, blamed=blamed)

    async def _once(
        self, judge: Judge, items: tuple[RubricCriterion, ...], parts: Sequence[JudgedPart], seed: int
    ) -> JudgeReply:
        request = build_request(
            parts,
            [item.criterion for item in items],
            context=self.rubric.context,
            seed=seed,
            max_chars=self.judging.max_chars,
            max_tokens=self.judging.max_tokens,
            controls=self.judging.controls,
            nonce=self._nonce,
        )
        clock = asyncio.timeout(self.judging.timeout_s)
        try:
            async with clock:
                reply = await judge.judge(request)
        except TimeoutError as error:
            if not clock.expired():
                raise
            raise JudgeError(JudgeCause.TIMEOUT, f"no reply within {self.judging.timeout_s} s") from error
        wanted = [item.criterion.id for item in items]
        if sorted(verdict.criterion for verdict in reply.verdicts) != sorted(wanted):
            raise JudgeError(JudgeCause.MALFORMED, f"{judge.name} did not judge exactly {wanted}", reply.usage)
        return reply

    async def _judges_known_good(
        self, judge: Judge, items: tuple[RubricCriterion, ...], parts: Sequence[JudgedPart], seed: int
    ) -> tuple[bool, JudgeUsage]:
        good = [
            part if part.name == TASK_PART else JudgedPart(name=part.name, text=self.judging.known_good)
            for part in parts
        ]
        try:
            reply = await self._once(judge, items, good, seed)
        except JudgeError as error:
            # A wrong quote is still a reply in due form, which is all that is asked for here.
            return error.cause is JudgeCause.EVIDENCE_NOT_FOUND, error.usage
        return True, reply.usage

    def _graded(
        self,
        items: Sequence[RubricCriterion],
        decided: Mapping[str, float],
        batches: Sequence[_Batch],
        scrubber: Scrubber,
    ) -> Grade:
        """Everything put together."""
        notes: dict[str, dict[str, Any]] = {name: {"value": value, "by": "rule"} for name, value in decided.items()}
        missing: dict[str, str] = {}
        values = dict(decided)
        for item in items:
            if item.criterion.id in decided:
                continue
            note, cause = self._combined(item, batches)
            notes[item.criterion.id] = note
            if cause:
                missing[item.criterion.id] = cause
            else:
                values[item.criterion.id] = note["value"]
        usage = sum((batch.usage for batch in batches), JudgeUsage())
        evidence = {
            "criteria": notes,
            "judges": {b.judge: b.reply.version for b in batches if b.reply is not None},
            "requests": usage.requests,
            "cached": sum(b.reply.cached for b in batches if b.reply is not None),
            "cost_usd": usage.cost_usd,
            "scrubbed": dict(scrubber.counts),
        }
        if not missing:
            return self._grade(rubric_score(items, values), evidence=evidence, tokens=usage.tokens)
        evidence |= {"missing": missing, "details": _details(batches)}
        cause = Counter(missing.values()).most_common(1)[0][0]
        if all(cause.startswith("model:") for cause in missing.values()):
            return self._grade(0.0, cause=cause, evidence=evidence, tokens=usage.tokens)
        cause = Counter(c for c in missing.values() if not c.startswith("model:")).most_common(1)[0][0]
        return self._grade(None, cause=cause, evidence=evidence, tokens=usage.tokens)

    def _combined(self, item: RubricCriterion, batches: Sequence[_Batch]) -> tuple[dict[str, Any], str]:
        """What the judges together say of a criterion, and why there is no value, if there is none."""
        name = item.criterion.id
        votes: dict[str, float] = {}
        said: list[Verdict] = []
        causes: list[str] = []
        position = 0
        for batch in batches:
            if item not in batch.items:
                continue
            position = batch.items.index(item)
            if batch.reply is None:
                assert batch.error is not None
                causes.append(f"{'model:judge_' if batch.blamed else 'judge:'}{batch.error.cause}")
                continue
            verdict = next(v for v in batch.reply.verdicts if v.criterion == name)
            if verdict.value is None:
                causes.append(f"judge:{ABSTAINED}")
                continue
            value = verdict.value
            votes[batch.judge] = self.calibration.apply(batch.judge, name, value) if self.calibration else value
            said.append(verdict)
        note: dict[str, Any] = {"by": "judge", "votes": votes, "position": position}
        if said:
            note |= {"quote": said[0].quote, "reason": said[0].reason}
        if len(votes) < (self.judging.quorum or len(self.judges)):
            honest = [cause for cause in causes if not cause.startswith("model:")]
            return note | {"value": None}, (honest or causes)[0]
        return note | {"value": sum(votes.values()) / len(votes)}, ""

    def _grade(
        self, score: float | None, *, cause: str = "", evidence: Mapping[str, Any] | None = None, tokens: int = 0
    ) -> Grade:
        return Grade(
            grader=self.name,
            version=self.version,
            score=score,
            cause=cause,
            evidence=evidence or {},
            cost_tokens=tokens,
        )


def _as_tuple(judge: Judge | Sequence[Judge] | None) -> tuple[Judge, ...]:
    if judge is None:
        return ()
    return tuple(judge) if isinstance(judge, Sequence) else (judge,)


def _details(batches: Sequence[_Batch]) -> list[str]:
    """What failed, in words, each once."""
    found = dict.fromkeys(f"{b.judge}: {b.error}" for b in batches if b.error is not None)
    return [clean_text(text[:_DETAIL_CHARS]) for text in list(found)[:5]]


def _transcript(messages: Sequence[Message]) -> str:
    """An episode as text, one block a message; calls as JSON."""
    blocks = []
    for message in messages:
        who = f"{message.role.value} {message.name}".strip() + (" (error)" if message.is_error else "")
        calls = [
            f"call {call.name} {json.dumps(dict(call.arguments), ensure_ascii=False)}" for call in message.tool_calls
        ]
        blocks.append("\n".join([f"[{who}]", *([message.text] if message.text else []), *calls]))
    return "\n\n".join(blocks)
