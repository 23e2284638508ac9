"""Stage two: one parallel, teacher-forced pass with gradient (DESIGN 2.4)."""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass
from typing import Any, Dict, Iterator, Tuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from esrl_fairseq.core.sequences import Rows, shift_right
from esrl_fairseq.generation import decoder_scores

HEAD_CHUNK = 2**24
"""Scores (positions × words) that the vocabulary projection computes at once: 64 MB in float32."""
FORBIDDEN = -1e30
"""Score of a token that stage one never draws; finite, so 0 · log 0 stays 0 in the entropy."""


@dataclass
class Scores:
    """What stage two knows of each row.

    Attributes:
        log_probs: float32 ``[rows]`` with gradient, Σ_t log p(y_t | y_<t, x) of the chosen tokens.
        entropy: float32 ``[rows]`` without gradient, Σ_t H(p(· | y_<t, x)) in nats.
        lengths: int64 ``[rows]``, tokens that both sums run over.
    """

    log_probs: Tensor
    entropy: Tensor
    lengths: Tensor


def rescore(
    model: nn.Module,
    net_input: Dict[str, Tensor],
    rows: Rows,
    pad: int,
    eos: int,
    min_len: int = 0,
    dropout: bool = False,
) -> Scores:
    """Log-probabilities of ``rows`` under the policy that stage one samples from at temperature 1.

    That policy is the model's softmax without the tokens that are never drawn: padding, and EOS
    before ``min_len`` tokens. A forced EOS and padding do not count.

    Args:
        model: encoder-decoder model, wrapped for distributed training or not; its ``forward`` is
            called once and its encoder runs once an input.
        net_input: ``src_tokens`` and ``src_lengths`` of the inputs.
        rows: sequences to score.
        dropout: keep the model's dropout as in MLE training.
    """
    previous = shift_right(rows.tokens, rows.lengths, eos, pad)
    features_only = _projects_features(model)
    keywords = {"features_only": True, "return_all_hiddens": False} if features_only else {}
    with _training_mode(model, dropout), _expand_encoder_output(model, rows.input_index):
        decoder_out = model(
            src_tokens=net_input["src_tokens"],
            src_lengths=net_input["src_lengths"],
            prev_output_tokens=previous,
            **keywords,
        )
    chosen = rows.scored()
    hidden = decoder_out[0] if features_only else decoder_scores(model, decoder_out)
    project = model.decoder.output_layer if features_only else nn.Identity()
    steps = torch.arange(chosen.size(1), device=chosen.device).expand_as(chosen)
    log_probs, entropy = _token_scores(
        project, len(model.decoder.dictionary), hidden[chosen], rows.tokens[chosen],
        steps[chosen] < min_len, pad, eos,
    )
    row_of = torch.arange(len(rows), device=chosen.device).unsqueeze(1).expand_as(chosen)[chosen]
    zeros = log_probs.new_zeros(len(rows))
    return Scores(
        log_probs=zeros.index_add(0, row_of, log_probs),
        entropy=zeros.index_add(0, row_of, entropy),
        lengths=chosen.sum(1),
    )


def _token_scores(
    project: Any,
    words: int,
    hidden: Tensor,
    targets: Tensor,
    no_eos: Tensor,
    pad: int,
    eos: int,
) -> Tuple[Tensor, Tensor]:
    """Log-probability and entropy of each position, ``[positions]``, in checkpointed chunks.

    Only a chunk's scores are alive at once; backward computes them again.
    """

    def chunk_scores(hidden: Tensor, targets: Tensor, no_eos: Tensor) -> Tuple[Tensor, Tensor]:
        scores = project(hidden).float()
        forbidden = torch.zeros_like(scores, dtype=torch.bool)
        forbidden[:, pad] = True
        forbidden[:, eos] = no_eos
        log_probs = scores.masked_fill(forbidden, FORBIDDEN).log_softmax(dim=-1)
        with torch.no_grad():
            entropy = -(log_probs.exp() * log_probs).sum(-1)
        return log_probs.gather(1, targets.unsqueeze(1)).squeeze(1), entropy

    positions = max(HEAD_CHUNK // words, 1)
    parts = zip(hidden.split(positions), targets.split(positions), no_eos.split(positions))
    chunks = [checkpoint(chunk_scores, *part, use_reentrant=False) for part in parts]
    log_probs, entropy = zip(*chunks)
    return torch.cat(log_probs), torch.cat(entropy)


def _projects_features(model: Any) -> bool:
    """Whether forward can stop before the vocabulary projection (the Transformer family can)."""
    return (
        "features_only" in inspect.signature(unwrap(model).forward).parameters
        and hasattr(model.decoder, "output_layer")
        and getattr(model.decoder, "adaptive_softmax", None) is None
    )


def unwrap(model: Any) -> Any:
    """The fairseq model inside its distributed wrappers, each of which holds it as ``module``."""
    while hasattr(model, "module") and isinstance(model.module, nn.Module):
        model = model.module
    return model


@contextlib.contextmanager
def _expand_encoder_output(model: Any, input_index: Tensor) -> Iterator[None]:
    """Within, the encoder's output is repeated for the rows of each input.

    A hook does it inside the one ``forward`` that distributed wrappers must see, and the encoder
    still runs once an input, with gradient.
    """
    encoder = model.encoder
    handle = encoder.register_forward_hook(
        lambda _module, _args, output: encoder.reorder_encoder_out(output, input_index)
    )
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _training_mode(model: nn.Module, dropout: bool) -> Iterator[None]:
    """Switch dropout, and restore every module's mode.

    A recurrent module stays in training mode with its dropout at 0: cuDNN refuses to
    differentiate one in eval mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    recurrent = [m for m in model.modules() if isinstance(m, nn.RNNBase)]
    rates = [m.dropout for m in recurrent]
    try:
        model.train(dropout)
        for module in recurrent:
            module.train()
            if not dropout:
                module.dropout = 0.0
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, rate in zip(recurrent, rates):
            module.dropout = rate
