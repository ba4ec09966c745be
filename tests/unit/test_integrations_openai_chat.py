"""The endpoint sampler against a real HTTP server on 127.0.0.1 that misbehaves on request."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.core.errors import ConfigError
from burnish.core.message import ImagePart, Message, Role, TextPart, ToolCall
from burnish.core.sampling import Finish, SampleRequest, SamplingParams
from burnish.core.tool import ToolSpec
from burnish.integrations.endpoint import EndpointCause, EndpointError, retry_after_s
from burnish.integrations.openai_chat import ChatOptions, OpenAIChatSampler
from burnish.rollout.wire import message_from_openai, message_to_openai

ADD = ToolSpec(
    name="add",
    description="Add two numbers.",
    parameters={"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
)


def completion(content: str | None = "4", finish: str = "stop", **message: Any) -> dict[str, Any]:
    """A chat completion as servers send it."""
    return {
        "choices": [
            {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish, "index": 0}
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }


Answer = tuple[int, bytes | dict[str, Any], dict[str, str]]


@dataclass
class FakeServer:
    """What the server was asked, and what it is to answer: the answers in order, the last one repeated."""

    answers: list[Answer]
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    delay_s: float = 0.0
    in_flight: int = 0
    most_in_flight: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


def _handler(server: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                index = len(server.bodies)
                server.bodies.append(body | {"path": self.path})
                server.headers.append(dict(self.headers))
                server.in_flight += 1
                server.most_in_flight = max(server.most_in_flight, server.in_flight)
            time.sleep(server.delay_s)
            status, content, headers = server.answers[min(index, len(server.answers) - 1)]
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            with server.lock:
                server.in_flight -= 1
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeServer]]:
    running: list[ThreadingHTTPServer] = []

    def start(*answers: Answer | dict[str, Any], delay_s: float = 0.0) -> FakeServer:
        normal: list[Answer] = [(200, a, {}) if isinstance(a, dict) else a for a in answers]
        server = FakeServer(answers=normal, delay_s=delay_s)
        http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        running.append(http)
        server.url = f"http://127.0.0.1:{http.server_port}/v1"
        return server

    yield start
    for http in running:
        http.shutdown()
        http.server_close()


def request(text: str = "What is 2 + 2?", **changes: Any) -> SampleRequest:
    base = SampleRequest(
        key="e/0",
        prompt_ids=array("i"),
        params=SamplingParams(temperature=0.5),
        max_tokens=32,
        seed=2**40 + 5,
        stop_ids=(),
        messages=(Message.user(text),),
    )
    return replace(base, **changes)


class Sleeps:
    """A sleep that takes no time and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked_s: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.asked_s.append(seconds)


def sampler(server: FakeServer, *, sleep: Sleeps | None = None, **options: Any) -> OpenAIChatSampler:
    return OpenAIChatSampler(server.url, "toy", "secret-key", options=ChatOptions(**options), sleep=sleep or Sleeps())


def run(endpoint: OpenAIChatSampler, *requests: SampleRequest) -> Any:
    return asyncio.run(endpoint.sample(requests))


def test_a_text_answer_comes_back_as_a_message_without_tokens(serve: Callable[..., FakeServer]) -> None:
    server = serve(completion("4"))
    endpoint = sampler(server)
    [sample] = run(endpoint, request())
    assert sample.message is not None
    assert sample.message.text == "4"
    assert len(sample.token_ids) == 0
    assert sample.finish is Finish.STOP
    body = server.bodies[0]
    assert body["path"] == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "What is 2 + 2?"}]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("toy", 32, 0.5)
    assert 0 <= body["seed"] < 2**31
    assert "tools" not in body
    assert server.headers[0]["Authorization"] == "Bearer secret-key"
    assert endpoint.usage.prompt_tokens == 7
    assert endpoint.usage.completion_tokens == 3


def test_tool_calls_go_out_and_come_back(serve: Callable[..., FakeServer]) -> None:
    call = {"id": "abc", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    server = serve(completion(None, tool_calls=[call]))
    first = ToolCall(id="c0", name="add", arguments={"a": 5})
    history = (
        Message.system("Be brief."),
        Message.user("Add."),
        Message.assistant("", (first,)),
        Message.tool("5", call=first),
    )
    [sample] = run(sampler(server), request(messages=history, tools=(ADD,)))
    assert sample.message == Message.assistant("", (ToolCall(id="abc", name="add", arguments={"a": 1}),))
    body = server.bodies[0]
    assert body["tools"] == [ADD.to_openai()]
    assert body["messages"][2] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c0", "type": "function", "function": {"name": "add", "arguments": '{"a": 5}'}}],
    }
    assert body["messages"][3] == {"role": "tool", "tool_call_id": "c0", "content": "5"}


