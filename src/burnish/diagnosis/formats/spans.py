"""OpenTelemetry GenAI spans: OTLP JSON (`resourceSpans`), a list of spans, or one span a line.

A conversation is rebuilt from the child spans of one trace: every `chat` span brings the messages it was shown and the
ones it produced, every `execute_tool` span the result of a call that no later `chat` span shows.  Wrapper spans
(`invoke_agent`) are used only where no `chat` span holds content.  Parents are never followed, so cycles do no harm.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from burnish.diagnosis.formats.chat import arguments_json, arguments_of, passed_of, role_of, tools_of, write_tool
from burnish.diagnosis.plain import MAX_ITEMS, RecordError, bounded, listed, mapping, name_of, parse_json, worded
from burnish.diagnosis.record import Call, Item, Record

INPUT, OUTPUT, SYSTEM = "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions"
_VALUES = ("stringValue", "intValue", "doubleValue", "boolValue")


def spans_of(value: Any) -> Iterator[dict[str, Any]]:
    """Every span in an OTLP export, a list or a single span, its attributes as one mapping."""
    if isinstance(value, list):
        for row in value[:MAX_ITEMS]:
            yield from spans_of(row)
    elif isinstance(value, Mapping):
        nested = next((k for k in ("resourceSpans", "scopeSpans", "spans") if isinstance(value.get(k), list)), "")
        if nested:
            for row in value[nested][:MAX_ITEMS]:
                if isinstance(row, Mapping):
                    yield from spans_of(row)
        elif "attributes" in value:
            yield _span(value)


def _span(value: Mapping[str, Any]) -> dict[str, Any]:
    given = value["attributes"]
    attributes: dict[str, Any] = {}
    if isinstance(given, Mapping):
        attributes = {str(key): item for key, item in given.items()}
    elif isinstance(given, list):
        for pair in given[:MAX_ITEMS]:
            if isinstance(pair, Mapping) and name_of(pair.get("key")):
                attributes[name_of(pair["key"])] = _otlp(pair.get("value"))
    context = value.get("context")
    context = context if isinstance(context, Mapping) else {}
    return {
        "trace": name_of(value.get("traceId") or value.get("trace_id") or context.get("trace_id")),
        "start": _time(value.get("startTimeUnixNano", value.get("start_time"))),
        "attributes": attributes,
    }


def _otlp(value: Any, depth: int = 20) -> Any:
    if not isinstance(value, Mapping) or depth <= 0:
        return value
    for key in _VALUES:
        if key in value:
            return value[key]
    array = value.get("arrayValue")
    if isinstance(array, Mapping) and isinstance(array.get("values"), list):
        return [_otlp(item, depth - 1) for item in array["values"][:MAX_ITEMS]]
    pairs = value.get("kvlistValue")
    if isinstance(pairs, Mapping) and isinstance(pairs.get("values"), list):
        rows = [pair for pair in pairs["values"][:MAX_ITEMS] if isinstance(pair, Mapping)]
        return {name_of(pair.get("key")): _otlp(pair.get("value"), depth - 1) for pair in rows}
    return value


def _time(value: Any) -> str:
    """A key that sorts: nanoseconds are padded, ISO texts sort as they are."""
    text = name_of(value)
    return text.zfill(24) if text.isdigit() else text


def read_spans(value: Any, position: int) -> list[Record]:
    """One record for each trace.  Raises RecordError where no span holds messages."""
    traces: dict[str, list[dict[str, Any]]] = {}
    for span in spans_of(value):
        traces.setdefault(span["trace"], []).append(span)
    records = [_record(trace or str(position), spans) for trace, spans in traces.items()]
    kept = [record for record in records if record.items]
    if not kept:
        raise RecordError(f"no span holds {INPUT} or {OUTPUT}; content is opt-in where spans are recorded")
    return kept


def _record(trace: str, spans: list[dict[str, Any]]) -> Record:
    spans = sorted(spans, key=lambda span: span["start"])
    chats = [s["attributes"] for s in spans if _operation(s) in ("chat", "text_completion", "generate_content")]
    shown = [c for c in chats if INPUT in c or OUTPUT in c]
    if not shown:
        shown = [s["attributes"] for s in spans if INPUT in s["attributes"] or OUTPUT in s["attributes"]]
    items = _conversation(shown, _results(spans))
    extra: Mapping[str, Any] = next((s["attributes"] for s in spans if "burnish.reward" in s["attributes"]), {})
    reward, passed = passed_of({"reward": extra.get("burnish.reward"), "passed": extra.get("burnish.passed")})
    tools = next((c["gen_ai.tool.definitions"] for c in shown if "gen_ai.tool.definitions" in c), None)
    numbered = tuple(_numbered(item, number) for number, item in enumerate(items, start=1))
    return Record(id=trace, items=numbered, source="otel", tools=tools_of(tools), reward=reward, passed=passed)


def _operation(span: Mapping[str, Any]) -> str:
    return name_of(span["attributes"].get("gen_ai.operation.name"))


def _numbered(item: Item, number: int) -> Item:
    return replace(item, index=number)


def _results(spans: Sequence[Mapping[str, Any]]) -> dict[str, Item]:
    """Results by the id of their call."""
    results = {}
    for span in spans:
        attributes = span["attributes"]
        call_id = name_of(attributes.get("gen_ai.tool.call.id"))
        if _operation(span) == "execute_tool" and call_id and "gen_ai.tool.call.result" in attributes:
            results[call_id] = Item(
                index=0,
                role="tool",
                text=worded(attributes["gen_ai.tool.call.result"]),
                call_id=call_id,
                name=name_of(attributes.get("gen_ai.tool.name")),
                is_error=True if "error.type" in attributes else None,
            )
    return results


def _conversation(chats: Sequence[Mapping[str, Any]], results: Mapping[str, Item]) -> list[Item]:
    items: list[Item] = []
    for chat in chats:
        shown = _messages(chat.get(SYSTEM), "system") + _messages(chat.get(INPUT), "user")
        keys = [_key(item) for item in items]
        fresh = [item for item in shown if _key(item) not in keys]
        items += [item for item in fresh if len(items) < MAX_ITEMS]
        items += _messages(chat.get(OUTPUT), "assistant")
        _answer(items, results, done={item.call_id for item in items if item.role == "tool"})
    return items


def _answer(items: list[Item], results: Mapping[str, Item], done: set[str]) -> None:
    for call in [call for item in items for call in item.calls]:
        if call.id in results and call.id not in done:
            items.append(results[call.id])
            done.add(call.id)


def _key(item: Item) -> tuple[str, str, tuple[str, ...], str]:
    return item.role, item.text if item.role != "tool" else "", tuple(call.id for call in item.calls), item.call_id


def _messages(value: Any, role: str) -> list[Item]:
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except RecordError:
            return [Item(index=0, role=role, text=worded(value))]
    if role == "system" and isinstance(value, list) and value and all(_is_part(part) for part in value):
        value = [{"role": "system", "parts": value}]
    return [item for row in listed(value, "messages") for item in _message(mapping(row, "a message"), role)]


def _is_part(part: Any) -> bool:
    return isinstance(part, Mapping) and "type" in part and "role" not in part


def _message(row: Mapping[str, Any], role: str) -> list[Item]:
    role = role_of(row.get("role", role))
    parts = row.get("parts", row.get("content"))
    if not isinstance(parts, list):
        return [Item(index=0, role=role, text=worded(parts))]
    texts: list[str] = []
    calls: list[Call] = []
    answers: list[Item] = []
    for part in parts[:MAX_ITEMS]:
        kind = part.get("type") if isinstance(part, Mapping) else "text"
        if kind == "tool_call":
            arguments, raw = arguments_of(part.get("arguments"))
            calls.append(Call(id=name_of(part.get("id")), name=name_of(part.get("name")), arguments=arguments, raw=raw))
        elif kind == "tool_call_response":
            text = worded(part.get("response", part.get("result")))
            answers.append(Item(index=0, role="tool", text=text, call_id=name_of(part.get("id"))))
        elif kind != "reasoning":
            texts.append(worded([part]) if isinstance(part, Mapping | str) else worded(part))
    items = answers
    if texts or calls or not answers:
        items = [Item(index=0, role=role, text="".join(texts), calls=tuple(calls)), *answers]
    return items


def write_spans(record: Record) -> dict[str, Any]:
    """The record as one OTLP export with a `chat` span per agent turn and an `execute_tool` span per result.

    Lost: labels, references, source indices; a record whose last message is the user's or a tool's ends in a `chat`
    span without output.
    """
    spans: list[dict[str, Any]] = []
    shown: list[Item] = []
    for item in record.items:
        if item.role == "assistant":
            spans.append(_chat_span(record, shown, item))
        elif item.role == "tool" and item.call_id:
            spans.append(_tool_span(item))
        shown.append(item)
    if record.items and record.items[-1].role != "assistant":
        spans.append(_chat_span(record, shown, None))
    for number, span in enumerate(spans):
        span |= {"traceId": record.id, "spanId": f"{number:016x}", "startTimeUnixNano": str(number)}
    return {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}


def _chat_span(record: Record, shown: Sequence[Item], item: Item | None) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        INPUT: json.dumps([_parts(one) for one in shown], ensure_ascii=False),
    }
    if item is not None:
        attributes[OUTPUT] = json.dumps([_parts(item)], ensure_ascii=False)
    if record.tools:
        definitions = [write_tool(tool) for tool in record.tools]
        attributes["gen_ai.tool.definitions"] = json.dumps(definitions, ensure_ascii=False)
    if record.reward is not None:
        attributes["burnish.reward"] = record.reward
    if record.passed is not None:
        attributes["burnish.passed"] = record.passed
    return {"name": "chat", "attributes": [_pair(key, value) for key, value in attributes.items()]}


def _tool_span(item: Item) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": item.name,
        "gen_ai.tool.call.id": item.call_id,
        "gen_ai.tool.call.result": item.text,
    }
    if item.is_error:
        attributes["error.type"] = "tool_error"
    return {"name": f"execute_tool {item.name}", "attributes": [_pair(k, v) for k, v in attributes.items()]}


def _pair(key: str, value: Any) -> dict[str, Any]:
    kind = "boolValue" if isinstance(value, bool) else "doubleValue" if isinstance(value, float) else "stringValue"
    return {"key": key, "value": {kind: value}}


def _parts(item: Item) -> dict[str, Any]:
    if item.role == "tool":
        part = {"type": "tool_call_response", "id": item.call_id, "response": item.text}
        return {"role": "tool", "parts": [part]}
    parts: list[dict[str, Any]] = [{"type": "text", "content": item.text}] if item.text else []
    for call in item.calls:
        parts.append(
            {"type": "tool_call", "id": call.id, "name": call.name, "arguments": bounded(arguments_json(call))}
        )
    return {"role": item.role, "parts": parts}
