"""Ragged rows: several samples an input, each as long as it is (docs/method.md 2)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class Rows:
    """Sampled sequences of a batch; row r belongs to input ``input_index[r]``.

    Between the stages they are on the host, where texts, rewards and choices are made.

    Attributes:
        tokens: int64 ``[rows, length]``, each row ends with EOS and is padded on the right.
        lengths: int64 ``[rows]``, tokens of a row with its EOS.
        input_index: int64 ``[rows]``, ascending positions in the batch.
        truncated: bool ``[rows]``, the length limit forced this row's EOS.
        multiplicity: int64 ``[rows]``, how often the row was drawn.
    """

    tokens: Tensor
    lengths: Tensor
    input_index: Tensor
    truncated: Tensor
    multiplicity: Tensor

    def __len__(self) -> int:
        return self.tokens.size(0)

    def __getitem__(self, index: Tensor) -> Rows:
        """Some rows, by their places."""
        return Rows(*(getattr(self, field.name)[index] for field in fields(self)))

    def to(self, device: Any) -> Rows:
        """The rows there; the host does not wait for the copies."""
        parts = (getattr(self, field.name) for field in fields(self))
        return Rows(*(x.to(device, non_blocking=True) for x in parts))

    def scored(self) -> Tensor:
        """bool ``[rows, length]``: tokens that the policy chose.

        Padding is not one of them, nor is the EOS that the length limit forced.
        """
        steps = torch.arange(self.tokens.size(1), device=self.tokens.device)
        return steps < (self.lengths - self.truncated.long()).unsqueeze(1)


@dataclass
class Prefix:
    """What the decoder reads before the first token of a row.

    Attributes:
        tokens: int64 ``[inputs or rows, longest]``, right-padded: the start symbol, and behind it
            the prompt, if there is one.
        lengths: int64 ``[inputs or rows]``, at least 1.
    """

    tokens: Tensor
    lengths: Tensor

    def __getitem__(self, index: Tensor) -> Prefix:
        """Those at some places, such as each row's own at ``input_index``."""
        return Prefix(self.tokens[index], self.lengths[index])


def moved(values: Tensor, by: Tensor, width: int, fill: float) -> Tensor:
    """Each row moved to the right by its own number of columns (below 0: to the left).

        out[r, t] = values[r, t − by[r]], or ``fill`` where there is no such column

    Args:
        values: ``[rows, columns]``.
        by: int64 ``[rows]``.
        width: columns of the result, ``[rows, width]``.
    """
    source = torch.arange(width, device=values.device) - by.unsqueeze(1)
    outside = (source < 0) | (source >= values.size(1))
    return values.gather(1, source.masked_fill(outside, 0)).masked_fill(outside, fill)


def decoder_inputs(tokens: Tensor, lengths: Tensor, prefix: Prefix, pad: int) -> Tensor:
    """Teacher-forcing inputs: each row's prefix, then its tokens without the last one (EOS).

    The decoder's output at place ``prefix.lengths − 1 + t`` predicts token t.

    Args:
        tokens: int64 ``[rows, length]``, right-padded.
        lengths: int64 ``[rows]``.
        prefix: of the rows.

    Returns:
        int64 ``[rows, longest prefix + length − 1]``, right-padded.
    """
    width = prefix.tokens.size(1) + tokens.size(1) - 1
    places, begin = torch.arange(width, device=tokens.device), prefix.lengths.unsqueeze(1)
    given = moved(prefix.tokens, torch.zeros_like(lengths), width, pad)
    inputs = torch.where(places < begin, given, moved(tokens, prefix.lengths, width, pad))
    return inputs.masked_fill(places >= begin + lengths.unsqueeze(1) - 1, pad)


def distinct_rows(rows: Rows) -> tuple[Tensor, Tensor]:
    """Places of an input's distinct sequences, and how often each was drawn; int64, equally long.

    Of equal rows it is the first, so the order of the samples is kept.
    """
    keyed = torch.cat([rows.input_index.unsqueeze(1), rows.tokens], dim=1)
    _, group = keyed.unique(dim=0, return_inverse=True)
    positions = torch.arange(len(rows), device=group.device)
    first = torch.full((int(group.max()) + 1 if len(rows) else 0,), len(rows), device=group.device)
    first = first.scatter_reduce(0, group, positions, reduce="amin")
    keep = first.sort().values
    multiplicity = torch.zeros_like(first).index_add_(0, group, rows.multiplicity)
    return keep, multiplicity[group[keep]]


def given_rows(tokens: Tensor, pad: int) -> Rows:
    """One given sequence an input (a reference, say) as rows.

    Args:
        tokens: int64 ``[inputs, length]``, right-padded, each ending with EOS.
    """
    ones = torch.ones(len(tokens), dtype=torch.long, device=tokens.device)
    return Rows(
        tokens=tokens,
        lengths=tokens.ne(pad).sum(1),
        input_index=torch.arange(len(tokens), device=tokens.device),
        truncated=torch.zeros_like(ones, dtype=torch.bool),
        multiplicity=ones,
    )


def append_rows(rows: Rows, tokens: Tensor, pad: int) -> Rows:
    """Add one given sequence an input behind the sampled rows, see :func:`given_rows`."""
    given = given_rows(tokens, pad)
    width = max(rows.tokens.size(1), tokens.size(1))

    def widen(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, width - x.size(1)), value=pad)

    both = {
        field.name: (getattr(rows, field.name), getattr(given, field.name))
        for field in fields(rows)
    }
    both["tokens"] = widen(rows.tokens), widen(tokens)
    return Rows(**{name: torch.cat(parts) for name, parts in both.items()})
