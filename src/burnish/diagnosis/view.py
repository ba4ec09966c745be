"""A record prepared for checking: calls with their results, where values were first seen, objects that were shown."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from burnish.diagnosis.plain import RecordError, parse_json
from burnish.diagnosis.record import Call, Item, Record

READING_WORDS = frozenset(
    re.findall(
        r"\w+",
        "get find list search look read fetch show view check calculate compute think query browse lookup count "
        "describe verify validate estimate plan reason ask respond note retrieve inspect visit scroll",
    )
)
"""Words that begin the names of tools which change nothing, where nobody says which tools write."""
_READING_LAST = READING_WORDS - frozenset(("plan", "note", "count", "reason", "check", "respond")) | frozenset(
    (
        *("status", "availability", "available", "usage", "history", "info", "information", "details", "metrics"),
        *("rate", "rates", "outages"),
    )
)
"""Words that end the names of tools which change nothing, where no word says that they do."""
_WRITING_WORDS = frozenset(
    re.findall(
        r"\w+",
        "create add update set change modify edit delete remove cancel book rebook send write post put move rename "
        "reset grant revoke wipe pay transfer refund return exchange save submit upload open close start stop restart "
        "scale resolve swap order renew place issue assign suspend make register schedule reserve run exec execute",
    )
)
_SHOWING_WORDS = frozenset(
    ("track", "quote", "top", "ping", "test", "trace", "monitor", "browse", "preview", "simulate")
)
_RUNNING_WORDS = frozenset(
    re.findall(
        r"\w+",
        "run exec execute open start shell bash sh zsh cmd command commands terminal console repl python ipython sql "
        "psql code script scripts query queries test tests check checks diagnostics page pages url link file files",
    )
)
"""Tools whose names are made of these alone: what they do stands in their arguments."""
_HANDS_OVER = ("transfer_to_human", "transfertohuman")
_NAME_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_OBSERVERS = re.compile(r"surfer|terminal|browser|executor|retriever|crawler|scraper|(?<!re)search|interpreter", re.I)
"""Names of members of a team who report what the world shows, where no tool does."""
_ERROR = re.compile(
    r"^\W{0,3}(?:(?:error|exception|traceback|fatal|failed|failure|invalid|unauthori[sz]ed|forbidden|timed? ?out|err|"
    r"\w{0,40}(?:Error|Exception))\b|(?:http[ /\d.]{0,6} )?(?:status )?[45]\d\d (?=[A-Z])|"
    r"[^\n]{0,60}: (?:[^\n]{0,40}: )?(?:command not found|no such file or directory|permission denied)|usage: )",
    re.I,
)
_FAILED_STATES = frozenset(("error", "failed", "failure", "timeout", "timed_out", "unavailable", "rejected", "refused"))
_EXIT = re.compile(r"\bexit(?:ed)?(?: with)?(?: status)?(?: code)?\W{0,3}[1-9]\d{0,2}\W*$", re.I)
_OUTAGE = re.compile(
    r"time[d -]*out|unavailable|connection|connect|\b50[0234]\b|internal server|rate.?limit|temporar|network|outage|"
    r"not respond|service error|try again later|unreachable|bad gateway|i/o time",
    re.I,
)
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]{0,12}(?:\.\d{1,6})?")
MOST_NUMBERS = 600
"""More of one trajectory say nothing: some two of them give any other."""
ATOM = re.compile(r"\d+(?:\.\d+)?|[^\W\d_][\w'-]*")
MAX_ATOM_TEXT = 50_000
MAX_DEPTH = 8
MAX_NODES = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class CallView:
    """A call with what came of it; positions count items from 0.  `result` -1: no result stands in the record."""

    position: int
    call: Call
    result: int
    text: str
    value: Any
    is_error: bool
    is_write: bool

    @property
    def name(self) -> str:
        """The tool."""
        return self.call.name

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments, empty where they could not be read."""
        return self.call.arguments or {}

    @property
    def is_outage(self) -> bool:
        """An error that no argument would have avoided, by its words."""
        return self.is_error and is_outage_text(self.text[:500])


