r"""The ways in which responses write references, each found by a bounded pattern.

    Molmo        <point x="61.5" y="40.4" alt="dog">dog</point>, <points x1= y1= x2= y2= alt="dog">dogs</points>
    Qwen         {"point_2d": [61, 40], "label": "dog"}, {"bbox_2d": [10, 20, 80, 60], "label": "dog"}
    inline       dog (123, 45)      dog [10, 20, 80, 60]      an image other than the first: dog (123, 45)@2
    time         <t>3.2-5.0</t>     [00:03-00:05]     frames 12-20     frame 12
    named        <entity>dog</entity>   <claim about="dog">two dogs sleep</claim>   there are 2 dogs
    actions      <action>put(apple, table)</action>

Every function yields evidence and what is malformed; overlapping readings are settled by `parse`, first come first.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from burnish.graders.evidence.coordinates import Convention, Frame
from burnish.graders.evidence.kinds import Action, Box, Claim, Entity, Evidence, Malformed, Point, Source, Span

Found = Iterator[Evidence | Malformed]

_NUMBER = r"[-+]?(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9}|nan|inf(?:inity)?)"
_TAG = re.compile(r"<(points?)\s([^<>]{0,2000})>([^<>]{0,200})</\1>", re.IGNORECASE)
_TAG_START = re.compile(r"<points?\b", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"([A-Za-z]{1,12}\d{0,3})\s?=\s?\"([^\"]{0,200})\"")
_OBJECT = re.compile(r"\{[^{}]{0,400}?\"(?:point_2d|bbox_2d)\"[^{}]{0,400}\}")
_TUPLE = re.compile(
    rf"(?P<open>[(\[])\s{{0,3}}(?P<numbers>{_NUMBER}(?:\s{{0,3}},\s{{0,3}}{_NUMBER}){{1,8}})\s{{0,3}}[)\]]"
    r"(?:\s?@\s?(?P<frame>\d{1,6}))?",
    re.IGNORECASE,
)
_SECONDS = re.compile(r"<t(?:\s+event=\"([^\"<>]{0,200})\")?>([^<>]{0,60})</t>", re.IGNORECASE)
_CLOCK = re.compile(r"\[(\d{1,3}):(\d{2}(?:\.\d{1,3})?)\s?[-–]\s?(\d{1,3}):(\d{2}(?:\.\d{1,3})?)\]")
_FRAMES = re.compile(r"\bframes?\s(\d{1,7})(?:\s?(?:-|–|to)\s?(\d{1,7}))?", re.IGNORECASE)
_RANGE = re.compile(rf"\s*({_NUMBER})\s?(?:-|–|to)\s?({_NUMBER})\s*", re.IGNORECASE)
_ENTITY = re.compile(r"<entity>([^<>]{1,200})</entity>", re.IGNORECASE)
_CLAIM = re.compile(r"<claim(?:\s+about=\"([^\"<>]{0,200})\")?>([^<>]{1,500})</claim>", re.IGNORECASE)
_COUNT = re.compile(
    r"\bthere (?:is|are) (\d{1,6}|one|two|three|four|five|six|seven|eight|nine|ten) ([\w -]{1,60})", re.I
)
_ACTION = re.compile(r"<action>\s?([A-Za-z_]\w{0,40})\s?\(([^()<>]{0,300})\)\s?</action>", re.IGNORECASE)
_COUNT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_WORDS = {word: number for number, word in enumerate(_COUNT_WORDS)}
_LABEL_WORD = re.compile(r"[A-Za-z][\w'-]*")
# fmt: off
_STOP = frozenset({
    "a", "an", "the", "at", "and", "is", "are", "was", "i", "see", "sees", "saw", "of", "to", "in", "on", "with",
    "there", "here", "its", "it", "then", "also", "or", "but", "so", "no", "not", "has", "have", "both", "while",
    "which", "first", "second", "next", "shows", "show", "shown", "visible", "located", "from", "seen", "look",
    "looking", "point", "points", "object", "during", "between", "when", "changed", "moved",
})
# fmt: on
MAX_LABEL_WORDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How numbers are to be taken.  `Reading(frame=Frame(width_px=32, height_px=32))`"""

    frame: Frame
    convention: Convention = Convention.ABSOLUTE
    tag_convention: Convention = Convention.PERCENT

    def point(self, x: float, y: float, how: Convention, label: str, frame: int, source: Source) -> Evidence | str:
        """The point, or the reason why there is none."""
        if not (math.isfinite(x) and math.isfinite(y)):
            return "not_a_number"
        x_px, y_px = self.frame.to_pixels(x, y, how)
        if not self.frame.holds(x_px, y_px):
            return "outside"
        return Point(x_px=x_px, y_px=y_px, label=label, frame=frame, source=source)

    def box(self, numbers: list[float], label: str, frame: int, source: Source) -> Evidence | str:
        """The box, or the reason why there is none."""
        if not all(math.isfinite(number) for number in numbers):
            return "not_a_number"
        left, top = self.frame.to_pixels(numbers[0], numbers[1], self.convention)
        right, bottom = self.frame.to_pixels(numbers[2], numbers[3], self.convention)
        if not (self.frame.holds(left, top) and self.frame.holds(right, bottom)):
            return "outside"
        if right <= left or bottom <= top:
            return "empty"
        return Box(left_px=left, top_px=top, right_px=right, bottom_px=bottom, label=label, frame=frame, source=source)

    def span(self, start_s: float, end_s: float, event: str, source: Source) -> Evidence | str:
        """The span, or the reason why there is none."""
        if not (math.isfinite(start_s) and math.isfinite(end_s)):
            return "not_a_number"
        if start_s < 0 or end_s > self.frame.duration_s + 1e-9:
            return "outside"
        return Span(start_s=start_s, end_s=end_s, event=event, source=source) if end_s > start_s else "empty"


