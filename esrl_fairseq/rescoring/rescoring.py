"""Stage two: one parallel, teacher-forced pass with gradient (docs/method.md 4).

The model's ``forward`` is called once, as distributed wrappers demand, and its encoder, if it has
one, runs once an input. Inside, the decoder's turn is taken by :class:`RowScorer`, which gives
log-probabilities of rows, not a [rows, length, words] tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from esrl_fairseq.core.scores import Scores, Term
from esrl_fairseq.core.sequences import Rows
from esrl_fairseq.rescoring.row_scorer import RowScorer
from esrl_fairseq.sampling.conditioning import (
    decoder_prefix,
    forward_arguments,
)
from esrl_fairseq.sampling.modes import training_mode


def rescore(
    model: nn.Module,
    net_input: dict[str, Tensor],
    rows: Rows,
    pad: int,
    eos: int,
    *given: Any,
    **more: Any,
) -> Scores:
    """Log-probabilities of ``rows`` under the policy that stage one samples from at temperature 1.

    That policy is the model's softmax without the tokens that are never drawn: padding, and EOS
    before ``min_len`` tokens. A forced EOS and padding do not count.

    Args:
        model: wrapped for distributed training or not.
        net_input: ``src_tokens`` and ``src_lengths`` of the inputs; for a model without an encoder
            these are the prompts, see :func:`decoder_prefix`.
        rows: sequences to score.
        given, more: see :class:`~esrl_fairseq.rescoring.row_scorer.RowScorer`.
    """
    return _score(model, net_input, rows, pad, eos, *given, **more)[0]


def learn(
    model: nn.Module, net_input: dict[str, Tensor], rows: Rows, term: Term, *given: Any, **more: Any
) -> tuple[Scores, Tensor]:
    """:func:`rescore`, and the sum of ``term``: it has the gradient, and the scores have none.

    A sum's gradient is known piece by piece, so that nothing of a piece is kept and nothing is
    computed twice, however many rows there are. Only float16, whose gradients need the loss scale
    that backward brings, keeps pieces as :func:`rescore` does.

    Args:
        term: what the loss gets of some rows; its sum over all of them has the loss's gradient.
        given, more: see :func:`rescore`.
    """
    scores, total = _score(model, net_input, rows, *given, **more, term=term)
    assert total is not None
    return scores.detach(), total


def _score(
    model: nn.Module,
    net_input: dict[str, Tensor],
    rows: Rows,
    pad: int,
    eos: int,
    *given: Any,
    **more: Any,
) -> tuple[Scores, Tensor | None]:
    inner = unwrap(model)
    prefix = decoder_prefix(inner, net_input, eos)
    scorer = RowScorer(inner, rows, prefix, pad, eos, *given, **more)
    parts = in_place_of_decoder(model, scorer, net_input, scorer.decoder_inputs(), scorer.dropout)
    return Scores(*parts[:-1]), parts[-1]


def in_place_of_decoder(
    model: nn.Module,
    stand_in: Callable[..., tuple[Tensor | None, ...]],
    net_input: dict[str, Tensor],
    decoder_inputs: Tensor | None,
    dropout: bool,
) -> tuple[Any, ...]:
    """What ``stand_in`` gives in the decoder's turn of one ``forward`` of ``model``.

    It goes through that ``forward`` as what fairseq's decoders return, which some models take apart
    (BART) or write into (alignment): a tensor and a dictionary, in which distributed wrappers
    find the other tensors.

    Args:
        model: wrapped for distributed training or not.
        net_input, decoder_inputs: see :func:`forward_arguments`.
        dropout: see :func:`training_mode`.
    """
    inner = unwrap(model)

    def decode(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        first, *others = stand_in(*args, **kwargs)
        return first, {"attn": [None], "others": others}

    with training_mode(model, dropout):
        inner.decoder.forward = decode
        try:
            first, extra = model(**forward_arguments(inner, net_input, decoder_inputs))
        finally:
            del inner.decoder.forward
    return first, *extra["others"]


def unwrap(model: Any) -> Any:
    """The fairseq model inside its distributed wrappers, each of which holds it as ``module``."""
    while hasattr(model, "module") and isinstance(model.module, nn.Module):
        model = model.module
    return model
