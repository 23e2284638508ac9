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
        self.own = [_SelfAttention(x.self_attn, most_rows, room) for x in layers]
        self.cross: list[_CrossAttention] = []
        if self.encoder_out is not None:
            (states,) = self.encoder_out["encoder_out"]
            padding = self.encoder_out["encoder_padding_mask"]
            mask = padding[0] if padding and padding[0].any() else None
            self.grid = _Grid(torch.arange(len(input_index)), self.device)
            self.cross = [
                _CrossAttention(x.encoder_attn, states, mask, self.grid)
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
        # Those that stay in their place are not copied.
        to = (rows != torch.arange(len(rows))).nonzero().squeeze(1)
        moved = [x.to(self.device, non_blocking=True) for x in (to, rows[to])]
        for own in self.own:
            own.move(*moved)
        if self.cross:
            self.grid, inputs = self.grid.keep(rows)
            for cross in self.cross:
                cross.keep(self.grid, inputs)


def cache_bytes(decoder: Any, length: int) -> int:
    """Of one row of ``length`` tokens in :class:`TransformerSteps`, twice while a cache grows; 0
    for other decoders, whose caches are not known."""
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


class _Grid:
    """Places of ragged rows in a rectangle, so that the rows of an input share matrix products.

    Args:
        input_index: int64 ``[rows]``, the input of each row, on the host; every input has one.
    """

    def __init__(self, input_index: Tensor, device: torch.device):
        self.input_index, self.device = input_index, device
        counts = torch.bincount(input_index)
        self.inputs, self.width = len(counts), int(counts.max())
        order = input_index.argsort(stable=True)
        first = (counts.cumsum(0) - counts)[input_index[order]]
        slot = torch.empty_like(order)
        slot[order] = torch.arange(len(order)) - first
        place = input_index * self.width + slot
        self.filled = torch.equal(place, torch.arange(self.inputs * self.width))
        self.place = place.to(device, non_blocking=True)

    def keep(self, rows: Tensor) -> tuple[_Grid, Tensor | None]:
        """The grid of fewer rows, and the inputs that it has where some have no row any more."""
        inputs, input_index = self.input_index[rows].unique(return_inverse=True)
        grid = _Grid(input_index, self.device)
        if len(inputs) == self.inputs:
            return grid, None
        return grid, inputs.to(self.device, non_blocking=True)

    def spread(self, x: Tensor) -> Tensor:
        """``[rows, …]`` → ``[inputs, width, …]``, zero where there is no row."""
        if not self.filled:
            x = x.new_zeros(self.inputs * self.width, *x.shape[1:]).index_copy_(0, self.place, x)
        return x.unflatten(0, (self.inputs, self.width))

    def gather(self, x: Tensor) -> Tensor:
        """``[inputs, width, …]`` → ``[rows, …]``."""
        x = x.flatten(0, 1)
        return x if self.filled else x.index_select(0, self.place)


class _SelfAttention:
    """MultiheadAttention's ``forward`` for one position a row, over the row's cached positions."""

    def __init__(self, module: Any, rows: int, room: int):
        self.module, self.heads, self.width = module, module.num_heads, module.head_dim
        parts = (module.q_proj, module.k_proj, module.v_proj)
        self.weight = torch.cat([part.weight for part in parts])
        self.bias = torch.cat([part.bias for part in parts]) if parts[0].bias is not None else None
        self.shape = rows, max(room, 1), 2, self.heads, self.width
        # Keys and values of a row's positions, as the projection gives them: half with --amp.
        self.cache = self.weight.new_empty(0)
        self.steps = 0

    def __call__(self, query: Tensor, **_: Any) -> tuple[Tensor, None]:
        rows = query.size(1)
        projected = nn.functional.linear(query[0], self.weight, self.bias)
        projected = projected.view(rows, 3, self.heads, self.width)
        if self.steps == 0:
            self.cache = projected.new_empty(self.shape)
        elif self.steps == self.cache.size(1):
            self.cache = torch.cat([self.cache, torch.empty_like(self.cache)], dim=1)
        self.cache[:rows, self.steps] = projected[:, 1:]
        self.steps += 1
        keys, values = self.cache[:rows, : self.steps].permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(
            projected[:, 0].unsqueeze(2), keys, values, scale=self.module.scaling
        )
        return self.module.out_proj(mixed.reshape(1, rows, -1)), None

    def move(self, to: Tensor, rows: Tensor) -> None:
        """Let ``rows`` go on at the places ``to``, both int64."""
        if len(to) and self.steps:
            self.cache[to, : self.steps] = self.cache[rows, : self.steps]


class _CrossAttention:
    """MultiheadAttention's ``forward`` for one position a row, over its input's encoder output."""

    def __init__(self, module: Any, states: Tensor, padding: Tensor | None, grid: _Grid):
        self.module, self.heads, self.width = module, module.num_heads, module.head_dim
        # [source length, inputs, …] → [inputs, heads, …]
        keys, values = (
            project(states).unflatten(-1, (self.heads, self.width)).permute(1, 2, 0, 3)
            for project in (module.k_proj, module.v_proj)
        )
        self.fused = keys.device.type != "cpu"  # one launch; on a CPU products are faster
        self.keys = keys.contiguous() if self.fused else keys.transpose(2, 3).contiguous()
        self.values = values.contiguous()
        self.mask = None
        if padding is not None:
            self.mask = keys.new_zeros(padding.shape).masked_fill_(padding, -torch.inf)
            self.mask = self.mask[:, None, None]
        self.grid = grid

    def __call__(self, query: Tensor, **_: Any) -> tuple[Tensor, None]:
        queries = self.grid.spread(self.module.q_proj(query[0]))
        queries = queries.unflatten(-1, (self.heads, self.width)).transpose(1, 2)
        mixed = (self.attend_at_once if self.fused else self.attend)(queries)
        mixed = self.grid.gather(mixed.transpose(1, 2).flatten(2))
        return self.module.out_proj(mixed)[None], None

    def attend(self, queries: Tensor) -> Tensor:
        """``[inputs, heads, width, …]`` of queries → the same of mixed values."""
        weights = torch.matmul(queries * self.module.scaling, self.keys)
        if self.mask is not None:
            weights += self.mask
        return torch.matmul(_softmax(weights), self.values)

    def attend_at_once(self, queries: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(
            queries, self.keys, self.values, attn_mask=self.mask, scale=self.module.scaling
        )

    def keep(self, grid: _Grid, inputs: Tensor | None) -> None:
        """Go on with the rows of ``grid``, whose inputs are ``inputs`` where some have ended."""
        self.grid = grid
        if inputs is not None:
            self.keys, self.values = self.keys[inputs], self.values[inputs]
            self.mask = self.mask[inputs] if self.mask is not None else None


def _softmax(weights: Tensor) -> Tensor:
    """In float32, as fairseq does."""
    return weights.softmax(-1, dtype=torch.float32).to(weights.dtype)
