"""N-grams that hypotheses share with the references of their inputs, for a whole batch at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class NgramCounts:
    """The n-gram counts of the references of a batch of inputs.

    An n-gram of an input is known by its *slot*: slot(w_1) is the rank of (input, w_1) among those
    that occur in the references, slot(w_1 … w_n) the rank of (slot(w_1 … w_{n-1}), w_n). So every
    order is one ``searchsorted`` in integers, exact (no hashing), and an n-gram can only be there
    if its first n-1 words are.

    Args:
        references: [inputs][references of the input] sequences of tokens.
        max_order: the largest n.

    Attributes:
        ids: token -> 1…; 0 stands for every token that no reference has.
        owner: [references] the input of each reference.
        lengths: [references] their numbers of tokens.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[str]]], max_order: int) -> None:
        flat = [ref for refs in references for ref in refs]
        number = np.fromiter(map(len, references), dtype=np.int64, count=len(references))
        self.owner: Ints = np.repeat(np.arange(len(references)), number)
        self.ids: dict[str, int] = {}
        ids = self.ids
        words, self.lengths = _flatten(
            [ids.setdefault(w, len(ids) + 1) for w in ref] for ref in flat
        )
        self._base = len(ids) + 1
        self._keys: list[Ints] = []  # per order: sorted keys; the index of a key is its slot
        self._counts: list[Ints] = []  # per order: [slots] largest count in any one reference
        walk = _NgramWalk(words, self.lengths, self.owner, self._base)
        for _ in range(max_order):
            keys, slots = np.unique(walk.keys(), return_inverse=True)
            self._keys.append(keys)
            self._counts.append(_largest_counts(slots, walk.row, len(keys), len(flat)))
            walk.extend(slots)

    def match(self, hypotheses: Sequence[Sequence[str]], row_input: Ints) -> tuple[Ints, Ints]:
        """Compare hypotheses with the references of their inputs.

        Args:
            hypotheses: [rows] sequences of tokens.
            row_input: [rows] indices of inputs.

        Returns:
            Matches [rows, orders], an n-gram counted at most as often as in the one reference that
            has it most often, and the lengths of the hypotheses [rows].
        """
        get = self.ids.get
        words, lengths = _flatten([get(w, 0) for w in tokens] for tokens in hypotheses)
        matches = np.zeros((len(lengths), len(self._keys)), dtype=np.int64)
        walk = _NgramWalk(words, lengths, row_input, self._base)
        for order, (keys, limits) in enumerate(zip(self._keys, self._counts)):
            wanted = walk.keys()
            if not len(keys) or not len(wanted):
                break
            slots = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            slots = walk.keep(keys[slots] == wanted, slots)
            pairs, counts = np.unique(walk.row * len(keys) + slots, return_counts=True)
            clipped = np.minimum(counts, limits[pairs % len(keys)])
            matches[:, order] = np.bincount(pairs // len(keys), clipped, minlength=len(lengths))
            walk.extend(slots)
        return matches, lengths


def ngram_totals(lengths: Ints, max_order: int) -> Ints:
    """[sequences, orders] numbers of n-grams of sequences that have these lengths."""
    totals: Ints = np.maximum(lengths[:, None] - np.arange(max_order), 0)
    return totals


class RowReferences:
    """Every row paired with every reference of its input, for metrics that keep the best one.

    Args:
        references: [inputs] non-empty lists of texts.
        row_input: [rows] indices of inputs.

    Attributes:
        texts: all references, one input after the other.
        row: int64 [pairs] the row of each pair, ascending.
        reference: int64 [pairs] index into `texts`.
    """

    def __init__(self, references: Sequence[Sequence[str]], row_input: Sequence[int]) -> None:
        self.texts = [text for refs in references for text in refs]
        rows = np.asarray(row_input, dtype=np.int64)
        number = np.fromiter(map(len, references), dtype=np.int64, count=len(references))
        first = np.cumsum(number) - number
        pairs = number[rows]
        self._starts = np.cumsum(pairs) - pairs
        self.row: Ints = np.repeat(np.arange(len(rows)), pairs)
        self.reference: Ints = np.repeat(first[rows] - self._starts, pairs)
        self.reference += np.arange(len(self.row))

    def best(self, values: Floats) -> Floats:
        """[…, rows] the largest of each row's values [..., pairs]."""
        largest: Floats = np.maximum.reduceat(values, self._starts, axis=-1)
        return largest


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


def _largest_counts(slots: Ints, rows: Ints, slot_count: int, row_count: int) -> Ints:
    """[slots] the largest number of times that a slot occurs in one row."""
    largest = np.zeros(slot_count, dtype=np.int64)
    pairs, counts = np.unique(slots * row_count + rows, return_counts=True)
    np.maximum.at(largest, pairs // max(row_count, 1), counts)
    return largest


def _flatten(sequences: Iterable[list[int]]) -> tuple[Ints, Ints]:
    """All numbers in one array, and the lengths [sequences]."""
    lists = list(sequences)
    lengths = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    flat = np.fromiter(chain.from_iterable(lists), dtype=np.int64, count=int(lengths.sum()))
    return flat, lengths


def pair_counts(
    references: Sequence[Sequence[str]],
    hypotheses: Sequence[Sequence[str]],
    pairs: RowReferences,
    max_order: int,
) -> Ints:
    """[3, pairs, orders] n-grams of the hypothesis, of the reference, and common to both."""
    counts = NgramCounts([[ref] for ref in references], max_order)
    matches, lengths = counts.match([hypotheses[row] for row in pairs.row], pairs.reference)
    of_references = counts.lengths[pairs.reference]
    totals = ngram_totals(lengths, max_order), ngram_totals(of_references, max_order)
    return np.stack([*totals, matches])
