"""What to say to somebody who misspelt a name."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """A question that names the closest known word, `otherwise` where none is close.

    >>> did_you_mean("exat", ["exact", "choice"]), did_you_mean("zzz", ["exact"], "known are exact")
    ("did you mean 'exact'?", 'known are exact')
    """
    # Imported here, since only errors need it.
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else otherwise
