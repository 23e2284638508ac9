"""Families of the Hugging Face library that compute what fairseq's Transformer does.

Which one depends on where its layer norms are and on its positions. Sinusoids of the M2M100 and
FSMT kinds are fairseq's own; those of Marian and PEGASUS have other frequencies and begin at
another place. The other families hold a table of positions, which can be any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.modules import SinusoidalPositionalEmbedding
from torch import Tensor, nn

from esrl_fairseq.errors import EsrlError

ACTIVATIONS = {
    "relu": "relu",
    "relu_squared": "relu2",
    "gelu": "gelu",
    "gelu_fast": "gelu_new",
    "gelu_accurate": "gelu_new",
    "tanh": "tanh",
    "linear": "linear",
}
"""fairseq's names and those of transformers."""

PLAIN = {
    *("TransformerModel", "TransformerModelBase", "BARTModel", "TransformerAlignModel"),
    *("TransformerEncoder", "TransformerEncoderBase", "TransformerDecoder"),
    *("TransformerDecoderBase", "TransformerEncoderLayer", "TransformerEncoderLayerBase"),
    *("TransformerDecoderLayer", "TransformerDecoderLayerBase", "MultiheadAttention"),
    *("Linear", "LayerNorm", "FusedLayerNorm", "Embedding", "FairseqDropout"),
    *("SinusoidalPositionalEmbedding", "LearnedPositionalEmbedding"),
    *("ModuleList", "ModuleDict", "LayerDropModuleList"),
}
"""Kinds of modules that a plain Transformer consists of."""


@dataclass(frozen=True)
class Family:
    """A family of models, and what of fairseq's options it has.

    Attributes:
        kind: its ``model_type``.
        normalize_before: layer norms stand before attention and feed-forward layers, and a last
            one behind all layers.
        layernorm_embedding: one stands behind the embeddings.
        unused: rows at the beginning of its table of positions that no word has; fairseq's has two.
            None if positions are fairseq's sinusoids, of any length, and not stored.
        two_vocabularies: words of source and target may be others, and differ in number.
    """

    kind: str
    normalize_before: bool
    layernorm_embedding: bool
    unused: int | None
    two_vocabularies: bool = False

    @property
    def sinusoidal(self) -> bool:
        return self.unused is None


FAMILIES = (
    Family("m2m_100", normalize_before=True, layernorm_embedding=False, unused=None),
    Family("fsmt", False, False, unused=None, two_vocabularies=True),
    Family("blenderbot", normalize_before=True, layernorm_embedding=False, unused=0),
    Family("mbart", normalize_before=True, layernorm_embedding=True, unused=2),
    Family("bart", normalize_before=False, layernorm_embedding=True, unused=2),
)
"""The first that fits is taken."""


def choose(model: Any) -> Family:
    """The family that computes what ``model`` does.

    Raises:
        EsrlError: saying what of it none has.
    """
    lack = _lack_of(model)
    encoder, decoder = model.encoder, model.decoder
    for family in () if lack else FAMILIES:
        if (
            family.normalize_before == model.cfg.encoder.normalize_before
            and family.layernorm_embedding == (encoder.layernorm_embedding is not None)
            and (not family.sinusoidal or _sinusoidal(encoder) and _sinusoidal(decoder))
        ):
            return family
    lack = lack or (
        "layer norms behind the layers (no --encoder-normalize-before), and other positions than "
        "fairseq's sinusoids without --layernorm-embedding"
    )
    raise EsrlError(
        f"no family of the Hugging Face library computes what this model does: it has {lack}; "
        "CTranslate2's own converter may take it (docs/deploy.md)"
    )


def _lack_of(model: Any) -> str:
    """What of ``model`` no family has; empty if nothing is found at first sight."""
    for name, module in model.named_modules():
        if type(module).__name__ not in PLAIN:
            return f"a {type(module).__name__}" + (f" ({name})" if name else "")
    cfg, encoder, decoder = model.cfg, model.encoder, model.decoder
    if decoder.cross_self_attention or any(layer.encoder_attn is None for layer in decoder.layers):
        return "no cross-attention of its own (--no-cross-attention, --cross-self-attention)"
    widths = {x.embedding_dim for x in (encoder.embed_tokens, decoder.embed_tokens)}
    if widths != {decoder.embed_dim} or decoder.output_embed_dim != decoder.embed_dim:
        return "embeddings, encoder and decoder of different widths"
    if cfg.encoder.normalize_before != cfg.decoder.normalize_before:
        return "layer norms before the layers of one side, and behind those of the other"
    if cfg.decoder.normalize_before and decoder.layer_norm is None:
        return "no last layer norm (--no-decoder-final-norm)"
    if cfg.activation_fn not in ACTIVATIONS:
        return f"the activation {cfg.activation_fn}"
    return ""


