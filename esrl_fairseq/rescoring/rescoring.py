"""Stage two: one parallel, teacher-forced pass with gradient (docs/method.md 4).

The model's ``forward`` is called once, as distributed wrappers demand, and its encoder, if it has
one, runs once an input. Inside, the decoder's turn is taken by :class:`RowScorer`, which scores the
rows in pieces of similar length and returns their log-probabilities, not a [rows, length, words]
tensor.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from esrl_fairseq.core.scores import Scores, joined
from esrl_fairseq.core.sequences import Prefix, Rows, decoder_inputs
from esrl_fairseq.core.token_scores import tempered_scores
from esrl_fairseq.rescoring.recompute import (
    loses_small_gradients,
    recomputed,
    with_gradient,
)
from esrl_fairseq.sampling.conditioning import (
    decoder_prefix,
    forward_arguments,
    reorder_encoder_out,
)
from esrl_fairseq.sampling.modes import training_mode

Term = Callable[[Tensor, Scores], Tensor]
"""A scalar of some rows, int64 ``[some]`` places and their scores."""

PIECE_TOKENS = 2048
"""Positions (padding included) that the decoder takes at once; more is not faster on a CPU."""
LEARNED_TOKENS = 1024
"""The same where the gradient is computed at once: what is kept then fits a CPU's cache."""
HEAD_POSITIONS = 512
"""Positions that are projected to the vocabulary at once; backward projects them again."""


def rescore(
    model: nn.Module,
    net_input: dict[str, Tensor],
    rows: Rows,
    pad: int,
    eos: int,
    min_len: int = 0,
    dropout: bool = False,
    max_tokens: int = 4096,
    temperature: Tensor | None = None,
    tokens: bool = False,
) -> Scores:
    """Log-probabilities of ``rows`` under the policy that stage one samples from at temperature 1.

    That policy is the model's softmax without the tokens that are never drawn: padding, and EOS
    before ``min_len`` tokens. A forced EOS and padding do not count.

    Args:
        model: wrapped for distributed training or not.
        net_input: ``src_tokens`` and ``src_lengths`` of the inputs; for a model without an encoder
            these are the prompts, see :func:`decoder_prefix`.
        rows: sequences to score.
        dropout: keep the model's dropout as in MLE training.
        max_tokens: positions whose activations are kept for the backward pass; those of further
            rows are computed again there, so that memory does not grow with the samples.
        temperature: float ``[rows]``, positive; with it, rows are scored at it, too.
        tokens: return each token's log-probability, too.
    """
    return _score(
        model, net_input, rows, pad, eos, min_len, dropout, max_tokens, temperature, tokens
    )[0]


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


