"""Similarity of sentence embeddings (Reimers & Gurevych, EMNLP 2019) by sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np

from esrl_fairseq.rewards.base import register_reward
from esrl_fairseq.rewards.extras import require
from esrl_fairseq.rewards.neural import NeuralReward
from esrl_fairseq.rewards.ngrams import Floats

INSTALL = ("sentence-transformers", "embedding")
SIDES = ("reference", "source")


@register_reward("sentence-embedding")
class SentenceEmbeddingReward(NeuralReward):
    """(1 + cos(hypothesis, other)) / 2, in [0, 1], of the embeddings of whole texts.

    Each distinct text of a batch is embedded once. Texts beyond the model's ``max_seq_length``
    are cut by sentence-transformers.

    Args:
        model: a model's name or folder. That of a plain transformers model gets the mean of its
            tokens' embeddings, as sentence-transformers does it.
        against: compare with the ``reference`` (the best one) or, for models of several
            languages, with the ``source``; references are then not needed.
        batch_size, device: see `NeuralReward`.

    Raises:
        EsrlError: see `NeuralReward`.
    """

    example = "sentence-transformers/all-MiniLM-L6-v2"

    def __init__(
        self,
        model: str | None = None,
        against: str = "reference",
        batch_size: int = 64,
        device: str | None = None,
    ) -> None:
        super().__init__(device, batch_size)
        self.check_choice("against", against, SIDES)
        self.needs_references = against == "reference"
        self.needs_sources = against == "source"
        self.model = model
        library = require(self.name, "sentence_transformers", *INSTALL)
        with self.loading(model):
            self._model = library.SentenceTransformer(model, device=str(self.device)).eval()

    def signature(self) -> str:
        """Model, what it is compared with and the library's version."""
        against = "reference|nrefs:best" if self.needs_references else "source"
        return (
            f"{self.name}|(1+cos)/2|model:{self.model}|against:{against}|"
            f"sentence-transformers:{version('sentence-transformers')}"
        )

    def judge(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
    ) -> Floats:
        """float64 [triples]; see `NeuralReward.judge`."""
        others = sources if references is None else references
        place = {text: i for i, text in enumerate(dict.fromkeys([*hypotheses, *others]))}
        vectors = self._model.encode(
            list(place),
            batch_size=self.batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
            normalize_embeddings=True,
        ).astype(np.float64)
        left = vectors[[place[text] for text in hypotheses]]
        right = vectors[[place[text] for text in others]]
        values: Floats = (1 + (left * right).sum(axis=1)) / 2
        return values
