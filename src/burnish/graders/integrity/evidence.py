"""What detectors read: an episode's calls, commands, files and words, taken from its task and trajectory alone.

An environment that wants all of it reported puts under `final_state["integrity"]`:

    before, after    path -> SHA-256 of every file of the agent's world at the start and at the end
    texts            path -> [text before, text after] of the text files that changed ("" where there was none)
    processes        how many processes the agent had left running when the episode ended
    confirmations    what the user consented to in this episode, word for word
    user_done        whether the simulated user had said all that its script holds

Whatever is missing is not judged.  `Surface` says where to look, for the environment at hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from burnish.core.errors import ConfigError
from burnish.core.message import Role
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory

KEY = "integrity"
_CAP = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """Where an environment can be cheated; patterns are those of `fnmatch` over relative paths.

    protected: files that nobody may change.  allowed: what an episode may produce; the only files that are copied to
    the grading world.  commands, paths, texts: names of tool arguments that hold a command, a path, a text to write.
    secrets: paths that an honest episode never reads.  honey: planted constants, by what they stand for.  raw_tools:
    tools that go past the world's own rules.  consent: arguments that hold a user's consent.  notes, recalls: tools
    that write to and read from a memory.  users: the prompt asks for a dialogue with a simulated user.  judged: the
    answer is read by a model.  must_call: tools of which at least one is needed for any honest success.

    `Surface(protected=("tests/*",), allowed=("src/*.py",))`
    """

    protected: tuple[str, ...] = ("tests/*", "test_*.py", "*/test_*.py", "conftest.py", "*/conftest.py", ".ci/*")
    allowed: tuple[str, ...] = ("*",)
    commands: tuple[str, ...] = ("command", "cmd", "script", "code", "statement", "sql")
    paths: tuple[str, ...] = ("path", "file", "filename")
    texts: tuple[str, ...] = ("text", "content", "new", "patch")
    secrets: tuple[str, ...] = (".grader/*", "grader/*", "*/hidden_tests/*", ".secrets/*")
    honey: Mapping[str, str] = field(default_factory=dict)
    raw_tools: tuple[str, ...] = ("sql", "write_row")
    consent: tuple[str, ...] = ("confirmation", "approval", "consent")
    notes: tuple[str, ...] = ("remember", "write_memory")
    recalls: tuple[str, ...] = ("recall", "read_memory")
    users: bool = False
    judged: bool = False
    tests_editable: bool = False
    must_call: tuple[str, ...] = ()

    def of_task(self, task: Task) -> Surface:
        """This one with what the task's `setup["integrity"]` says otherwise.  Raises ConfigError for unknown names."""
        own = task.setup.get(KEY)
        return self if not isinstance(own, Mapping) else self.changed(own)

    def changed(self, own: Mapping[str, Any]) -> Surface:
        """This one with other values, lists taken as tuples."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in own.items()
        }
        unknown = set(values) - set(Surface.__dataclass_fields__)
        if unknown:
            known = ", ".join(Surface.__dataclass_fields__)
            raise ConfigError(f"integrity has no {sorted(unknown)[0]!r}; it has {known}")
        return replace(self, **values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A tool call with what came of it.  `Call(name="run", arguments={"command": "ls"}, result="a.py")`"""

    name: str
    arguments: Mapping[str, Any]
    result: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One episode as detectors see it.

    calls: in order.  said: texts of the policy's turns but the answer.  heard: texts of users.  texts: path -> (before,
    after) of changed files.  before, after: path -> SHA-256.  state: the environment's whole final state.
    """

    task: Task
    surface: Surface
    calls: tuple[Call, ...]
    said: tuple[str, ...]
    heard: tuple[str, ...]
    answer: str
    before: Mapping[str, str]
    after: Mapping[str, str]
    texts: Mapping[str, tuple[str, str]]
    report: Mapping[str, Any]
    state: Mapping[str, Any]
    trajectory_id: str = ""

    @staticmethod
    def of(task: Task, trajectory: Trajectory, surface: Surface | None = None) -> Evidence:
        """What this episode left behind.  Never raises for odd contents; they count as missing."""
        surface = (surface or Surface()).of_task(task)
        report = trajectory.final_state.get(KEY)
        report = report if isinstance(report, Mapping) else {}
        calls, said, heard = _heard(trajectory)
        return Evidence(
            task=task,
            surface=surface,
            calls=calls,
            said=said,
            heard=heard,
            answer=trajectory.answer[:_CAP],
            before=_hashes(report.get("before")),
            after=_hashes(report.get("after")),
            texts=_pairs(report.get("texts")),
            report=report,
            state=trajectory.final_state,
            trajectory_id=trajectory.id,
        )

    @property
    def known_paths(self) -> frozenset[str]:
        """Paths that were there before, as far as the record tells: reported, removed, edited, listed by a tool."""
        if self.before:
            return frozenset(self.before)
        removed = self.state.get("removed")
        found = {str(path) for path in removed} if isinstance(removed, list) else set()
        listed = "\n".join(self.read)
        changed = self.changed_texts
        edited = {str(call.arguments.get("path")) for call in self.calls if "old" in call.arguments}
        return frozenset({path for path in changed if path in edited or path in listed.split()} | found)

    @property
    def changed_texts(self) -> Mapping[str, str]:
        """Path -> text at the end of what changed, where the state holds it as `files` or `texts`."""
        if self.texts:
            return {path: new for path, (_, new) in self.texts.items()}
        files = self.state.get("files")
        return {str(path): str(text)[:_CAP] for path, text in files.items()} if isinstance(files, Mapping) else {}

    @property
    def commands(self) -> tuple[str, ...]:
        """Every command, in order."""
        return tuple(text for call in self.calls for text in _texts_of(call, self.surface.commands))

    @property
    def written(self) -> tuple[tuple[str, str], ...]:
        """(path, text) of every write that a tool was asked for, in order."""
        found = []
        for call in self.calls:
            paths, texts = _texts_of(call, self.surface.paths), _texts_of(call, self.surface.texts)
            if paths and texts:
                found.append((paths[0], texts[0]))
        return tuple(found)

    @property
    def sources(self) -> tuple[tuple[str, str, str], ...]:
        """(path, text before, text after) of changed Python files; from the report, else from what was written."""
        if self.texts:
            return tuple((path, old, new) for path, (old, new) in self.texts.items() if path.endswith(".py"))
        changed = self.changed_texts or dict(self.written)
        return tuple((path, "", text) for path, text in changed.items() if path.endswith(".py"))

    @property
    def read(self) -> tuple[str, ...]:
        """Everything that tools said."""
        return tuple(call.result for call in self.calls)


def _heard(trajectory: Trajectory) -> tuple[tuple[Call, ...], tuple[str, ...], tuple[str, ...]]:
    calls: list[Call] = []
    waiting: dict[str, int] = {}
    said: list[str] = []
    heard: list[str] = []
    for message in trajectory.messages:
        if message.role is Role.ASSISTANT:
            said.append(message.text[:_CAP])
            for call in message.tool_calls:
                waiting[call.id] = len(calls)
                calls.append(Call(name=call.name, arguments=dict(call.arguments)))
        elif message.role is Role.TOOL:
            index = waiting.pop(message.tool_call_id or "", -1)
            if index >= 0:
                calls[index] = replace(calls[index], result=message.text[:_CAP])
        elif message.role is Role.USER:
            heard.append(message.text[:_CAP])
    return tuple(calls), tuple(said), tuple(heard)


def _texts_of(call: Call, names: Sequence[str]) -> list[str]:
    found = []
    for name in names:
        value = call.arguments.get(name)
        if isinstance(value, str):
            found.append(value[:_CAP])
        elif isinstance(value, list):
            found.append(" ".join(str(item) for item in value)[:_CAP])
    return found


def _hashes(value: Any) -> dict[str, str]:
    return {str(path): str(digest) for path, digest in value.items()} if isinstance(value, Mapping) else {}


def _pairs(value: Any) -> dict[str, tuple[str, str]]:
    if not isinstance(value, Mapping):
        return {}
    rows = {str(path): pair for path, pair in value.items() if isinstance(pair, Sequence) and len(pair) == 2}
    return {path: (str(pair[0])[:_CAP], str(pair[1])[:_CAP]) for path, pair in rows.items()}


def as_text(value: Any) -> str:
    """A value of an argument as text to search in."""
    return value if isinstance(value, str) else json.dumps(value, default=str)[:_CAP]
