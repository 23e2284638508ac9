"""ROUGE F1: the values of rouge-score, many times as fast for a batch of samples.

rouge-score stems every word anew and fills the table of the longest common subsequence (LCS) in
Python. Here a word is tokenized and stemmed once, by rouge-score; the n-grams of a reference are
counted once per input; and rapidfuzz finds the length of the LCS. Tests hold the values equal.

rouge-score knows words of the letters a–z and digits only, and an English stemmer.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np

from esrl_fairseq.rewards.base import Reward, register_reward
from esrl_fairseq.rewards.extras import require
from esrl_fairseq.rewards.ngrams import Floats, Ints, RowReferences, pair_counts
from esrl_fairseq.rewards.words import WordCache

INSTALL = ("rouge-score rapidfuzz", "rouge")


class _Rouge(Reward):
    """The mean of some variants' F1, each the best one over the references, in [0, 1].

    An empty hypothesis, and one that shares no word with a reference, scores 0.

    Args:
        use_stemmer: Porter's stemmer on words of more than three letters, as is usual where
            summaries are compared.

    Raises:
        EsrlError: rouge-score or rapidfuzz is not installed.
    """

    range = (0.0, 1.0)
    orders: tuple[int, ...] = ()
    """1 for ROUGE-1, 2 for ROUGE-2."""
    subsequence: str = ""
    """rougeL or rougeLsum, if that is among the variants."""

    def __init__(self, use_stemmer: bool = True) -> None:
        tokenizers = require(self.name, "rouge_score.tokenizers", *INSTALL)
        scorer = require(self.name, "rouge_score.rouge_scorer", *INSTALL)
        self._lcs = require(self.name, "rapidfuzz.distance", *INSTALL).LCSseq.similarity
        self.use_stemmer = use_stemmer
        # rouge-score lower-cases a text, makes a blank of every character but a-z and 0-9, and
        # stems what is between blanks: so it may be applied word by word.
        self._words = WordCache(tokenizers.DefaultTokenizer(use_stemmer).tokenize)
        self._by_lines = scorer.RougeScorer(["rougeLsum"], tokenizer=self)

    def signature(self) -> str:
        """Variants, options and the version of rouge-score."""
        variants = [f"rouge{order}" for order in self.orders] + [self.subsequence]
        return (
            f"{self.name}|mean:{'+'.join(filter(None, variants))}|f1|nrefs:best|"
            f"stem:{'porter' if self.use_stemmer else 'no'}|rouge-score:{version('rouge-score')}"
        )

    def tokenize(self, text: str) -> list[str]:
        """The words that rouge-score would compare."""
        return self._words.tokens(text)

    def score(
        self,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
    ) -> Floats:
        """float64 [rows] in [0, 1]; see `Reward.score`."""
        pairs = RowReferences(references, row_input)
        reference_words = [self.tokenize(text) for text in pairs.texts]
        words = [self.tokenize(text) for text in hypotheses]
        values = []
        if self.orders:
            own, others, common = pair_counts(reference_words, words, pairs, max(self.orders))
            by_order = f1(common, own, others)
            values += [by_order[:, order - 1] for order in self.orders]
        if self.subsequence:
            values.append(self._subsequence_f1(reference_words, words, pairs))
            if self.subsequence == "rougeLsum":
                self._score_lines(values[-1], hypotheses, pairs)
        return pairs.best(np.stack(values)).mean(axis=0)

    def _subsequence_f1(
        self, references: Sequence[list[str]], hypotheses: Sequence[list[str]], pairs: RowReferences
    ) -> Floats:
        """[pairs] F1 of the LCS."""
        # Each word becomes one character: what rapidfuzz compares fastest, and without hashing.
        codes: dict[str, str] = {}

        def encode(words: list[str]) -> str:
            return "".join([codes.setdefault(word, chr(len(codes))) for word in words])

        left, right = [encode(words) for words in references], [encode(w) for w in hypotheses]
        common = [self._lcs(left[j], right[i]) for i, j in zip(pairs.row, pairs.reference)]
        lengths = np.array(
            [(len(right[i]), len(left[j])) for i, j in zip(pairs.row, pairs.reference)]
        )
        return f1(np.array(common), lengths[:, 0], lengths[:, 1])

    def _score_lines(self, values: Floats, hypotheses: Sequence[str], pairs: RowReferences) -> None:
        """Put in the values of pairs with line breaks; without, rougeLsum is rougeL."""
        for pair, (i, j) in enumerate(zip(pairs.row, pairs.reference)):
            reference, hypothesis = pairs.texts[j], hypotheses[i]
            if "\n" in reference or "\n" in hypothesis:
                scores = self._by_lines.score(reference, hypothesis)
                values[pair] = scores["rougeLsum"].fmeasure


@register_reward("rouge1")
class Rouge1Reward(_Rouge):
    """ROUGE-1: words in common."""

    orders = (1,)


@register_reward("rouge2")
class Rouge2Reward(_Rouge):
    """ROUGE-2: pairs of successive words in common."""

    orders = (2,)


@register_reward("rougeL")
class RougeLReward(_Rouge):
    """ROUGE-L: the longest common subsequence of words."""

    subsequence = "rougeL"


@register_reward("rougeLsum")
class RougeLsumReward(_Rouge):
    """ROUGE-L by sentences, which line breaks separate.

    Texts of one line, as fairseq's are, score as ROUGE-L. Those with line breaks are compared by
    rouge-score itself, in Python.
    """

    subsequence = "rougeLsum"


@register_reward("rouge")
class RougeReward(_Rouge):
    """The mean of ROUGE-1, ROUGE-2 and ROUGE-L."""

    orders = (1, 2)
    subsequence = "rougeL"


def f1(common: Ints, of_hypothesis: Ints, of_reference: Ints) -> Floats:
    """2 P R / (P + R), which is 2 common / (hypothesis + reference); 0 where nothing is common."""
    total = np.maximum(of_hypothesis + of_reference, 1)
    values: Floats = 2 * common / total
    return values
