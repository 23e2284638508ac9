"""Sentence-level BLEU: the value of sacrebleu, several times as fast for a batch of samples.

sacrebleu counts the n-grams of the references again for every hypothesis. Here they are counted
once per input, and all rows are matched against them by sorted integer keys. Tokenisation is
sacrebleu's own; the formula is that of ``sacrebleu.BLEU.compute_bleu`` (Papineni et al., 2002;
smoothing methods of Chen and Cherry, 2014), in numpy, and tests hold the two equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
import sacrebleu
from numpy.typing import NDArray

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards.base import Reward, register_reward

MAX_ORDER = 4
TOKENIZERS = ("13a", "none", "intl", "char", "zh")  # those that need no download
SMOOTH_METHODS = ("exp", "floor", "add-k", "none")

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@register_reward("bleu")
class BleuReward(Reward):
    """Sentence BLEU / 100, in [0, 1]: ``sacrebleu.BLEU(effective_order=True, …)`` to 1e-6.

    An empty hypothesis, and one that shares no word with a reference, scores 0. A truncated
    hypothesis is scored as the text it is.

    Args:
        smooth_method: ``exp`` (sacrebleu's default), ``floor``, ``add-k`` or ``none``.
        smooth_value: for ``floor`` (default 0.1) and ``add-k`` (default 1), at least 0.
        tokenize: ``13a`` (detokenised text), ``none`` (text that is tokenised already), ``intl``,
            ``char`` or ``zh``.
        lowercase: compare without case.

    Raises:
        EsrlError: for a value that is not one of these.
    """

    range = (0.0, 1.0)

    def __init__(
        self,
        smooth_method: str = "exp",
        smooth_value: float | None = None,
        tokenize: str = "13a",
        lowercase: bool = False,
    ) -> None:
        _check_choice("smooth_method", smooth_method, SMOOTH_METHODS)
        _check_choice("tokenize", tokenize, TOKENIZERS)
        _check_smooth_value(smooth_value)
        self.smooth_method = smooth_method
        self.smooth_value = smooth_value
        self._metric = sacrebleu.BLEU(
            smooth_method=smooth_method,
            smooth_value=smooth_value,
            tokenize=tokenize,
            lowercase=lowercase,
            effective_order=True,
        )
        self._lowercase = lowercase
        self._words = _WordCache(self._metric) if tokenize == "13a" else None

    def signature(self) -> str:
        """``bleu|`` and sacrebleu's own signature, for a varying number of references."""
        self._metric.num_refs = -1
        return f"{self.name}|{self._metric.get_signature().format()}"

    def tokens(self, text: str) -> list[str]:
        """The words that sacrebleu would compare."""
        if self._lowercase:
            text = text.lower()
        if self._words is not None and "\n" not in text:
            return list(chain.from_iterable(map(self._words.__getitem__, text.split())))
        tokenized: str = self._metric.tokenizer(text.rstrip())
        return tokenized.split()

    def score(
        self,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
    ) -> Floats:
        """float64 [rows] in [0, 1]; see `Reward.score`."""
        prepared = _References([[self.tokens(ref) for ref in refs] for refs in references])
        correct, lengths, reference_lengths = prepared.match(
            [self.tokens(text) for text in hypotheses], np.asarray(row_input, dtype=np.int64)
        )
        smooth_value = self.smooth_value
        if smooth_value is None:
            smooth_value = sacrebleu.BLEU.SMOOTH_DEFAULTS[self.smooth_method]
        return bleu_from_counts(
            correct, lengths, reference_lengths, self.smooth_method, smooth_value or 0.0
        )


class _WordCache(dict[str, tuple[str, ...]]):
    """Blank-separated word -> its 13a tokens: a quarter of the time of whole lines, or less.

    13a (mteval-v13a) may be applied word by word: its rules look one character to the left or
    right, it puts a blank at both ends of the line, and blanks match no rule but as "not a digit".
    The one rule that joins lines ("-" before a newline) is why texts with newlines do not come
    here. The other tokenizers look at the ends of the line or are fast enough.
    """

    LIMIT = 1 << 18

    def __init__(self, metric: sacrebleu.BLEU) -> None:
        super().__init__()
        self._tokenizer = metric.tokenizer

    def __missing__(self, word: str) -> tuple[str, ...]:
        if len(self) >= self.LIMIT:
            self.clear()
        tokens = self[word] = tuple(self._tokenizer(word).split())
        return tokens


class _References:
    """The n-gram counts of the references of a batch of inputs.

    An n-gram of an input is known by its *slot*: slot(w_1) is the rank of (input, w_1) among those
    that occur in the references, slot(w_1 … w_n) the rank of (slot(w_1 … w_{n-1}), w_n). So every
    order is one ``searchsorted`` in integers, exact (no hashing), and an n-gram can only be there
    if its first n-1 words are.

    Args:
        references: [inputs][references of the input] lists of tokens.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[str]]]) -> None:
        flat = [ref for refs in references for ref in refs]
        number = np.fromiter(map(len, references), dtype=np.int64, count=len(references))
        owner = np.repeat(np.arange(len(references)), number)
        self.ids: dict[str, int] = {}  # word -> 1…; 0 is every word that no reference has
        ids = self.ids
        words, lengths = _flatten([ids.setdefault(w, len(ids) + 1) for w in ref] for ref in flat)
        self.lengths = _padded_lengths(owner, lengths, len(references))
        self.base = len(self.ids) + 1
        self.keys: list[Ints] = []  # per order: sorted keys; the index of a key is its slot
        self.counts: list[Ints] = []  # per order: [slots] largest count in any one reference
        walk = _NgramWalk(words, lengths, owner, self.base)
        for _ in range(MAX_ORDER):
            keys, slots = np.unique(walk.keys(), return_inverse=True)
            self.keys.append(keys)
            self.counts.append(_largest_counts(slots, walk.row, len(keys), len(flat)))
            walk.extend(slots)

    def match(
        self, hypotheses: Sequence[Sequence[str]], row_input: Ints
    ) -> tuple[Ints, Ints, Ints]:
        """Compare hypotheses with the references of their inputs.

        Args:
            hypotheses: [rows] lists of tokens.
            row_input: [rows] indices of inputs.

        Returns:
            Clipped n-gram matches [rows, MAX_ORDER], lengths of the hypotheses [rows], and of the
            reference whose length is closest, the shorter one of two [rows].
        """
        get = self.ids.get
        words, lengths = _flatten([get(w, 0) for w in tokens] for tokens in hypotheses)
        correct = np.zeros((len(lengths), MAX_ORDER), dtype=np.int64)
        walk = _NgramWalk(words, lengths, row_input, self.base)
        for order, (keys, limits) in enumerate(zip(self.keys, self.counts)):
            wanted = walk.keys()
            if not len(keys) or not len(wanted):
                break
            slots = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            slots = walk.keep(keys[slots] == wanted, slots)
            pairs, counts = np.unique(walk.row * len(keys) + slots, return_counts=True)
            clipped = np.minimum(counts, limits[pairs % len(keys)])
            correct[:, order] = np.bincount(pairs // len(keys), clipped, minlength=len(lengths))
            walk.extend(slots)
        return correct, lengths, self._closest_lengths(lengths, row_input)

    def _closest_lengths(self, lengths: Ints, row_input: Ints) -> Ints:
        choices = self.lengths[row_input]
        distance = np.abs(choices - lengths[:, None])
        # Of two that are equally close, the longer one has the larger key.
        key = 2 * distance + (choices > lengths[:, None])
        closest: Ints = np.take_along_axis(choices, key.argmin(1)[:, None], 1)[:, 0]
        return closest


class _NgramWalk:
    """The n-grams of some sequences, order by order, as positions of their first word.

    Attributes, all int64 [n-grams still followed]:
        row: the sequence of each n-gram.
        prefix: the slot of its first n-1 words (at n = 1 the input).
    """

    def __init__(self, words: Ints, lengths: Ints, inputs: Ints, base: int) -> None:
        self._words = words
        self._base = base
        self._last = np.arange(len(words))  # position of the last word of the n-gram
        self._ends = np.cumsum(lengths)
        self.row = np.repeat(np.arange(len(lengths)), lengths)
        self.prefix: Ints = inputs[self.row]

    def keys(self) -> Ints:
        """(prefix, last word) as one integer."""
        keys: Ints = self.prefix * self._base + self._words[self._last]
        return keys

    def keep(self, mask: NDArray[np.bool_], slots: Ints) -> Ints:
        """Drop the n-grams where `mask` is False; returns the slots of the others."""
        self._last, self.row = self._last[mask], self.row[mask]
        return slots[mask]

    def extend(self, slots: Ints) -> None:
        """Go on to the n-grams that are one word longer; `slots` are those of the present ones."""
        self.prefix = slots
        self._last = self._last + 1
        self.prefix = self.keep(self._last < self._ends[self.row], slots)


def bleu_from_counts(
    correct: Ints,
    lengths: Ints,
    reference_lengths: Ints,
    smooth_method: str,
    smooth_value: float,
) -> Floats:
    """BLEU / 100 with effective order, row by row: ``sacrebleu.BLEU.compute_bleu``.

    BLEU = BP · exp(1/N Σ_{n ≤ N} log p_n), p_n = correct_n / total_n, N the largest order that the
    hypothesis has, BP = exp(1 − reference length / length) for a hypothesis that is shorter.
    Smoothing: ``exp`` sets the m-th vanishing p_n to 1 / (2^m total_n), ``floor`` a vanishing
    correct_n to `smooth_value`, ``add-k`` adds it to both for n > 1; with ``none`` one vanishing
    p_n makes the score 0. No correct word: 0 always.

    Args:
        correct: [rows, orders] clipped matches.
        lengths: [rows] words of the hypothesis.
        reference_lengths: [rows] words of the closest reference.
        smooth_method: one of `SMOOTH_METHODS`.
        smooth_value: for ``floor`` and ``add-k``.

    Returns:
        float64 [rows] in [0, 1].
    """
    matches = correct.astype(np.float64)
    totals = np.maximum(lengths[:, None] - np.arange(correct.shape[1]), 0).astype(np.float64)
    if smooth_method == "add-k":
        matches[:, 1:] += smooth_value
        totals[:, 1:] += smooth_value
    used = totals > 0
    if smooth_method == "exp":
        zero = used & (matches == 0)
        matches = np.where(zero, 0.5 ** np.cumsum(zero, axis=1), matches)
    elif smooth_method == "floor":
        matches = np.where(matches == 0, smooth_value, matches)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(used, np.log(matches / totals), 0.0)
        brevity = np.minimum(1.0 - reference_lengths / lengths, 0.0)
        scores = np.exp(brevity + logs.sum(axis=1) / used.sum(axis=1))
    return np.where(correct.any(axis=1), np.minimum(scores, 1.0), 0.0)


def _largest_counts(slots: Ints, rows: Ints, slot_count: int, row_count: int) -> Ints:
    """[slots] the largest number of times that a slot occurs in one row."""
    largest = np.zeros(slot_count, dtype=np.int64)
    pairs, counts = np.unique(slots * row_count + rows, return_counts=True)
    np.maximum.at(largest, pairs // max(row_count, 1), counts)
    return largest


def _padded_lengths(owner: Ints, lengths: Ints, inputs: int) -> Ints:
    """[inputs, most references] lengths; where there is no reference, one that is never closest."""
    number = np.bincount(owner, minlength=inputs)
    column = np.arange(len(owner)) - np.repeat(np.cumsum(number) - number, number)
    padded = np.full((inputs, max(1, number.max(initial=0))), 1 << 40, dtype=np.int64)
    padded[owner, column] = lengths
    return padded


def _flatten(sequences: Iterable[list[int]]) -> tuple[Ints, Ints]:
    """All numbers in one array, and the lengths [sequences]."""
    lists = list(sequences)
    lengths = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    flat = np.fromiter(chain.from_iterable(lists), dtype=np.int64, count=int(lengths.sum()))
    return flat, lengths


def _check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise EsrlError(
            f"reward 'bleu': {option} must be one of {', '.join(choices)}, not {value!r}"
        )


def _check_smooth_value(value: float | None) -> None:
    if value is not None and not (isinstance(value, (int, float)) and value >= 0):
        raise EsrlError(f"reward 'bleu': smooth_value must be a number >= 0, not {value!r}")
