"""How a policy reads its input: with an encoder, or, decoder-only, before its own words.

What differs between the two kinds of models in the stages is here. A decoder reads a prefix first:
the start symbol and, without an encoder, the prompt.
"""

from __future__ import annotations

from typing import Any

import torch
from fairseq import utils
from torch import Tensor

from esrl_fairseq.core.sequences import Prefix


def is_decoder_only(model: Any) -> bool:
    """Whether ``model`` (not wrapped) is a language model, without an encoder."""
    return not hasattr(model, "encoder")


def encode(model: Any, net_input: dict[str, Tensor]) -> Any:
    """Output of the encoder for a batch's inputs; None without an encoder."""
    return None if is_decoder_only(model) else model.encoder.forward_torchscript(net_input)


def reorder_encoder_out(model: Any, encoder_out: Any, index: Tensor) -> Any:
    """``encoder.reorder_encoder_out`` without its changes to ``encoder_out`` itself."""
    if encoder_out is None:
        return None
    if isinstance(encoder_out, dict):
        encoder_out = {k: list(v) if isinstance(v, list) else v for k, v in encoder_out.items()}
        if "encoder_states" in encoder_out:
            encoder_out["encoder_states"] = []  # of every layer; no decoder reads them
    return model.encoder.reorder_encoder_out(encoder_out, index)


def decoder_prefix(model: Any, net_input: dict[str, Tensor], eos: int) -> Prefix:
    """What the decoder reads before the words of each input's rows.

    Without an encoder these are the inputs, right-padded, which begin with the start symbol; with
    one it is EOS alone.
    """
    tokens, lengths = net_input["src_tokens"], net_input["src_lengths"]
    if is_decoder_only(model):
        return Prefix(tokens, lengths)
    return Prefix(torch.full_like(lengths, eos).unsqueeze(1), torch.ones_like(lengths))


def forward_arguments(
    model: Any, net_input: dict[str, Tensor], decoder_inputs: Tensor | None
) -> dict[str, Any]:
    """Of ``forward`` of ``model`` (not wrapped), which may be called on its wrapper.

    Args:
        decoder_inputs: int64 ``[rows, length]``, see :func:`core.sequences.decoder_inputs`.
    """
    if is_decoder_only(model):
        return {"src_tokens": decoder_inputs}
    return {
        "src_tokens": net_input["src_tokens"],
        "src_lengths": net_input["src_lengths"],
        "prev_output_tokens": decoder_inputs,
    }


def reference_tokens(sample: dict[str, Any], pad: int, eos: int) -> Tensor:
    """Tokens of a batch's references, int64 ``[inputs, length]``, right-padded.

    Data for training and validation have them; the dummy that fairseq makes may be of a validation
    set without any, and then has empty ones.
    """
    if sample.get("target") is None:
        return sample["id"].new_full((len(sample["id"]), 1), eos)
    return utils.convert_padding_direction(sample["target"], pad, left_to_right=True)
