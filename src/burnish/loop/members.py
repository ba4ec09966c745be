"""Which tokens of a stream belong to a slice: what a tail cap is applied to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from burnish.core.streams import ActionSpan, TokenStream

_OF_SPANS = ("text", "post_tool", "post_tool_first", "post_tool_later", "post_tool_error")
_AFTER = ("after_image", "after_compaction")


def can_be_capped(name: str) -> bool:
    """Whether `members` knows the slice; ranges of turns, lengths and staleness are looked at, never masked.

    >>> can_be_capped("post_tool"), can_be_capped("tool:search"), can_be_capped("turn:8+")
    (True, True, False)
    """
    return name in ("all", "control", *_OF_SPANS, *_AFTER) or name.startswith(("tool:", "source:"))


def members(stream: TokenStream, name: str) -> NDArray[np.bool_]:
    """bool [N]: the tokens of `stream` in slice `name`.  Raises ValueError for one that cannot be capped."""
    if not can_be_capped(name):
        raise ValueError(f"slice {name!r} cannot be capped; see can_be_capped")
    inside = np.zeros(stream.length, dtype=np.bool_)
    if name == "all" or name == f"source:{stream.source}":
        inside[:] = True
    elif name == "control":
        if stream.control is not None:
            inside = np.frombuffer(stream.control, dtype=np.int8) != 0
    elif not name.startswith("source:"):
        for span in stream.spans:
            inside[span.start : span.end] = _is_in(span, name)
    return inside


def _is_in(span: ActionSpan, name: str) -> bool:
    if name.startswith("tool:"):
        return span.tool == name.removeprefix("tool:")
    return {
        "text": not span.after_tool,
        "post_tool": span.after_tool,
        "post_tool_first": bool(span.tool),
        "post_tool_later": span.after_tool and not span.tool,
        "post_tool_error": span.after_error,
        "after_image": span.after_image,
        "after_compaction": span.after_compaction,
    }[name]
