"""Rows that are being drawn: what they are drawn with, what is written, and where they part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

COMPACT_AT = 0.05
"""Share of ended rows at which the decoder's batch is compacted."""


@dataclass
class Draws:
    """What rows are drawn with, and where they are written.

    Attributes:
        input_index: int64 ``[rows]``, the input of each row.
        limits: int64 ``[rows]``, most tokens (EOS not counted) of a row, without its prompt.
        given: int64 ``[rows]``, tokens of its prompt, which are read and not drawn; 0 for models
            with an encoder.
        start: int64 ``[rows, 1]``, what the decoder reads first.
        tokens: int64 ``[rows, steps]``, the prompts; what is drawn belongs behind them.
        uniforms: float32 ``[rows, steps]``, the random numbers of each step.
        known: float32 ``[3, rows, steps]``, what :func:`sample_and_score` tells of each token that
            was drawn; 0 for prompts, forced ends and padding.
    """

    input_index: Tensor
    limits: Tensor
    given: Tensor
    start: Tensor
    tokens: Tensor
    uniforms: Tensor
    known: Tensor

    def to(self, device: Any) -> Draws:
        """The same there."""
        return Draws(**{k: x.to(device, non_blocking=True) for k, x in vars(self).items()})

    def put(self, places: Tensor, some: Draws) -> None:
        """Write what was found of some rows, int64 ``[some]``."""
        if some is not self:
            self.tokens[places], self.known[:, places] = some.tokens, some.known

    def take(self, found: Draws) -> None:
        """Write what was found of all rows, elsewhere or here."""
        if found.tokens.device != self.tokens.device:
            self.tokens.copy_(found.tokens)
            self.known.copy_(found.known)

    def __getitem__(self, rows: slice | Tensor) -> Draws:
        """Those of some rows."""
        parts = {name: x[rows] for name, x in vars(self).items() if name != "known"}
        return Draws(**parts, known=self.known[:, rows])


class Strategy(NamedTuple):
    """How rows are decoded.

    Attributes:
        decode: takes the sampler, rows on the host, the encoder's output for all inputs,
            temperatures ``[inputs]`` (None is 1 everywhere) and the model's device.
        most_rows: that may be decoded at once, from the sampler, their length and the device.
    """

    decode: Callable[[Any, Draws, Any, Tensor | None, torch.device], None]
    most_rows: Callable[[Any, int, torch.device], int]


def groups_of_inputs(counts: list[int], most: int) -> Iterator[slice]:
    """Rows of consecutive inputs, at most ``most`` of them or those of one input."""
    start = stop = 0
    for count in counts:
        if stop > start and stop + count - start > most:
            yield slice(start, stop)
            start = stop
        stop += count
    if stop > start:
        yield slice(start, stop)


def branches(branch: Tensor, chosen: Tensor, size: int) -> tuple[Tensor | None, Tensor]:
    """Where rows go on after their next tokens: those of one branch part where these differ.

    Args:
        branch: int64 ``[rows]``, the place of each row in the decoder's batch.
        chosen: int64 ``[rows]``, its next token.
        size: of the decoder's batch.

    Returns:
        int64 ``[new size]``, for each place of the new batch the old one that it goes on from, or
        None to leave the batch as it is; int64 ``[rows]``, the new place of each row.
    """
    words = int(chosen.max()) + 1
    pairs, child = (branch * words + chosen).unique(return_inverse=True)
    parents = pairs // words
    first = torch.ones_like(parents, dtype=torch.bool)
    first[1:] = parents[1:] != parents[:-1]
    new_size = len(parents)
    if bool(first.all()) and new_size > (1 - COMPACT_AT) * size:
        return None, branch
    # To copy little, the first child keeps its parent's place; others take what is free.
    stay = first & (parents < new_size)
    free = torch.ones_like(stay)
    free[parents[stay]] = False
    place = parents.clone()
    place[~stay] = free.nonzero().squeeze(1)
    return torch.empty_like(parents).index_copy_(0, place, parents), place[child]