def _or_malformed(found: Evidence | str, text: str, source: Source) -> Evidence | Malformed:
    return Malformed(reason=found, text=text[:80], source=source) if isinstance(found, str) else found


def tags(text: str, reading: Reading) -> Found:
    """Molmo's point tags; one that is not closed is malformed."""
    ends: set[int] = set()
    for match in _TAG.finditer(text):
        ends.add(match.start())
        values = {name.lower(): value for name, value in _ATTRIBUTE.findall(match[2])}
        label = clean_label(values.get("alt", "") or match[3])
        frame = reading.frame.frame_index(_number(values["frame"])) if "frame" in values else 0
        keys = ["" if "x" in values else None, *(str(n) for n in range(1, 200) if f"x{n}" in values)]
        pairs = [(values.get(f"x{key}", ""), values.get(f"y{key}", "")) for key in keys if key is not None]
        source = match.span()
        if not pairs:
            yield Malformed(reason="syntax", text=match[0][:80], source=source)
        for x, y in pairs:
            found: Evidence | str = "outside"
            if frame is not None:
                found = reading.point(_number(x), _number(y), reading.tag_convention, label, frame, source)
            yield _or_malformed(found, match[0], source)
    for match in _TAG_START.finditer(text):
        if match.start() not in ends:
            yield Malformed(reason="syntax", text=text[match.start() : match.start() + 80], source=match.span())


def json_objects(text: str, reading: Reading) -> Found:
    """Qwen's JSON objects, wherever they stand."""
    for match in _OBJECT.finditer(text):
        source = match.span()
        try:
            data = json.loads(match[0])
        except ValueError:
            yield Malformed(reason="syntax", text=match[0][:80], source=source)
            continue
        label = clean_label(str(data.get("label", "")))
        frame = reading.frame.frame_index(_number(data["frame"])) if "frame" in data else 0
        for key, arity in (("point_2d", 2), ("bbox_2d", 4)):
            if key not in data:
                continue
            numbers = [_number(item) for item in data[key]] if isinstance(data[key], list) else []
            found: Evidence | str = "arity" if len(numbers) != arity else "outside"
            if len(numbers) == arity and frame is not None:
                found = (
                    reading.point(numbers[0], numbers[1], reading.convention, label, frame, source)
                    if arity == 2
                    else reading.box(numbers, label, frame, source)
                )
            yield _or_malformed(found, match[0], source)


