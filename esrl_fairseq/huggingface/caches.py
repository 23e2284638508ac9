"""Caches of transformers' layers that do not grow by copying."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from esrl_fairseq.huggingface import library
from esrl_fairseq.sampling.steps import moves


class RowLayer:
    """Keys and values of a layer's rows, as transformers' caches call them; one tensor of full
    length is written into.

    Args:
        rows: most that there will be.
        room: positions that there is room for at first; it doubles.
    """

    is_sliding = is_compileable = False
    is_initialized = True

    def __init__(self, rows: int, room: int):
        self.rows, self.room, self.seen = rows, max(room, 1), 0
        self.cache = torch.empty(0)

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """All keys and values after some more, ``[rows, heads, positions, width]``."""
        rows, heads, steps, width = keys.shape
        if not self.seen:
            room = max(self.room, steps)
            self.cache = keys.new_empty(2, self.rows, heads, room, width)
        elif self.seen + steps > self.cache.size(3):
            self.cache = torch.cat([self.cache, torch.empty_like(self.cache)], dim=3)
        here = slice(self.seen, self.seen + steps)
        self.cache[0, :rows, :, here] = keys
        self.cache[1, :rows, :, here] = values
        self.seen += steps
        found = self.cache[:, :rows, :, : self.seen]
        return found[0], found[1]

    def move(self, to: Tensor, rows: Tensor) -> None:
        """Let ``rows`` go on at the places ``to``, both int64."""
        if len(to) and self.seen:
            self.cache[:, to, :, : self.seen] = self.cache[:, rows, :, : self.seen]

    def get_seq_length(self, *_: Any) -> int:
        """Positions that it holds."""
        return self.seen

    def get_mask_sizes(self, new: Any) -> tuple[int, int]:
        """Positions that masks are about after ``new`` more (or their places), and the first."""
        return self.seen + (len(new) if isinstance(new, Tensor) else new), 0


@functools.cache
def row_layer() -> type:
    """:class:`RowLayer` as one of the library's own, which its caches ask for."""
    base = library.transformers().cache_utils.DynamicLayer
    return type("RowLayer", (RowLayer, base), {})


class RowCache:
    """The cache of a causal LM, for rows that end and branch.

    Layers of other kinds, such as those with a sliding window, stay transformers' own, and copy.

    Args:
        config: of the model.
        rows, room: see :class:`RowLayer`.
    """

    def __init__(self, config: Any, rows: int, room: int):
        self.inner = library.transformers().DynamicCache(config=config)
        plain = library.transformers().cache_utils.DynamicLayer
        self.inner.layers = [
            row_layer()(rows, room) if type(layer) is plain else layer
            for layer in self.inner.layers
        ]

    def keep(self, rows: Tensor, device: torch.device) -> None:
        """Go on from these rows, int64 on the host, in any order and number."""
        moved, there = moves(rows, device), rows.to(device, non_blocking=True)
        for layer in self.inner.layers:
            if isinstance(layer, RowLayer):
                layer.move(*moved)
            else:
                layer.batch_select_indices(there)


def position_bytes(model: Any) -> int:
    """Of the keys and values of one position in all layers of ``model``, a causal LM."""
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * width
    return int(numbers * model.dtype.itemsize)
