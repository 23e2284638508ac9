"""A run's record, for those who look at it."""

from __future__ import annotations

from typing import Any

from esrl_fairseq.monitoring.record import read_record


def read_whole(path: str) -> list[dict[str, Any]]:
    """The records of a file, in the order in which they were written, with the run's own time."""
    return since_begin(list(read_record(path)))


def since_begin(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same, ``wall`` counted from the first of them on: fairseq's counts what the start model
    was trained for, too, wherever that was."""
    first = float(records[0].get("wall") or 0) if records else 0.0
    return [
        {**record, "wall": max(record["wall"] - first, 0.0)} if record.get("wall") else record
        for record in records
    ]
