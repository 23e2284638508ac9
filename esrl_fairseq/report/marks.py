"""Where in a run warnings came: marks on its plots."""

from __future__ import annotations

from collections.abc import Sequence

from esrl_fairseq.report.reading import Record, Recorded

NEAR = 0.06
"""Share of the horizontal axis on which the marks of warnings are one."""


def hours(record: Record) -> float:
    """Of training until a record."""
    return float(record["wall"] or 0) / 3600


def warnings_of(runs: Sequence[Recorded]) -> list[tuple[Recorded, Record]]:
    """All warnings, run by run."""
    return [(run, record) for run in runs for record in run.of("warning")]


def marks_of(runs: Sequence[Recorded]) -> dict[str, list[tuple[float, str]]]:
    """Where warnings came, with their numbers in the list, on both horizontal axes."""
    records = [record for _, record in warnings_of(runs)]
    ends = [run.records[-1] for run in runs]
    updates, times = [r["at"] for r in records], [hours(r) for r in records]
    return {
        "updates": together(updates, max(r["at"] for r in ends)),
        "hours": together(times, max(map(hours, ends))),
    }


def together(places: Sequence[float], last: float) -> list[tuple[float, str]]:
    """Numbered places, those that would cover each other as one mark."""
    groups: list[tuple[float, list[int]]] = []
    for place, number in sorted((place, number) for number, place in enumerate(places, 1)):
        if groups and place - groups[-1][0] <= NEAR * last:
            groups[-1][1].append(number)
        else:
            groups.append((place, [number]))
    return [
        (place, ",".join(map(str, sorted(numbers)[:3])) + ("…" if len(numbers) > 3 else ""))
        for place, numbers in groups
    ]
