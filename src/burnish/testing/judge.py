"""Conformance of a judge: inherit `JudgeConformance` in a test file, name how the judge is made, and run pytest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from burnish.core.judge import Criterion, Judge, JudgedPart, JudgeError, JudgeReply, JudgeRequest
from burnish.core.judge_prompt import NonceSource, build_request, fresh_nonce
from burnish.testing.fakes import GullibleJudge, ScriptedJudge

GREETS = Criterion(id="greets", text="The answer greets the reader.")
THANKS = Criterion(id="thanks", text="The answer thanks the reader.")
QUOTED = Criterion(id="names_price", text="The answer names a price.", needs_evidence=True)
GRADED = Criterion(id="is_clear", text="The answer is clear.", levels=4)
CRITERIA = (GREETS, THANKS, QUOTED, GRADED)
ANSWER = "Good morning. The lamp costs 12 dollars, and delivery takes two days."

JudgeText = Callable[[JudgeRequest], str]
"""What the model behind a judge says to a question."""


def question(
    criteria: Sequence[Criterion] = CRITERIA,
    answer: str = ANSWER,
    *,
    seed: int = 0,
    controls: bool = True,
    nonce: NonceSource = fresh_nonce,
) -> JudgeRequest:
    """A question as a rubric asks it."""
    parts = [JudgedPart(name="task", text="What does the lamp cost?"), JudgedPart(name="answer", text=answer)]
    return build_request(parts, criteria, seed=seed, controls=controls, nonce=nonce)


class JudgeConformance:
    """The laws of judges, as tests.

    ```python
    class TestMyJudge(JudgeConformance):
        def make_judge(self, says: JudgeText) -> Judge:
            return MyJudge(transport=that_answers(says))
    ```

    `make_judge(says)` gives a judge over a model that answers `says(request)`.  A real model, which cannot be told what
    to say, ignores `says` and sets `is_scripted = False`; then only the laws of well-formed replies are tested.
    """

    is_scripted = True

    def make_judge(self, says: JudgeText) -> Judge:
        """A fresh judge."""
        raise NotImplementedError(f"{type(self).__name__} must override make_judge")

    def good(self, request: JudgeRequest) -> str:
        """A reply in due form: all values at their highest, controls as they should be."""
        return ScriptedJudge(lambda criterion, text: criterion.levels).says(request)

    def reply(self, request: JudgeRequest, says: JudgeText | None = None) -> JudgeReply:
        """What a fresh judge replies."""
        return asyncio.run(self.make_judge(says or self.good).judge(request))

    def refusal(self, says: JudgeText, request: JudgeRequest | None = None) -> JudgeError | None:
        """The JudgeError that comes of what the model says; None where a reply came."""
        try:
            self.reply(request or question(), says)
        except JudgeError as error:
            return error
        return None

    def test_one_verdict_for_each_criterion_in_order(self) -> None:
        """Controls are left out."""
        request = question()
        verdicts = self.reply(request).verdicts
        wanted = [item.id for item in request.criteria if item.id not in request.controls]
        assert [verdict.criterion for verdict in verdicts] == wanted

    def test_values_lie_in_the_unit_interval(self) -> None:
        for verdict in self.reply(question()).verdicts:
            assert verdict.value is None or 0.0 <= verdict.value <= 1.0

    def test_replies_name_their_version(self) -> None:
        judge = self.make_judge(self.good)
        assert judge.name
        assert judge.version
        assert asyncio.run(judge.judge(question())).version

    def test_usage_counts_the_request(self) -> None:
        usage = self.reply(question()).usage
        assert usage.requests == 1
        assert usage.prompt_tokens >= 0
        assert usage.completion_tokens >= 0

    def test_concurrent_questions_keep_apart(self) -> None:
        requests = [question((item,)) for item in CRITERIA]

        async def all_at_once() -> list[JudgeReply]:
            judge = self.make_judge(self.good)
            return list(await asyncio.gather(*(judge.judge(request) for request in requests)))

        for request, reply in zip(requests, asyncio.run(all_at_once()), strict=True):
            wanted = [item.id for item in request.criteria if item.id not in request.controls]
            assert [verdict.criterion for verdict in reply.verdicts] == wanted

    def test_garbage_is_an_error_and_no_verdict(self) -> None:
        if self.is_scripted:
            for text in (
                "",
                "yes",
                "{}",
                "[]",
                "[" * 50_000,
                '{"nonce": "x"}',
                "score: 10",
                "null",
                '{"verdicts": []}',
            ):
                assert self.refusal(lambda request, text=text: text) is not None, f"{text[:40]!r} was taken"  # type: ignore[misc]

    def test_a_reply_without_the_nonce_is_refused(self) -> None:
        if self.is_scripted:
            says = self.good
            assert self.refusal(lambda request: says(request).replace(request.nonce, "0" * 32)) is not None

    def test_a_judge_that_praises_everything_trips_a_control(self) -> None:
        if self.is_scripted:

            class Flatterer(GullibleJudge):
                def is_ordered(self, request: JudgeRequest) -> bool:
                    return True

            assert self.refusal(Flatterer().says) is not None

    def test_an_invented_quote_is_refused(self) -> None:
        if self.is_scripted:
            says = self.good
            quote = ANSWER[:40]
            assert (
                self.refusal(lambda request: says(request).replace(quote, "It costs nine hundred euros.")) is not None
            )
