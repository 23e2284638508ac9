"""What the doctor finds, and how it is shown."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

OK, WARNING, WRONG = "ok", "warning", "wrong"
NARROW, WIDE = 72, 120
"""Columns of what is printed, at least and at most."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: its name.
        level: :data:`OK`, :data:`WARNING` or :data:`WRONG`.
        says: what there is.
        mend: what to do about it, where ``says`` does not tell.
    """

    what: str
    level: str
    says: str
    mend: str = ""


def shown(findings: Sequence[Finding]) -> str:
    """A table for a terminal."""
    name = max((len(finding.what) for finding in findings), default=0)
    column = name + len(WARNING) + 4
    width = min(max(shutil.get_terminal_size((100, 24)).columns, NARROW), WIDE) - column
    lines = []
    for finding in findings:
        head = f"{finding.what:{name}}  {finding.level:{len(WARNING)}}  "
        text = wrapped(finding.says, width)
        mend = wrapped(finding.mend, width - 2)
        text += [f"→ {line}" for line in mend[:1]] + [f"  {line}" for line in mend[1:]]
        lines += [head + text[0], *(" " * column + line for line in text[1:])]
    return "\n".join(lines)


def wrapped(text: str, width: int) -> list[str]:
    """Lines of ``text``; its words are left whole, so that they can be copied."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def verdict(findings: Sequence[Finding]) -> str:
    """The last line."""
    wrong, warnings = (sum(f.level == level for f in findings) for level in (WRONG, WARNING))
    said = {0: "nothing is wrong", 1: "1 thing is wrong"}.get(wrong, f"{wrong} things are wrong")
    warned = {0: "no warnings", 1: "1 warning"}.get(warnings, f"{warnings} warnings")
    return f"{said}, {warned}"
