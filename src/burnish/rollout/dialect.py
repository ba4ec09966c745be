"""Between what the policy said and what a program is told of it: the ids of calls, and texts that end an action."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace

from burnish.core.message import Message, Role, ToolCall
from burnish.core.sampling import Finish, Sample
from burnish.rollout.hygiene import clean_message


class Dialect:
    """Tool calls have other ids outside: unique in the episode, where the policy's own begin anew with every turn."""

    def __init__(self) -> None:
        self._calls: dict[str, ToolCall] = {}

    def as_program_knows(
        self, message: Message, node: int, *, stops: Sequence[str] = (), hides_calls: bool = False
    ) -> Message:
        """An action, the node of which is given, as the program is told of it: readable calls, and the text up to a
        stop.  A call that could not be read is part of the text.

        >>> call = ToolCall(id="call_0", name="add")
        >>> Dialect().as_program_knows(Message.assistant("", (call,)), 3).tool_calls[0].id
        'call_3_0'
        """
        told = []
        for index, call in enumerate(call for call in message.tool_calls if not call.error):
            outside = replace(call, id=f"call_{node}_{index}", arguments=dict(call.arguments))
            self._calls[outside.id] = call
            told.append(outside)
        text = message.text
        for stop in stops:
            text = text.partition(stop)[0]
        return Message.assistant(text, () if hides_calls else tuple(told))

    def as_policy_knows(self, message: Message) -> Message:
        """A message of the program with the ids and names that the policy's own calls have."""
        if message.role is Role.TOOL and message.tool_call_id in self._calls:
            call = self._calls[message.tool_call_id]
            message = replace(message, tool_call_id=call.id, name=call.name)
        elif message.tool_calls:
            calls = (replace(call, id=self._own_id(call.id)) for call in message.tool_calls)
            message = replace(message, tool_calls=tuple(calls))
        return clean_message(message)

    def _own_id(self, outside_id: str) -> str:
        return self._calls[outside_id].id if outside_id in self._calls else outside_id


def ended_at(sample: Sample, stops: Sequence[str], parse: Callable[[array[int]], Message]) -> tuple[Sample, Message]:
    """The sample up to the token with which a text of `stops` was complete, and the message in it.

    The tokens kept were each drawn from the policy's distribution after those before them, and where to end is decided
    by them alone, so their log-probabilities are exact; what was drawn after them is dropped.
    """
    ids = sample.token_ids
    if sample.message is not None and not len(ids):
        return sample, sample.message
    message = parse(ids)
    if not any(stop in message.text for stop in stops):
        return sample, message
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        text = parse(ids[:middle]).text
        low, high = (low, middle) if any(stop in text for stop in stops) else (middle + 1, high)
    ended = replace(
        sample,
        token_ids=ids[:low],
        logprobs=sample.logprobs[:low],
        versions=sample.versions[:low],
        kept=sample.kept.part(0, low) if sample.kept is not None else None,
        finish=Finish.STOP,
    )
    return ended, parse(ids[:low])
