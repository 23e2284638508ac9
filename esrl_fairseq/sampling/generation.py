"""Stage one: sample without a graph (docs/method.md 2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from esrl_fairseq.checks.models import check_model
from esrl_fairseq.compat import forget_casts
from esrl_fairseq.core.batch import host_ids
from esrl_fairseq.core.sampling import row_uniforms
from esrl_fairseq.core.scores import Scores
from esrl_fairseq.core.sequences import Rows, moved
from esrl_fairseq.core.token_scores import FORBIDDEN
from esrl_fairseq.sampling.branching import BRANCHES
from esrl_fairseq.sampling.conditioning import decoder_prefix, encode, is_decoder_only
from esrl_fairseq.sampling.draws import Draws, Strategy, groups_of_inputs
from esrl_fairseq.sampling.fixed_rows import FIXED_ROWS
from esrl_fairseq.sampling.modes import kept_modes

STRATEGIES = (BRANCHES, FIXED_ROWS)
"""How rows are decoded on a CPU, where work decides, and elsewhere, where launches do."""


class RowSampler(SequenceGenerator):
    """SequenceGenerator that samples any number of rows an input, each at its own temperature.

    Takes SequenceGenerator's options (``max_len_a``, ``max_len_b``, ``max_len``, ``min_len``,
    ``eos``); the length limit is that of an input's own length, not of the padded batch.
    Works with one model whose decoder is a ``FairseqIncrementalDecoder``.

    Raises:
        EsrlError: the model is of another kind, see :func:`check_model`.
    """

    strategy: Strategy | None = None
    """How rows are decoded; None: as the device wants it."""

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
        limits = self.max_len_a * src_lengths + self.max_len_b
        limits = limits.clamp(max=self.max_len).long()  # they may be beyond all integers
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
        device = net_input["src_tokens"].device
        strategy = self.strategy or STRATEGIES[device.type != "cpu"]
        tempered = None
        if (np.asarray(temperature) != 1).any():
            tempered = torch.as_tensor(temperature).to(device, non_blocking=True)
        with kept_modes(self.model):
            self.model.eval()
            encoder_out = encode(model, net_input)
            # Inputs take turns, so that memory is bounded.
            most = strategy.most_rows(self, draws.tokens.size(1), device)
            for part in groups_of_inputs(np.asarray(counts).tolist(), most):
                strategy.decode(self, draws[part], encoder_out, tempered, device)
        forget_casts()
        rows = self.as_rows(draws)
        return rows, self.as_scores(draws, rows)

    def draws(self, sample: dict[str, Any], counts: Any, seed: int) -> Draws:
        """What rows are drawn with, on the host; for the arguments see :meth:`sample_rows`."""
        model, net_input = self.model.single_model, dict(sample["net_input"])
        needed = ("src_tokens", "src_lengths") if is_decoder_only(model) else ("src_lengths",)
        net_input.update({name: net_input[name].cpu() for name in needed})
        prefix = decoder_prefix(model, net_input, self.eos)
        limits = self.length_limits(net_input["src_lengths"], prefix.lengths)
        counts = np.asarray(counts).tolist()
        uniforms = row_uniforms(
            seed, host_ids(sample).tolist(), counts, (limits + 1).tolist(), words=self.vocab_size
        )
        input_index = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        prefix = prefix[input_index]
        given = prefix.lengths - 1
        steps = prefix.tokens.size(1) - 1 + uniforms.size(1)
        return Draws(
            input_index=input_index,
            limits=limits[input_index],
            given=given,
            start=prefix.tokens[:, :1],
            tokens=moved(prefix.tokens, torch.full_like(given, -1), steps, self.pad),
            uniforms=moved(uniforms, given, steps, 0),
            known=torch.zeros(3, len(given), steps),
        )

    def forbid(self, scores: Tensor, drawn: Tensor | None) -> None:
        """Take the words that are never drawn out of ``scores``, float32 ``[rows, words]``.

        Args:
            drawn: int64 ``[rows]``, how many tokens each row has so far; None: enough to end.
        """
        scores[:, self.pad] = FORBIDDEN
        if drawn is not None:
            scores[:, self.eos].masked_fill_(drawn < self.min_len, FORBIDDEN)

    def as_rows(self, draws: Draws) -> Rows:
        """:class:`Rows` of finished sequences, without their prompts; where these are."""
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
