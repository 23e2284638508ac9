"""Stage one: sample without a graph (docs/method.md 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from esrl_fairseq.checks.models import check_model
from esrl_fairseq.compat import forget_casts
from esrl_fairseq.core.sampling import inverse_cdf_sample, row_uniforms
from esrl_fairseq.core.sequences import Rows, moved
from esrl_fairseq.sampling.conditioning import decoder_prefix, encode
from esrl_fairseq.sampling.modes import kept_modes
from esrl_fairseq.sampling.steps import DecoderSteps, decoding_steps

COMPACT_AT = 0.05
"""Share of ended rows at which the decoder's batch is compacted."""
ROWS_AT_ONCE = (1024, 16384)
"""Rows in the decoder's batch, on a CPU and on other devices: more are not faster."""
SCORED_AT_ONCE = 256
"""Rows that are projected to the vocabulary and sampled at once on a CPU."""


def _groups(counts: list[int], most: int) -> Iterator[slice]:
    """Rows of consecutive inputs, at most ``most`` of them or those of one input."""
    start = stop = 0
    for count in counts:
        if stop > start and stop + count - start > most:
            yield slice(start, stop)
            start = stop
        stop += count
    if stop > start:
        yield slice(start, stop)


def _branches(branch: Tensor, chosen: Tensor, size: int) -> tuple[Tensor | None, Tensor]:
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
    """

    input_index: Tensor
    limits: Tensor
    given: Tensor
    start: Tensor
    tokens: Tensor
    uniforms: Tensor

    def __getitem__(self, rows: slice) -> Draws:
        """Those of some rows."""
        return Draws(*(x[rows] for x in vars(self).values()))


class RowSampler(SequenceGenerator):
    """SequenceGenerator that samples any number of rows an input, each at its own temperature.

    Takes SequenceGenerator's options (``max_len_a``, ``max_len_b``, ``max_len``, ``min_len``,
    ``eos``); the length limit is that of an input's own length, not of the padded batch.
    Works with one model whose decoder is a ``FairseqIncrementalDecoder``.

    Raises:
        EsrlError: the model is of another kind, see :func:`check_model`.
    """

    def __init__(self, models: list[Any], *args: Any, **kwargs: Any):
        check_model(models[0])
        with kept_modes(models[0]):  # fairseq's generators put them into eval mode for good
            super().__init__(models, *args, **kwargs)

    def length_limits(self, src_lengths: Tensor, prefix_lengths: Tensor | int = 1) -> Tensor:
        """Most tokens (EOS not counted) of a row, int64 ``[inputs]``.

        Args:
            src_lengths: int64 ``[inputs]``.
            prefix_lengths: places that the decoder needs for what it reads before the row.
        """
        limits = (self.max_len_a * src_lengths + self.max_len_b).long()
        room = torch.zeros_like(limits) + int(self.max_len) - prefix_lengths
        return torch.minimum(limits.clamp(min=max(self.min_len, 1)), room)

    @torch.no_grad()
    def sample_rows(
        self,
        sample: dict[str, Any],
        counts: Any,
        temperature: Any,
        seed: int,
        longest: int | None = None,
    ) -> Rows:
        """Draw ``counts[i]`` sequences for input i.

        Args:
            sample: a fairseq batch with ``id`` and ``net_input``.
            counts: int ``[inputs]``, rows of each input, 0 allowed.
            temperature: float ``[inputs]``, positive.
            seed: the same seed gives the same rows for the same inputs, however batched.
            longest: most tokens (EOS not counted) of any row, below the sampler's own limits.

        Returns:
            :class:`Rows`, draws in order, duplicates kept.
        """
        model, net_input = self.model.single_model, sample["net_input"]
        draws = self.draws(sample, counts, seed)
        if longest is not None:
            draws.limits.clamp_(max=longest)
        temperature = torch.as_tensor(temperature, device=draws.tokens.device)
        # Decoder caches are bounded, since inputs take turns.
        most = ROWS_AT_ONCE[draws.tokens.device.type != "cpu"]
        with kept_modes(self.model):
            self.model.eval()
            encoder_out = encode(model, net_input)
            for rows in _groups(np.asarray(counts).tolist(), most):
                self._decode(draws[rows], encoder_out, temperature)
        forget_casts()
        return self.as_rows(draws)

    def draws(self, sample: dict[str, Any], counts: Any, seed: int) -> Draws:
        """What rows are drawn with; for the arguments see :meth:`sample_rows`."""
        net_input = sample["net_input"]
        prefix = decoder_prefix(self.model.single_model, net_input, self.eos)
        limits = self.length_limits(net_input["src_lengths"], prefix.lengths)
        counts, device = np.asarray(counts).tolist(), limits.device
        uniforms = row_uniforms(seed, sample["id"].tolist(), counts, (limits + 1).tolist())
        input_index = torch.arange(len(counts), device=device)
        input_index = input_index.repeat_interleave(torch.tensor(counts, device=device))
        prefix = prefix[input_index]
        given = prefix.lengths - 1
        steps = prefix.tokens.size(1) - 1 + uniforms.size(1)
        return Draws(
            input_index=input_index,
            limits=limits[input_index],
            given=given,
            start=prefix.tokens[:, :1],
            tokens=moved(prefix.tokens, torch.full_like(given, -1), steps, self.pad),
            uniforms=moved(uniforms.to(device), given, steps, 0),
        )

    def forbid(self, scores: Tensor, drawn: Tensor) -> None:
        """Take the words that are never drawn out of ``scores``, ``[rows, words]``.

        Args:
            drawn: int64 ``[rows]``, how many tokens each row has so far.
        """
        scores[:, self.pad] = -torch.inf
        scores[:, self.eos].masked_fill_(drawn < self.min_len, -torch.inf)

    def as_rows(self, draws: Draws) -> Rows:
        """:class:`Rows` of finished sequences, without their prompts."""
        tokens = moved(draws.tokens, -draws.given, draws.tokens.size(1), self.pad)
        lengths = (tokens != self.pad).sum(1)
        return Rows(
            tokens=tokens[:, : int(lengths.max()) if len(lengths) else 0],
            lengths=lengths,
            input_index=draws.input_index,
            truncated=lengths > draws.limits,
            multiplicity=torch.ones_like(lengths),
        )

    def _decode(self, draws: Draws, encoder_out: Any, temperature: Tensor) -> None:
        """Write the samples of some rows into ``draws.tokens``.

        Args:
            temperature: ``[inputs]``.
        """
        # Rows with the same prefix share one place in the decoder's batch, their branch: at first
        # all of an input, later each has its own.
        inputs, branch = draws.input_index.unique(return_inverse=True)
        tokens, ends = draws.tokens, draws.given + draws.limits
        live = torch.arange(len(tokens), device=tokens.device)
        first = torch.empty_like(inputs).scatter_(0, branch, live)  # any row of each input
        previous, given = draws.start[first], draws.given[first]
        shortest = int(given.min())
        rows, length = tokens.shape
        # All of it at once on a CPU, where memory that no step reaches is never touched.
        room = length if tokens.device.type == "cpu" else 0
        steps = decoding_steps(self.model.single_model, encoder_out, inputs, rows, room)
        with steps.running():
            for step in range(length):
                if step >= shortest or not steps.reads_ahead:
                    output = steps(previous)
                chosen = tokens[live, step]
                drawn = step - given  # by each branch; below 0 while it reads its prompt
                if step >= shortest:
                    own = self._choose(
                        steps,
                        output,
                        branch,
                        temperature[inputs],
                        draws.uniforms[live, step],
                        drawn,
                    )
                    own = own.masked_fill(ends[live] <= step, self.eos)
                    reading = (drawn < 0)[branch]
                    chosen = torch.where(reading, chosen, own)
                    tokens[live, step] = chosen
                    going = reading | (chosen != self.eos)
                    live, branch, chosen = live[going], branch[going], chosen[going]
                if not len(live):
                    break
                parents, branch = _branches(branch, chosen, len(previous))
                if parents is not None:
                    steps.keep(parents)
                    previous, inputs, given = previous[parents], inputs[parents], given[parents]
                # A branch without live rows is fed EOS, never padding, which decoders would mask.
                word = torch.full_like(inputs, self.eos).index_copy(0, branch, chosen)
                previous = torch.cat([previous, word.unsqueeze(1)], dim=1)

    def _choose(
        self,
        steps: DecoderSteps,
        output: Tensor,
        branch: Tensor,
        temperature: Tensor,
        uniforms: Tensor,
        drawn: Tensor,
    ) -> Tensor:
        """Next token of each live row, from the distribution of its branch.

        Args:
            output: of the decoder's step, ``[branches, …]``, as are temperature and ``drawn``.
            branch, uniforms: ``[rows]``.
        """
        chosen = torch.empty_like(branch)
        # On a CPU a few at a time, so that their scores stay in its cache.
        size = SCORED_AT_ONCE if output.device.type == "cpu" else len(output)
        for start in range(0, len(output), size):
            rows = ((branch >= start) & (branch < start + size)).nonzero().squeeze(1)
            part = slice(start, start + size)
            scores = steps.scores(output[part])
            self.forbid(scores, drawn[part])
            chosen[rows] = inverse_cdf_sample(
                scores, temperature[part], uniforms[rows], branch[rows] - start
            )
        return chosen

    def _generate(
        self,
        sample: dict[str, Any],
        prefix_tokens: Tensor | None = None,
        constraints: Tensor | None = None,
        bos_token: int | None = None,
    ) -> list[list[dict[str, Tensor]]]:
        """SequenceGenerator's interface: ``beam_size`` samples an input at ``temperature``."""
        if prefix_tokens is not None or constraints is not None or bos_token is not None:
            raise ValueError("RowSampler takes no prefix, constraints or own start token")
        inputs = len(sample["id"])
        rows = self.sample_rows(
            sample,
            np.full(inputs, self.beam_size),
            np.full(inputs, self.temperature, dtype=np.float32),
            torch.initial_seed(),
        )
        hypotheses: list[list[dict[str, Tensor]]] = [[] for _ in range(inputs)]
        for row, length, i in zip(rows.tokens, rows.lengths.tolist(), rows.input_index.tolist()):
            hypotheses[i].append({"tokens": row[:length]})
        return hypotheses
