"""Sentence-level chrF and chrF++: the value of sacrebleu, several times as fast for a batch.

As in `bleu`, the n-grams of the references are counted once per input and all rows are matched
against them; here a "word" is a character. The formula is that of sacrebleu's ``CHRF`` (Popović,
2015 and 2017), in numpy, and tests hold the two equal.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np
import sacrebleu

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards.base import Reward, register_reward
from esrl_fairseq.rewards.ngrams import Floats, Ints, RowReferences, pair_counts


@register_reward("chrf")
class ChrfReward(Reward):
    """Sentence chrF / 100, in [0, 1]: ``sacrebleu.CHRF(…)`` to 1e-6.

    Of several references the one with the best score counts. An empty hypothesis, and one that
    shares no character with a reference, scores 0.

    Args:
        char_order: characters of the longest n-gram, at least 1.
        word_order: words of the longest n-gram of words; 2 makes it chrF++.
        beta: how much more recall counts than precision, at least 1.
        lowercase: compare without case.
        whitespace: blanks are characters too.
        eps_smoothing: as chrF++.py, Moses and NLTK do it.

    Raises:
        EsrlError: for a value that is not one of these.
    """

    range = (0.0, 1.0)

    def __init__(
        self,
        char_order: int = 6,
        word_order: int = 0,
        beta: int = 2,
        lowercase: bool = False,
        whitespace: bool = False,
        eps_smoothing: bool = False,
    ) -> None:
        for option, value, least in (
            ("char_order", char_order, 1),
            ("word_order", word_order, 0),
            ("beta", beta, 1),
        ):
            if not isinstance(value, int) or value < least:
                raise EsrlError(
                    f"reward 'chrf': {option} must be a whole number >= {least}, not {value!r}"
                )
        self.char_order = char_order
        self.word_order = word_order
        self.beta = beta
        self.lowercase = lowercase
        self.whitespace = whitespace
        self.eps_smoothing = eps_smoothing

    def signature(self) -> str:
        """``chrf|`` and sacrebleu's own signature, for a varying number of references."""
        metric = sacrebleu.CHRF(
            self.char_order,
            self.word_order,
            self.beta,
            self.lowercase,
            self.whitespace,
            self.eps_smoothing,
        )
        metric.num_refs = -1
        return f"{self.name}|beta:{self.beta}|{metric.get_signature().format()}"

    def score(
        self,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
    ) -> Floats:
        """float64 [rows] in [0, 1]; see `Reward.score`."""
        pairs = RowReferences(references, row_input)
        texts = [self._cased(text) for text in hypotheses]
        ref_texts = [self._cased(text) for text in pairs.texts]
        counts = pair_counts(
            [self._characters(text) for text in ref_texts],
            [self._characters(text) for text in texts],
            pairs,
            self.char_order,
        )
        if self.word_order:
            words = pair_counts(
                [_words(text) for text in ref_texts],
                [_words(text) for text in texts],
                pairs,
                self.word_order,
            )
            counts = np.concatenate([counts, words], axis=2)
        return pairs.best(f_scores(counts, self.beta, self.eps_smoothing))

    def _cased(self, text: str) -> str:
        return text.lower() if self.lowercase else text

    def _characters(self, text: str) -> str:
        return text if self.whitespace else "".join(text.split())


def f_scores(counts: Ints, beta: int, eps_smoothing: bool) -> Floats:
    """chrF / 100, pair by pair: ``sacrebleu.CHRF._compute_f_score``.

    F = (1 + β²) P R / (β² P + R), with P and R the means of precision and recall over the orders
    that both sides have. With `eps_smoothing` the mean of F over all orders instead; the 1e-16 that
    sacrebleu gives orders with nothing in common is 0 here.

    Args:
        counts: [3, pairs, orders] n-grams of the hypothesis, of the reference, and common to both.
        beta: how much more recall counts than precision.
        eps_smoothing: see above.

    Returns:
        float64 [pairs] in [0, 1].
    """
    hypothesis, reference, common = counts
    precision = common / np.maximum(hypothesis, 1)
    recall = common / np.maximum(reference, 1)
    if eps_smoothing:
        return _f_measure(precision, recall, beta).mean(axis=1)
    orders = np.maximum(((hypothesis > 0) & (reference > 0)).sum(axis=1), 1)
    return _f_measure(precision.sum(axis=1) / orders, recall.sum(axis=1) / orders, beta)


def _f_measure(precision: Floats, recall: Floats, beta: int) -> Floats:
    denominator = beta**2 * precision + recall
    scores: Floats = (1 + beta**2) * precision * recall / np.where(denominator > 0, denominator, 1)
    return scores


def _words(text: str) -> list[str]:
    """Words, with a punctuation mark at one end split off: sacrebleu's rule."""
    words = []
    for word in text.split():
        if len(word) > 1 and word[-1] in string.punctuation:
            words += [word[:-1], word[-1]]
        elif len(word) > 1 and word[0] in string.punctuation:
            words += [word[0], word[1:]]
        else:
            words.append(word)
    return words
