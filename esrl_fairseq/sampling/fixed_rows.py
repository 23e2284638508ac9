"""Decoding where launches decide, as on a GPU: few operations a step, and hardly any that wait.

Each row has its own place from the first step on. Ended rows are fed EOS; whether there are any is
looked at every few steps, and half-empty batches are compacted then.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from esrl_fairseq.core.sampling import sample_and_score
from esrl_fairseq.sampling.draws import Draws, Strategy
from esrl_fairseq.sampling.steps import cache_bytes, decoding_steps

LOOK_EVERY = 8
"""Steps between two looks at which rows have ended: each makes the host wait."""
ROOM = 64
"""Steps that caches have room for at first; they double."""
ROWS_AT_ONCE = 16384
"""Rows in the decoder's batch, if memory allows: more are not faster."""
SHARE = 8
"""The decoder's batch may take one part of so many of the device's memory."""
COPIES = 5
"""Of the scores of all words, in float32, that sampling has at once."""


def decode_fixed_rows(
    sampler: Any, draws: Draws, encoder_out: Any, temperature: Tensor | None, device: torch.device
) -> None:
    """Write the samples of some rows into ``draws.tokens``, and what is known of them; for the
    arguments see :class:`Strategy`."""
    there, (rows, length) = draws.to(device), draws.tokens.shape
    shortest, longest = int(draws.given.min()), int(draws.given.max())
    inputs, place = draws.input_index.unique(return_inverse=True)
    if temperature is not None:
        temperature = temperature[there.input_index]
    model = sampler.model.single_model
    steps = decoding_steps(model, encoder_out, inputs, rows, min(length, ROOM))
    # What is fed; EOS behind an end, never padding, which decoders would mask.
    fed = torch.full((rows, length + 1), sampler.eos, device=device)
    fed[:, :1] = there.start
    now, live = there, torch.arange(rows)  # rows of the batch, and their places in ``there``
    going = torch.ones(rows, dtype=torch.bool, device=device)
    ends = there.given + there.limits
    with steps.running():
        steps.keep(place)
        for step in range(length):
            if step >= shortest or not steps.reads_ahead:
                output = steps(fed[:, : step + 1])
            if step < shortest:
                fed[:, step + 1] = now.tokens[:, step]
                continue
            scores = steps.scores(output).float()
            drawn = step - now.given if step < longest + sampler.min_len else None
            prompt = (now.given > step, now.tokens[:, step]) if step < longest else None
            chosen, known, goes_on = draw_words(
                sampler,
                scores,
                (temperature, now.uniforms[:, step]),
                drawn,
                ~going | (ends <= step),
                prompt,
            )
            now.tokens[:, step] = chosen.masked_fill(~going, sampler.pad)
            now.known[:, :, step] = known
            going, fed[:, step + 1] = going & goes_on, chosen
            if step % LOOK_EVERY == LOOK_EVERY - 1:
                left = going.cpu().nonzero().squeeze(1)
                if not len(left):
                    break
                if 2 * len(left) <= len(going):
                    there.put(live.to(device, non_blocking=True), now)
                    steps.keep(left)
                    live, left = live[left], left.to(device, non_blocking=True)
                    now, ends, fed, going = now[left], ends[left], fed[left], going[left]
                    temperature = None if temperature is None else temperature[left]
    there.put(live.to(device, non_blocking=True), now)
    draws.take(there)


def draw_words(
    sampler: Any,
    scores: Tensor,
    how: tuple[Tensor | None, Tensor],
    drawn: Tensor | None,
    forced: Tensor,
    prompt: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The next word of each row.

    Args:
        sampler: knows which words are never drawn.
        scores: float32 ``[rows, words]``, overwritten.
        how: temperatures (None is 1 everywhere) and random numbers, ``[rows]``.
        drawn: int64 ``[rows]``, how many tokens each row has so far; None: enough to end.
        forced: bool ``[rows]``, those that have ended, or must now.
        prompt: bool and int64 ``[rows]``, which rows read their prompt, and its words; None: none.

    Returns:
        int64 ``[rows]``, the words, EOS where forced; float32 ``[3, rows]``, what is known of those
        that were drawn; bool ``[rows]``, whether more words follow.
    """
    sampler.forbid(scores, drawn)
    chosen, known = sample_and_score(scores, *how)
    chosen = chosen.masked_fill(forced, sampler.eos)
    goes_on = chosen != sampler.eos
    if prompt is not None:
        reading, words = prompt
        chosen = torch.where(reading, words, chosen)
        forced, goes_on = forced | reading, goes_on | reading
    return chosen, known.masked_fill(forced, 0), goes_on


def most_rows(sampler: Any, length: int, device: torch.device) -> int:
    """Rows of ``length`` tokens whose caches and scores fit their share of the device's memory."""
    if device.type != "cuda":
        return ROWS_AT_ONCE
    memory = torch.cuda.get_device_properties(device).total_memory
    words = COPIES * sampler.vocab_size * torch.float32.itemsize
    bytes_a_row = words + cache_bytes(sampler.model.single_model.decoder, length)
    return max(min(memory // SHARE // bytes_a_row, ROWS_AT_ONCE), 1)


FIXED_ROWS = Strategy(decode_fixed_rows, most_rows)
