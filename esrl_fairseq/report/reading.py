"""Runs as their records tell of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.monitoring.reading import read_whole
from esrl_fairseq.monitoring.record import FILE

Record = dict[str, Any]


@dataclass
class Recorded:
    """A run.

    Attributes:
        name: for legends, unlike that of the other runs.
        folder: its ``--save-dir``.
        records: in the order in which they were written.
    """

    name: str
    folder: str
    records: list[Record]

    def of(self, kind: str, **values: Any) -> list[Record]:
        """Records of a kind that have these values; of those that tell the same thing the last."""
        found = {}
        for record in self.records:
            if record["kind"] == kind and all(record.get(k) == v for k, v in values.items()):
                what = [record.get(key) for key in ("at", "epoch", "subset", "message")]
                found[tuple(what)] = record
        return list(found.values())

    @property
    def begin(self) -> Record:
        """What the run is; empty without a record."""
        return next((r for r in self.records if r["kind"] == "begin"), {})

    @property
    def validations(self) -> list[Record]:
        """Of the first validation set."""
        return self.of("validation", first=True)


def read_run(folder: str, name: str, needed: bool = True) -> Recorded:
    """The run that saved its checkpoints in ``folder``.

    Args:
        needed: whether a folder without a record is an error.

    Raises:
        EsrlError: there is no such folder, or no record in it.
    """
    if not os.path.isdir(folder):
        raise EsrlError(f"there is no folder {folder}: give the --save-dir of a training")
    path = os.path.join(folder, FILE)
    records = read_whole(path)
    if not records and needed:
        why = "has no whole line" if os.path.exists(path) else "does not exist"
        raise EsrlError(
            f"{path} {why}: give the --save-dir of a training with --criterion esrl that has begun "
            "its first epoch, without --no-save (earlier versions wrote no record; of their "
            "checkpoints --evaluate shows what they came to)"
        )
    return Recorded(name, folder, records)


def names_of(folders: Sequence[str]) -> list[str]:
    """Short names of folders, as many of their last parts as tell them apart."""
    parts = [os.path.abspath(folder).split(os.sep) for folder in folders]
    if len({tuple(part) for part in parts}) < len(parts):
        raise EsrlError("a folder is given twice: give each run once")
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names