def inline(text: str, reading: Reading) -> Found:
    """Numbers in brackets after the name of what is there: two in round ones are a point, four a box."""
    for match in _TUPLE.finditer(text):
        numbers = [_number(part) for part in match["numbers"].split(",")]
        is_round, source = match["open"] == "(", match.span()
        label = label_before(text, match.start())
        if not label and not is_round:
            continue  # A list of numbers in square brackets that follows no name is no reference.
        frame = reading.frame.frame_index(float(match["frame"])) if match["frame"] else 0
        found: Evidence | str = "arity"
        if frame is None:
            found = "outside"
        elif len(numbers) == 2 and is_round:
            found = reading.point(numbers[0], numbers[1], reading.convention, label, frame, source)
        elif len(numbers) == 4:
            found = reading.box(numbers, label, frame, source)
        yield _or_malformed(found, match[0], source)


def times(text: str, reading: Reading) -> Found:
    """Spans in seconds, on the clock, and in frames."""
    for match in _SECONDS.finditer(text):
        event = clean_label(match[1] or label_before(text, match.start()))
        parts = _RANGE.fullmatch(match[2])
        found = reading.span(_number(parts[1]), _number(parts[2]), event, match.span()) if parts else "syntax"
        yield _or_malformed(found, match[0], match.span())
    for match in _CLOCK.finditer(text):
        start_s, end_s = (60 * int(match[i]) + float(match[i + 1]) for i in (1, 3))
        event = label_before(text, match.start())
        yield _or_malformed(reading.span(start_s, end_s, event, match.span()), match[0], match.span())
    if reading.frame.frames < 2:
        return  # "frame 2" of a single picture is a word, not a time.
    for match in _FRAMES.finditer(text):
        first = reading.frame.frame_index(float(match[1]))
        last = reading.frame.frame_index(float(match[2] or match[1]))
        place: Evidence | str = "outside"
        if first is not None and last is not None:
            start_s, end_s = reading.frame.seconds_of_frames(first, last)
            place = reading.span(start_s, end_s, label_before(text, match.start()), match.span())
        yield _or_malformed(place, match[0], match.span())


def named(text: str, reading: Reading) -> Found:
    """Entities, claims and counts that are stated in words."""
    for match in _ENTITY.finditer(text):
        yield Entity(text=match[1].strip(), source=match.span())
    for match in _CLAIM.finditer(text):
        count = _COUNT.search(match[2])
        yield Claim(
            text=match[2].strip(),
            about=clean_label(match[1] or (count[2] if count else "")),
            count=_count(count[1]) if count else None,
            source=match.span(),
        )
    for match in _COUNT.finditer(text):
        about = clean_label(re.split(r"[.,;:(\[<\n]", match[2])[0])
        yield Claim(text=match[0].strip(), about=about, count=_count(match[1]), source=match.span())


def actions(text: str, reading: Reading) -> Found:
    """Steps of a plan."""
    for match in _ACTION.finditer(text):
        arguments = tuple(part.strip() for part in match[2].split(",") if part.strip())
        yield Action(verb=match[1].lower(), arguments=arguments, source=match.span())
    closed = len(_ACTION.findall(text))
    opened = len(re.findall(r"<action>", text, re.IGNORECASE))
    for _ in range(min(opened - closed, 100)):
        yield Malformed(reason="syntax", text="<action>")


def label_before(text: str, end: int) -> str:
    """The name right before a reference: at most four words, back to a mark or a word that names nothing.

    >>> label_before("I see a red circle (1, 2)", 19)
    'red circle'
    """
    clause = re.split(r"[.,;:()\[\]{}<>\n@=]", text[max(0, end - 80) : end].rstrip())[-1]
    words: list[str] = []
    for word in reversed(clause.split()):
        if not _LABEL_WORD.fullmatch(word) or word.lower() in _STOP or len(words) == MAX_LABEL_WORDS:
            break
        words.insert(0, word.lower())
    return " ".join(words)


def clean_label(label: str) -> str:
    """Lower case, single spaces, no leading article.

    >>> clean_label(" The  Red Circle ")
    'red circle'
    """
    words = label.lower().split()
    while words and words[0] in ("a", "an", "the"):
        words.pop(0)
    return " ".join(words).strip(" .,;:")


def _number(value: object) -> float:
    """A finite or infinite number, NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _count(word: str) -> int:
    return int(word) if word.isdigit() else _WORDS[word.lower()]
