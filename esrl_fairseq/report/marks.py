"""Where in a run warnings came: marks on its plots."""

from __future__ import annotations

from collections.abc import Sequence

from esrl_fairseq.report.reading import Record, Recorded


def hours(record: Record) -> float:
    """Of training until a record."""
    return float(record["wall"] or 0) / 3600


def warnings_of(runs: Sequence[Recorded]) -> list[tuple[Recorded, Record]]:
    """All warnings, run by run."""
    return [(run, record) for run in runs for record in run.of("warning")]


def marks_of(runs: Sequence[Recorded]) -> dict[str, list[tuple[float, int]]]:
    """Where warnings came, with their numbers in the list, on both horizontal axes. The page puts
    those together that would cover each other."""
    records = [record for _, record in warnings_of(runs)]
    return {
        "updates": [(r["at"], number) for number, r in enumerate(records, 1)],
        "hours": [(hours(r), number) for number, r in enumerate(records, 1)],
    }
