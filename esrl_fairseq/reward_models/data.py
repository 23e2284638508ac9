"""What a reward model is trained on: rated outputs, and outputs of which one was preferred.

The texts are data as for translation, binarized by ``fairseq-preprocess``: each line a source and
an output. Beside them, in the same folder, plain text says what people thought of the outputs:

    SPLIT.ratings      one number a line, higher for better outputs; nan: not rated
    SPLIT.preferences  two numbers of lines (from 1): the output of the first was preferred

Either file may be missing.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from fairseq.data import FairseqDataset, data_utils
from numpy.typing import NDArray

from esrl_fairseq.errors import EsrlError

Ratings = NDArray[np.float64]
Preferences = NDArray[np.int64]


def read_ratings(path: str, lines: int) -> Ratings:
    """float64 ``[lines]``, NaN for those that are not rated: all of them if there is no such file.

    Raises:
        EsrlError: something in it is not a number, or there is not one for each of the lines.
    """
    if not os.path.exists(path):
        return np.full(lines, np.nan)
    ratings = np.array([_rating(path, number, text) for number, text in _lines(path)], np.float64)
    if len(ratings) != lines:
        raise EsrlError(
            f"{path} has {len(ratings)} ratings, but the data have {lines} lines: give each line "
            "one, nan if nobody rated it"
        )
    return ratings


def read_preferences(path: str, lines: int) -> Preferences:
    """int64 ``[pairs, 2]``, indices of lines from 0, the preferred one first.

    Raises:
        EsrlError: something in it is not a pair of different lines of the data.
    """
    if not os.path.exists(path):
        return np.zeros((0, 2), np.int64)
    pairs = [_pair(path, number, text, lines) for number, text in _lines(path)]
    return np.array(pairs, np.int64).reshape(-1, 2) - 1


def _lines(path: str) -> list[tuple[int, str]]:
    with open(path, encoding="utf-8") as f:
        return list(enumerate(f.read().splitlines(), start=1))


def _rating(path: str, number: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise EsrlError(f"line {number} of {path} is {text!r}, but must be a number, or nan")
    return value


def _pair(path: str, number: int, text: str, lines: int) -> tuple[int, int]:
    try:
        preferred, other = (int(word) for word in text.split())
    except ValueError:
        preferred = other = 0
    if preferred == other or not (1 <= preferred <= lines and 1 <= other <= lines):
        raise EsrlError(
            f"line {number} of {path} is {text!r}, but must be the numbers of two different lines "
            f"of the data, from 1 to {lines}"
        )
    return preferred, other


class JudgedOutputs(FairseqDataset):
    """Items are rated outputs, one row each, and then preferences, two rows each.

    A row is what the encoder reads: ``source </s> output </s>``.

    Args:
        pairs: a ``LanguagePairDataset`` of sources and outputs.
        ratings: float ``[lines]``, NaN where there is none.
        preferences: int ``[pairs, 2]``, lines, the preferred one first.
        pad: id that rows are filled up with, on the right.
    """

    def __init__(self, pairs: Any, ratings: Ratings, preferences: Preferences, pad: int):
        self.pairs = pairs
        self.ratings = ratings
        self.pad = pad
        self.items = [(int(line),) for line in np.flatnonzero(~np.isnan(ratings))]
        self.items += [tuple(pair) for pair in preferences.tolist()]
        rows = np.asarray(pairs.src_sizes) + np.asarray(pairs.tgt_sizes)
        self.sizes = np.array([max(rows[line] for line in item) for item in self.items])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.items[index]
        return {
            "id": index,
            "rows": [torch.cat([self.pairs.src[line], self.pairs.tgt[line]]) for line in item],
            "rating": self.ratings[item[0]] if len(item) == 1 else None,
        }

    def size(self, index: int) -> int:
        """Tokens of the longest row."""
        return int(self.sizes[index])

    def num_tokens(self, index: int) -> int:
        """Positions that the item takes in a batch, which fairseq limits by ``--max-tokens``."""
        return int(self.sizes[index]) * len(self.items[index])

    def ordered_indices(self) -> NDArray[np.int64]:
        """Items by length, in random order where lengths are equal."""
        order = np.random.permutation(len(self))
        return order[np.argsort(self.sizes[order], kind="stable")]

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch: the rows, and which of them are rated, preferred, and compared with these."""
        if not samples:
            return {}
        rows: list[torch.Tensor] = []
        places: dict[str, list[int]] = {"rated": [], "preferred": [], "other": []}
        for sample in samples:
            names = ["rated"] if len(sample["rows"]) == 1 else ["preferred", "other"]
            for name, row in zip(names, sample["rows"]):
                places[name].append(len(rows))
                rows.append(row)
        ratings = [sample["rating"] for sample in samples if sample["rating"] is not None]
        batch = collate_rows(rows, self.pad)
        return {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "nsentences": len(samples),
            "ntokens": int(batch["src_lengths"].sum()),
            "net_input": batch,
            "ratings": torch.tensor(ratings, dtype=torch.float32),
            **{name: torch.tensor(place, dtype=torch.long) for name, place in places.items()},
        }


def collate_rows(rows: list[torch.Tensor], pad: int) -> dict[str, torch.Tensor]:
    """``src_tokens`` [rows, length], padded on the right, and ``src_lengths``."""
    return {
        "src_tokens": data_utils.collate_tokens(rows, pad, left_pad=False),
        "src_lengths": torch.tensor([len(row) for row in rows]),
    }
