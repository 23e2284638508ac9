"""What tells training data from others: tokens, their order, dictionaries, shards."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from fairseq.data import (
    AppendTokenDataset,
    ConcatDataset,
    PrependTokenDataset,
    StripTokenDataset,
    TruncateDataset,
)
from fairseq.data.indexed_dataset import MMapIndexedDataset, best_fitting_int_dtype

from esrl_fairseq.compat import all_stored_tokens
from esrl_fairseq.data.lines import CHUNK
from esrl_fairseq.data.prompts import ContinuationSide, PromptSide
from esrl_fairseq.errors import EsrlError

PROBES = 64
"""Samples of which the first part of a fingerprint has all tokens."""
BLOCKS, BLOCK = 16, 4096
"""How many blocks of a file tell it from others, and their bytes."""
CHANGED_BY_OPTIONS = (AppendTokenDataset, PrependTokenDataset, StripTokenDataset, TruncateDataset)
"""fairseq's wrappers; what they do to lines shows in lengths and probes."""


def data_fingerprint(dataset: Any) -> str:
    """Two SHA-256 in hexadecimal digits: of lengths and probes, and of everything.

    The first is what earlier versions had alone: over the lengths of all samples and the tokens of
    some. The second is over all stored tokens, their lines and the words of the dictionaries.

    Args:
        dataset: a fairseq ``LanguagePairDataset``.
    """
    return _probed(dataset) + _everything(dataset)


def _probed(dataset: Any) -> str:
    digest = hashlib.sha256()
    for sizes in (dataset.src_sizes, dataset.tgt_sizes):
        if sizes is not None:
            _add(digest, sizes)
    for index in np.unique(np.linspace(0, len(dataset) - 1, PROBES).astype(np.int64)):
        sample = dataset[int(index)]
        for side in ("source", "target"):
            if sample[side] is not None:
                _add(digest, sample[side])
    return digest.hexdigest()


def _everything(dataset: Any) -> str:
    digest = hashlib.sha256()
    read: set[int] = set()  # prompts and what follows them are in the same files
    for lines, dictionary in ((dataset.src, dataset.src_dict), (dataset.tgt, dataset.tgt_dict)):
        if lines is None:
            continue
        digest.update("\n".join(dictionary.symbols).encode())
        dtype = best_fitting_int_dtype(len(dictionary))  # as fairseq-preprocess stores them
        for stored in _stored(lines):
            if id(stored) in read:
                continue
            read.add(id(stored))
            _add(digest, stored.sizes)
            if isinstance(stored, MMapIndexedDataset):
                _add(digest, all_stored_tokens(stored), dtype)
                continue
            for index in range(len(stored)):
                _add(digest, stored[index], dtype)
    return digest.hexdigest()


def _stored(lines: Any) -> Iterator[Any]:
    """The data sets, one a file where these are known, that lines are made of."""
    if isinstance(lines, ConcatDataset):
        for part in lines.datasets:
            yield from _stored(part)
    elif isinstance(lines, CHANGED_BY_OPTIONS):
        yield from _stored(lines.dataset)
    elif isinstance(lines, (PromptSide, ContinuationSide)):
        yield from _stored(lines.lines)
    else:
        yield lines


def _add(digest: Any, numbers: Any, dtype: Any = "<i8") -> None:
    for start in range(0, len(numbers), CHUNK):
        digest.update(np.ascontiguousarray(numbers[start : start + CHUNK], dtype))


def shard_marks(folders: Sequence[str], split: str, endings: tuple[str, str]) -> list[str]:
    """What tells the shards of the training data from each other, without reading all of them.

    Args:
        split: name of the training data in each folder.
        endings: of the names of their text files, see :class:`~esrl_fairseq.data_task.DataTask`.
    """
    pattern = rf"{re.escape(split)}\d*"
    if any(endings):
        one, other = (re.escape(str(ending)) for ending in endings)
        pattern += rf"\.({one}-{other}|{other}-{one}|({one}|{other})-None)\.({one}|{other})"
    names = re.compile(rf"{pattern}(\.bin|\.idx)?")
    return [
        hashlib.sha256(
            "".join(
                _mark(os.path.join(folder, name))
                for name in sorted(os.listdir(folder))
                if names.fullmatch(name)
            ).encode()
        ).hexdigest()[:16]
        for folder in folders
    ]


def _mark(path: str) -> str:
    size = os.path.getsize(path)
    digest = hashlib.sha256(f"{os.path.basename(path)} {size}".encode())
    with open(path, "rb") as file:
        for place in np.linspace(0, max(size - BLOCK, 0), BLOCKS).astype(np.int64).tolist():
            file.seek(place)
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def check_shards(saved: Sequence[str], own: Sequence[str], folders: Sequence[str]) -> None:
    """Refuse to resume with other shards of the data than those of the checkpoint.

    One shard alone is left to :meth:`~esrl_fairseq.state.capability.CapabilityStore.check_data`.

    Args:
        saved: :func:`shard_marks` of the checkpoint.
        own: those of this run.
        folders: of this run.

    Raises:
        EsrlError: with what is different.
    """
    if list(saved) == list(own) or len(saved) == len(own) == 1:
        return
    if len(saved) != len(own):
        what = f"with {len(saved)} data shards, but this run has {len(own)}"
    elif sorted(saved) == sorted(own):
        what = "with the same data shards in another order"
    else:
        place = next(i for i, mark in enumerate(own) if mark != saved[i])
        what = f"with another data shard in the place of {folders[place]}"
    raise EsrlError(
        f"the checkpoint was trained {what} ({':'.join(folders)}): give the folders of its data in "
        "their order, or start anew with --restore-file CHECKPOINT --reset-dataloader "
        "--reset-optimizer --reset-lr-scheduler --reset-meters"
    )
