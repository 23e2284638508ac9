"""Each reward that a sum or a product is made of, by itself: its mean and its spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fairseq.logging import metrics
from numpy.typing import NDArray

BEGIN, SUM, SQUARES, NUMBER = "part|", "|sum", "|squares", "|number"
"""Of what batches log: in between is the name of the reward."""


def part_log(
    parts: Mapping[str, NDArray[np.float32]],
    draws: NDArray[np.int64],
    without: Sequence[str] = (),
) -> dict[str, float]:
    """What a batch logs of its rows.

    Args:
        parts: ``[rows]`` of each reward, by its label; NaN of one that could not be asked.
        draws: ``[rows]``, how often each row counts.
        without: names of those that are left out.
    """
    log: dict[str, float] = {}
    for name, found in parts.items():
        if name in without:
            continue
        known = ~np.isnan(found)
        values, times = found[known].astype(np.float64), draws[known]
        log[BEGIN + name + SUM] = float((values * times).sum())
        log[BEGIN + name + SQUARES] = float((values**2 * times).sum())
        log[BEGIN + name + NUMBER] = float(times.sum())
    return log


def reduce_parts(total: Mapping[str, float]) -> None:
    """Log means and standard deviations of what batches logged by `part_log`, summed."""
    for key, number in total.items():
        if key.startswith(BEGIN) and key.endswith(NUMBER) and number > 0:
            name = key[len(BEGIN) : -len(NUMBER)]
            _log(f"reward_{name}", total[BEGIN + name + SUM], total[BEGIN + name + SQUARES], number)


def _log(label: str, of_values: float, of_squares: float, number: float) -> None:
    metrics.log_scalar(label, of_values / number, number, round=4)
    metrics.log_scalar(f"_{label}_squared", of_squares / number, number, round=8)
    metrics.log_derived(f"{label}_std", lambda meters: _spread(meters, label))


def _spread(meters: Any, label: str) -> float:
    variance = meters[f"_{label}_squared"].avg - meters[label].avg ** 2
    return round(float(max(variance, 0)) ** 0.5, 4)
