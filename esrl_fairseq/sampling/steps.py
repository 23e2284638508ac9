"""Decoding one step after another for ragged rows of a batch's inputs (docs/method.md 2).

:class:`DecoderSteps` drives any fairseq decoder. :class:`TransformerSteps` gives the same numbers
for fairseq's own Transformer at less cost: only attention is replaced, all else stays fairseq's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from fairseq.models.transformer import TransformerDecoder, TransformerDecoderBase
from fairseq.modules import MultiheadAttention
from fairseq.modules.transformer_layer import (
    TransformerDecoderLayer,
    TransformerDecoderLayerBase,
)
from torch import Tensor, nn

from esrl_fairseq.sampling.attention import CrossAttention, Grid, SelfAttention
from esrl_fairseq.sampling.conditioning import reorder_encoder_out


def decoding_steps(
    model: Any, encoder_out: Any, input_index: Tensor, most_rows: int, room: int
) -> DecoderSteps:
    """The cheapest steps that ``model.decoder`` allows; for the arguments see DecoderSteps.

    A decoder can have ``steps`` of its own.
    """
    general = TransformerSteps if TransformerSteps.fits(model.decoder) else DecoderSteps
    kind: type[DecoderSteps] = getattr(model.decoder, "steps", general)
    return kind(model, encoder_out, input_index, most_rows, room)


class DecoderSteps:
    """Any ``FairseqIncrementalDecoder``, its cache and encoder output per row.

    Args:
        model: not wrapped.
        encoder_out: of the inputs; None for decoder-only models.
        input_index: int64 ``[rows]``, the input of each row, on the host.
        most_rows: that there will ever be.
        room: steps that caches have room for at first; they grow.
    """

    reads_ahead = False
    """Whether a step also takes those before it that were left out."""

    def __init__(
        self,
        model: Any,
        encoder_out: Any,
        input_index: Tensor,
        most_rows: int,
        room: int,
    ):
        self.model = model
        self.device = next(model.parameters()).device
        there = input_index.to(self.device, non_blocking=True)
        self.encoder_out = reorder_encoder_out(model, encoder_out, there)
        self.state: dict[str, Any] = {}
        self.rows = len(input_index)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Steps are taken within."""
        yield

    def __call__(self, previous: Tensor) -> Tensor:
        """The decoder's output ``[rows, …]`` after the tokens ``previous``, ``[rows, steps]``."""
        output = self.model.decoder(
            previous, encoder_out=self.encoder_out, incremental_state=self.state
        )
        return output[0][:, -1]

    def scores(self, output: Tensor) -> Tensor:
        """Logits ``[rows, words]`` of some rows of a step's output."""
        return output

    def keep(self, rows: Tensor) -> None:
        """Go on from these rows, int64 on the host, in any order and number."""
        rows = rows.to(self.device, non_blocking=True)
        reorder = self.model.decoder.reorder_incremental_state_scripting
        if len(rows) == self.rows:
            # fairseq's MultiheadAttention takes a new order of equal size for one of the beams of
            # the same inputs, and leaves the cached keys of the source as they were.
            reorder(self.state, torch.cat([rows, rows[:1]]))
            reorder(self.state, torch.arange(len(rows), device=rows.device))
        else:
            reorder(self.state, rows)
        self.rows = len(rows)
        self.encoder_out = reorder_encoder_out(self.model, self.encoder_out, rows)


class TransformerSteps(DecoderSteps):
    """fairseq's own Transformer decoder.

    Self-attention writes into a cache of full length instead of concatenating a longer one at
    each step. Cross-attention, if there is any, has keys and values once an input, not once a row.
    """

    def __init__(
        self,
        model: Any,
        encoder_out: Any,
        input_index: Tensor,
        most_rows: int,
        room: int,
    ):
        super().__init__(model, encoder_out, input_index, most_rows, room)
        layers = model.decoder.layers
        self.own = [SelfAttention(x.self_attn, most_rows, room) for x in layers]
        self.cross: list[CrossAttention] = []
        if self.encoder_out is not None:
            (states,) = self.encoder_out["encoder_out"]
            padding = self.encoder_out["encoder_padding_mask"]
            mask = padding[0] if padding and padding[0].any() else None
            self.grid = Grid(torch.arange(len(input_index)), self.device)
            self.cross = [
                CrossAttention(x.encoder_attn, states, mask, self.grid)
                for x in layers
                if x.encoder_attn is not None
            ]

    @staticmethod
    def fits(decoder: Any) -> bool:
        """Whether every part is fairseq's own and nothing that is replaced has been changed."""
        if type(decoder) not in (TransformerDecoder, TransformerDecoderBase):
            return False
        kinds = (TransformerDecoderLayer, TransformerDecoderLayerBase)
        return not decoder.cross_self_attention and all(
            type(layer) in kinds
            and _fits(layer.self_attn)
            and (layer.encoder_attn is None or _fits(layer.encoder_attn))
            for layer in decoder.layers
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Within, the layers' attention is computed here, and no tensor fit for a graph."""
        replaced: list[Any] = [*self.own, *self.cross]
        try:
            for attention in replaced:
                attention.module.forward = attention
            with torch.inference_mode():
                yield
        finally:
            for attention in replaced:
                vars(attention.module).pop("forward", None)

    def __call__(self, previous: Tensor) -> Tensor:
        output = self.model.decoder(
            previous, encoder_out=self.encoder_out, incremental_state={}, features_only=True
        )
        return output[0][:, -1]

    def scores(self, output: Tensor) -> Tensor:
        return self.model.decoder.output_layer(output)

    def keep(self, rows: Tensor) -> None:
        moved = moves(rows, self.device)
        for own in self.own:
            own.move(*moved)
        if self.cross:
            self.grid, inputs = self.grid.keep(rows)
            for cross in self.cross:
                cross.keep(self.grid, inputs)


def moves(rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """New places, and the rows that go there, where ``rows``, int64 on the host, go on; those that
    stay in their place are left out. Both on ``device``."""
    to = (rows != torch.arange(len(rows))).nonzero().squeeze(1)
    return to.to(device, non_blocking=True), rows[to].to(device, non_blocking=True)


def cache_bytes(decoder: Any, length: int) -> int:
    """Of one row of ``length`` tokens in :class:`TransformerSteps`, twice while a cache grows; 0
    for other decoders, whose caches are not known, unless they tell (``cache_bytes``)."""
    if hasattr(decoder, "cache_bytes"):
        return int(decoder.cache_bytes(length))
    if not TransformerSteps.fits(decoder):
        return 0
    attentions = [layer.self_attn for layer in decoder.layers]
    numbers = sum(2 * x.num_heads * x.head_dim for x in attentions)
    return 2 * numbers * length * attentions[0].k_proj.weight.element_size()


def _fits(attention: Any) -> bool:
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    return (
        type(attention) is MultiheadAttention
        and all(type(part) is nn.Linear for part in parts)
        and attention.bias_k is None
        and not attention.add_zero_attn
        and not attention.use_xformers
        and "forward" not in vars(attention)
    )
