"""Lines of runs over their updates: what a report overlays, and how it tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from esrl_fairseq.report.figures import Figure, line, smoothed
from esrl_fairseq.report.marks import hours
from esrl_fairseq.report.reading import Record, Recorded

Series = tuple[str, str]
"""The name in a legend, and in a record."""


def over_time(records: Sequence[Record]) -> dict[str, list[float]]:
    """Both horizontal axes of some records."""
    return {"updates": [r["at"] for r in records], "hours": [hours(r) for r in records]}


def style(runs: Sequence[Recorded], run: int, series: int) -> dict[str, Any]:
    """One run: colours tell the series apart. Several: colours tell runs, dashes the series."""
    return {"colour": series if len(runs) == 1 else run, "dash": series}


def called(runs: Sequence[Recorded], run: Recorded, series: str) -> str:
    """Of a line, in a legend; where a plot has one line a run, ``series`` is empty."""
    return series if len(runs) == 1 else f"{run.name}: {series}".removesuffix(": ")


def updates_figure(
    runs: Sequence[Recorded],
    title: str,
    series: Sequence[Series],
    layout: dict[str, Any] | None = None,
) -> Figure:
    """Some figures of the updates; each as it is, faint, and smoothed."""
    traces = []
    for number, run in enumerate(runs):
        for place, (name, key) in enumerate(series):
            records = [r for r in run.of("update") if r.get(key) is not None]
            if not records:
                continue
            values = [r[key] for r in records]
            look = style(runs, number, place)
            x, label = over_time(records), called(runs, run, name)
            smooth = smoothed(values)
            if smooth != values:
                faint: dict[str, Any] = {"opacity": 0.25, "showlegend": False, "hoverinfo": "skip"}
                traces.append(line(label, x, values, look["colour"], **faint))
            traces.append(line(label, x, smooth, **look))
    return Figure(title, traces, layout=layout or {})


def validation_line(
    runs: Sequence[Recorded], number: int, key: str, series: int
) -> list[dict[str, Any]]:
    """A figure of a run's validations; none where it has none."""
    run = runs[number]
    records = [r for r in run.validations if r["stats"].get(key) is not None]
    if not records:
        return []
    values = [r["stats"][key] for r in records]
    look = style(runs, number, series)
    return [line(called(runs, run, "validation"), over_time(records), values, points=True, **look)]


def framed(figure: Figure) -> Figure:
    """The same, its vertical axis chosen by the strong lines and nine tenths of the faint ones:
    some updates of short inputs would otherwise flatten what all others say."""
    shown: list[float] = []
    for trace in figure.traces:
        values = sorted(value for value in trace["y"] if value is not None)
        cut = len(values) // 20 if "opacity" in trace else 0
        shown += values[cut : len(values) - cut]
    if shown and min(shown) < max(shown):
        room = (max(shown) - min(shown)) / 20
        span = [min(shown) - room, max(shown) + room]
        figure.layout = {**figure.layout, "yaxis": {"range": span}}
    return figure


def by_run(runs: Sequence[Recorded], traces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of several runs, the lines of each together, as they stand in a legend."""
    return traces if len(runs) == 1 else sorted(traces, key=lambda trace: trace["colour"])
