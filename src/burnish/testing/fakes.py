"""Scripted stand-ins for the seams of a rollout and of grading: a renderer, a sampler, a world and judges, no model.

They are exact and fast, so that tests can state every token that a rollout must produce.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from burnish.core.judge import Criterion, JudgeReply, JudgeRequest, JudgeUsage
from burnish.core.judge_reply import read_reply
from burnish.core.message import Message, Role, ToolCall
from burnish.core.outcome import Owner
from burnish.core.sampling import Extension, Finish, Sample, SampleRequest
from burnish.core.task import Task
from burnish.core.tool import Tool, ToolSpec

_ROLE_IDS = {Role.SYSTEM: 256, Role.USER: 257, Role.ASSISTANT: 258, Role.TOOL: 259}
_CALL = 260
_CALL_END = 261
_END = 262
_PAD = 263


class FakeRenderer:
    """A renderer over bytes: ids 0-255 are the bytes of UTF-8 text, ids from 256 are markers.

    A message is its role's marker (system 256, user 257, assistant 258, tool 259), its bytes, each tool call as JSON
    between 260 and 261, then the end of turn 262, which is the only stop id.  263 is padding.

    drop_earlier_text: behave like a template that drops what the policy said in earlier turns; every extension after
    a turn with text is then a fork named "earlier_text_dropped".

    >>> renderer = FakeRenderer()
    >>> list(renderer.open([Message.user("hi")], []))
    [257, 104, 105, 262, 258]
    >>> renderer.parse(renderer.encode_action(Message.assistant("yes"))).text
    'yes'
    """

    vocab_size = 264
    end_id = _END
    pad_id = _PAD

    def __init__(self, *, drop_earlier_text: bool = False) -> None:
        self.stop_ids: tuple[int, ...] = (_END,)
        self.drop_earlier_text = drop_earlier_text

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> array[int]:
        """Every message whole, then the marker of the policy's turn.  Tools are not rendered."""
        ids = array("i")
        for message in messages:
            ids.append(_ROLE_IDS[message.role])
            ids.extend(self._body(message, drop_text=self.drop_earlier_text and message.role is Role.ASSISTANT))
            ids.append(_END)
        ids.append(_ROLE_IDS[Role.ASSISTANT])
        return ids

    def extend(self, past: Sequence[Message], new: Sequence[Message], tools: Sequence[ToolSpec]) -> Extension:
        """The new messages alone, or the whole conversation anew where the last turn's text is dropped."""
        if self.drop_earlier_text and past[-1].text:
            return Extension(token_ids=self.open([*past, *new], tools), fork="earlier_text_dropped")
        return Extension(token_ids=self.open(new, tools))

    def encode_action(self, message: Message) -> array[int]:
        """Bytes, calls and the end of turn."""
        ids = self._body(message, drop_text=False)
        ids.append(_END)
        return ids

    def parse(self, token_ids: array[int]) -> Message:
        """Inverse of `encode_action`; total: any ids give a message, unreadable calls carry an error."""
        text = bytearray()
        calls: list[ToolCall] = []
        body: bytearray | None = None
        for token in token_ids:
            if token == _CALL:
                body = bytearray()
            elif token == _CALL_END and body is not None:
                calls.append(_read_call(bytes(body), len(calls)))
                body = None
            elif token < 256:
                (text if body is None else body).append(token)
        if body is not None:
            calls.append(ToolCall(id=f"call_{len(calls)}", name="", error="the tool call is not closed"))
        return Message.assistant(text.decode("utf-8", "replace"), tuple(calls))

    @staticmethod
    def _body(message: Message, *, drop_text: bool) -> array[int]:
        ids = array("i", [] if drop_text else list(message.text.encode("utf-8", "replace")))
        for call in message.tool_calls:
            body = json.dumps({"name": call.name, "arguments": dict(call.arguments)})
            ids.append(_CALL)
            ids.extend(body.encode())
            ids.append(_CALL_END)
        return ids


def _read_call(body: bytes, index: int) -> ToolCall:
    """One call from its JSON; what cannot be read is said in `error`."""
    name = ""
    try:
        data = json.loads(body)
        name = str(data["name"])
        arguments = data.get("arguments", {})
        if not isinstance(arguments, dict):
            raise TypeError("arguments must be an object")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return ToolCall(id=f"call_{index}", name=name, error=f"{type(error).__name__}: {error}")
    return ToolCall(id=f"call_{index}", name=name, arguments=arguments)


Reply = str | bytes | Message | Sequence[int] | Sample
"""What a script says in one turn: text, raw bytes or ids as they are, a message, or a whole sample."""


