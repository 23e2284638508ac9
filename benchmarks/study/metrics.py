"""What a study's outputs are scored by: BLEU of translations, ROUGE of summaries.

A metric counts in each text what its scores of a corpus are made of. Counts are integers that add
up, so that the bootstrap can score a resampled corpus by the sum of its texts' counts.
"""

from __future__ import annotations

import abc
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))

ORDER = 4  # of BLEU

Score = Callable[[np.ndarray], float]
"""A corpus's score from the sum of its texts' counts."""


def read_lines(file: Path) -> list[str]:
    """A file's lines (str.splitlines would also split at Unicode's other separators)."""
    with file.open(encoding="utf-8") as opened:
        return [line.rstrip("\n") for line in opened]


class Metric(abc.ABC):
    """Texts are detokenised, and references as they were before any tokenisation.

    Attributes:
        name: of the score that models are chosen by.
        key: its name in results.json.
        compared: the scores that methods are compared in, from counts.
        columns: of tables: search, score and heading.
    """

    name: ClassVar[str]
    key: ClassVar[str]
    compared: ClassVar[dict[str, Score]]
    columns: ClassVar[tuple[tuple[str, str, str], ...]]

    @abc.abstractmethod
    def references(self, file: Path) -> Sequence[Any]:
        """Of each text; ``file`` has one a line, files beside it further ones."""

    @abc.abstractmethod
    def counts(self, texts: Sequence[str], references: Sequence[Any]) -> np.ndarray:
        """int32 ``[texts, …]``, below 65,536."""

    @abc.abstractmethod
    def scores(self, texts: Sequence[str], references: Sequence[Any]) -> dict[str, float]:
        """All scores of a corpus, by their names in results.json; ``length_ratio`` among them."""

    @abc.abstractmethod
    def signatures(self) -> dict[str, str]:
        """What tells another way of computing them apart."""


def corpus_bleu(total: np.ndarray) -> float:
    """BLEU of summed counts ``[2 + 2 * ORDER]``, as ``BLEU().corpus_score`` computes it."""
    words, reference_words, *counts = (int(value) for value in total)
    return BLEU.compute_bleu(
        counts[:ORDER], counts[ORDER:], words, reference_words, smooth_method="exp"
    ).score


class Translation(Metric):
    """sacreBLEU's BLEU and chrF2 against one reference.

    Counts: words of the text, of the reference, correct n-grams by order, n-grams by order.
    """

    name, key = "BLEU", "bleu"
    compared: ClassVar[dict[str, Score]] = {"bleu": corpus_bleu}
    columns = (
        ("beam5", "bleu", "beam 5 BLEU"),
        ("greedy", "bleu", "greedy BLEU"),
        ("beam5", "chrf", "chrF2"),
        ("beam5", "length_ratio", "ratio"),
    )

    def __init__(self) -> None:
        self.bleu, self.chrf = BLEU(), CHRF()

    def references(self, file: Path) -> list[str]:
        return read_lines(file)

    def counts(self, texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
        metric = BLEU(effective_order=True)  # the counts are the same; without it every call warns
        scores = [metric.sentence_score(h, [r]) for h, r in zip(texts, references, strict=True)]
        rows = [[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in scores]
        return np.array(rows, dtype=np.int32)

    def scores(self, texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        score = self.bleu.corpus_score(texts, [references])
        chrf = self.chrf.corpus_score(texts, [references])
        return {"bleu": score.score, "chrf": chrf.score, "length_ratio": score.ratio}

    def signatures(self) -> dict[str, str]:
        return {"bleu": str(self.bleu.get_signature()), "chrf": str(self.chrf.get_signature())}


VARIANTS = ("rouge1", "rouge2", "rougeL")


def mean_rouge(total: np.ndarray, columns: slice) -> float:
    """Mean over a corpus, in percent, of these columns of its summed counts."""
    return float(total[columns].mean() / total[0] / 100)


class Summarization(Metric):
    """ROUGE-1, -2 and -L by rouge-score and their mean, the best of several references each.

    Counts: 1, and F1 of the variants in hundredths of a percent.
    """

    name, key = "ROUGE", "rouge"
    compared: ClassVar[dict[str, Score]] = {
        "rouge": partial(mean_rouge, columns=slice(1, None)),
        **{
            name: partial(mean_rouge, columns=slice(i, i + 1))
            for i, name in enumerate(VARIANTS, start=1)
        },
    }
    columns = (
        ("beam5", "rouge", "beam 5, mean"),
        ("beam5", "rouge1", "ROUGE-1"),
        ("beam5", "rouge2", "ROUGE-2"),
        ("beam5", "rougeL", "ROUGE-L"),
        ("greedy", "rouge", "greedy, mean"),
        ("beam5", "length_ratio", "ratio"),
    )

    def references(self, file: Path) -> list[list[str]]:
        from rouge_summary import read_references

        return read_references(file)

    def counts(self, texts: Sequence[str], references: Sequence[list[str]]) -> np.ndarray:
        from rouge_summary import run_scores

        scores = run_scores(texts, references)[:, : len(VARIANTS)]
        ones = np.ones(len(scores))
        return np.column_stack([ones, np.rint(100 * scores)]).astype(np.int32)

    def scores(self, texts: Sequence[str], references: Sequence[list[str]]) -> dict[str, float]:
        total = self.counts(texts, references).sum(0)
        words = sum(len(text.split()) for text in texts)
        ratio = words / sum(len(own[0].split()) for own in references)
        return {name: score(total) for name, score in self.compared.items()} | {
            "length_ratio": ratio
        }

    def signatures(self) -> dict[str, str]:
        about = "F1|stemmer:porter|best of references"
        return {"rouge": f"{about}|rouge-score:{version('rouge-score')}"}


METRICS: dict[str, type[Metric]] = {"bleu": Translation, "rouge": Summarization}
