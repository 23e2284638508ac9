"""Two texts side by side, with the words marked in which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from html import escape

from esrl_fairseq.report.figures import Html


def marked(one: str, other: str) -> tuple[Html, Html]:
    """Both as HTML: words of the first alone as ``<del>``, of the second alone as ``<ins>``."""
    before, after = one.split(), other.split()
    left: list[str] = []
    right: list[str] = []
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    for what, i, j, k, m in matcher.get_opcodes():
        same = what == "equal"
        left += _words(before[i:j], "" if same else "del")
        right += _words(after[k:m], "" if same else "ins")
    return Html(" ".join(left) or EMPTY), Html(" ".join(right) or EMPTY)


EMPTY = "<i>(empty)</i>"


def _words(words: Sequence[str], tag: str) -> list[str]:
    if not words:
        return []
    text = escape(" ".join(words))
    return [f"<{tag}>{text}</{tag}>" if tag else text]


def pair(title: str, rows: Sequence[tuple[str, str]], one: bool = False) -> str:
    """A box of texts; each has a name and is HTML.

    Args:
        one: one below the other.
    """
    body = "".join(f"<div><dt>{escape(name)}</dt><dd>{text}</dd></div>" for name, text in rows)
    return (
        f"<div class=pair><b>{escape(title)}</b><dl{' class=one' if one else ''}>{body}</dl></div>"
    )