class RowScorer:
    """Takes the decoder's place in one ``forward`` and scores its rows piece by piece."""

    def __init__(
        self,
        model: Any,
        rows: Rows,
        prefix: Prefix,
        pad: int,
        eos: int,
        min_len: int = 0,
        dropout: bool = False,
        max_tokens: int = 4096,
        temperature: Tensor | None = None,
        tokens: bool = False,
        term: Term | None = None,
    ):
        self.model = model
        self.rows = rows
        self.prefix = prefix[rows.input_index]
        # The decoder's output at this place predicts a row's first token.
        self.begin = self.prefix.lengths - 1
        self.lengths = self.begin + rows.lengths
        self.pad, self.eos, self.min_len = pad, eos, min_len
        self.max_tokens = max_tokens
        self.dropout = dropout
        self.temperature = temperature
        self.tokens = tokens
        self.term = term
        parameter = next(model.parameters())
        self.at_once = term is not None and not loses_small_gradients(parameter)
        self.decode = model.decoder.forward
        # The Transformer family can stop before the vocabulary projection, which then needs to
        # be computed for real tokens only.
        self.features_only = "features_only" in inspect.signature(
            self.decode
        ).parameters and hasattr(model.decoder, "output_layer")

    def decoder_inputs(self) -> Tensor:
        """What the decoder reads, int64 ``[rows, length]``."""
        return decoder_inputs(self.rows.tokens, self.rows.lengths, self.prefix, self.pad)

    def __call__(
        self, prev_output_tokens: Tensor, encoder_out: Any = None, **_: Any
    ) -> tuple[Tensor | None, ...]:
        """What makes up the rows' :class:`Scores`, and the sum of the term if there is one."""
        run, pieces = functools.partial(self.score, prev_output_tokens), self.pieces()
        back = torch.cat(pieces).argsort()
        total = None
        if self.at_once:
            scores, total = self.learn(run, pieces, encoder_out)
        else:
            scores = self.keep(run, pieces, encoder_out)
        scores = joined(scores)[back]
        if self.term is not None and total is None:
            total = self.term(torch.arange(len(back), device=back.device), scores)
        return *vars(scores).values(), total

    def learn(
        self, run: Callable[[Tensor, Any], Scores], pieces: list[Tensor], encoder_out: Any
    ) -> tuple[list[Scores], Tensor]:
        """Scores without gradient, and the term's sum, differentiated piece by piece."""
        found: list[Scores] = []

        def term(piece: Tensor, encoder_out: Any) -> Tensor:
            scores = run(piece, encoder_out)
            found.append(scores.detach())
            assert self.term is not None
            return self.term(piece, scores)

        terms = [functools.partial(term, piece) for piece in pieces]
        return found, with_gradient(terms, encoder_out, self.model.parameters())

    def keep(
        self, run: Callable[[Tensor, Any], Scores], pieces: list[Tensor], encoder_out: Any
    ) -> list[Scores]:
        """Scores with gradient, of pieces that are kept for it or computed again."""
        scores, kept = [], 0
        for piece in pieces:
            kept += len(piece) * int(self.lengths[piece].max())
            if kept <= self.max_tokens or not torch.is_grad_enabled():
                scores.append(run(piece, encoder_out))
            else:
                scores.append(self.recomputed(piece, run, encoder_out))
        return scores

    def recomputed(
        self, piece: Tensor, run: Callable[[Tensor, Any], Scores], encoder_out: Any
    ) -> Scores:
        """``run(piece, encoder_out)``, which backward computes again, outside of this forward."""
        names = ["log_probs", "entropy"]
        names[1:1] = ["token_log_probs"] * self.tokens + ["tempered"] * (
            self.temperature is not None
        )

        def again(encoder_out: Any) -> tuple[Tensor, ...]:
            with training_mode(self.model.decoder, self.dropout):
                scores = run(piece, encoder_out)
            return tuple(getattr(scores, name) for name in names)

        found = dict(zip(names, recomputed(again, encoder_out, self.model.parameters())))
        return Scores(**found, lengths=self.rows.scored()[piece].sum(1))

    def pieces(self) -> list[Tensor]:
        """Indices of rows of similar length, long ones first."""
        most = min(LEARNED_TOKENS, self.max_tokens) if self.at_once else PIECE_TOKENS
        lengths, order = self.lengths.sort(descending=True, stable=True)
        pieces, start, all_lengths = [], 0, lengths.tolist()
        while start < len(order):
            size = max(most // all_lengths[start], 1)
            pieces.append(order[start : start + size])
            start += size
        # Large ones first: what they free then fits those that follow, and the heap stops growing.
        return sorted(pieces, key=lambda piece: -len(piece) * int(self.lengths[piece[0]]))

    def score(self, prev_output_tokens: Tensor, piece: Tensor, encoder_out: Any) -> Scores:
        """Scores of the rows ``piece``."""
        longest = int(self.lengths[piece].max())
        own = reorder_encoder_out(self.model, encoder_out, self.rows.input_index[piece])
        keywords = {"features_only": True} if self.features_only else {}
        decoder_out = self.decode(prev_output_tokens[piece, :longest], encoder_out=own, **keywords)
        scored = self.rows.scored()[piece]
        row, step = scored.nonzero(as_tuple=True)
        states = decoder_out[0][row, self.begin[piece[row]] + step]
        targets = self.rows.tokens[piece[row], step]
        # A given row (a reference) may end earlier than samples may; its EOS is not forbidden.
        no_eos = (step < self.min_len) & (targets != self.eos)
        temperature = None if self.temperature is None else self.temperature[piece[row]]
        arguments = (states, targets, no_eos, temperature)
        values = self.head(*arguments) if self.features_only else self.token_scores(*arguments)
        zeros = values[0].new_zeros(len(piece))
        log_probs, *tempered, entropy = (zeros.index_add(0, row, value) for value in values)
        table = None
        if self.tokens:
            table = values[0].new_zeros(len(piece), self.rows.tokens.size(1))
            table = table.index_put((row, step), values[0])
        return Scores(log_probs, entropy, scored.sum(1), *(tempered or [None]), table)

    def head(
        self, states: Tensor, targets: Tensor, no_eos: Tensor, temperature: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Token scores of decoder states; no [positions, words] tensor outlives its chunk."""

        def score(states: Tensor, *rest: Any) -> tuple[Tensor, ...]:
            return self.token_scores(self.model.decoder.output_layer(states), *rest)

        if self.at_once:
            return score(states, targets, no_eos, temperature)
        scored = []
        for start in range(0, len(states), HEAD_POSITIONS):
            part = slice(start, start + HEAD_POSITIONS)
            tau = None if temperature is None else temperature[part]
            chunk = states[part], targets[part], no_eos[part], tau
            scored.append(checkpoint(score, *chunk, use_reentrant=False))
        return tuple(torch.cat(parts) for parts in zip(*scored))

    def token_scores(
        self, words: Tensor, targets: Tensor, no_eos: Tensor, temperature: Tensor | None
    ) -> tuple[Tensor, ...]:
        return tempered_scores(words, targets, self.pad, self.eos, no_eos, temperature)


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

    def decode(*args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
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
