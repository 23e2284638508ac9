"""Figures and sections of the page, without their colours, which are the page's (page.css).

A trace's ``x`` may be ``{"updates": […], "hours": […]}``: the page shows what is chosen there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
"""Series differ in these, too, for those who do not tell colours apart."""


@dataclass
class Figure:
    """A plot.

    Attributes:
        title: what it shows, with the unit.
        traces: of plotly; ``colour`` is a number of the page's palette.
        x: title of the horizontal axis; "updates" follows the page's choice.
        layout: further layout of plotly.
        marks: of warnings, ``(place, number)`` on each axis, "updates" and "hours".
    """

    title: str
    traces: list[dict[str, Any]]
    x: str = "updates"
    layout: dict[str, Any] = field(default_factory=dict)
    marks: dict[str, list[tuple[float, int]]] = field(default_factory=dict)


@dataclass
class Section:
    """A heading, what to look for, and plots or tables; left out where it has neither."""

    title: str
    hint: str
    figures: list[Figure] = field(default_factory=list)
    html: str = ""


def line(
    name: str,
    x: Any,
    y: Sequence[float | None],
    colour: int = 0,
    dash: int = 0,
    points: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """A trace of a line."""
    return {
        "type": "scatter",
        "mode": "lines+markers" if points or len(y) < 3 else "lines",
        "name": name,
        "x": x,
        "y": list(y),
        "colour": colour,
        "line": {"dash": DASHES[dash % len(DASHES)], "width": 2},
        **more,
    }


def bars(
    name: str, x: Sequence[Any], y: Sequence[Any], colour: int = 0, **more: Any
) -> dict[str, Any]:
    """A trace of bars."""
    return {"type": "bar", "name": name, "x": list(x), "y": list(y), "colour": colour, **more}


def smoothed(values: Sequence[float | None]) -> list[float | None]:
    """Means around each point, of about a twentieth of them."""
    half = len(values) // 40
    means: list[float | None] = []
    for place in range(len(values)):
        near = [v for v in values[max(place - half, 0) : place + half + 1] if v is not None]
        means.append(sum(near) / len(near) if near else None)
    return means


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Sequence[int] = ()) -> str:
    """A table; cells that are no :class:`Html` are escaped.

    Args:
        numbers: columns of numbers.
    """

    def cells(row: Sequence[Any], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=number' if place in numbers else ''}>{shown(value)}</{tag}>"
            for place, value in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<div class=wide><table><tr>{cells(head, 'th')}</tr>{body}</table></div>"


class Html(str):
    """Text that is HTML already."""


def shown(value: Any) -> str:
    """A cell's value as HTML."""
    if isinstance(value, Html):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    return escape(f"{value:,}" if isinstance(value, int) else str(value))
