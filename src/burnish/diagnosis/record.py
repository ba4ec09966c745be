"""The neutral record that every format is read into: what was said and called, in the order and count of its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from burnish.diagnosis.taxonomy import Category, Fault

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A tool call.  `Call(id="c1", name="get_order", arguments={"order_id": "#W1"})`

    arguments: None where they were no JSON object; `raw` then holds their text.
    """

    id: str = ""
    name: str = ""
    arguments: Mapping[str, Any] | None = field(default_factory=dict)
    raw: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One message of a record.  `Item(index=3, role="assistant", text="Which order?")`

    index: the number that its source, and so its labels, give it; several items share one where the source counts
    events of several messages (`sub` then tells them apart).  agent: name of the speaker where there are several.
    call_id, name and is_error belong to tool results; is_error None: the source does not say.
    """

    index: int
    role: str
    text: str = ""
    calls: tuple[Call, ...] = ()
    call_id: str = ""
    name: str = ""
    is_error: bool | None = None
    agent: str = ""
    sub: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool that was offered; `parameters` is its JSON schema.  `Tool(name="add", parameters={"type": "object"})`"""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What should have happened.  `Reference(actions=(Call(name="cancel", arguments={"id": 1}),), outputs=("12.50",))`

    actions: None where none are known (an empty tuple says that nothing should be done).  outputs: texts that the user
    must be told.  instruction: what a simulated user was told to want.  state: final state where one is known.
    """

    actions: tuple[Call, ...] | None = None
    outputs: tuple[str, ...] = ()
    instruction: str = ""
    state: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What a person marked.  `Label(index=21, category=Category.MISALIGNMENT, owner=Fault.AGENT, is_root=True)`

    index: `Item.index`.  party: the name as written.
    """

    index: int
    category: Category | None = None
    owner: Fault | None = None
    party: str = ""
    reason: str = ""
    is_root: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A finished trajectory of anybody's agent.

    `Record(id="7", items=(Item(index=1, role="user", text="hi"),), source="openai", passed=False)`

    passed: None where nobody said.  outcome: free text such as "completed" or "error:environment".  extra: fields of
    the source that are kept for the way back, JSON-able.
    """

    id: str
    items: tuple[Item, ...]
    source: str = ""
    task_id: str = ""
    instruction: str = ""
    tools: tuple[Tool, ...] = ()
    reference: Reference | None = None
    passed: bool | None = None
    reward: float | None = None
    outcome: str = ""
    labels: tuple[Label, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> Label | None:
        """The label of the root cause, if any."""
        return next((label for label in self.labels if label.is_root), None)
