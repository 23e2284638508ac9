"""A decoding step whose shapes never change, so that it can be compiled as a whole.

What happens to a row is decided by tensors alone, and all that a step leaves is written into the
same memory: a CUDA graph can replay it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from esrl_fairseq.sampling.attention import (
    StaticCrossAttention,
    StaticSelfAttention,
    source_keys_values,
)
from esrl_fairseq.sampling.draws import Draws
from esrl_fairseq.sampling.fixed_rows import draw_words

Buffer = Callable[..., Tensor]
"""Memory of a name, a shape and a type: the same for the same ones, full of numbers."""


class Shape(NamedTuple):
    """All that a compiled step depends on, beside the model.

    Attributes:
        inputs, width: places for inputs, and for rows of each.
        source: places for an input's words; 0 without cross-attention.
        steps: places for a row's words.
        tempered: whether rows have temperatures.
        weights, cache: types of the model's numbers, and of keys and values.
        uniforms: type of random numbers.
    """

    inputs: int
    width: int
    source: int
    steps: int
    tempered: bool
    weights: torch.dtype
    cache: torch.dtype
    uniforms: torch.dtype

    @property
    def rows(self) -> int:
        """Places for rows: those of the first input, of the second, …"""
        return self.inputs * self.width


class StaticStep:
    """One step of fairseq's own Transformer for rows in fixed places, up to their next words.

    A place without a row is one that has ended. Attributes are memory that a step reads and writes.

    Args:
        sampler: of a model that :class:`TransformerSteps` fits.
        shape: of the step.
        buffer: gives the memory.

    Attributes:
        at: int64 ``[1]``, the step.
        fed: int64 ``[rows]``, each row's last word.
        going: bool ``[rows]``, whether it goes on.
        given, ends: int64 ``[rows]``, words of its prompt, and the step that its limit ends it at.
        tokens, uniforms, known: see :class:`Draws`.
        temperature: ``[rows]``, or None.
        positions: ``[steps, width]`` of their embeddings, or None.
        caches: of each layer, ``[rows, steps, 2, heads, width]``.
        sources: of each layer, ``[2, inputs, heads, source, width]``; none without cross-attention.
        there: bool ``[inputs, 1, 1, source]``, which of their words are no padding.
    """

    def __init__(self, sampler: Any, shape: Shape, buffer: Buffer):
        decoder = sampler.model.single_model.decoder
        self.sampler, self.decoder, self.shape = sampler, decoder, shape
        # Without LayerDrop's choice, and without checkpoints for a backward pass.
        stock: list[Any] = list(nn.ModuleList.__iter__(decoder.layers))
        self.layers = [getattr(layer, "precheckpoint_forward", layer) for layer in stock]
        rows, steps = shape.rows, shape.steps
        self.at = buffer("at", (1,), torch.int64)
        self.fed, self.given, self.ends = (
            buffer(name, (rows,), torch.int64) for name in ("fed", "given", "ends")
        )
        self.going = buffer("going", (rows,), torch.bool)
        self.tokens = buffer("tokens", (rows, steps), torch.int64)
        self.uniforms = buffer("uniforms", (rows, steps), shape.uniforms)
        self.known = buffer("known", (3, rows, steps), torch.float32)
        self.temperature = self.positions = None
        if shape.tempered:
            self.temperature = buffer("temperature", (rows,), torch.float32)
        if decoder.embed_positions is not None:
            self.positions = buffer("positions", (steps, decoder.embed_dim), shape.weights)
        own = [layer.self_attn for layer in stock]
        size = rows, steps, 2, own[0].num_heads, own[0].head_dim
        self.caches = [buffer(f"cache {i}", size, shape.cache) for i in range(len(own))]
        self.attention: list[Any] = [
            StaticSelfAttention(x, cache, self.at) for x, cache in zip(own, self.caches)
        ]
        cross = [layer.encoder_attn for layer in stock] if shape.source else []
        self.there = buffer("there", (shape.inputs, 1, 1, shape.source), torch.bool)
        self.sources = [
            buffer(
                f"source {i}", (2, shape.inputs, x.num_heads, shape.source, x.head_dim), shape.cache
            )
            for i, x in enumerate(cross)
        ]
        self.cross = [StaticCrossAttention(*x, self.there) for x in zip(cross, self.sources)]
        self.attention += self.cross

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Within, the layers' attention is computed here."""
        try:
            for attention in self.attention:
                attention.module.forward = attention
            yield
        finally:
            for attention in self.attention:
                vars(attention.module).pop("forward", None)

    def take(self) -> None:
        """The step; what is compiled."""
        step, going = self.at, self.going
        scores = self.decoder.output_layer(self.features()).float()
        uniforms, words = (x.index_select(1, step).squeeze(1) for x in (self.uniforms, self.tokens))
        chosen, known, goes_on = draw_words(
            self.sampler,
            scores,
            (self.temperature, uniforms),
            step - self.given,
            ~going | (self.ends <= step),
            (self.given > step, words),
        )
        written = chosen.masked_fill(~going, self.sampler.pad)
        self.tokens.index_copy_(1, step, written.unsqueeze(1))
        self.known.index_copy_(2, step, known.unsqueeze(2))
        self.fed.copy_(chosen)
        self.going.logical_and_(goes_on)
        self.at.add_(1)

    def features(self) -> Tensor:
        """What fairseq's decoder does before its output layer, ``[rows, …]``; without its question
        whether any word is padding, which would wait for the device."""
        decoder = self.decoder
        x = decoder.embed_scale * decoder.embed_tokens(self.fed.unsqueeze(1))
        if decoder.quant_noise is not None:
            x = decoder.quant_noise(x)
        if decoder.project_in_dim is not None:
            x = decoder.project_in_dim(x)
        if self.positions is not None:
            x = x + self.positions.index_select(0, self.at)
        if decoder.layernorm_embedding is not None:
            x = decoder.layernorm_embedding(x)
        x = x.transpose(0, 1)
        for layer in self.layers:
            x = layer(x, x)[0]  # attention here knows its encoder output
        if decoder.layer_norm is not None:
            x = decoder.layer_norm(x)
        if decoder.project_out_dim is not None:
            x = decoder.project_out_dim(x)
        return x[0]

    # Between steps

    def begin(self, encoder_out: Any, inputs: Tensor, start: Tensor, places: Tensor) -> None:
        """Before the first step: nothing is cached but the inputs.

        Args:
            encoder_out: of all inputs; None without an encoder.
            inputs: int64 ``[inputs]``, which of them.
            start: int64 ``[rows, 1]``, what rows read first.
            places: int64 ``[rows]``, where they are.
        """
        for memory in (self.at, self.fed, self.going, *self.caches, *self.sources):
            memory.zero_()
        self.fed[places], self.going[places] = start.squeeze(1), True
        if not self.cross:
            return
        (states,) = encoder_out["encoder_out"]
        states = states.index_select(1, inputs)
        length, number = states.size(0), len(inputs)
        self.there.fill_(True)  # what is left has no rows
        self.there[:number, :, :, length:] = False
        if encoder_out["encoder_padding_mask"]:
            padding = encoder_out["encoder_padding_mask"][0].index_select(0, inputs)
            self.there[:number, :, :, :length] = ~padding[:, None, None]
        for own, attention in zip(self.sources, self.cross):
            own[:, :number, :, :length] = source_keys_values(attention.module, states)

    def go_on(self, old: StaticStep, rows: Tensor) -> None:
        """Take over from a step with fewer places for words, or with more for rows.

        Args:
            rows: int64, their places there; here these are the first ones.
        """
        number, steps = len(rows), min(self.shape.steps, old.shape.steps)
        pairs = [(self.fed, old.fed[rows]), (self.going, old.going[rows])]
        if self.shape.rows != old.shape.rows:  # one row an input, of which there are fewer
            inputs = rows // old.shape.width
            pairs.append((self.there, old.there[inputs]))
            for own, others in zip(self.sources, old.sources):
                pairs.append((own.transpose(0, 1), others[:, inputs].transpose(0, 1)))
        for memory, values in pairs:  # which may have been the same memory
            memory.zero_()
            memory[:number] = values
        for own, others in zip(self.caches, old.caches):
            own.zero_()
            own[:number, :steps] = others[rows, :steps]
        self.there[number:] = True

    def load(self, rows: Draws, places: Tensor, temperature: Tensor | None) -> None:
        """What rows are drawn with, and what they have so far; the memory of other rows is that of
        ended ones.

        Args:
            rows: on the device.
            places: int64 ``[rows]``, where they are.
            temperature: ``[rows]``; None: 1.
        """
        steps = min(self.shape.steps, rows.tokens.size(1))
        self.given.zero_(), self.ends.zero_(), self.uniforms.zero_(), self.known.zero_()
        self.tokens.fill_(self.sampler.pad)
        self.given[places], self.ends[places] = rows.given, rows.given + rows.limits
        self.tokens[places, :steps] = rows.tokens[:, :steps]
        self.uniforms[places, :steps] = rows.uniforms[:, :steps]
        self.known[:, places, :steps] = rows.known[:, :, :steps]
        if self.temperature is not None:
            assert temperature is not None
            self.temperature.fill_(1)
            self.temperature[places] = temperature
        if self.positions is not None:
            steps = min(self.shape.steps, self.decoder.max_positions())
            words = torch.full((1, steps), self.sampler.eos, device=self.at.device)
            self.positions[:steps] = self.decoder.embed_positions(words)[0]

    def store(self, rows: Draws, live: Tensor, places: Tensor) -> None:
        """Write what was found of the rows at ``places`` where they are among ``rows``: ``live``,
        both int64."""
        steps = min(self.shape.steps, rows.tokens.size(1))
        rows.tokens[live, :steps] = self.tokens[places, :steps]
        rows.known[:, live, :steps] = self.known[:, places, :steps]
