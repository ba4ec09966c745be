"""Endpoints, caches and budgets of judges when things go wrong: a cause, no score, and nothing lost or paid twice."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.core.errors import ConfigError, StoreError
from burnish.core.judge import Criterion, JudgeCause, JudgeError, JudgeReply, JudgeUsage, Verdict
from burnish.core.task import Task
from burnish.core.text import clean_text
from burnish.graders import judge_cache
from burnish.graders.judge_budget import BudgetedJudge, JudgeLedger, JudgePrice
from burnish.graders.judge_cache import CachedJudge, JudgeCache, cache_key
from burnish.graders.rubric import RubricGrader
from burnish.graders.rubric_criteria import Judging, Rubric, RubricCriterion
from burnish.integrations.openai_judge import OpenAIJudge, OpenAIJudgeOptions
from burnish.testing.fakes import ScriptedJudge
from burnish.testing.grader import answered
from burnish.testing.judge import CRITERIA, GREETS, question

TASK = Task(prompt="?")
RUBRIC = Rubric(
    name="r", criteria=(RubricCriterion(criterion=Criterion(id="a", text="It is clear.")),), judging=Judging(attempts=2)
)


def completion(text: str, finish: str = "stop", model: str = "m-2025", **message: Any) -> httpx.Response:
    choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 50, "completion_tokens": 7}
    return httpx.Response(200, json={"model": model, "choices": [choice], "usage": usage})


def good(request: httpx.Request) -> httpx.Response:
    """All met, controls right, from the words of the prompt alone."""
    body = json.loads(request.content)
    schema = body["response_format"]["json_schema"]["schema"]
    prompt = body["messages"][1]["content"]
    material, _, listed = prompt.rpartition("\n\nCriteria:\n")
    rows = []
    for number, line in enumerate(listed.split("\n"), start=1):
        word = line.split('"')[1] if line.startswith(f'{number}. The word "') else ""
        rows.append({"item": number, "quote": "", "reason": "", "value": int(word in material)})
    return completion(json.dumps({"nonce": schema["properties"]["nonce"]["enum"][0], "verdicts": rows}))


class Server:
    """Answers in order, the last one again and again; keeps the bodies and the waits."""

    def __init__(self, *answers: Any, **options: Any) -> None:
        self.answers = list(answers)
        self.bodies: list[dict[str, Any]] = []
        self.waits_s: list[float] = []
        self.judge = OpenAIJudge(
            "http://judge/v1",
            "m",
            "key",
            options=OpenAIJudgeOptions(**options),
            sleep=self._sleep,
            clock=lambda: 0.0,
            transport=httpx.MockTransport(self._answer),
        )

    async def _sleep(self, seconds: float) -> None:
        self.waits_s.append(seconds)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        answer = self.answers[min(len(self.bodies), len(self.answers) - 1)]
        self.bodies.append(json.loads(request.content))
        if isinstance(answer, Exception):
            raise answer
        return answer(request) if callable(answer) else answer

    def grade(self, rubric: Rubric = RUBRIC) -> Any:
        return asyncio.run(RubricGrader(rubric, self.judge).grade(TASK, answered(TASK, "A lamp stands here.")))


BUSY = httpx.Response(429, headers={"Retry-After": "7"}, text="slow down")
DOWN = httpx.Response(500, text="oops")


def test_busy_and_broken_servers_are_asked_again() -> None:
    server = Server(BUSY, DOWN, good)
    found = server.grade()
    assert found.score == 1.0
    assert found.cost_tokens == 57
    assert len(server.bodies) == 3
    assert max(server.waits_s) >= 6.9
    assert server.bodies[0]["temperature"] == 0.0
    assert server.bodies[0]["response_format"]["json_schema"]["strict"] is True


@pytest.mark.parametrize(
    ("answer", "cause", "requests"),
    [
        (DOWN, "unavailable", 3),
        (BUSY, "rate_limited", 3),
        (httpx.ConnectError("no"), "unavailable", 3),
        (httpx.ReadTimeout("slow"), "timeout", 3),
        (httpx.Response(200, text="<html>"), "malformed", 6),
        (httpx.Response(200, json={"choices": []}), "malformed", 6),
        (httpx.Response(200, json={"choices": [{"message": {"content": [1]}}]}), "malformed", 6),
        (httpx.Response(401, text="who?"), "unavailable", 1),
        (httpx.Response(400, text="maximum context length is 10"), "context_too_long", 1),
        (completion("score: 10"), "malformed", 2),
        (completion("", refusal="I cannot"), "refused", 2),
        (completion("", finish="content_filter"), "refused", 2),
        (completion('{"nonce"', finish="length"), "malformed", 2),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_fails_for_good_is_none_with_its_cause(answer: Any, cause: str, requests: int) -> None:
    server = Server(answer, max_attempts=3)
    found = server.grade()
    assert (found.score, found.cause) == (None, f"judge:{cause}")
    assert len(server.bodies) == requests
    assert found.evidence["details"]


def test_a_server_that_hangs_is_given_up() -> None:
    async def hang(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(3600)
        raise AssertionError

    judge = OpenAIJudge("http://judge/v1", "m", transport=httpx.MockTransport(hang))
    rubric = replace(RUBRIC, judging=Judging(timeout_s=0.1))
    found = asyncio.run(RubricGrader(rubric, judge).grade(TASK, answered(TASK, "A lamp.")))
    assert (found.score, found.cause) == (None, "judge:timeout")


def test_a_pinned_judge_does_not_change_unnoticed() -> None:
    pinned = Server(good, model_reported="m-2025")
    assert pinned.grade().score == 1.0
    moved = Server(good, model_reported="m-2024")
    found = moved.grade()
    assert (found.score, found.cause) == (None, "judge:version_changed")
    assert found.cost_tokens == 57
    assert len(moved.bodies) == 1
    assert pinned.judge.version != moved.judge.version != Server(good).judge.version
    reply = asyncio.run(Server(good).judge.judge(question((GREETS,))))
    assert reply.version.endswith("@m-2025")


def test_the_pace_is_kept_and_options_are_sent() -> None:
    server = Server(good, requests_per_minute=60.0, max_tokens_key="max_completion_tokens", extra_body={"top_p": 0.9})

    async def three() -> None:
        await asyncio.gather(*(server.judge.judge(question((GREETS,))) for _ in range(3)))

    asyncio.run(three())
    assert server.waits_s == [1.0, 2.0]
    assert server.bodies[0]["max_completion_tokens"] == 2048
    assert server.bodies[0]["top_p"] == 0.9
    with pytest.raises(ConfigError, match="model is empty"):
        OpenAIJudge("http://judge/v1", "")


# -- budget --------------------------------------------------------------------------------------------------------


def ask(judge: Any, n: int = 1, **changes: Any) -> list[JudgeReply | JudgeError]:
    async def all_at_once() -> list[Any]:
        asked = (judge.judge(question((GREETS,), f"text {i}", **changes)) for i in range(n))
        return list(await asyncio.gather(*asked, return_exceptions=True))

    return asyncio.run(all_at_once())


def test_an_exhausted_budget_is_a_named_cause_and_no_request() -> None:
    inner = ScriptedJudge(usage=JudgeUsage(requests=1, prompt_tokens=1000, completion_tokens=100))
    ledger = JudgeLedger(max_requests=2)
    judge = BudgetedJudge(inner, ledger, JudgePrice(prompt_usd=1.0, completion_usd=10.0))
    replies = ask(judge, 5)
    failed = [reply for reply in replies if isinstance(reply, JudgeError)]
    assert [error.cause for error in failed] == [JudgeCause.BUDGET_EXHAUSTED] * 3
    assert len(inner.requests) == 2
    assert ledger.to_json() == {
        "requests": 2,
        "prompt_tokens": 2000,
        "completion_tokens": 200,
        "cost_usd": pytest.approx(0.004),
        "failures": {"budget_exhausted": 3},
    }
    found = asyncio.run(RubricGrader(RUBRIC, judge).grade(TASK, answered(TASK, "A lamp.")))
    assert (found.score, found.cause) == (None, "judge:budget_exhausted")


@settings(max_examples=25, deadline=None)
@given(st.floats(0.0, 0.1), st.integers(1, 30))
def test_parallel_requests_never_pass_the_budget_together(limit: float, n: int) -> None:
    class Slow(ScriptedJudge):
        async def judge(self, request: Any) -> JudgeReply:
            await asyncio.sleep(0)
            return await super().judge(request)

    inner = Slow(usage=JudgeUsage(requests=1, prompt_tokens=600, completion_tokens=500))
    ledger = JudgeLedger(max_usd=limit)
    ask(BudgetedJudge(inner, ledger, JudgePrice(prompt_usd=1.0, completion_usd=4.0)), n)
    assert ledger.spent.cost_usd <= limit
    assert ledger.spent.requests == len(inner.requests)


def test_failed_requests_are_paid_for_and_counted() -> None:
    error = JudgeError(JudgeCause.MALFORMED, "x", JudgeUsage(requests=1, prompt_tokens=1_000_000))
    ledger = JudgeLedger()
    (reply,) = ask(BudgetedJudge(ScriptedJudge(fail={0: error}), ledger, JudgePrice(prompt_usd=3.0)))
    assert isinstance(reply, JudgeError)
    assert reply.usage.cost_usd == ledger.spent.cost_usd == 3.0
    assert ledger.failures == {"malformed": 1}
    with pytest.raises(ConfigError):
        JudgeLedger(max_usd=-1.0)
    with pytest.raises(ConfigError):
        JudgePrice(prompt_usd=float("nan"))


# -- cache ---------------------------------------------------------------------------------------------------------


def reply(value: float = 1.0, quote: str = "") -> JudgeReply:
    return JudgeReply(verdicts=(Verdict(criterion="a", value=value, quote=quote),), version="v")


def test_nothing_is_asked_twice_and_failures_are_not_kept(tmp_path: Path) -> None:
    inner = ScriptedJudge(fail={0: JudgeError(JudgeCause.UNAVAILABLE, "down")})
    judge = CachedJudge(inner, JudgeCache(tmp_path / "c.jsonl"))
    first, second, third = (ask(judge)[0] for _ in range(3))
    assert isinstance(first, JudgeError)
    assert isinstance(second, JudgeReply)
    assert isinstance(third, JudgeReply)
    assert (second.cached, third.cached, judge.hits) == (False, True, 1)
    assert third.usage == JudgeUsage()
    assert third.verdicts == second.verdicts
    assert len(inner.requests) == 2
    other = ScriptedJudge(name="other")
    assert isinstance(ask(CachedJudge(other, judge.cache))[0], JudgeReply)
    assert len(other.requests) == 1


def test_every_part_of_the_question_and_the_judge_is_in_the_key() -> None:
    base = question()
    keys = [cache_key("j", base), cache_key("k", base), cache_key("j", question(seed=1))]
    keys += [cache_key("j", question(answer="x")), cache_key("j", question(CRITERIA[::-1]))]
    assert len(set(keys)) == 5
    assert cache_key("j", question()) == keys[0]


@given(st.lists(st.tuples(st.text(max_size=4), st.floats(0, 1), st.text(max_size=20)), max_size=8))
def test_the_file_gives_back_what_was_put(rows: list[tuple[str, float, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.jsonl"
        cache = JudgeCache(path)
        first: dict[str, JudgeReply] = {}
        for key, value, quote in rows:
            cache.put(clean_text(key), reply(value, clean_text(quote)))
            first.setdefault(clean_text(key), reply(value, clean_text(quote)))
        again = JudgeCache(path, read_only=True)
        assert len(again) == len(first)
        for key, kept in first.items():
            found = again.get(key)
            assert found is not None
            assert found.verdicts == kept.verdicts
            assert found.cached


def test_a_torn_tail_costs_one_reply_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    cache = JudgeCache(path)
    for key in "ab":
        cache.put(key, reply())
    whole = path.read_bytes()
    for cut in range(1, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        torn = JudgeCache(path)
        assert torn.get("a") is not None
        assert torn.get("b") is None
        torn.put("c", reply(0.5))
        again = JudgeCache(path)
        assert {key for key in "abc" if again.get(key)} >= {"a", "c"}
    path.write_bytes(whole.replace(b'"value":1.0', b'"value":0.0'))
    forged = JudgeCache(path)
    assert (len(forged), forged.torn) == (0, 2)


def test_a_full_disk_loses_nothing_that_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.jsonl"
    cache = JudgeCache(path)
    cache.put("a", reply())
    before = path.read_bytes()
    real = os.write

    def nothing(descriptor: int, data: bytes) -> int:
        monkeypatch.setattr(judge_cache.os, "write", broken)
        return real(descriptor, data[:20])

    def broken(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(judge_cache.os, "write", nothing)
    with pytest.raises(OSError, match="No space"):
        cache.put("b", reply())
    assert path.read_bytes() == before
    judge = CachedJudge(ScriptedJudge(), cache)
    (given_reply,) = ask(judge)
    assert isinstance(given_reply, JudgeReply)
    assert judge.unkept == 1
    monkeypatch.setattr(judge_cache.os, "write", real)
    cache.put("b", reply())
    assert len(JudgeCache(path)) == 2


def test_processes_share_a_cache(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    mine = JudgeCache(path)
    code = (
        "import sys; from burnish.graders.judge_cache import JudgeCache; from burnish.core.judge import *\n"
        "import os; whole = os.write; os.write = lambda to, data: whole(to, data[:100])\n"  # a disk that takes little
        "cache = JudgeCache(sys.argv[1])\n"
        "for n in range(40): cache.put(f'{sys.argv[2]}{n}', JudgeReply(version='v', verdicts=("
        "Verdict(criterion='a', value=1.0, reason='x' * 2000),)))\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "xy"]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    assert all(mine.get(f"{name}{n}") is not None for name in "xy" for n in range(40))
    assert mine.torn == 0


def test_a_killed_writer_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    code = (
        "import sys; from burnish.graders.judge_cache import JudgeCache; from burnish.core.judge import *\n"
        "cache = JudgeCache(sys.argv[1])\n"
        "n = 0\n"
        "while True:\n"
        "    cache.put(str(n), JudgeReply(version='v', verdicts=(Verdict(criterion='a', value=1.0),)))\n"
        "    print(n, flush=True); n += 1\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(20)]
    process.kill()
    told += [int(line) for line in process.stdout.read().split()]
    process.wait()
    cache = JudgeCache(path)
    assert all(cache.get(str(n)) is not None for n in told)


def test_a_cache_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no judge cache"):
        JudgeCache(tmp_path / "none.jsonl", read_only=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        JudgeCache(tmp_path / "file" / "c.jsonl")
    path = tmp_path / "c.jsonl"
    JudgeCache(path)
    with pytest.raises(StoreError, match="read only"):
        JudgeCache(path, read_only=True).put("a", reply())
    with pytest.raises(ConfigError, match="version"):
        CachedJudge.offline("", JudgeCache(path))
    path.write_bytes(b"\xff\xfe\n[]\n{}\n" + b"[" * 20_000 + b"\n")
    assert JudgeCache(path).torn == 4