def _sinusoidal(side: Any) -> bool:
    return isinstance(side.embed_positions, SinusoidalPositionalEmbedding)


def settings(family: Family, model: Any) -> dict[str, Any]:
    """The family's configuration that has ``model``'s shapes.

    Raises:
        EsrlError: the family has one vocabulary, and the model more words on its source side, or
            scores other words than it reads.
    """
    cfg, encoder, decoder = model.cfg, model.encoder, model.decoder
    sizes = [encoder.embed_tokens.num_embeddings, decoder.embed_tokens.num_embeddings]
    tied = {x.data_ptr() for x in _embeddings(model)}
    found = {
        "d_model": decoder.embed_dim,
        "activation_function": ACTIVATIONS[cfg.activation_fn],
        "scale_embedding": not math.isclose(decoder.embed_scale, 1.0),
        "tie_word_embeddings": len(tied) == 1,
        "is_encoder_decoder": True,
        "dropout": float(cfg.dropout),
        "attention_dropout": float(cfg.attention_dropout),
        "activation_dropout": float(cfg.activation_dropout),
        "max_position_embeddings": max(positions(model)),
        "pad_token_id": decoder.padding_idx,
        "bos_token_id": decoder.dictionary.bos(),
        "eos_token_id": decoder.dictionary.eos(),
        "decoder_start_token_id": decoder.dictionary.eos(),
    }
    for name, side in (("encoder", encoder), ("decoder", decoder)):
        options = getattr(cfg, name)
        found[f"{name}_layers"] = len(side.layers)
        found[f"{name}_ffn_dim"] = side.layers[0].fc1.out_features
        found[f"{name}_attention_heads"] = options.attention_heads
        found[f"{name}_layerdrop"] = float(options.layerdrop)
    if family.two_vocabularies:
        return {**found, "src_vocab_size": sizes[0], "tgt_vocab_size": sizes[1]}
    if sizes[0] > sizes[1]:
        raise EsrlError(
            f"models of the family {family.kind} have one vocabulary, but this one reads "
            f"{sizes[0]} words and writes {sizes[1]}: use CTranslate2's own converter "
            "(docs/deploy.md), or train with --joined-dictionary"
        )
    return {**found, "vocab_size": sizes[1]}


def positions(model: Any) -> tuple[int, int]:
    """The most words that encoder and decoder read."""
    return int(model.encoder.max_source_positions), int(model.decoder.max_target_positions)


def _embeddings(model: Any) -> tuple[Tensor, Tensor, Tensor]:
    encoder, decoder = model.encoder, model.decoder
    projection = decoder.output_projection.weight
    return encoder.embed_tokens.weight, decoder.embed_tokens.weight, projection


def weights(family: Family, model: Any, width: int) -> dict[str, Tensor]:
    """``model``'s weights by the family's names.

    Args:
        width: ``max_position_embeddings``.
    """
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        side, _, rest = name.partition(".")
        if rest in ("version", "embed_positions._float_tensor", "embed_positions.weight"):
            continue
        found[f"model.{name}"] = value
    source, target, projection = _embeddings(model)
    if not family.two_vocabularies:
        del found["model.decoder.output_projection.weight"]
        missing = target.size(0) - source.size(0)  # words that no source has
        found["model.encoder.embed_tokens.weight"] = nn.functional.pad(source, (0, 0, 0, missing))
        found["model.shared.weight"] = target
        found["lm_head.weight"] = projection
    if family.unused is not None:
        for name, side, size in zip(
            ("encoder", "decoder"), (model.encoder, model.decoder), positions(model)
        ):
            table = torch.zeros(family.unused + width, model.decoder.embed_dim)
            table[family.unused : family.unused + size] = position_table(side, size)
            found[f"model.{name}.embed_positions.weight"] = table
    return found


def position_table(side: Any, size: int) -> Tensor:
    """What ``side``, encoder or decoder, adds to the words of the first ``size`` positions."""
    module = side.embed_positions
    if module is None:
        return torch.zeros(size, side.layers[0].embed_dim)
    first = module.padding_idx + 1
    if isinstance(module, SinusoidalPositionalEmbedding):
        table = module.get_embedding(first + size, module.embedding_dim, module.padding_idx)
        return table[first:]
    return module.weight.detach()[first : first + size]