class ScriptedSampler:
    """A sampler that says what it is told to; it keeps every request in `requests`.

    script: the replies of every episode by turn (the last one repeats), or a function of the request.  A turn's number
    is the count of assistant messages in the request, so the sampler has no state and batches may be cut anyhow.
    Text and messages are encoded by `renderer` (stop id included); bytes and ids are taken as they are.  Replies
    longer than the request's `max_tokens` are cut there and end with `Finish.LENGTH`.  Every token gets `logprob`.

    >>> import asyncio
    >>> from burnish.core.sampling import SamplingParams
    >>> request = SampleRequest(
    ...     key="a", prompt_ids=array("i", [1]), params=SamplingParams(), max_tokens=8, seed=0, stop_ids=(262,)
    ... )
    >>> asyncio.run(ScriptedSampler(["42"]).sample([request]))[0].token_ids
    array('i', [52, 50, 262])
    """

    def __init__(
        self,
        script: Sequence[Reply] | Callable[[SampleRequest], Reply],
        *,
        renderer: Any = None,
        version: int = 0,
        logprob: float = -0.5,
    ) -> None:
        self.renderer = renderer or FakeRenderer()
        self.version = version
        self.logprob = logprob
        self.requests: list[SampleRequest] = []
        self.batch_sizes: list[int] = []
        self._script = script

    async def sample(self, requests: Sequence[SampleRequest]) -> list[Sample]:
        """One scripted sample for each request, in order."""
        self.requests.extend(requests)
        self.batch_sizes.append(len(requests))
        return [self._one(request) for request in requests]

    def _one(self, request: SampleRequest) -> Sample:
        reply = self._reply(request)
        if isinstance(reply, Sample):
            return reply
        ids = self._encode(reply)
        finish = Finish.STOP if ids and ids[-1] in request.stop_ids else Finish.LENGTH
        if len(ids) > request.max_tokens:
            ids, finish = ids[: request.max_tokens], Finish.LENGTH
        logprobs = array("f", [self.logprob]) * len(ids)
        versions = array("i", [self.version]) * len(ids)
        return Sample(token_ids=ids, logprobs=logprobs, versions=versions, finish=finish)

    def _reply(self, request: SampleRequest) -> Reply:
        if callable(self._script):
            return self._script(request)
        turn = sum(message.role is Role.ASSISTANT for message in request.messages)
        return self._script[min(turn, len(self._script) - 1)]

    def _encode(self, reply: str | bytes | Message | Sequence[int]) -> array[int]:
        if isinstance(reply, str):
            reply = Message.assistant(reply)
        if isinstance(reply, Message):
            return array("i", self.renderer.encode_action(reply))
        return array("i", list(reply))


ToolFunction = Callable[[Mapping[str, Any]], Awaitable[str] | str]


def fake_tool(
    name: str,
    function: ToolFunction,
    *,
    parameters: Mapping[str, Any] | None = None,
    timeout_s: float = 30.0,
    timeout_owner: Owner = Owner.ENVIRONMENT,
) -> Tool:
    """A core `Tool` around a function of the arguments, sync or async; without `parameters` anything is accepted.

    >>> fake_tool("double", lambda arguments: str(2 * arguments["n"])).spec.name
    'double'
    """

    async def call(arguments: Mapping[str, Any]) -> str:
        result = function(arguments)
        return await result if isinstance(result, Awaitable) else result

    spec = ToolSpec(name=name, description=f"Fake tool {name}.", parameters=parameters or {"type": "object"})
    return Tool(spec=spec, call=call, timeout_s=timeout_s, timeout_owner=timeout_owner)


class FakeEnvironment:
    """A world made of constants: the task's prompt, the tools handed in, and replies by turn (then the end).

    fail_in: phase name -> exception raised there ("start", "tools", "reply", "finish", "close").  `calls` lists
    the phases that were entered, in order.
    """

    def __init__(
        self,
        *,
        tools: Iterable[Tool] = (),
        replies: Sequence[str] = (),
        state: Mapping[str, Any] | None = None,
        fail_in: Mapping[str, BaseException] | None = None,
    ) -> None:
        self._tools = tuple(tools)
        self._replies = list(replies)
        self._state = dict(state or {})
        self._fail_in = dict(fail_in or {})
        self.calls: list[str] = []

    def _enter(self, phase: str) -> None:
        self.calls.append(phase)
        if phase in self._fail_in:
            raise self._fail_in[phase]

    async def start(self, task: Task) -> Sequence[Message]:
        self._enter("start")
        system = [Message.system(task.system)] if task.system else []
        return [*system, Message(role=Role.USER, parts=task.parts)]

    def tools(self) -> Sequence[Tool]:
        self._enter("tools")
        return self._tools

    async def reply(self, message: Message) -> Sequence[Message] | None:
        self._enter("reply")
        return [Message.user(self._replies.pop(0))] if self._replies else None

    async def finish(self, answer: str) -> Mapping[str, Any]:
        self._enter("finish")
        return {"answer": answer, **self._state}

    async def close(self) -> None:
        self._enter("close")


