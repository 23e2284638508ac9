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
    return _words(logits.float().div_(temperature.unsqueeze(-1)).softmax(dim=-1), uniforms, rows)


def sample_and_score(
    logits: Tensor, temperature: Tensor | None, uniforms: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """The words of :func:`inverse_cdf_sample`, and what is known of them anyway.

    Args:
        logits: float32 ``[rows, words]``; :data:`~esrl_fairseq.core.token_scores.FORBIDDEN` forbids
            a word.
        temperature: ``[rows]``, positive; None is 1 everywhere, which saves a softmax.

    Returns:
        int64 ``[draws]``, the words; float32 ``[3, draws]``, the log-probability of each at
        temperature 1, that at its temperature, and the entropy in nats at temperature 1.
    """
    probs = logits.softmax(dim=-1)
    mean_score = torch.linalg.vecdot(probs, logits)[rows]
    if temperature is None:
        words = _words(probs, uniforms, rows)
        log_probs = tempered = probs[rows, words].log()
    else:
        weights = (logits / temperature.unsqueeze(-1)).softmax(dim=-1)
        words = _words(weights, uniforms, rows)
        tempered = weights[rows, words].log()
        # From the likeliest word: at temperature 1 the one drawn may round to 0.
        log_z = logits.amax(dim=-1) - probs.amax(dim=-1).log()
        log_probs = logits[rows, words] - log_z[rows]
    # H = log Z − Σ_v p_v score_v, and log Z = score − log p of any word.
    entropy = logits[rows, words] - log_probs - mean_score
    return words, torch.stack([log_probs, tempered, entropy])


def _words(weights: Tensor, uniforms: Tensor, rows: Tensor) -> Tensor:
    """A word of each row by its uniform number: ``rows`` are of ``weights``, ``[rows, words]``."""
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