def test_samples_keep_the_order_of_requests_and_the_limit_on_concurrency(serve: Callable[..., FakeServer]) -> None:
    server = serve(completion("x"), delay_s=0.03)
    endpoint = sampler(server, max_in_flight=3)
    samples = run(endpoint, *(request(str(i)) for i in range(9)))
    assert len(samples) == 9
    assert 2 <= server.most_in_flight <= 3
    echo = httpx.MockTransport(
        lambda r: httpx.Response(200, json=completion(json.loads(r.content)["messages"][0]["content"]))
    )
    ordered = OpenAIChatSampler("http://x/v1", "toy", transport=echo)
    assert [s.message.text for s in run(ordered, *(request(str(i)) for i in range(20)))] == [str(i) for i in range(20)]


@pytest.mark.parametrize(
    "bad",
    [
        (500, b"boom", {}),
        (503, b"", {}),
        (429, {"error": "slow down"}, {}),
        (200, b"<html>not json</html>", {}),
        (200, b"[1, 2]", {}),
        (200, {"choices": []}, {}),
        (200, {"choices": [{"message": None}]}, {}),
        (200, {"choices": [{"message": {"content": 7}}]}, {}),
        (200, b"[" * 200_000, {}),
    ],
)
def test_a_passing_failure_is_tried_again(serve: Callable[..., FakeServer], bad: Answer) -> None:
    server, sleep = serve(bad, bad, completion("4")), Sleeps()
    endpoint = sampler(server, sleep=sleep)
    [sample] = run(endpoint, request())
    assert sample.message is not None
    assert sample.message.text == "4"
    assert len(server.bodies) == 3
    assert endpoint.usage.retries == 2
    assert len(sleep.asked_s) == 2


@pytest.mark.parametrize(
    ("answer", "cause", "tries"),
    [
        ((500, b"boom", {}), EndpointCause.SERVER_ERROR, 3),
        ((429, b"", {}), EndpointCause.RATE_LIMITED, 3),
        ((200, b"garbage", {}), EndpointCause.MALFORMED_RESPONSE, 3),
        ((401, b"who are you", {}), EndpointCause.UNAUTHORIZED, 1),
        ((404, b"no such model", {}), EndpointCause.NOT_FOUND, 1),
        ((400, b"unknown field top_k", {}), EndpointCause.REFUSED, 1),
    ],
)
def test_a_lasting_failure_is_typed(
    serve: Callable[..., FakeServer], answer: Answer, cause: EndpointCause, tries: int
) -> None:
    server = serve(answer)
    with pytest.raises(EndpointError) as caught:
        run(sampler(server, max_attempts=3), request())
    assert caught.value.cause is cause
    assert caught.value.attempts == tries
    assert len(server.bodies) == tries
    assert "secret-key" not in str(caught.value)
    assert server.url in str(caught.value)


def test_back_off_grows_and_stays_under_its_bound(serve: Callable[..., FakeServer]) -> None:
    sleep = Sleeps()
    with pytest.raises(EndpointError):
        run(sampler(serve((500, b"", {})), sleep=sleep, max_attempts=8, backoff_s=1.0, max_backoff_s=4.0), request())
    bounds = [min(4.0, 2.0**k) for k in range(1, 8)]
    assert len(sleep.asked_s) == 7
    assert all(0.0 <= asked <= bound for asked, bound in zip(sleep.asked_s, bounds, strict=True))
    assert len(set(sleep.asked_s)) == 7


def test_retry_after_is_honoured_by_every_request_and_capped(serve: Callable[..., FakeServer]) -> None:
    sleep = Sleeps()
    server = serve((429, b"", {"Retry-After": "9"}), completion("4"))
    run(sampler(server, sleep=sleep, backoff_s=0.0), request())
    assert sleep.asked_s == [pytest.approx(9.0, abs=0.2)]
    hurried = Sleeps()
    server = serve((429, b"", {"Retry-After": "86400"}), completion("4"))
    run(sampler(server, sleep=hurried, backoff_s=0.0, max_retry_after_s=2.0), request())
    assert hurried.asked_s == [pytest.approx(2.0, abs=0.2)]
    # One in flight at a time: the second request has met no limit itself, and waits all the same.
    shared = Sleeps()
    server = serve((429, b"", {"Retry-After": "9"}), completion("4"))
    run(sampler(server, sleep=shared, backoff_s=0.0, max_in_flight=1), request("a"), request("b"))
    assert len(shared.asked_s) >= 2


def test_a_failed_request_ends_the_batch(serve: Callable[..., FakeServer]) -> None:
    server = serve((401, b"", {}), completion("4"), delay_s=0.05)
    with pytest.raises(EndpointError, match="unauthorized"):
        run(sampler(server, max_in_flight=1), *(request(str(i)) for i in range(50)))
    assert len(server.bodies) == 1


