"""The page: one HTML file with its script, which opens offline and asks no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.monitoring.record import plain
from esrl_fairseq.report.figures import Figure, Section, table

HERE = Path(__file__).parent
GENERATOR = '<meta name="generator" content="esrl-report">'
"""What tells a page of ours from other files."""
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)
AXES = (
    '<div class=choice role=radiogroup aria-label="horizontal axis"><span>Plot over</span>'
    "<label><input type=radio name=axis value=updates checked> updates</label>"
    "<label><input type=radio name=axis value=hours> hours</label></div>"
)


def plotting_script() -> str:
    """plotly's, as its Python package has it.

    Raises:
        EsrlError: it is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise EsrlError(
            "esrl-report draws with plotly, which is not installed: pip install plotly, or the "
            "extra report of this package"
        ) from None
    script: str = get_plotlyjs()
    return script


def page(title: str, tiles: str, sections: Sequence[Section], script: str) -> str:
    """The whole file.

    Args:
        tiles: HTML of the few numbers at the top.
        script: :func:`plotting_script`.
    """
    sections = [section for section in sections if section.figures or section.html]
    figures: list[Figure] = []
    body, chosen = "", False  # the choice of an axis stands before what it is for
    for number, section in enumerate(sections):
        if not chosen and any(figure.x == "updates" for figure in section.figures):
            chosen, body = True, body + AXES
        body += f"<section id=s{number}><h2>{escape(section.title)}</h2>"
        body += f"<p class=hint>{escape(section.hint)}</p>"
        if section.figures:
            body += "<div class=figures>" + "".join(
                box(figure, len(figures) + place) for place, figure in enumerate(section.figures)
            )
            body += "</div>"
        figures += section.figures
        body += f"{section.html}</section>"
    contents = "".join(
        f"<li><a href=#s{number}>{escape(section.title)}</a></li>"
        for number, section in enumerate(sections)
    )
    data = json.dumps(plain([asdict(figure) for figure in figures])).replace("<", "\\u003c")
    style = (HERE / "page.css").read_text(encoding="utf-8")
    drawing = (HERE / "page.js").read_text(encoding="utf-8")
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{GENERATOR}\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{tiles}\n<nav><ol>{contents}</ol></nav>\n{body}\n</main>\n"
        f'<script type="application/json" id="figures">{data}</script>\n'
        f"<script>{script}</script>\n<script>\n{drawing}</script>\n</body>\n</html>\n"
    )


def box(figure: Figure, number: int) -> str:
    """The place of a figure."""
    name = escape(figure.title)
    return (
        f"<figure><figcaption>{name}</figcaption>"
        f'<div class=plot id=figure-{number} role=img aria-label="{name}"></div>'
        "<div class=legend></div></figure>"
    )


def summary_of(numbers: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> str:
    """The few numbers of runs: of one as tiles, of several as a table.

    Args:
        numbers: name of each run, and (label, value) of its numbers.
    """
    if len(numbers) > 1:
        labels = list(dict.fromkeys(label for _, own in numbers for label, _ in own))
        rows = [(name, *(dict(own).get(label, "") for label in labels)) for name, own in numbers]
        return table(("", *labels), rows, range(1, len(labels) + 1))
    found = "".join(
        f"<div class=tile><b>{escape(value)}</b><span class=small>{escape(label)}</span></div>"
        for _, own in numbers
        for label, value in own
    )
    return f"<div class=tiles>{found}</div>" if found else ""
