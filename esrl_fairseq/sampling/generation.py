"""Stage one: sample without a graph (docs/method.md 2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from esrl_fairseq.checks.models import check_model
from esrl_fairseq.compat import forget_casts
from esrl_fairseq.core.sampling import row_uniforms, sample_and_score
from esrl_fairseq.core.scores import Scores
from esrl_fairseq.core.sequences import Rows, moved
from esrl_fairseq.core.token_scores import FORBIDDEN
from esrl_fairseq.sampling.conditioning import decoder_prefix, encode
from esrl_fairseq.sampling.draws import Draws, branches, groups_of_inputs
from esrl_fairseq.sampling.modes import kept_modes
from esrl_fairseq.sampling.steps import DecoderSteps, decoding_steps

ROWS_AT_ONCE = (1024, 16384)
"""Rows in the decoder's batch, on a CPU and on other devices: more are not faster."""
SCORED_AT_ONCE = 256
"""Rows that are projected to the vocabulary and sampled at once on a CPU."""


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
        return self.sample(sample, counts, temperature, seed, longest)[0]

    @torch.no_grad()
    def sample(
        self,
        sample: dict[str, Any],
        counts: Any,
        temperature: Any,
        seed: int,
        longest: int | None = None,
    ) -> tuple[Rows, Scores]:
        """:meth:`sample_rows`, and what sampling knows of the rows: their scores, all of them,
        under the model in eval mode."""
        model, net_input = self.model.single_model, sample["net_input"]
        draws = self.draws(sample, counts, seed)
        if longest is not None:
            draws.limits.clamp_(max=longest)
        tempered = bool((np.asarray(temperature) != 1).any())
        temperature = torch.as_tensor(temperature, device=draws.tokens.device)
        # Decoder caches are bounded, since inputs take turns.
        most = ROWS_AT_ONCE[draws.tokens.device.type != "cpu"]
        with kept_modes(self.model):
            self.model.eval()
            encoder_out = encode(model, net_input)
            for part in groups_of_inputs(np.asarray(counts).tolist(), most):
                self._decode(draws[part], encoder_out, temperature if tempered else None)
        forget_casts()
        rows = self.as_rows(draws)
        return rows, self.as_scores(draws, rows)

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
            known=torch.zeros(3, len(given), steps, device=device),
        )

    def forbid(self, scores: Tensor, drawn: Tensor) -> None:
        """Take the words that are never drawn out of ``scores``, float32 ``[rows, words]``.

        Args:
            drawn: int64 ``[rows]``, how many tokens each row has so far.
        """
        scores[:, self.pad] = FORBIDDEN
        scores[:, self.eos].masked_fill_(drawn < self.min_len, FORBIDDEN)

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

    @staticmethod
    def as_scores(draws: Draws, rows: Rows) -> Scores:
        """What is known of finished sequences."""
        log_probs, tempered, entropy = draws.known
        return Scores(
            log_probs.sum(1),
            entropy.sum(1),
            rows.scored().sum(1),
            tempered.sum(1),
            moved(log_probs, -draws.given, rows.tokens.size(1), 0),
        )

    def _decode(self, draws: Draws, encoder_out: Any, temperature: Tensor | None) -> None:
        """Write the samples of some rows into ``draws.tokens``, and what is known of them.

        Args:
            temperature: ``[inputs]``; None is 1 everywhere.
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
                    own, known = self._choose(
                        steps,
                        output,
                        branch,
                        None if temperature is None else temperature[inputs],
                        draws.uniforms[live, step],
                        drawn,
                    )
                    forced = ends[live] <= step
                    reading = (drawn < 0)[branch]
                    chosen = torch.where(reading, chosen, own.masked_fill(forced, self.eos))
                    tokens[live, step] = chosen
                    draws.known[:, live, step] = known.masked_fill(reading | forced, 0)
                    going = reading | (chosen != self.eos)
                    live, branch, chosen = live[going], branch[going], chosen[going]
                if not len(live):
                    break
                parents, branch = branches(branch, chosen, len(previous))
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
        temperature: Tensor | None,
        uniforms: Tensor,
        drawn: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Next token of each live row, from the distribution of its branch; what is known of it.

        Args:
            output: of the decoder's step, ``[branches, …]``, as are temperature and ``drawn``.
            branch, uniforms: ``[rows]``.
        """
        chosen, known = torch.empty_like(branch), uniforms.new_empty(3, len(branch))
        # On a CPU a few at a time, so that their scores stay in its cache.
        size = SCORED_AT_ONCE if output.device.type == "cpu" else len(output)
        for start in range(0, len(output), size):
            rows = ((branch >= start) & (branch < start + size)).nonzero().squeeze(1)
            part = slice(start, start + size)
            scores = steps.scores(output[part]).float()
            self.forbid(scores, drawn[part])
            own = None if temperature is None else temperature[part]
            chosen[rows], known[:, rows] = sample_and_score(
                scores, own, uniforms[rows], branch[rows] - start
            )
        return chosen, known

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