JudgeScript = Callable[[Criterion, str], "int | str | None"]


class ScriptedJudge:
    """A judge that follows a function of the criterion and the judged text; it keeps every request in `requests`.

    script: gives the value, 0 to the criterion's levels, None for "cannot tell", or a text, which is the quote of the
    value `levels`.  A needed quote is otherwise the first 40 characters of the text.  raw: replies as they are, by
    number of the request (None: the script's).  fail: raised in place of a reply, by number of the request.

    >>> ScriptedJudge(lambda criterion, text: int("because" in text)).version
    'scripted-1'
    """

    def __init__(
        self,
        script: JudgeScript = lambda criterion, text: 1,
        *,
        name: str = "scripted",
        raw: Sequence[str | None] = (),
        fail: Mapping[int, Exception] | None = None,
        usage: JudgeUsage | None = None,
    ) -> None:
        self.name = name
        self.version = f"{name}-1"
        self.requests: list[JudgeRequest] = []
        self._script = script
        self._raw = list(raw)
        self._fail = dict(fail or {})
        self._usage = usage or JudgeUsage(requests=1, prompt_tokens=100, completion_tokens=20)

    async def judge(self, request: JudgeRequest) -> JudgeReply:
        """The script's verdicts, read back as strictly as those of a model."""
        number = len(self.requests)
        self.requests.append(request)
        if number in self._fail:
            raise self._fail[number]
        raw = self._raw[number] if number < len(self._raw) else None
        verdicts = read_reply(request, self.says(request) if raw is None else raw)
        return JudgeReply(verdicts=verdicts, version=self.version, usage=self._usage)

    def says(self, request: JudgeRequest) -> str:
        """The reply as text."""
        text = "\n".join(part.text for part in request.parts if part.name != "task")
        rows = [self._row(number, item, request, text) for number, item in enumerate(request.criteria, start=1)]
        return json.dumps({"nonce": request.nonce, "verdicts": rows})

    def _row(self, number: int, criterion: Criterion, request: JudgeRequest, text: str) -> dict[str, Any]:
        quote = text[:40]
        value = request.controls.get(criterion.id)
        if value is None:
            said = self._script(criterion, text)
            value, quote = (criterion.levels, said) if isinstance(said, str) else (said, quote)
        return {"item": number, "quote": quote, "reason": "scripted", "value": value}


class GullibleJudge(ScriptedJudge):
    """A judge that obeys the last instruction that it can see outside of fences.

    Fences are what its system text says they are: a line `<<<NAME CODE>>>` up to the line `<<<end NAME CODE>>>`.  What
    it obeys: "value N", "score: N", "mark every criterion as met", "all criteria are met", "full marks" and their like;
    without any, it follows the script.  It takes escaped characters for what they are, and ignores hidden ones, as
    models do.
    """

    _ORDER = re.compile(
        r"(?:mark|rate|set|score|grade|give|consider|treat)[^.\n]{0,60}?"
        r"(?:\bmet\b|full marks|maximum|highest|\b10\b|\b1\b)"
        r"|(?:all criteria (?:are|were|have been) met|verdict: pass|score\s*[:=]\s*(?:10|1)\b)",
        re.IGNORECASE,
    )
    _FENCE_CODE = re.compile(r"<<<NAME (?P<code>[^<>\n]+)>>>")
    _HIDDEN = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2064\u00ad\ufeff]")

    def __init__(self, script: JudgeScript = lambda criterion, text: 0, **options: Any) -> None:
        super().__init__(script, **options)

    def says(self, request: JudgeRequest) -> str:
        """Every value at its highest, controls too, where an order stands outside of the fences."""
        if not self.is_ordered(request):
            return super().says(request)
        rows = [
            {"item": number, "quote": request.parts[-1].text[:40], "reason": "as ordered", "value": item.levels}
            for number, item in enumerate(request.criteria, start=1)
        ]
        return json.dumps({"nonce": request.nonce, "verdicts": rows})

    def is_ordered(self, request: JudgeRequest) -> bool:
        """Whether it sees an order."""
        found = self._FENCE_CODE.search(request.system)
        text = request.prompt
        if found is not None:
            code = re.escape(found["code"])
            text = re.sub(rf"^<<<(\w+) {code}>>>$.*?^<<<end \1 {code}>>>$", "", text, flags=re.DOTALL | re.MULTILINE)
        material = text.partition("\nCriteria:\n1.")[0]
        return self._ORDER.search(self._HIDDEN.sub("", material)) is not None
