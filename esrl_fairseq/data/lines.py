"""Lines of a data set: where they are in the text files, and which of them have no text."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from fairseq import utils
from fairseq.data import ConcatDataset, LanguagePairDataset
from fairseq.data.indexed_dataset import MMapIndexedDataset
from numpy.typing import NDArray

from esrl_fairseq.compat import stored_tokens
from esrl_fairseq.errors import EsrlError

Ints = NDArray[np.int64]
Text = Callable[[Sequence[int]], str]
"""From token ids to the text of which it is asked whether it is empty."""

PLACES = "places"
"""Entry of a batch: ``[inputs]`` names of lines, for messages."""
CHUNK = 1 << 20
"""Lines that are looked at together."""
SLOWLY_READ = 8
"""Tokens of the longest line that is looked at where fairseq gives lines one by one only."""


def split_name(data: str, split: str, train_subset: str, epoch: int = 1) -> str:
    """What messages call a split: its name, behind its folder where the data have several."""
    folders = utils.split_paths(data)
    if len(folders) == 1:
        return split
    # As in fairseq's translation: only training data have shards.
    return os.path.join(folders[(epoch - 1) % len(folders) if split == train_subset else 0], split)


def places(lines: Any, indices: Sequence[int], split: str, language: str = "") -> list[str]:
    """Where lines of a data set are in the text files, such as ``valid.en, line 7``.

    Args:
        lines: one side of the data set, as ``fairseq-preprocess`` has binarized it.
        indices: of the lines, from 0.
        split: see :func:`split_name`.
        language: what the name of this side's file ends with, if that has any such ending.
    """
    parts, rows = _part_of(_joined(lines), np.asarray(indices, np.int64))
    ending = f".{language}" if language else ""
    return [f"{split}{part or ''}{ending}, line {row + 1}" for part, row in zip(parts, rows)]


def _joined(lines: Any) -> Any:
    """The ``ConcatDataset`` of train, train1 and so on inside fairseq's wrappers, if there is one,
    else something without parts."""
    while not isinstance(lines, ConcatDataset):
        inner = getattr(lines, "dataset", getattr(lines, "lines", None))
        if inner is None:
            break
        lines = inner
    return lines


def _part_of(lines: Any, rows: Ints) -> tuple[Ints, Ints]:
    """The part of a ``ConcatDataset`` that each row is in, and its number there."""
    if not isinstance(lines, ConcatDataset):
        return np.zeros_like(rows), rows
    ends = np.array(lines.cumulative_sizes)
    part = np.searchsorted(ends, rows, side="right")
    start = np.concatenate([[0], ends])[part]
    return part, (rows - start) % np.array(lines.real_sizes)[part]


def empty_lines(side: Any, words: int, text: Text) -> Ints:
    """Indices of the lines whose tokens have no text, alone or together, ``[lines]``.

    Args:
        side: of a data set; where fairseq gives lines one by one only, those of more than
            :data:`SLOWLY_READ` tokens pass.
        words: in the dictionary.
        text: asked for each token once.

    Raises:
        EsrlError: the dictionary is not that of the data.
    """
    lines, first, sizes = side.stored if hasattr(side, "stored") else (side, 0, side.sizes)
    sizes, first = np.asarray(sizes), np.broadcast_to(first, len(sizes))
    blank, asked = np.zeros(words, bool), np.zeros(words, bool)
    slow = not _at_once(lines)
    found = []
    for start in range(0, len(sizes), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(sizes)))
        if slow:
            rows = rows[sizes[rows] <= SLOWLY_READ]
        place = 0
        while len(rows):
            ended = sizes[rows] <= place
            found.append(rows[ended])
            rows = rows[~ended]
            tokens = _tokens(lines, rows, first[rows] + place)
            if tokens.max(initial=0) >= words:
                raise EsrlError(
                    f"the data hold the word number {tokens.max()}, but their dictionary has "
                    f"{words}: it is another one than fairseq-preprocess wrote"
                )
            for token in np.unique(tokens[~asked[tokens]]).tolist():
                blank[token], asked[token] = not text([token]).strip(), True
            rows = rows[blank[tokens]]
            place += 1
    return np.sort(np.concatenate(found)) if found else np.zeros(0, np.int64)


def _at_once(lines: Any) -> bool:
    """Whether tokens of many lines can be had at once."""
    parts = lines.datasets if isinstance(lines, ConcatDataset) else [lines]
    return all(isinstance(part, MMapIndexedDataset) for part in parts)


def _tokens(lines: Any, rows: Ints, places: Ints) -> Ints:
    """Of each row the id at one place, ``[rows]``."""
    if isinstance(lines, MMapIndexedDataset):
        return stored_tokens(lines, rows, places)
    tokens = np.zeros(len(rows), np.int64)
    if not _at_once(lines):
        tokens[:] = [int(lines[row][at]) for row, at in zip(rows.tolist(), places.tolist())]
        return tokens
    parts, inner = _part_of(lines, rows)
    for number, part in enumerate(lines.datasets):
        chosen = parts == number
        tokens[chosen] = stored_tokens(part, inner[chosen], places[chosen])
    return tokens


class NamedLines(LanguagePairDataset):
    """The given data set; its batches also bring the places of their inputs, for messages.

    Args:
        dataset: a fairseq ``LanguagePairDataset``.
        split: see :func:`split_name`.
    """

    split = "data"

    def __init__(self, dataset: LanguagePairDataset, split: str):
        self.__dict__.update(vars(dataset))
        self.split = split

    def collater(self, samples: Any, pad_to_length: Any = None) -> dict[str, Any]:
        """fairseq's batch with the entry :data:`PLACES`."""
        batch = super().collater(samples, pad_to_length)
        if batch:
            batch[PLACES] = places(self.src, batch["id"].tolist(), self.split)
        return batch
