"""The decoder's turn in stage two: rows in pieces of similar length (docs/method.md 4)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from esrl_fairseq.core.scores import Scores, Term, joined
from esrl_fairseq.core.sequences import Prefix, Rows, decoder_inputs
from esrl_fairseq.core.token_scores import tempered_scores
from esrl_fairseq.rescoring.recompute import (
    loses_small_gradients,
    recomputed,
    with_gradient,
)
from esrl_fairseq.sampling.conditioning import reorder_encoder_out
from esrl_fairseq.sampling.modes import training_mode

PIECE_TOKENS = 2048
"""Positions (padding included) that the decoder takes at once; more is not faster on a CPU."""
LEARNED_TOKENS = 1024
"""The same where the gradient is computed at once: what is kept then fits a CPU's cache."""
HEAD_POSITIONS = 512
"""Positions that are projected to the vocabulary at once; backward projects them again."""
HOST_TOKENS, DEVICE_TOKENS = 4096, 16384
"""Positions that are kept for backward on a CPU and elsewhere; there, where launches decide, also
those of a piece, if memory allows."""
DEVICE_SCORES = 2**28
"""Scores of words, positions times vocabulary, that are computed at once there: 1 GiB a copy."""
SHARE = 64
"""One copy of the scores, in float32, may take one part of so many of the device's memory."""


def default_max_tokens(device: torch.device) -> int:
    """Positions that are kept for backward, unless an option says so."""
    return HOST_TOKENS if device.type == "cpu" else DEVICE_TOKENS


def positions_at_once(device: torch.device, words: int, at_once: bool, max_tokens: int) -> int:
    """Positions of a piece, padding included.

    Args:
        words: of the vocabulary.
        at_once: whether the gradient is computed at once.
    """
    if device.type == "cpu":
        return min(LEARNED_TOKENS, max_tokens) if at_once else PIECE_TOKENS
    scores = DEVICE_SCORES
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        scores = min(scores, memory // SHARE // torch.float32.itemsize)
    return min(DEVICE_TOKENS, max(scores // words, 1), max_tokens)


class RowScorer:
    """Takes the decoder's place in one ``forward`` and scores its rows piece by piece.

    Args:
        model: not wrapped.
        rows: sequences to score.
        prefix: of each input, what the decoder reads before a row.
        min_len: tokens before which EOS is never drawn.
        dropout: keep the model's dropout as in MLE training.
        max_tokens: positions whose activations are kept for the backward pass; those of further
            rows are computed again there, so that memory does not grow with the samples. 0 is as
            the device wants it.
        temperature: float ``[rows]``, positive; with it, rows are scored at it, too.
        tokens: return each token's log-probability, too.
        term: what the loss gets of some rows; with it, scores have no gradient, and the sum of it
            has.
    """

    def __init__(
        self,
        model: Any,
        rows: Rows,
        prefix: Prefix,
        pad: int,
        eos: int,
        min_len: int = 0,
        dropout: bool = False,
        max_tokens: int = 0,
        temperature: Tensor | None = None,
        tokens: bool = False,
        term: Term | None = None,
    ):
        parameter = next(model.parameters())
        self.model, self.device = model, parameter.device
        self.rows = rows.to(self.device)
        self.prefix = prefix[self.rows.input_index]
        # The decoder's output at this place predicts a row's first token.
        self.begin = self.prefix.lengths - 1
        # Where pieces are cut is decided on the host; it waits here, and not for each piece.
        self.lengths = self.begin.cpu() + rows.lengths.cpu()
        self.counts = (rows.lengths - rows.truncated.long()).cpu()
        self.scored = self.counts.to(self.device, non_blocking=True)
        self.pad, self.eos, self.min_len = pad, eos, min_len
        self.max_tokens = max_tokens or default_max_tokens(self.device)
        self.dropout = dropout
        self.temperature = None
        if temperature is not None:
            self.temperature = temperature.to(self.device, non_blocking=True)
        self.tokens = tokens
        self.term = term
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
        back = torch.cat(pieces).argsort().to(self.device, non_blocking=True)
        total = None
        if self.at_once:
            found, total = self.learn(run, pieces, encoder_out)
        else:
            found = self.keep(run, pieces, encoder_out)
        scores = joined(found)[back]
        if self.term is not None and total is None:
            total = self.term(torch.arange(len(back), device=self.device), scores)
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
            return self.term(piece.to(self.device, non_blocking=True), scores)

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
        return Scores(**found, lengths=self.scored[piece.to(self.device)])

    def pieces(self) -> list[Tensor]:
        """Places of rows of similar length, long ones first; on the host."""
        words = len(self.model.decoder.dictionary)
        most = positions_at_once(self.device, words, self.at_once, self.max_tokens)
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
        longest, total = int(self.lengths[piece].max()), int(self.counts[piece].sum())
        piece = piece.to(self.device, non_blocking=True)
        own = reorder_encoder_out(self.model, encoder_out, self.rows.input_index[piece])
        keywords = {"features_only": True} if self.features_only else {}
        decoder_out = self.decode(prev_output_tokens[piece, :longest], encoder_out=own, **keywords)
        scored = self.scored[piece]
        # As nonzero() of the tokens that the policy chose, which would make the host wait.
        row = torch.arange(len(piece), device=self.device)
        row = row.repeat_interleave(scored, output_size=total)
        step = torch.arange(total, device=self.device) - (scored.cumsum(0) - scored)[row]
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
        return Scores(log_probs, entropy, scored, tempered[0] if tempered else None, table)

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
            scored.append(checkpoint(score, *chunk, use_reentrant=False, preserve_rng_state=False))
        return tuple(torch.cat(parts) for parts in zip(*scored))

    def token_scores(
        self, words: Tensor, targets: Tensor, no_eos: Tensor, temperature: Tensor | None
    ) -> tuple[Tensor, ...]:
        return tempered_scores(words, targets, self.pad, self.eos, no_eos, temperature)
