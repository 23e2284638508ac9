"""What sentence and corpus BLEU count: sacrebleu's words, n-grams, lengths.

sacrebleu counts the n-grams of the references again for every hypothesis. Here they are counted
once per input, and all rows are matched against them by sorted integer keys. Tokenisation is
sacrebleu's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import sacrebleu

from esrl_fairseq.core.suggest import did_you_mean
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards.ngrams import Ints, NgramCounts
from esrl_fairseq.rewards.words import WordCache

MAX_ORDER = 4
TOKENIZERS = ("13a", "none", "intl", "char", "zh")  # those that need no download


class BleuTexts:
    """The part of a reward that turns texts into BLEU's counts.

    Args:
        tokenize: one of `TOKENIZERS`.
        lowercase: compare without case.
        options: further ones of ``sacrebleu.BLEU``.

    Raises:
        EsrlError: there is no such tokenizer.
    """

    name: str

    def __init__(self, tokenize: str, lowercase: bool, **options: Any) -> None:
        check_choice(self.name, "tokenize", tokenize, TOKENIZERS)
        self._metric = sacrebleu.BLEU(tokenize=tokenize, lowercase=lowercase, **options)
        self._lowercase = lowercase
        # 13a (mteval-v13a) may be applied word by word, at a quarter of the time or less: its rules
        # look one character to the left or right, it puts a blank at both ends of the line, and
        # blanks match no rule but as "not a digit". The one rule that joins lines ("-" before a
        # newline) is why texts with newlines do not go through the cache. The other tokenizers
        # look at the ends of the line or are fast enough.
        self._words = WordCache(self._tokenize) if tokenize == "13a" else None

    def signature(self) -> str:
        """The name and sacrebleu's own signature, for a varying number of references."""
        self._metric.num_refs = -1
        return f"{self.name}|{self._metric.get_signature().format()}"

    def tokens(self, text: str) -> list[str]:
        """The words that sacrebleu would compare."""
        if self._lowercase:
            text = text.lower()
        if self._words is not None and "\n" not in text:
            return self._words.tokens(text)
        return self._tokenize(text.rstrip())

    def _tokenize(self, text: str) -> list[str]:
        tokenized: str = self._metric.tokenizer(text)
        return tokenized.split()

    def count(
        self,
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
    ) -> tuple[Ints, Ints, Ints]:
        """Clipped matches [rows, orders], and lengths [rows] of rows and closest references.

        Args:
            references: [inputs] lists of texts.
            hypotheses: [rows] texts.
            row_input: [rows] indices of inputs.
        """
        rows = np.asarray(row_input, dtype=np.int64)
        counts = NgramCounts([[self.tokens(ref) for ref in refs] for refs in references], MAX_ORDER)
        correct, lengths = counts.match([self.tokens(text) for text in hypotheses], rows)
        choices = _padded_lengths(counts.owner, counts.lengths, len(references))
        return correct, lengths, _closest(choices[rows], lengths)


def _padded_lengths(owner: Ints, lengths: Ints, inputs: int) -> Ints:
    """[inputs, most references] lengths; where there is no reference, one that is never closest."""
    number = np.bincount(owner, minlength=inputs)
    column = np.arange(len(owner)) - np.repeat(np.cumsum(number) - number, number)
    padded = np.full((inputs, max(1, number.max(initial=0))), 1 << 40, dtype=np.int64)
    padded[owner, column] = lengths
    return padded


def _closest(choices: Ints, lengths: Ints) -> Ints:
    """[rows] of the reference lengths [rows, references] the closest, the shorter one of two."""
    distance = np.abs(choices - lengths[:, None])
    # Of two that are equally close, the longer one has the larger key.
    key = 2 * distance + (choices > lengths[:, None])
    closest: Ints = np.take_along_axis(choices, key.argmin(1)[:, None], 1)[:, 0]
    return closest


def check_choice(reward: str, option: str, value: str, choices: Sequence[str]) -> None:
    """Refuse an option of a reward that is none of the choices.

    Raises:
        EsrlError: naming them.
    """
    if value not in choices:
        raise EsrlError(
            f"reward {reward!r}: {option} must be one of {', '.join(choices)}, not {value!r}"
            f"{did_you_mean(str(value), choices)}"
        )
