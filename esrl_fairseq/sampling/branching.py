"""Decoding where work decides, as on a CPU: nothing is computed twice, or for ended rows.

Rows with the same beginning share one place in the decoder's batch, their branch: at first all of
an input, later each has its own. Ended rows leave at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from esrl_fairseq.core.sampling import sample_and_score
from esrl_fairseq.sampling.draws import Draws, Strategy, branches
from esrl_fairseq.sampling.steps import DecoderSteps, cache_bytes, decoding_steps

ROWS_AT_ONCE = (256, 1024)
"""Rows in the decoder's batch, least and most: more are not faster, fewer are slower."""
POSITION_BYTES = 4 << 20
"""Of the batch's keys and values of one position: the wider a model, the fewer rows it needs."""
SCORED_AT_ONCE = 256
"""Rows that are projected to the vocabulary and sampled at once: their scores stay in the cache."""


def decode_in_branches(
    sampler: Any, draws: Draws, encoder_out: Any, temperature: Tensor | None, device: torch.device
) -> None:
    """Write the samples of some rows into ``draws.tokens``, and what is known of them; for the
    arguments see :class:`Strategy`."""
    there = draws.to(device)
    inputs, branch = there.input_index.unique(return_inverse=True)
    tokens, ends = there.tokens, there.given + there.limits
    live = torch.arange(len(tokens), device=device)
    first = torch.empty_like(inputs).scatter_(0, branch, live)  # any row of each input
    previous, given = there.start[first], there.given[first]
    shortest, (rows, length) = int(draws.given.min()), tokens.shape
    # All of it at once: memory that no step reaches is never touched.
    steps = decoding_steps(sampler.model.single_model, encoder_out, inputs.cpu(), rows, length)
    with steps.running():
        for step in range(length):
            if step >= shortest or not steps.reads_ahead:
                output = steps(previous)
            chosen = tokens[live, step]
            drawn = step - given  # by each branch; below 0 while it reads its prompt
            if step >= shortest:
                own, known = _choose(
                    sampler,
                    steps,
                    output,
                    branch,
                    None if temperature is None else temperature[inputs],
                    there.uniforms[live, step],
                    drawn,
                )
                forced = ends[live] <= step
                reading = (drawn < 0)[branch]
                chosen = torch.where(reading, chosen, own.masked_fill(forced, sampler.eos))
                tokens[live, step] = chosen
                there.known[:, live, step] = known.masked_fill(reading | forced, 0)
                going = reading | (chosen != sampler.eos)
                live, branch, chosen = live[going], branch[going], chosen[going]
            if not len(live):
                break
            parents, branch = branches(branch, chosen, len(previous))
            if parents is not None:
                steps.keep(parents.cpu())
                previous, inputs, given = previous[parents], inputs[parents], given[parents]
            # A branch without live rows is fed EOS, never padding, which decoders would mask.
            word = torch.full_like(inputs, sampler.eos).index_copy(0, branch, chosen)
            previous = torch.cat([previous, word.unsqueeze(1)], dim=1)
    draws.take(there)


def _choose(
    sampler: Any,
    steps: DecoderSteps,
    output: Tensor,
    branch: Tensor,
    temperature: Tensor | None,
    uniforms: Tensor,
    drawn: Tensor,
) -> tuple[Tensor, Tensor]:
    """Next token of each live row, from the distribution of its branch; what is known of it.

    Args:
        output: of the decoder's step, ``[branches, …]``, as are temperature and ``drawn``.
        branch, uniforms: ``[rows]``.
    """
    chosen, known = torch.empty_like(branch), uniforms.new_empty(3, len(branch), dtype=torch.float)
    for start in range(0, len(output), SCORED_AT_ONCE):
        rows = ((branch >= start) & (branch < start + SCORED_AT_ONCE)).nonzero().squeeze(1)
        part = slice(start, start + SCORED_AT_ONCE)
        scores = steps.scores(output[part]).float()
        sampler.forbid(scores, drawn[part])
        own = None if temperature is None else temperature[part]
        chosen[rows], known[:, rows] = sample_and_score(
            scores, own, uniforms[rows], branch[rows] - start
        )
    return chosen, known


def rows_at_once(decoder: Any) -> int:
    """Rows of fairseq's ``decoder`` that are decoded together, so that caches stay small."""
    least, most = ROWS_AT_ONCE
    bytes_a_row = cache_bytes(decoder, 1) // 2  # none grows here
    return max(least, min(POSITION_BYTES // max(bytes_a_row, 1), most))


def most_rows(sampler: Any, length: int, device: torch.device) -> int:
    """See :class:`Strategy`."""
    return rows_at_once(sampler.model.single_model.decoder)


BRANCHES = Strategy(decode_in_branches, most_rows)
