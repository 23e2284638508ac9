"""What somebody meant who mistyped a name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known name that is most like ``name``, without regard to case; empty if none is.

    Args:
        cutoff: how alike they must be, from 0 to 1.
    """
    spelled = {word.lower(): word for word in known}
    close = difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=cutoff)
    return spelled[close[0]] if close else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'bleu'?)`` for a name like one of the known ones, otherwise nothing."""
    meant = closest(name, known)
    return f" (did you mean {meant!r}?)" if meant else ""
