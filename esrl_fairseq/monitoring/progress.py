"""A line about the first updates, and then every now and then, for whoever watches a run."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from typing import Any

logger = logging.getLogger(__name__)

FIRST = (1, 2, 3, 5, 10, 20)
"""Updates of a process that are told of in any case."""
SECONDS = 60.0
"""Most seconds between two lines."""
FREQUENT = 10
"""fairseq's own lines are enough if they come at least every so many updates."""
SUMS = (
    *("draws", "nsentences", "reward", "baseline", "batches", "empty", "rows", "truncated"),
    *("seconds_stage_one", "seconds_reward", "seconds_stage_two"),
)


class Progress:
    """Collects the sums of updates and tells of their means.

    Args:
        interval: ``--log-interval``, of fairseq's own lines; None is quiet (ranks other than 0).
    """

    def __init__(self, interval: int | None):
        self.quiet = interval is None or interval <= FREQUENT
        self.updates = 0  # of this process
        self._begin()

    def _begin(self) -> None:
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.told, self.seconds, self.collected = time.perf_counter(), 0.0, 0
        self.begun = self.told

    def begin_update(self) -> None:
        """The batches of an update follow; validation between two of them takes no part."""
        self.begun = time.perf_counter()

    def add(self, outputs: list[dict[str, Any]], update: int) -> None:
        """Count what an update's batches logged; ``update`` is its number, from 1."""
        if self.quiet:
            return
        for name in SUMS:
            self.sums[name] += float(sum(log.get(name, 0) for log in outputs))
        self.updates += 1
        self.collected += 1
        now = time.perf_counter()
        self.seconds += now - self.begun
        if self.updates in FIRST or now - self.told >= SECONDS:
            logger.info(self.line(update))
            self._begin()

    def line(self, update: int) -> str:
        """What was seen since the last line."""
        total = self.sums
        draws, batches = max(total["draws"], 1), max(total["batches"], 1)
        seconds = self.seconds / self.collected
        of_stages = ", ".join(
            f"{name} {total[key] / self.collected:.2f}"
            for name, key in (
                ("stage one", "seconds_stage_one"),
                ("reward", "seconds_reward"),
                ("stage two", "seconds_stage_two"),
            )
        )
        return (
            f"update {update}: reward {total['reward'] / draws:.4f}, "
            f"baseline {total['baseline'] / batches:.4f}, "
            f"{total['draws'] / max(total['nsentences'], 1):.1f} samples an input, "
            f"{seconds:.2f} s an update ({of_stages}; the rest is backward and optimizer)"
        )
