"""The families of sequence-to-sequence models: how their parts are called.

transformers' classes differ in what their decoders are given, in how positions are counted, and in
what lies between a decoder's states and the logits. All of that is here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from esrl_fairseq.huggingface import library

CROSS = ("encoder_attn", "EncDecAttention")
"""Names of the layers' cross-attention."""


def family_of(model: Any) -> Family:
    """The parts of a model, by its type."""
    return (Fsmt if model.config.model_type == "fsmt" else Family)(model)


def source_words(config: Any) -> int:
    """Words that the encoder of a model with this configuration reads."""
    return int(getattr(config, "src_vocab_size", None) or config.vocab_size)


def target_words(config: Any) -> int:
    """Words that its decoder reads and scores."""
    if getattr(config, "tgt_vocab_size", None):
        return int(config.tgt_vocab_size)
    shared = getattr(config, "share_encoder_decoder_embeddings", True)
    return int(config.vocab_size if shared else config.decoder_vocab_size)


class Family:
    """Encoder, decoder and head of a model.

    Args:
        model: of transformers, with an encoder and a decoder. Positions that its decoder counts
            without padding are counted from here on as ``generate`` does, which takes one token a
            step: rows may hold the padding token, as any other.
    """

    time_first = False
    """Whether attention modules see ``[length, rows, width]``."""

    def __init__(self, model: Any):
        self.model, self.config = model, model.config
        for name in fixed_weights(model):
            model.get_parameter(name).requires_grad = False
        self.encoder, self.decoder = model.get_encoder(), model.get_decoder()
        self.scale = self.config.d_model**-0.5 if scales_states(self.config) else 1.0
        self.cache_name = library.cache_argument(self.decoder)
        positions: Any = getattr(self.decoder, "embed_positions", None)
        if hasattr(positions, "create_position_ids_from_input_ids"):
            positions.create_position_ids_from_input_ids = places_of_steps
        elif hasattr(positions, "make_weights"):  # M2M100's before version 5
            positions.forward = by_steps(positions.forward, positions.padding_idx)

    @property
    def cross_attention(self) -> list[Any]:
        """That of each layer of the decoder."""
        return [
            module
            for name, module in self.decoder.named_modules()
            if name.rpartition(".")[2] in CROSS
        ]

    @staticmethod
    def key_weights(attention: Any) -> Tensor:
        """What makes keys, ``[heads * width of a head, width]``."""
        return (attention.k if hasattr(attention, "k") else attention.k_proj).weight

    def encode(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """States ``[inputs, length, width]``.

        Args:
            ids: int64 ``[inputs, length]``, right-padded.
            mask: bool ``[inputs, length]``, what is not padding; None where nothing is.
        """
        found = self.encoder(input_ids=ids, attention_mask=None if mask is None else mask.long())
        return found.last_hidden_state

    def decode(self, ids: Tensor, states: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        """Features ``[rows, length, width]``.

        Args:
            ids: int64 ``[rows, length]``, those that the cache does not hold.
            states: of the encoder, ``[rows, source length, width]``.
            mask: as in :meth:`encode`.
            cache: transformers' ``EncoderDecoderCache``; None without one.
        """
        return self.decoder(
            input_ids=ids,
            encoder_hidden_states=states,
            encoder_attention_mask=None if mask is None else mask.long(),
            use_cache=cache is not None,
            **{self.cache_name: cache},
        ).last_hidden_state

    @property
    def head(self) -> Any:
        """The module that projects to the words."""
        return self.model.get_output_embeddings()

    def logits(self, features: Tensor, before: int) -> Tensor:
        """Scores ``[…, before + words]`` of features ``[…, width]``; the first mean nothing."""
        if self.scale != 1:
            features = features * self.scale
        bias = getattr(self.model, "final_logits_bias", None)
        return scores_behind(features, self.head, None if bias is None else bias[0], before)


class Fsmt(Family):
    """fairseq's own Transformer, as transformers has it: its decoder projects to the words, which
    is left out here, and gets masks that are made outside."""

    time_first = True

    def __init__(self, model: Any):
        super().__init__(model)
        head = self.decoder.output_projection
        self.projection: Any = head.forward  # with adapters
        if type(head) is nn.Linear:
            weight = head.weight
            self.projection = nn.Linear(weight.size(1), weight.size(0), bias=False, device="meta")
            self.projection.weight = weight
        head.forward = unchanged
        self.decoder.embed_positions.make_positions = places_of_fsmt

    def decode(self, ids: Tensor, states: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        length, causal = ids.size(1), None
        if length > 1:
            causal = torch.full((length, length), torch.finfo(states.dtype).min).triu(1)
            causal = causal.to(states)
        return self.decoder(
            ids,
            states,
            encoder_padding_mask=None if mask is None else mask.long(),
            decoder_padding_mask=None,
            decoder_causal_mask=causal,
            use_cache=cache is not None,
            **{self.cache_name: cache},
        ).last_hidden_state

    @property
    def head(self) -> Any:
        return self.projection


def fixed_weights(model: Any) -> list[str]:
    """Names of parameters that are not to be trained: sinusoids, which the library computes anew
    when it loads a model, whatever was saved; and loading may leave them trainable."""
    return [
        f"{name}.{own}"
        for name, module in model.named_modules()
        if "Sinusoidal" in type(module).__name__
        for own, _ in module.named_parameters(recurse=False)
    ]


def scales_states(config: Any) -> bool:
    """Whether a model with this configuration makes its states smaller before the head."""
    if hasattr(config, "scale_decoder_outputs"):
        return bool(config.scale_decoder_outputs)
    # Before version 5 all kinds did where the head is the embeddings; from then on only T5 does.
    old = int(library.transformers().__version__.split(".")[0]) < 5
    return old and config.model_type in ("t5", "mt5", "umt5") and config.tie_word_embeddings


def scores_behind(features: Tensor, head: Any, bias: Tensor | None, before: int) -> Tensor:
    """Scores ``[…, before + words]`` by the module ``head``; the first mean nothing."""
    plain = type(head) is nn.Linear and head.bias is None
    if plain and not records(features):
        return projected(features, head.weight, bias, before)
    found = head(features) if bias is None else head(features) + bias
    return nn.functional.pad(found, (before, 0))


def records(x: Tensor) -> bool:
    """Whether what is computed from ``x`` may be differentiated, or is of another precision."""
    return torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type)


def projected(x: Tensor, weight: Tensor, bias: Tensor | None, before: int) -> Tensor:
    """``x @ weight.T + bias`` behind some places of each row, without a copy."""
    rows = x.reshape(-1, x.size(-1))
    found = x.new_empty(len(rows), before + len(weight))
    if bias is None:
        torch.mm(rows, weight.t(), out=found[:, before:])
    else:
        torch.addmm(bias, rows, weight.t(), out=found[:, before:])
    return found.view(*x.shape[:-1], -1)


def unchanged(x: Tensor) -> Tensor:
    """The argument."""
    return x


def places_of_steps(ids: Tensor, padding: int, cache_length: int = 0) -> Tensor:
    """Positions of M2M100 as if ``ids``, int64 ``[rows, length]``, came one a step: a padding token
    has none, but those behind it have their own."""
    steps = torch.arange(1, ids.size(1) + 1, device=ids.device) + cache_length
    return steps * ids.ne(padding) + padding


def by_steps(places: Any, padding: int) -> Any:
    """:func:`places_of_steps` for ``places``, which gives the states of positions that it counts
    itself: all tokens count, and those of padding are 0."""

    def states(input_ids: Tensor, *given: Any, **more: Any) -> Tensor:
        found: Tensor = places(torch.full_like(input_ids, padding + 1), *given, **more)
        return found * input_ids.ne(padding).unsqueeze(-1)

    return states


def places_of_fsmt(ids: Tensor, padding: int) -> Tensor:
    """The same of FSMT, in which a padding token has the position before its own; without those
    of the cache."""
    return torch.arange(ids.size(1), device=ids.device) + ids.ne(padding) + padding
