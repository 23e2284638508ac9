"""Stage one: sample without a graph (docs/method.md 2)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor, nn

from esrl_fairseq.core.sampling import inverse_cdf_sample, row_uniforms
from esrl_fairseq.core.sequences import Rows
from esrl_fairseq.errors import EsrlError

COMPACT_AT = 0.2
"""Share of ended rows at which the batch is compacted; copying caches more often costs more."""


@contextlib.contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Restore every module's training or eval mode at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class RowSampler(SequenceGenerator):
    """SequenceGenerator that samples any number of rows an input, each at its own temperature.

    Takes SequenceGenerator's options (``max_len_a``, ``max_len_b``, ``max_len``, ``min_len``,
    ``eos``); the length limit is that of an input's own length, not of the padded batch.
    Works with one model whose decoder is a ``FairseqIncrementalDecoder``.

    Raises:
        EsrlError: the model has an adaptive softmax, which fairseq computes in place, so that
            stage two could not differentiate it.
    """

    def __init__(self, models: list[Any], *args: Any, **kwargs: Any):
        super().__init__(models, *args, **kwargs)
        if getattr(models[0].decoder, "adaptive_softmax", None) is not None:
            raise EsrlError(
                "models with --adaptive-softmax-cutoff are not supported: train one without it"
            )

    def length_limits(self, src_lengths: Tensor) -> Tensor:
        """Most tokens (EOS not counted) of a row, int64 ``[inputs]``."""
        limits = (self.max_len_a * src_lengths + self.max_len_b).long()
        return limits.clamp(min=max(self.min_len, 1), max=self.max_len - 1)

    @torch.no_grad()
    def sample_rows(self, sample: dict[str, Any], counts: Any, temperature: Any, seed: int) -> Rows:
        """Draw ``counts[i]`` sequences for input i.

        Args:
            sample: a fairseq batch with ``id`` and ``net_input``.
            counts: int ``[inputs]``, rows of each input, 0 allowed.
            temperature: float ``[inputs]``, positive.
            seed: the same seed gives the same rows for the same inputs, however batched.

        Returns:
            :class:`Rows`, draws in order, duplicates kept.
        """
        with kept_modes(self.model):
            self.model.eval()
            return self._sample_rows(sample, counts, temperature, seed)

    def _sample_rows(
        self, sample: dict[str, Any], counts: Any, temperature: Any, seed: int
    ) -> Rows:
        model = self.model.single_model
        net_input = sample["net_input"]
        device = net_input["src_tokens"].device
        limits = self.length_limits(net_input["src_lengths"])
        uniforms = row_uniforms(
            seed, sample["id"].tolist(), np.asarray(counts).tolist(), (limits + 1).tolist()
        ).to(device)

        counts = torch.as_tensor(counts, device=device)
        input_index = torch.repeat_interleave(torch.arange(len(counts), device=device), counts)
        temperature = torch.as_tensor(temperature, device=device)[input_index]
        limits = limits[input_index]
        tokens = torch.full(
            (len(input_index), uniforms.size(1)), self.pad, dtype=torch.long, device=device
        )
        lengths = torch.zeros_like(limits)

        encoder_out = model.encoder.forward_torchscript(net_input)
        encoder_out = model.encoder.reorder_encoder_out(encoder_out, input_index)
        state: dict[str, Any] = {}
        live = torch.arange(len(input_index), device=device)  # rows in the decoder's batch
        previous = torch.full((len(live), 1), self.eos, dtype=torch.long, device=device)
        ended = torch.zeros(len(live), dtype=torch.bool, device=device)
        for step in range(uniforms.size(1) if len(live) else 0):
            decoder_out = model.decoder(previous, encoder_out=encoder_out, incremental_state=state)
            chosen = self._choose(
                decoder_out[0][:, -1],
                step,
                temperature[live],
                uniforms[live, step],
                limits[live],
            )
            running = live[~ended]
            tokens[running, step] = chosen[~ended]
            ended = ended | (chosen == self.eos)
            lengths[live[ended & (lengths[live] == 0)]] = step + 1
            number_ended = int(ended.sum())
            if number_ended == len(live):
                break
            # An ended row is fed EOS, never padding, which decoders would start to mask.
            previous = torch.cat([previous, chosen.masked_fill(ended, self.eos)[:, None]], dim=1)
            if number_ended >= COMPACT_AT * len(live):
                keep = (~ended).nonzero().squeeze(1)
                model.decoder.reorder_incremental_state_scripting(state, keep)
                encoder_out = model.encoder.reorder_encoder_out(encoder_out, keep)
                live, previous, ended = live[keep], previous[keep], ended[keep]
        return Rows(
            tokens=tokens[:, : int(lengths.max()) if len(lengths) else 0],
            lengths=lengths,
            input_index=input_index,
            truncated=lengths > limits,
            multiplicity=torch.ones_like(lengths),
        )

    def _choose(
        self, scores: Tensor, step: int, temperature: Tensor, uniforms: Tensor, limits: Tensor
    ) -> Tensor:
        """Next token of each row; at its length limit a row is forced to end."""
        scores[:, self.pad] = -torch.inf
        if step < self.min_len:
            scores[:, self.eos] = -torch.inf
        chosen = inverse_cdf_sample(scores, temperature, uniforms)
        return chosen.masked_fill(limits <= step, self.eos)

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
