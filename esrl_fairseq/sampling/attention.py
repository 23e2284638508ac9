"""fairseq's attention for one position a row, as :class:`~.steps.TransformerSteps` puts it in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Grid:
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

    def keep(self, rows: Tensor) -> tuple[Grid, Tensor | None]:
        """The grid of fewer rows, and the inputs that it has where some have no row any more."""
        inputs, input_index = self.input_index[rows].unique(return_inverse=True)
        grid = Grid(input_index, self.device)
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


class SelfAttention:
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


class CrossAttention:
    """MultiheadAttention's ``forward`` for one position a row, over its input's encoder output."""

    def __init__(self, module: Any, states: Tensor, padding: Tensor | None, grid: Grid):
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

    def keep(self, grid: Grid, inputs: Tensor | None) -> None:
        """Go on with the rows of ``grid``, whose inputs are ``inputs`` where some have ended."""
        self.grid = grid
        if inputs is not None:
            self.keys, self.values = self.keys[inputs], self.values[inputs]
            self.mask = self.mask[inputs] if self.mask is not None else None


class StaticSelfAttention:
    """:class:`SelfAttention` whose shapes no step changes: places of the cache behind the current
    one are masked.

    Args:
        module: fairseq's.
        cache: ``[rows, steps, 2, heads, width]``, written to; numbers everywhere.
        at: int64 ``[1]``, the current step.
    """

    def __init__(self, module: Any, cache: Tensor, at: Tensor):
        self.module, self.cache, self.at = module, cache, at

    def __call__(self, query: Tensor, **_: Any) -> tuple[Tensor, None]:
        module, (rows, steps, _two, heads, width) = self.module, self.cache.shape
        queries, keys, values = (
            project(query[0]).view(rows, heads, width)
            for project in (module.q_proj, module.k_proj, module.v_proj)
        )
        self.cache.index_copy_(1, self.at, torch.stack([keys, values], dim=1).unsqueeze(1))
        keys, values = self.cache.permute(2, 0, 3, 1, 4)
        there = torch.arange(steps, device=query.device) <= self.at
        mixed = nn.functional.scaled_dot_product_attention(
            queries.unsqueeze(2),
            keys,
            values,
            attn_mask=there.expand(rows, 1, 1, steps),
            scale=module.scaling,
        )
        return module.out_proj(mixed.reshape(1, rows, -1)), None


class StaticCrossAttention:
    """:class:`CrossAttention` with as many rows of each input, in the order of the inputs.

    Args:
        module: fairseq's.
        keys_values: ``[2, inputs, heads, source length, width]``.
        mask: ``[inputs, 1, 1, source length]``, what is added to scores.
    """

    def __init__(self, module: Any, keys_values: Tensor, mask: Tensor):
        self.module, self.keys_values, self.mask = module, keys_values, mask

    def __call__(self, query: Tensor, **_: Any) -> tuple[Tensor, None]:
        keys, values = self.keys_values
        inputs, heads, _length, width = keys.shape
        queries = self.module.q_proj(query[0]).view(inputs, -1, heads, width).transpose(1, 2)
        mixed = nn.functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=self.mask, scale=self.module.scaling
        )
        return self.module.out_proj(mixed.transpose(1, 2).reshape(1, query.size(1), -1)), None


def source_keys_values(module: Any, states: Tensor) -> Tensor:
    """Of cross-attention, ``[2, inputs, heads, source length, width]``.

    Args:
        module: fairseq's.
        states: the encoder's output, ``[source length, inputs, …]``.
    """
    projected = [project(states) for project in (module.k_proj, module.v_proj)]
    parts = torch.stack(projected).unflatten(-1, (module.num_heads, module.head_dim))
    return parts.permute(0, 2, 3, 1, 4)


def _softmax(weights: Tensor) -> Tensor:
    """In float32, as fairseq does."""
    return weights.softmax(-1, dtype=torch.float32).to(weights.dtype)
