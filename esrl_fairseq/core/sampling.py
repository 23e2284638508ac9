"""Exact sampling from a softmax with one random number per row (docs/method.md 2).

The random numbers are a function of (seed, input id, sample, step) alone. Padding, the order of
the inputs, the split into batches and the number of ranks therefore do not change what is sampled.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK = 64
"""Words of a block in :func:`inverse_cdf_sample`."""
MANY_WORDS = 100_000
"""Vocabularies above this are drawn from in float64."""


def row_uniforms(
    seed: int,
    input_ids: Sequence[int],
    counts: Sequence[int],
    steps: Sequence[int],
    words: int = 0,
) -> Tensor:
    """Uniform numbers for ragged rows, from the counter-based generator Philox.

    Args:
        seed: of the update; the same seed gives the same numbers.
        input_ids: ``[inputs]`` dataset ids, the generator's key beside the seed.
        counts: ``[inputs]`` rows per input.
        steps: ``[inputs]`` numbers per row; must not depend on the rest of the batch.
        words: of the vocabulary that will be drawn from.

    Returns:
        ``[sum(counts), max(steps)]`` in [0, 1), zero beyond an input's own ``steps``. Float32, of
        24 bits, or float64 for more than :data:`MANY_WORDS`, whose rarest would never be drawn.
    """
    kind = np.float64 if words > MANY_WORDS else np.float32
    uniforms = np.zeros((sum(counts), max(steps, default=0)), dtype=kind)
    row = 0
    for input_id, count, width in zip(input_ids, counts, steps):
        key = np.array([seed % 2**64, int(input_id) % 2**64], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        uniforms[row : row + count, :width] = generator.random((count, width), dtype=kind)
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
    return _words(logits.float().div_(temperature.unsqueeze(-1)).softmax(dim=-1), uniforms, rows)


def sample_and_score(
    logits: Tensor, temperature: Tensor | None, uniforms: Tensor, rows: Tensor | None = None
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
    mean_score = _of_draws(torch.linalg.vecdot(probs, logits), rows)
    if temperature is None:
        words = _words(probs, uniforms, rows)
        log_probs = tempered = _at(probs, rows, words).log()
    else:
        weights = (logits / temperature.unsqueeze(-1)).softmax(dim=-1)
        words = _words(weights, uniforms, rows)
        tempered = _at(weights, rows, words).log()
        # From the likeliest word: at temperature 1 the one drawn may round to 0.
        log_z = logits.amax(dim=-1) - probs.amax(dim=-1).log()
        log_probs = _at(logits, rows, words) - _of_draws(log_z, rows)
    # H = log Z − Σ_v p_v score_v, and log Z = score − log p of any word.
    entropy = _at(logits, rows, words) - log_probs - mean_score
    return words, torch.stack([log_probs, tempered, entropy])


def _of_draws(values: Tensor, rows: Tensor | None) -> Tensor:
    """Values ``[rows, …]`` of the row of each draw; None: each row has one, in order."""
    return values if rows is None else values[rows]


def _at(values: Tensor, rows: Tensor | None, words: Tensor) -> Tensor:
    """``values[rows, words]``; ``words`` is ``[draws]`` or ``[draws, some]``."""
    if rows is None:
        return values.gather(1, words.view(len(words), -1)).view(words.shape)
    return values[rows.view(-1, *(1,) * (words.dim() - 1)), words]


def _words(weights: Tensor, uniforms: Tensor, rows: Tensor | None) -> Tensor:
    """A word of each draw by its uniform number, from its row of ``weights``, ``[rows, words]``."""
    # Two levels: a CDF over all words would be a third of the sampler's time on a CPU.
    sums = _of_draws(_block_sums(weights), rows)
    column, *found = _column(sums, uniforms)
    block, rest = column.squeeze(-1), _rest(sums, column, *found)
    # What is compiled keeps no tensor from outside.
    compiling = torch.compiler.is_compiling()
    inside = (_block if compiling else _inside_a_block)(weights.device)
    words = block.unsqueeze(1) * BLOCK + inside
    if weights.size(1) % BLOCK == 0:
        own = _at(weights, rows, words)
        return block * BLOCK + _column(own, rest)[0].squeeze(-1)
    last = weights.size(1) - 1
    own = _at(weights, rows, words.clamp(max=last)) * (words <= last)
    return (block * BLOCK + _column(own, rest)[0].squeeze(-1)).clamp(max=last)


def _block(device: torch.device) -> Tensor:
    return torch.arange(BLOCK, device=device)


@functools.cache
def _inside_a_block(device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return _block(device)


def _block_sums(weights: Tensor) -> Tensor:
    """Sums of BLOCK neighbouring words each, ``[rows, blocks]``; the last block may be shorter."""
    whole = weights.size(1) // BLOCK
    sums = weights[:, : whole * BLOCK].unflatten(1, (whole, BLOCK)).sum(-1)
    if whole * BLOCK < weights.size(1):
        sums = torch.cat([sums, weights[:, whole * BLOCK :].sum(1, keepdim=True)], dim=1)
    return sums


def _column(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Column of each row at its uniform number.

    Args:
        weights: float32 ``[rows, columns]``, not negative, not all zero.
        uniforms: ``[rows]`` in [0, 1), float32 or float64, in which it is computed.

    Returns:
        int64 ``[rows, 1]``, never a column of weight 0; the CDF ``[rows, columns]``; the place in
        it, ``[rows, 1]``.
    """
    cdf = weights.cumsum(dim=-1, dtype=uniforms.dtype)
    # A float below 1 is at most 1 - eps / 2, and that times the total never rounds to the total, so
    # that there is always a column left above the target.
    target = uniforms.unsqueeze(-1) * cdf[:, -1:]
    column = torch.searchsorted(cdf, target, right=True)
    # It is one too far where all is NaN.
    return column.clamp(max=weights.size(-1) - 1), cdf, target


def _rest(weights: Tensor, column: Tensor, cdf: Tensor, target: Tensor) -> Tensor:
    """Where in its column's share each uniform number lies, ``[rows]`` in [0, 1)."""
    weight = weights.gather(1, column)
    rest = (target - (cdf.gather(1, column) - weight)) / weight
    return rest.clamp(0, 1 - torch.finfo(rest.dtype).eps / 2).squeeze(-1)
