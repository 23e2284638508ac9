"""Standard sampling: the autograd graph is kept while rows are drawn (docs/method.md 4).

This is what REINFORCE and MRT cost as published, to compare two-stage sampling with. Rows, scores
and gradients are those of stage one and stage two, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from esrl_fairseq.core.sampling import inverse_cdf_sample
from esrl_fairseq.core.sequences import Rows, given_rows, shift_right
from esrl_fairseq.core.token_scores import tempered_scores
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.generation import RowSampler
from esrl_fairseq.rescoring import RowScorer, Scores, in_place_of_decoder, training_mode, unwrap
from esrl_fairseq.steps import reorder_encoder_out

Draw = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Draws a word for each row, from logits ``[rows, words]``, which it may overwrite, temperature and
uniform numbers, both ``[rows]``."""


def sample_with_graph(
    model: nn.Module,
    sample: dict[str, Any],
    sampler: RowSampler,
    counts: Any,
    temperature: Any,
    seed: int,
    *,
    cached: bool,
    dropout: bool = False,
    tempered: bool = False,
    references: Tensor | None = None,
    max_tokens: int = 4096,
    draw: Draw = inverse_cdf_sample,
) -> tuple[Rows, Scores, Tensor | None]:
    """Draw rows and score them in one pass with gradient.

    The wrapped model's ``forward`` is called once, and its encoder runs once an input.

    Args:
        model: encoder-decoder model, wrapped for distributed training or not.
        sample, counts, temperature, seed: see :meth:`RowSampler.sample_rows`.
        sampler: stage one of that model, for its limits.
        cached: use the decoder's cache; otherwise each step decodes the whole prefix again.
        dropout: keep the model's dropout as in MLE training, in drawing, too.
        tempered: score rows at their own temperature, too.
        references: int64 ``[inputs, length]``, right-padded; one sequence an input to score beside
            the rows, teacher-forced.
        max_tokens: of the references, see :func:`rescore`; the rows' activations are all kept.
        draw: see :data:`Draw`.

    Returns:
        The rows, duplicates kept; their scores; the references' log-probabilities ``[inputs]``.

    Raises:
        EsrlError: the decoder's cache has no graph.
    """
    inner, pad, eos = unwrap(model), sampler.pad, sampler.eos
    if cached:
        check_cache_has_graph(inner.decoder)
    scorer, shifted = None, None
    if references is not None:
        given = given_rows(references, pad)
        shifted = shift_right(given.tokens, given.lengths, eos, pad)
        scorer = RowScorer(inner, given, pad, eos, sampler.min_len, max_tokens, dropout)
    input_index, limits, uniforms = sampler.draws(sample, counts, seed)
    sampling = _SamplingPass(
        encoder=inner.encoder,
        decode=inner.decoder.forward,
        sampler=sampler,
        input_index=input_index,
        limits=limits,
        uniforms=uniforms,
        temperature=torch.as_tensor(temperature, device=limits.device)[input_index],
        cached=cached,
        tempered=tempered,
        draw=draw,
        references=scorer,
    )
    with training_mode(model, dropout), in_place_of_decoder(inner, sampling):
        tokens, reference_log_probs, log_probs, *own, entropy = model(
            src_tokens=sample["net_input"]["src_tokens"],
            src_lengths=sample["net_input"]["src_lengths"],
            prev_output_tokens=shifted,
        )
    rows = sampler.as_rows(tokens, input_index, limits)
    return rows, Scores(log_probs, entropy, rows.scored().sum(1), *own), reference_log_probs


@dataclass
class _SamplingPass:
    """Takes the decoder's place in one ``forward``, draws rows and scores them.

    Attributes:
        decode: the decoder's own ``forward``.
        input_index, limits, uniforms: see :meth:`RowSampler.draws`.
        temperature: ``[rows]``.
        references: scores these in the same turn.
    """

    encoder: Any
    decode: Callable[..., Any]
    sampler: RowSampler
    input_index: Tensor
    limits: Tensor
    uniforms: Tensor
    temperature: Tensor
    cached: bool
    tempered: bool
    draw: Draw
    references: RowScorer | None

    def __call__(
        self, prev_output_tokens: Any, encoder_out: Any = None, **_: Any
    ) -> tuple[Tensor | None, ...]:
        """Tokens ``[rows, steps]``, the references' log-probabilities, and the rows' scores."""
        references = None
        if self.references is not None:
            references = self.references(prev_output_tokens, encoder_out)[0]
        tokens, *scores = self.sample(encoder_out)
        return tokens, references, *scores

    def sample(self, encoder_out: Any) -> tuple[Tensor, ...]:
        """Tokens ``[rows, steps]``; log-probability, tempered one if asked for, and entropy."""
        encoder_out = reorder_encoder_out(self.encoder, encoder_out, self.input_index)
        state: dict[str, Any] | None = {} if self.cached else None
        tokens = torch.full_like(self.uniforms, self.sampler.pad, dtype=torch.long)
        previous = torch.full_like(self.limits, self.sampler.eos).unsqueeze(1)
        going = torch.ones_like(self.limits, dtype=torch.bool)
        sums = [torch.zeros_like(self.uniforms[:, 0]) for _ in range(2 + self.tempered)]
        # Rows stay in the batch until all have ended, fed EOS and not scored.
        for step in range(tokens.size(1)):
            if not going.any():
                break
            words = self.decode(previous, encoder_out=encoder_out, incremental_state=state)[0]
            words = words[:, -1]
            free = going & (step < self.limits)  # the limit has not forced EOS
            chosen = self.choose(words, step).masked_fill(~free, self.sampler.eos)
            sums = [x + y * free for x, y in zip(sums, self.score(words, chosen, step))]
            tokens[:, step] = chosen.masked_fill(~going, self.sampler.pad)
            going = going & (chosen != self.sampler.eos)
            previous = torch.cat([previous, chosen.unsqueeze(1)], dim=1)
        return tokens, *sums

    def choose(self, words: Tensor, step: int) -> Tensor:
        """The next token of each row, int64 ``[rows]``."""
        words = words.detach().clone()
        self.sampler.forbid(words, step)
        return self.draw(words, self.temperature, self.uniforms[:, step])

    def score(self, words: Tensor, chosen: Tensor, step: int) -> tuple[Tensor, ...]:
        """See :func:`tempered_scores`."""
        pad, eos = self.sampler.pad, self.sampler.eos
        no_eos = torch.full_like(chosen, step < self.sampler.min_len, dtype=torch.bool)
        temperature = self.temperature if self.tempered else None
        # A copy, since the scores are overwritten.
        return tempered_scores(words.clone(), chosen, pad, eos, no_eos, temperature)


def check_cache_has_graph(decoder: nn.Module) -> None:
    """Refuse layers that fairseq computes again in backward: what they cache has no gradient."""
    if any(hasattr(module, "precheckpoint_forward") for module in decoder.modules()):
        raise EsrlError(
            "--sampling standard needs the gradient of the decoder's cached states, which "
            "--checkpoint-activations (or --offload-activations) takes away: leave that out, or "
            "choose --sampling standard-nocache or two-stage"
        )
