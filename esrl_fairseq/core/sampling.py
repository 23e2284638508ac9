"""Exact sampling from a softmax with one random number per row (docs/method.md 2).

The random numbers are a function of (seed, input id, sample, step) alone. Padding, the order of
the inputs, the split into batches and the number of ranks therefore do not change what is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK = 64
"""Words of a block in :func:`inverse_cdf_sample`."""


def row_uniforms(
    seed: int, input_ids: Sequence[int], counts: Sequence[int], steps: Sequence[int]
) -> Tensor:
    """Uniform numbers for ragged rows, from the counter-based generator Philox.

    Args:
        seed: of the update; the same seed gives the same numbers.
        input_ids: ``[inputs]`` dataset ids, the generator's key beside the seed.
        counts: ``[inputs]`` rows per input.
        steps: ``[inputs]`` numbers per row; must not depend on the rest of the batch.

    Returns:
        float32 ``[sum(counts), max(steps)]`` in [0, 1), zero beyond an input's own ``steps``.
    """
    uniforms = np.zeros((sum(counts), max(steps, default=0)), dtype=np.float32)
    row = 0
    for input_id, count, width in zip(input_ids, counts, steps):
        key = np.array([seed % 2**64, int(input_id) % 2**64], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        uniforms[row : row + count, :width] = generator.random((count, width), dtype=np.float32)
        row += count
    return torch.from_numpy(uniforms)


def inverse_cdf_sample(
    logits: Tensor, temperature: Tensor, uniforms: Tensor, rows: Tensor | None = None
) -> Tensor:
    """Draw tokens from softmax(logits / temperature) by inverting its CDF.

    ``torch.multinomial`` would draw a random number for every (row, word), which on a CPU costs
    more than the model. The probabilities need no normalisation: the uniform number is scaled
    to the CDF's end instead.

    Args:
        logits: ``[rows, words]``; −inf forbids a word. Overwritten.
        temperature: ``[rows]``, positive.
        uniforms: float32 ``[draws]`` in [0, 1).
        rows: int64 ``[draws]``, the row of ``logits`` of each draw; one draw a row by default.

    Returns:
        int64 ``[draws]``; never a word of probability zero. Scores that are not numbers (``--amp``
        overflows at times) give any word, and the loss of that row is no number either, which
        fairseq knows how to go on from.
    """
    if rows is None:
        rows = torch.arange(len(logits), device=logits.device)
    weights = logits.float().div_(temperature.unsqueeze(-1)).softmax(dim=-1)
    # Two levels: a CDF over all words would be a third of the sampler's time on a CPU.
    block, rest = _invert(_block_sums(weights)[rows], uniforms)
    words = block.unsqueeze(1) * BLOCK + torch.arange(BLOCK, device=weights.device)
    inside = words < weights.size(1)
    last = weights.size(1) - 1
    own = weights[rows.unsqueeze(1), words.clamp(max=last)] * inside
    return (block * BLOCK + _invert(own, rest)[0]).clamp(max=last)


def _block_sums(weights: Tensor) -> Tensor:
    """Sums of BLOCK neighbouring words each, ``[rows, blocks]``; the last block may be shorter."""
    whole = weights.size(1) // BLOCK
    sums = weights[:, : whole * BLOCK].unflatten(1, (whole, BLOCK)).sum(-1)
    if whole * BLOCK < weights.size(1):
        sums = torch.cat([sums, weights[:, whole * BLOCK :].sum(1, keepdim=True)], dim=1)
    return sums


def _invert(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Column of each row at its uniform number, and where in that column's share it lies.

    Args:
        weights: float32 ``[rows, columns]``, not negative, not all zero.
        uniforms: float32 ``[rows]`` in [0, 1).

    Returns:
        int64 ``[rows]``, never a column of weight 0; float32 ``[rows]`` in [0, 1).
    """
    cdf = weights.cumsum(dim=-1)
    # A float32 below 1 is at most 1 - 2**-24, and that times the total never rounds to the total,
    # so that there is always a column left above the target.
    target = uniforms.unsqueeze(-1) * cdf[:, -1:]
    column = torch.searchsorted(cdf, target, right=True)
    column = column.clamp(max=weights.size(-1) - 1)  # it is one too far where all is NaN
    weight = weights.gather(1, column)
    rest = (target - (cdf.gather(1, column) - weight)) / weight
    return column.squeeze(-1), rest.clamp(0, 1 - 2**-24).squeeze(-1)
