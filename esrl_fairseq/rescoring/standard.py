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
from esrl_fairseq.core.scores import Scores
from esrl_fairseq.core.sequences import Rows, given_rows
from esrl_fairseq.core.token_scores import tempered_scores
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rescoring.rescoring import in_place_of_decoder, unwrap
from esrl_fairseq.rescoring.row_scorer import RowScorer
from esrl_fairseq.sampling.conditioning import decoder_prefix, reorder_encoder_out
from esrl_fairseq.sampling.draws import Draws
from esrl_fairseq.sampling.generation import RowSampler

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
    max_tokens: int = 0,
    draw: Draw = inverse_cdf_sample,
) -> tuple[Rows, Scores, Scores | None]:
    """Draw rows and score them in one pass with gradient.

    The wrapped model's ``forward`` is called once, and its encoder, if any, runs once an input.

    Args:
        model: wrapped for distributed training or not.
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
        The rows, duplicates kept; their scores; those of the references.

    Raises:
        EsrlError: the decoder's cache has no graph.
    """
    inner, net_input = unwrap(model), sample["net_input"]
    if cached:
        check_cache_has_graph(inner.decoder)
    on_host = sampler.draws(sample, counts, seed)
    draws = on_host.to(net_input["src_tokens"].device)
    sampling = _SamplingPass(
        model=inner,
        decode=inner.decoder.forward,
        sampler=sampler,
        draws=draws,
        temperature=torch.as_tensor(temperature, device=draws.tokens.device)[draws.input_index],
        cached=cached,
        tempered=tempered,
        draw=draw,
    )
    if references is not None:
        given = given_rows(references, sampler.pad), decoder_prefix(inner, net_input, sampler.eos)
        ends = sampler.pad, sampler.eos, sampler.min_len
        sampling.references = RowScorer(inner, *given, *ends, dropout, max_tokens)
    found = sampling.run(model, net_input, dropout)
    on_host.take(draws)
    rows = sampler.as_rows(on_host)
    return rows, *_scores(found, rows, references is not None)


def _scores(found: list[Tensor], rows: Rows, with_references: bool) -> tuple[Scores, Scores | None]:
    """Of the rows and of the references, from what :class:`_SamplingPass` gives."""
    of_references = None
    if with_references:
        found, of_references = found[:-3], Scores(*found[-3:])
    log_probs, *own, entropy = found
    lengths = rows.scored().sum(1).to(log_probs.device)
    return Scores(log_probs, entropy, lengths, *own), of_references


@dataclass
class _SamplingPass:
    """Takes the decoder's place in one ``forward``, draws rows and scores them.

    Attributes:
        model: not wrapped.
        decode: its decoder's own ``forward``.
        draws: the rows are written into its tokens.
        temperature: ``[rows]``.
        references: scores these in the same turn; None: there are none.
    """

    model: Any
    decode: Callable[..., Any]
    sampler: RowSampler
    draws: Draws
    temperature: Tensor
    cached: bool
    tempered: bool
    draw: Draw
    references: RowScorer | None = None

    def run(self, model: nn.Module, net_input: dict[str, Any], dropout: bool) -> list[Tensor]:
        """What this gives in the decoder's place, in one call of ``model``, wrapped or not."""
        given = self.references.decoder_inputs() if self.references else None
        return list(in_place_of_decoder(model, self, net_input, given, dropout))

    def __call__(
        self, prev_output_tokens: Any, encoder_out: Any = None, **_: Any
    ) -> tuple[Tensor | None, ...]:
        """What is known of the rows, and the first three of the references' :class:`Scores`."""
        if self.references is None:
            return self.sample(encoder_out)
        given = self.references(prev_output_tokens, encoder_out)[:3]
        return *self.sample(encoder_out), *given

    def sample(self, encoder_out: Any) -> tuple[Tensor, ...]:
        """Draw the rows; log-probability, tempered one if asked for, and entropy."""
        draws, eos, pad = self.draws, self.sampler.eos, self.sampler.pad
        encoder_out = reorder_encoder_out(self.model, encoder_out, draws.input_index)
        state: dict[str, Any] | None = {} if self.cached else None
        previous = draws.start
        going = torch.ones_like(draws.limits, dtype=torch.bool)
        sums = [torch.zeros_like(draws.uniforms[:, 0]) for _ in range(2 + self.tempered)]
        # Rows stay in the batch until all have ended, fed EOS and not scored.
        for step in range(draws.tokens.size(1)):
            if not going.any():
                break
            words = self.decode(previous, encoder_out=encoder_out, incremental_state=state)[0]
            words, drawn = words[:, -1], step - draws.given
            reading = drawn < 0  # its prompt
            free = going & ~reading & (drawn < draws.limits)  # the limit has not forced EOS
            chosen = self.choose(words, step).masked_fill(~free, eos)
            sums = [x + y * free for x, y in zip(sums, self.score(words, chosen, drawn))]
            chosen = torch.where(reading, draws.tokens[:, step], chosen)
            draws.tokens[:, step] = chosen.masked_fill(~going, pad)
            going = going & (reading | (chosen != eos))
            previous = torch.cat([previous, chosen.unsqueeze(1)], dim=1)
        return tuple(sums)

    def choose(self, words: Tensor, step: int) -> Tensor:
        """The next token of each row, int64 ``[rows]``."""
        words = words.detach().to(torch.float32, copy=True)
        self.sampler.forbid(words, step - self.draws.given)
        return self.draw(words, self.temperature, self.draws.uniforms[:, step])

    def score(self, words: Tensor, chosen: Tensor, drawn: Tensor) -> tuple[Tensor, ...]:
        """See :func:`tempered_scores`."""
        pad, eos = self.sampler.pad, self.sampler.eos
        no_eos = drawn < self.sampler.min_len
        temperature = self.temperature if self.tempered else None
        # A copy, since the scores are overwritten.
        return tempered_scores(words.clone(), chosen, pad, eos, no_eos, temperature)


def check_cache_has_graph(decoder: nn.Module) -> None:
    """Refuse layers that are computed again in backward: what they cache has no gradient."""
    checkpointed = (
        hasattr(module, "precheckpoint_forward") or getattr(module, "gradient_checkpointing", False)
        for module in decoder.modules()
    )
    if any(checkpointed):
        raise EsrlError(
            "--sampling standard needs the gradient of the decoder's cached states, which "
            "--checkpoint-activations (or --offload-activations) takes away: leave that out, or "
            "choose --sampling standard-nocache or two-stage"
        )