def test_a_dead_server_and_a_slow_one() -> None:
    endpoint = OpenAIChatSampler("http://127.0.0.1:9/v1", "toy", options=ChatOptions(max_attempts=2), sleep=Sleeps())
    with pytest.raises(EndpointError) as caught:
        run(endpoint, request())
    assert caught.value.cause is EndpointCause.UNREACHABLE

    def never(_: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow")

    slow = OpenAIChatSampler(
        "http://x/v1", "toy", options=ChatOptions(max_attempts=1), transport=httpx.MockTransport(never)
    )
    with pytest.raises(EndpointError) as timed_out:
        run(slow, request())
    assert timed_out.value.cause is EndpointCause.TIMEOUT


def test_an_endless_answer_is_cut(serve: Callable[..., FakeServer]) -> None:
    server = serve((200, b"x" * 100_000, {}))
    with pytest.raises(EndpointError, match="longer than 1000 bytes"):
        run(sampler(server, max_attempts=1, max_response_bytes=1000), request())


def test_length_and_full_context_are_not_errors(serve: Callable[..., FakeServer]) -> None:
    [cut] = run(sampler(serve(completion("4 or per", "length"))), request())
    assert cut.finish is Finish.LENGTH
    full: Answer = (400, {"error": {"code": "context_length_exceeded", "message": "too long"}}, {})
    server = serve(full)
    [sample] = run(sampler(server), request())
    assert sample.finish is Finish.LENGTH
    assert sample.message == Message.assistant("")
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("{broken", "cannot be read"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": 1e999}', "too large"),
        ('{"a": 1, "a": 2}', "repeated"),
        ("[1]", "a JSON object"),
        ("[" * 100_000, "cannot be read"),
        ('{"a": ' + "9" * 5000 + "}", "cannot be read"),
    ],
)
def test_unreadable_arguments_are_the_models_and_named(arguments: str, says: str) -> None:
    message = message_from_openai({"tool_calls": [{"id": "1", "function": {"name": "add", "arguments": arguments}}]})
    [call] = message.tool_calls
    assert call.name == "add"
    assert call.arguments == {}
    assert says in call.error


def test_calls_without_id_or_function_and_surrogates() -> None:
    message = message_from_openai(
        {
            "content": "a\ud800",
            "tool_calls": [
                {"function": {"name": "f", "arguments": '{"x": ["\\ud800"]}'}},
                {"id": "1"},
                {"function": {"arguments": "{}"}},
                "text",
                {"function": {"name": "g", "arguments": {"y": 1}}},
            ],
        },
        turn=2,
    )
    assert message.text == "a\ufffd"
    assert [call.id for call in message.tool_calls] == ["call_2_0", "1", "call_2_2", "call_2_3", "call_2_4"]
    assert [bool(call.error) for call in message.tool_calls] == [False, True, True, True, False]
    assert message.tool_calls[0].arguments == {"x": ["\ufffd"]}
    assert message.tool_calls[4].arguments == {"y": 1}
    assert message_to_openai(message)["tool_calls"][1]["function"]["name"] == "unreadable"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["content", "refusal", "tool_calls", "role"]), json_values))
def test_any_message_is_read_or_refused_with_a_typed_error(data: dict[str, Any]) -> None:
    try:
        message = message_from_openai(data)
    except (TypeError, ValueError):
        return
    assert message.role is Role.ASSISTANT
    message.text.encode("utf-8")


@settings(max_examples=80, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5),
        st.integers(),
        max_size=3,
    ),
)
def test_what_is_sent_is_read_back(text: str, arguments: dict[str, int]) -> None:
    message = Message.assistant(text, (ToolCall(id="c", name="f", arguments=arguments),))
    assert message_from_openai(json.loads(json.dumps(message_to_openai(message)))) == message


def test_images_need_a_loader() -> None:
    image = ImagePart(sha256="ab" * 32, media_type="image/png", width_px=1, height_px=1)
    message = Message(role=Role.USER, parts=(TextPart(text="What is it?"), image))
    with pytest.raises(ConfigError, match="load_image"):
        message_to_openai(message)
    data = message_to_openai(message, lambda part: b"png")
    assert data["content"][1] == {"type": "image_url", "image_url": {"url": "data:image/png;base64,cG5n"}}


def test_a_request_without_messages_is_refused() -> None:
    endpoint = OpenAIChatSampler("http://x/v1", "toy", transport=httpx.MockTransport(lambda r: httpx.Response(200)))
    with pytest.raises(ConfigError, match="no messages"):
        asyncio.run(endpoint.sample([request(messages=())]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: OpenAIChatSampler("127.0.0.1:80", "toy"),
        lambda: OpenAIChatSampler("http://x", ""),
        lambda: ChatOptions(max_attempts=0),
        lambda: ChatOptions(timeout_s=float("nan")),
    ],
)
def test_wrong_settings_are_refused_at_once(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError):
        make()


def test_retry_after_dates() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    assert retry_after_s("Tue, 01 Jan 2030 00:00:30 GMT", now) == 30.0
    assert retry_after_s("Tue, 01 Jan 2020 00:00:30 GMT", now) == 0.0
    assert retry_after_s("nan") is None
    assert retry_after_s("") is None
    assert retry_after_s("-5") == 0.0
