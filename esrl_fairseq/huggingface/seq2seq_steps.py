"""Steps of ``hf_seq2seq``'s decoder: transformers' layers, with caches that neither grow by copying
nor hold the source once a row."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from esrl_fairseq.huggingface import library
from esrl_fairseq.huggingface.caches import row_layer
from esrl_fairseq.sampling.attention import Grid
from esrl_fairseq.sampling.steps import DecoderSteps, moves

MASKS = ("attention_mask", "mask", "key_padding_mask")
"""Names of what attention modules of transformers get of padding."""


class SharedCross:
    """``forward`` of a layer's cross-attention, for which the rows of an input are positions of one
    sequence: their keys and values are computed once an input, and lie there once.

    Args:
        module: of transformers.
        steps: have the grid of rows, and the inputs' mask.
    """

    def __init__(self, module: Any, steps: HfSeq2SeqSteps):
        self.module, self.forward, self.steps = module, module.forward, steps

    def __call__(self, *given: Any, **named: Any) -> Any:
        first = "query" if "query" in named else "hidden_states"
        states = given[0] if given else named.pop(first)
        named.update({name: self.steps.mask for name in MASKS if name in named})
        time_first, grid = self.steps.time_first, self.steps.grid
        if time_first:
            states = states.transpose(0, 1)
        length = states.size(1)
        states = grid.spread(states).flatten(1, 2)
        if time_first:
            states = states.transpose(0, 1)
        found, *rest = self.forward(**{first: states}, **named)
        if time_first:
            found = found.transpose(0, 1)
        found = grid.gather(found.unflatten(1, (grid.width, length)))
        return (found.transpose(0, 1) if time_first else found, *rest)


class HfSeq2SeqSteps(DecoderSteps):
    """Steps of :class:`~esrl_fairseq.huggingface.seq2seq.HfSeq2SeqDecoder`.

    For the arguments see :class:`DecoderSteps`.
    """

    def __init__(
        self, model: Any, encoder_out: Any, input_index: Tensor, most_rows: int, room: int
    ):
        super().__init__(model, encoder_out, input_index, most_rows, room)
        self.decoder, self.family = model.decoder, model.decoder.family
        self.time_first = self.family.time_first
        self.states = self.encoder_out["encoder_out"][0].transpose(0, 1)
        self.mask = self.attention_mask(self.encoder_out["encoder_padding_mask"])
        self.grid = Grid(torch.arange(len(input_index)), self.device)
        cross = self.family.cross_attention
        self.own = [row_layer()(most_rows, room + self.decoder.forced) for _ in cross]
        self.cross = [SharedCross(module, self) for module in cross]
        self.cache = library.encoder_decoder_cache(self.family.config)
        self.cache.self_attention_cache.layers = self.own
        self.seen = 0

    def attention_mask(self, padding: list[Tensor]) -> Tensor | None:
        """Of the inputs, as the attention modules want it; None without padding."""
        if not padding or not padding[0].any():
            return None
        if self.time_first:
            return padding[0]
        mask = self.states.new_zeros(padding[0].shape)
        return mask.masked_fill_(padding[0], torch.finfo(mask.dtype).min)[:, None, None]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        try:
            for shared in self.cross:
                shared.module.forward = shared
            with torch.inference_mode():
                yield
        finally:
            for shared in self.cross:
                vars(shared.module).pop("forward", None)

    def __call__(self, previous: Tensor) -> Tensor:
        if self.seen:
            ids = self.decoder.ids[previous[:, -1:]]
        else:
            ids = self.decoder.read(previous)
        self.seen += ids.size(1)
        return self.family.decode(ids, self.states, None, self.cache)[:, -1]

    def scores(self, output: Tensor) -> Tensor:
        return self.decoder.output_layer(output)

    def keep(self, rows: Tensor) -> None:
        moved = moves(rows, self.device)
        for own in self.own:
            own.move(*moved)
        self.grid, inputs = self.grid.keep(rows)
        if inputs is not None:
            self.states = self.states[inputs]
            self.mask = None if self.mask is None else self.mask[inputs]
            if self.seen:
                self.cache.cross_attention_cache.batch_select_indices(inputs)
