"""What rewards return, as arrays of numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, ValuesView
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Scores = NDArray[np.float32]
Counts = NDArray[np.float64]


@dataclass
class Answer:
    """What a reward says of rows.

    Attributes:
        rewards: float32 ``[rows]``.
        rest: float32 ``[rows]``, the rewards without those that follow the counts of a corpus.
        counts: ``[rows, counts]`` of each that does, by its name.
        parts: float32 ``[rows]`` of each reward that a sum or a product is made of, by its label;
            NaN of one that could not be asked and is only logged.
    """

    rewards: Scores
    rest: Scores
    counts: Mapping[str, Counts] = field(default_factory=dict)
    parts: Mapping[str, Scores] = field(default_factory=dict)

    def __getitem__(self, rows: Any) -> Answer:
        counts = {name: values[rows] for name, values in self.counts.items()}
        parts = {name: values[rows] for name, values in self.parts.items()}
        return Answer(self.rewards[rows], self.rest[rows], counts, parts)


def as_scores(result: Any, expected: int) -> Scores:
    """What a reward returned as an array: numbers in anything that holds them in order.

    Args:
        expected: how many there should be; of what may go on for ever one more is looked at.
    """
    if isinstance(result, (Iterator, ValuesView)):
        result = list(itertools.islice(result, expected + 1))
    if isinstance(result, (list, tuple)):
        result = [_plain(value) for value in result]
    result = _plain(result)
    if np.iscomplexobj(result):
        raise TypeError("it returned complex numbers")
    if np.ma.isMaskedArray(result):
        result = np.ma.filled(result.astype(np.float32), np.nan)
    with np.errstate(over="ignore"):  # to inf, which is then refused
        return np.array(result, dtype=np.float32)


def _plain(value: Any) -> Any:
    """Tensors on whatever device, with whatever graph, as arrays; all else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu()
    return (value if value.is_complex() else value.float()).numpy()
