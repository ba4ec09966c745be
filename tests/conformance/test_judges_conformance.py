"""The conformance of judges: ours pass it, and each law is seen to fail where it is broken."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from burnish.core.judge import Criterion, Judge, JudgeReply, JudgeRequest, JudgeUsage, Verdict
from burnish.core.judge_reply import read_reply
from burnish.core.message import Message
from burnish.core.sampling import Sample, SampleRequest
from burnish.core.task import Task
from burnish.graders.judge_budget import BudgetedJudge, JudgeLedger, JudgePrice
from burnish.graders.judge_cache import CachedJudge, JudgeCache
from burnish.graders.judge_policy import PolicyJudge
from burnish.graders.rubric import RubricGrader
from burnish.graders.rubric_criteria import Rubric, RubricCriterion
from burnish.integrations.openai_judge import OpenAIJudge
from burnish.testing.fakes import FakeRenderer, ScriptedJudge, ScriptedSampler
from burnish.testing.grader import GraderConformance
from burnish.testing.judge import JudgeConformance, JudgeText


class Saying(ScriptedJudge):
    """Says what it is told to."""

    def __init__(self, says: JudgeText) -> None:
        super().__init__()
        self._text = says

    def says(self, request: JudgeRequest) -> str:
        return self._text(request)


class TestScripted(JudgeConformance):
    def make_judge(self, says: JudgeText) -> Judge:
        return Saying(says)


class TestBudgeted(JudgeConformance):
    def make_judge(self, says: JudgeText) -> Judge:
        return BudgetedJudge(Saying(says), JudgeLedger(max_usd=1.0), JudgePrice(prompt_usd=1.0))


class TestCached(JudgeConformance):
    def make_judge(self, says: JudgeText) -> Judge:
        return CachedJudge(Saying(says), JudgeCache(Path(tempfile.mkdtemp()) / "judge.jsonl"))


class _Remembering:
    """Gives the model's texts the request that a judge was asked with."""

    def __init__(self, judge: Any, holder: dict[str, JudgeRequest]) -> None:
        self.name, self.version = judge.name, judge.version
        self._judge, self._holder = judge, holder

    async def judge(self, request: JudgeRequest) -> JudgeReply:
        self._holder[request.nonce] = request
        reply: JudgeReply = await self._judge.judge(request)
        return reply


def _asked(holder: dict[str, JudgeRequest], text: str) -> JudgeRequest:
    return next(request for nonce, request in holder.items() if nonce in text)


class TestOpenAI(JudgeConformance):
    def make_judge(self, says: JudgeText) -> Judge:
        holder: dict[str, JudgeRequest] = {}

        def answer(request: httpx.Request) -> httpx.Response:
            body = json.loads(request.content)
            text = says(_asked(holder, body["messages"][0]["content"]))
            message = {"role": "assistant", "content": text}
            usage = {"prompt_tokens": 9, "completion_tokens": 4}
            return httpx.Response(
                200, json={"model": "m-1", "choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
            )

        return _Remembering(OpenAIJudge("http://judge/v1", "m", transport=httpx.MockTransport(answer)), holder)


class TestPolicy(JudgeConformance):
    """The policy itself, by tokens."""

    def make_judge(self, says: JudgeText) -> Judge:
        holder: dict[str, JudgeRequest] = {}

        def answer(request: SampleRequest) -> str:
            return says(_asked(holder, request.messages[0].text))

        judge = PolicyJudge(ScriptedSampler(answer), FakeRenderer(), version="policy@3")
        return _Roomy(_Remembering(judge, holder))


class TestPolicyByMessages(JudgeConformance):
    """A sampler that gives messages."""

    def make_judge(self, says: JudgeText) -> Judge:
        holder: dict[str, JudgeRequest] = {}

        def answer(request: SampleRequest) -> Sample:
            return Sample(message=Message.assistant(says(_asked(holder, request.messages[0].text))))

        return _Remembering(PolicyJudge(ScriptedSampler(answer), None, version="policy@3"), holder)


def _rubric_grader() -> RubricGrader:
    reasoned = RubricCriterion(criterion=Criterion(id="reasoned", text="It gives a reason.", needs_evidence=True))
    judge = ScriptedJudge(lambda criterion, text: int("because" in text))
    return RubricGrader(Rubric(name="r", criteria=(reasoned,)), judge)


class TestRubricGrader(GraderConformance):
    """A rubric is a grader like any other."""

    make_grader = staticmethod(_rubric_grader)
    right = ((Task(prompt="Why?"), "It binds because both sides performed."),)
    wrong = ((Task(prompt="Why?"), "It binds."),)


class _Roomy:
    """A byte is a token in the fake renderer, so replies need more of them."""

    def __init__(self, judge: _Remembering) -> None:
        self.name, self.version, self._judge = judge.name, judge.version, judge

    async def judge(self, request: JudgeRequest) -> JudgeReply:
        return await self._judge.judge(replace(request, max_tokens=200_000))


# -- negative controls ---------------------------------------------------------------------------------------------


class _Broken(Saying):
    change: Callable[[JudgeRequest, str], JudgeReply]

    async def judge(self, request: JudgeRequest) -> JudgeReply:
        return type(self).change(request, self.says(request))


def _lenient(request: JudgeRequest, text: str) -> JudgeReply:
    """Takes what looks like JSON, and fills in the rest."""
    try:
        rows = {row["item"]: row for row in json.loads(text)["verdicts"]}
    except (ValueError, KeyError, TypeError):
        rows = {}
    shown = [(n, one) for n, one in enumerate(request.criteria, start=1) if one.id not in request.controls]
    values = ((one, rows.get(n, {}).get("value", 0) / one.levels) for n, one in shown)
    verdicts = tuple(Verdict(criterion=one.id, value=value) for one, value in values)
    return JudgeReply(verdicts=verdicts, version="1", usage=JudgeUsage(requests=1))


def _backwards(request: JudgeRequest, text: str) -> JudgeReply:
    verdicts = tuple(reversed(read_reply(request, text)))
    return JudgeReply(verdicts=verdicts, version="1", usage=JudgeUsage(requests=1))


def _nameless(request: JudgeRequest, text: str) -> JudgeReply:
    return JudgeReply(verdicts=read_reply(request, text), version="", usage=JudgeUsage(requests=1))


def _free(request: JudgeRequest, text: str) -> JudgeReply:
    return JudgeReply(verdicts=read_reply(request, text), version="1")


BROKEN = [
    (_lenient, "test_garbage_is_an_error_and_no_verdict"),
    (_lenient, "test_a_reply_without_the_nonce_is_refused"),
    (_lenient, "test_a_judge_that_praises_everything_trips_a_control"),
    (_lenient, "test_an_invented_quote_is_refused"),
    (_backwards, "test_one_verdict_for_each_criterion_in_order"),
    (_nameless, "test_replies_name_their_version"),
    (_free, "test_usage_counts_the_request"),
]


@pytest.mark.parametrize(("change", "law"), BROKEN, ids=[law for _, law in BROKEN])
def test_each_law_is_seen_to_fail(change: Any, law: str) -> None:
    class Conformance(JudgeConformance):
        def make_judge(self, says: JudgeText) -> Judge:
            kind = type("Odd", (_Broken,), {"change": staticmethod(change)})
            return kind(says)  # type: ignore[no-any-return]

    with pytest.raises(AssertionError):
        getattr(Conformance(), law)()
