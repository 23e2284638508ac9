"""Exact sampling from a softmax with one random number per row (DESIGN 2.2).

The random numbers are a function of (seed, input id, sample, step) alone. Padding, the order of
the inputs, the split into batches and the number of ranks therefore do not change what is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


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


def inverse_cdf_sample(logits: Tensor, temperature: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token a row from softmax(logits / temperature) by inverting its CDF.

    ``torch.multinomial`` would draw a random number for every (row, word), which on a CPU costs
    more than the model. The probabilities need no normalisation: the uniform number is scaled
    to the CDF's end instead.

    Args:
        logits: ``[rows, words]``; −inf forbids a word. Overwritten.
        temperature: ``[rows]``, positive.
        uniforms: float32 ``[rows]`` in [0, 1).

    Returns:
        int64 ``[rows]``; never a word of probability zero.
    """
    scaled = logits.float()
    scaled = scaled.sub_(scaled.amax(dim=-1, keepdim=True)).div_(temperature.unsqueeze(-1))
    cdf = scaled.exp_().cumsum(dim=-1)
    total = cdf[:, -1:]
    # A float32 below 1 is at most 1 - 2**-24, and that times the total never rounds to the total,
    # so that there is always a word left above the target.
    target = uniforms.unsqueeze(-1) * total
    return torch.searchsorted(cdf, target, right=True).squeeze(-1)