def is_outage_text(text: str) -> bool:
    """Whether the words of an error are those of something that was down.

    >>> is_outage_text("503 Service Unavailable"), is_outage_text("no such order")
    (True, False)
    """
    return _OUTAGE.search(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """An object that a result showed.  position: of the result."""

    position: int
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolKinds:
    """Which tools write: patterns like "cancel_*" joined by "|"; both empty: by the first word of the name."""

    writes: str = ""
    reads: str = ""

    def is_write(self, name: str) -> bool:
        """Whether a call of `name` changes the world."""
        if self.writes and matches(self.writes, name):
            return True
        if self.reads and matches(self.reads, name):
            return False
        if self.writes:
            return False
        return bool(name) and not name.lower().startswith(_HANDS_OVER) and not _reads(name)

    def may_only_show(self, name: str) -> bool:
        """Whether a tool that counts as writing may change nothing: nobody said so, and its name begins with a word of
        showing, or is a shell's, a query's or a page's.

        >>> [ToolKinds().may_only_show(name) for name in ("run_sql", "bash", "track", "execute_trade", "charge_card")]
        [True, True, True, False, False]
        """
        words = name_words(name)
        doubtful = bool(words) and (words[0] in _SHOWING_WORDS or _RUNNING_WORDS.issuperset(words))
        return not self.is_told and doubtful

    @property
    def is_told(self) -> bool:
        """Whether somebody said which tools write; else it is guessed from their names."""
        return bool(self.writes)


def name_words(name: str) -> list[str]:
    """Words of the name of a tool, without what stands before its last dot.

    >>> name_words("files.readText")
    ['read', 'text']
    """
    return [word.lower() for word in _NAME_WORD.findall(re.split(r"[./:]|__", name[:500])[-1])]


@lru_cache(maxsize=4096)
def _reads(name: str) -> bool:
    """Whether the name of a tool begins with a word of `READING_WORDS`, after the name of what it belongs to too, or
    ends with one of these and holds no word of writing; what stands before its last dot is where it comes from.

    >>> _reads("listFiles"), _reads("web_search"), _reads("ward-list"), _reads("ward_get_bed"), _reads("create_list")
    (True, True, True, True, False)
    """
    words = name_words(name)
    if len(words) < 2 or words[0] in READING_WORDS:
        return bool(words) and (words[0] in READING_WORDS or words[0] in _READING_LAST)
    reads = words[-1] in _READING_LAST or words[1] in ("get", "find", "list", "search")
    return reads and not _WRITING_WORDS.intersection(words)


@lru_cache(maxsize=4096)
def matches(patterns: str, name: str) -> bool:
    """Whether a name fits one of several patterns with "*"; no regular expressions, since strangers write these.

    >>> matches("cancel_*|return_*", "return_items")
    True
    """
    return any(fnmatchcase(name, pattern.strip()) for pattern in patterns[:4000].split("|"))


@dataclass(slots=True)
class View:
    """What constraints look at.  Built once for a record; everything in it is derived.

    memo: what a constraint derives from all of it and needs again, by a name of its own.
    """

    record: Record
    kinds: ToolKinds = field(default_factory=ToolKinds)
    items: tuple[Item, ...] = ()
    lowered: list[str] = field(default_factory=list)
    calls: list[CallView] = field(default_factory=list)
    objects: dict[str, list[Seen]] = field(default_factory=dict)
    memo: dict[str, object] = field(default_factory=dict)
    _joined: str = ""
    _starts: list[int] = field(default_factory=list)
    _first: dict[str, int] = field(default_factory=dict)
    _atoms: dict[str, tuple[int, str]] = field(default_factory=dict)
    _talk: str | None = None
    _numbers: dict[int, frozenset[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.items = self.record.items
        self.lowered = [item.text.lower() for item in self.items]
        self.calls = list(_joined_calls(self.items, self.kinds))
        self._index_text()
        for call in self.calls:
            if call.result >= 0 and not call.is_error and isinstance(call.value, dict | list):
                for entry in objects_in(call.value):
                    self._register(entry, call.result)

    def _index_text(self) -> None:
        parts, at = [], 0
        answers = {call.position for call in self.calls}
        for position, text in enumerate(self.lowered):
            self._starts.append(at)
            if position in answers:
                text = text + "\n"
            parts.append(text)
            at += len(text) + 1
        self._joined = "\n".join(parts)

    def _register(self, entry: Mapping[str, Any], position: int) -> None:
        for key, value in entry.items():
            if is_key(key) and isinstance(value, str | int) and not isinstance(value, bool):
                self.objects.setdefault(str(value), []).append(Seen(position=position, fields=entry))

    def first_seen(self, value: Any) -> int:
        """Position of the first message whose text holds a value, -1 where none does (case does not count)."""
        text = str(value).strip().lower()
        if not text:
            return 0
        found = self._first.get(text)
        if found is None:
            at = self._joined.find(text)
            found = -1 if at < 0 else bisect.bisect_right(self._starts, at) - 1
            self._first[text] = found
        return found

    def first_atom(self, atom: str) -> int:
        """Position of the first message in which this number or lower-case word stands by itself, -1 for none."""
        return self._atom_table().get(atom, (-1, ""))[0]

    def atoms_before(self, before: int) -> Iterator[tuple[str, int, str]]:
        """(number or word, position, role) of what messages before a position say, each where it stands first."""
        return ((atom, at, role) for atom, (at, role) in self._atom_table().items() if at < before)

    def _atom_table(self) -> dict[str, tuple[int, str]]:
        if not self._atoms:
            for position, text in enumerate(self.lowered):
                for atom in ATOM.findall(text[:MAX_ATOM_TEXT]):
                    self._atoms.setdefault(atom, (position, self.items[position].role))
        return self._atoms

    def leaves_of(self, call: CallView) -> Iterator[tuple[str, Any]]:
        """(name, scalar) of every field of a result."""
        for entry in objects_in(call.value):
            for name, value in entry.items():
                if isinstance(value, str | int | float):
                    yield name, value

    @property
    def user_talk(self) -> str:
        """Everything that the user says, in lower case."""
        if self._talk is None:
            self._talk = self.talk_before(len(self.items))
        return self._talk

    def talk_before(self, before: int) -> str:
        """What the user says before a position, in lower case."""
        return "\n".join(self.lowered[p] for p in sorted(self.said("user", before)))

    def object(self, key: Any, before: int) -> Mapping[str, Any] | None:
        """The object of this id as it was last shown before a position."""
        found = None
        for seen in self.objects.get(str(key), ()):
            if seen.position < before:
                found = seen.fields
        return found

    def smallest(self, key: Any) -> Mapping[str, Any]:
        """The smallest object that bears this id: the one that is about it; empty where none was shown."""
        return min((seen.fields for seen in self.objects.get(str(key), ())), key=len, default={})

    def field(self, key: Any, name: str, before: int) -> Any:
        """A field of the object of this id as last shown before a position; None where none was shown."""
        for seen in reversed(self.objects.get(str(key), ())):
            if seen.position < before and name in seen.fields:
                return seen.fields[name]
        return None

    def said(self, role: str, before: int, after: int = -1) -> Iterator[int]:
        """Positions of messages of a role, later ones first."""
        for position in range(min(before, len(self.items)) - 1, after, -1):
            if self.items[position].role == role:
                yield position

    @property
    def writes(self) -> list[CallView]:
        """Calls of tools that write, errors included."""
        return [call for call in self.calls if call.is_write]

    def numbers(self, position: int) -> frozenset[float]:
        """Numbers in a message, to two places, at most one more than `MOST_NUMBERS`."""
        if position not in self._numbers:
            found: set[float] = set()
            for match in _NUMBER.finditer(self.lowered[position][:50_000]):
                found.add(round(float(match[0].replace(",", "")), 2))
                if len(found) > MOST_NUMBERS:
                    break
            self._numbers[position] = frozenset(found)
        return self._numbers[position]

    def is_report(self, position: int) -> bool:
        """Whether a message shows the world: a tool's result, or the words of a member of a team whose part that is."""
        item = self.items[position]
        if item.role != "assistant":
            return item.role == "tool"
        member = speaker(item)
        return bool(member) and _OBSERVERS.search(member) is not None and member not in self._callers()

    def _callers(self) -> frozenset[str]:
        """Members who call tools: what shows the world there are the results, not their words."""
        known = self.memo.get("callers")
        if not isinstance(known, frozenset):
            known = frozenset(speaker(self.items[call.position]) for call in self.calls)
            self.memo["callers"] = known
        return known

    @property
    def has_user(self) -> bool:
        """Whether a user talks back: more than the one message that sets the task."""
        return sum(item.role == "user" for item in self.items) > 1


def speaker(item: Item) -> str:
    """The member of a team who speaks, without what is said of the message in brackets; "" where there is no team.

    >>> speaker(Item(index=1, role="assistant", agent="Orchestrator (thought)"))
    'Orchestrator'
    """
    return item.agent.partition("(")[0].strip()


def is_key(name: str) -> bool:
    """Whether a field of this name tells which object it is about.

    >>> is_key("order_id"), is_key("flight_number"), is_key("valid")
    (True, True, False)
    """
    return name in ("id", "number", "key", "uuid") or name.endswith(("_id", "Id", "_number", "_uuid"))


def _joined_calls(items: Sequence[Item], kinds: ToolKinds) -> Iterator[CallView]:
    results = _results(items)
    for position, item in enumerate(items):
        for number, call in enumerate(item.calls):
            result = results.get((position, number), -1)
            text = items[result].text if result >= 0 else ""
            value = _value(text)
            yield CallView(
                position=position,
                call=call,
                result=result,
                text=text,
                value=value,
                is_error=result >= 0 and _is_error(items[result], value),
                is_write=kinds.is_write(call.name),
            )


def _results(items: Sequence[Item]) -> dict[tuple[int, int], int]:
    """(position of the call's message, its number there) -> position of its result: by id, else the next in order."""
    open_calls: list[tuple[int, int, str]] = []
    found: dict[tuple[int, int], int] = {}
    for position, item in enumerate(items):
        if item.role == "assistant" and item.calls:
            open_calls = [(position, number, call.id) for number, call in enumerate(item.calls)]
        elif item.role == "tool" and open_calls:
            match = next((entry for entry in open_calls if item.call_id and entry[2] == item.call_id), open_calls[0])
            open_calls.remove(match)
            found[match[:2]] = position
    return found


def _is_error(item: Item, value: Any) -> bool:
    if item.is_error is not None:
        return item.is_error
    if isinstance(value, Mapping):
        error = value.get("error", value.get("isError"))
        denied = value.get("success") is False or value.get("ok") is False
        code = value.get("exit_code", value.get("returncode"))
        failed = str(value.get("status", "")).lower() in _FAILED_STATES
        return bool(error) or denied or failed or code not in (None, 0, "0")
    return _ERROR.match(item.text[:200]) is not None or _EXIT.search(item.text[-60:]) is not None


def _value(text: str) -> Any:
    if text[:1] not in '{["0123456789-tfn':
        return text
    try:
        return parse_json(text)
    except RecordError:
        return text


def objects_in(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object inside a JSON value, outer ones first; at most `MAX_NODES` values, `MAX_DEPTH` levels deep."""
    stack, nodes = [(value, 0)], 0
    while stack and nodes < MAX_NODES:
        node, depth = stack.pop()
        nodes += 1
        if depth > MAX_DEPTH:
            continue
        if isinstance(node, Mapping):
            yield node
            stack.extend((item, depth + 1) for item in node.values() if isinstance(item, dict | list))
        elif isinstance(node, list):
            stack.extend((item, depth + 1) for item in node if isinstance(item, dict | list))


def leaves(value: Any, depth: int = MAX_DEPTH) -> Iterator[str]:
    """Scalar values inside a JSON value, as text.

    >>> list(leaves({"a": [1, "x"], "b": True}))
    ['1', 'x', 'True']
    """
    if isinstance(value, Mapping) and depth > 0:
        for item in value.values():
            yield from leaves(item, depth - 1)
    elif isinstance(value, list | tuple) and depth > 0:
        for item in value:
            yield from leaves(item, depth - 1)
    elif value is not None and not isinstance(value, Mapping | list | tuple):
        yield str(value)
