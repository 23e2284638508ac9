"""BERTScore (Zhang et al., ICLR 2020) by the library bert-score."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards.base import register_reward
from esrl_fairseq.rewards.extras import require
from esrl_fairseq.rewards.neural import NeuralReward, longest_text
from esrl_fairseq.rewards.ngrams import Floats

INSTALL = ("bert-score", "bertscore")


@register_reward("bertscore")
class BertScoreReward(NeuralReward):
    """BERTScore's F1, in [0, 1], the best one over the references.

    Each token is matched with the most similar one of the other text, by the cosine of their
    embeddings in context. Most models' values fill only the upper part of the range (0.8 to 1 for
    ``roberta-large``); rescaling spreads them. Below 0, which F1 can only be in theory, is 0.

    To bert-score (0.3.13) a batch's padding is a token with the cosine 0 to all others. So a value
    depends on the texts beside it where all of a token's cosines are below 0: seen with the last
    layer of all-MiniLM-L6-v2 (a difference of 0.0006), not with its first four.

    Args:
        model: a model's name or folder; by default bert-score's choice for `lang`.
        num_layers: the layer whose embeddings are compared; by default bert-score's choice, which
            it has for well-known models.
        lang: language of the texts, such as ``en``.
        rescale_with_baseline: (F1 − b) / (1 − b), b being bert-score's mean F1 of unrelated
            sentences of `lang`. The range is then [−b / (1 − b), 1].
        batch_size, device: see `NeuralReward`.

    Raises:
        EsrlError: see `NeuralReward`.
    """

    example = "roberta-large"

    def __init__(
        self,
        model: str | None = None,
        num_layers: int | None = None,
        lang: str | None = None,
        rescale_with_baseline: bool = False,
        batch_size: int = 64,
        device: str | None = None,
    ) -> None:
        super().__init__(device, batch_size)
        if num_layers is not None:
            self.check_count("num_layers", num_layers)
        if rescale_with_baseline and lang is None:
            raise EsrlError(f"reward {self.name!r}: rescale_with_baseline needs lang, such as en")
        library = require(self.name, "bert_score", *INSTALL)
        known = library.utils.model2layers
        with self.loading(model or lang):
            if model is not None and num_layers is None and model not in known:
                raise EsrlError(
                    f"reward {self.name!r}: bert-score knows no best layer of {model!r}, so that "
                    "num_layers must be given (--reward-options bertscore.num_layers=…)"
                )
            self._scorer = library.BERTScorer(
                model_type=model,
                num_layers=num_layers,
                lang=lang,
                rescale_with_baseline=rescale_with_baseline,
                batch_size=batch_size,
                device=str(self.device),
            )
            if rescale_with_baseline:
                baseline = float(self._scorer.baseline_vals[2])
                self.range = (-baseline / (1 - baseline), 1.0)
        # bert-score cuts texts at the tokenizer's limit, and fails where that is none.
        tokenizer = self._scorer._tokenizer
        tokenizer.model_max_length = longest_text(tokenizer, self._scorer._model)

    def signature(self) -> str:
        """Model, layer, scale and the library's version."""
        scorer = self._scorer
        scale = f"baseline-{scorer.lang}" if scorer.rescale_with_baseline else "raw"
        return (
            f"{self.name}|f1|model:{scorer.model_type}|layer:{scorer.num_layers}|scale:{scale}|"
            f"nrefs:best|bert-score:{version('bert-score')}"
        )

    def judge(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
    ) -> Floats:
        """float64 [triples]; see `NeuralReward.judge`."""
        *_, f1 = self._scorer.score(
            list(hypotheses), list(references or ()), batch_size=self.batch_size
        )
        values: Floats = np.clip(f1.double().numpy(), *self.range)
        return values
