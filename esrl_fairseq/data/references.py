"""Further references of a data set: text files beside its target side (docs/rewards.md)."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from fairseq.data import Dictionary, LanguagePairDataset
from torch import Tensor

from esrl_fairseq.core.suggest import did_you_mean
from esrl_fairseq.data.lines import NamedLines, Text
from esrl_fairseq.errors import EsrlError

FURTHER = "further_references"
"""Entry of a batch: ``[inputs]`` lists of lines, which may be empty."""
PROBED = 1000
"""Lines that tell whether a file was prepared as the target side."""
MORE_UNKNOWN = 0.1
"""Share of unknown words, above that of the target side, which says that it was not."""


def reference_files(folder: str, split: str, src: str, tgt: str) -> list[str]:
    """Paths of a split's further references, ``SPLIT.SRC-TGT.TGT1``, ``…TGT2`` and so on.

    Raises:
        EsrlError: there is none, or a number is left out.
    """
    pairs = f"{re.escape(src)}-{re.escape(tgt)}|{re.escape(tgt)}-{re.escape(src)}"
    pattern = re.compile(rf"{re.escape(split)}\.({pairs})\.{re.escape(tgt)}([1-9]\d*)")
    names = os.listdir(folder)
    matches = [pattern.fullmatch(name) for name in names]
    found = {int(match[2]): match[0] for match in matches if match}
    first = os.path.join(folder, f"{split}.{src}-{tgt}.{tgt}1")
    if not found:
        splits = {name.partition(".")[0] for name in names if name.endswith(f".{tgt}1")}
        raise EsrlError(
            f"--reward-references names the split {split!r}{did_you_mean(split, splits)}, but it "
            f"has no further references: put them into the text file {first}, or leave the split "
            "out"
        )
    missing = set(range(1, max(found))) - found.keys()
    if missing:
        raise EsrlError(
            f"further references of the split {split!r} are numbered from 1 ({first}) to "
            f"{max(found)}, but there is no file with number {min(missing)}: rename the others"
        )
    return [os.path.join(folder, found[number]) for number in sorted(found)]


def read_references(
    path: str, dataset: LanguagePairDataset, split: str, text: Text | None = None
) -> list[str]:
    """[samples] lines of a file of further references, empty for samples that have none there.

    Args:
        text: from token ids to what the reward sees; None leaves it unchecked.

    Raises:
        EsrlError: the lines cannot be those of `dataset`, or one has words but no text.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise EsrlError(f"{path} cannot be read: {error}") from error
    if len(lines) != len(dataset):
        raise EsrlError(
            f"{path} has {len(lines)} lines, but {split!r} has {len(dataset)} inputs: it needs "
            "one line for each, an empty one where there is no further reference"
        )
    words, unk = dataset.tgt_dict, dataset.tgt_dict.unk()
    probed = range(min(len(dataset), PROBED))
    own = unknown_share((dataset.tgt[i] for i in probed), unk)
    share = unknown_share((encode(lines[i], words) for i in probed if lines[i]), unk)
    if share > own + MORE_UNKNOWN:
        raise EsrlError(
            f"{share:.0%} of the words of {path} are not in the dictionary, {own:.0%} of those of "
            "the target side: it needs the same tokenisation and sub-words, as that side had "
            "before fairseq-preprocess"
        )
    if text is not None:
        _check_text(path, lines, words, text)
    return lines


def _check_text(path: str, lines: Sequence[str], dictionary: Dictionary, text: Text) -> None:
    blank = functools.cache(lambda word: not text([dictionary.index(word)]).strip())
    for number, line in enumerate(lines, 1):
        if line and blank(line.split(None, 1)[0]) and all(map(blank, line.split())):
            raise EsrlError(
                f"{path}, line {number} has no text, only {line!r}: leave it empty, if there is no "
                "further reference"
            )


def encode(line: str, dictionary: Dictionary) -> Tensor:
    """Token ids of a line, as ``fairseq-preprocess`` writes them, EOS included."""
    return dictionary.encode_line(line, add_if_not_exist=False)


def unknown_share(sequences: Iterable[Tensor], unk: int) -> float:
    """Share of unknown words among all, 0 where there are none."""
    counts = [(int(ids.eq(unk).sum()), len(ids) - 1) for ids in sequences]  # without EOS
    return sum(unknown for unknown, _ in counts) / max(sum(words for _, words in counts), 1)


class MultiReferenceDataset(NamedLines):
    """The given data set; its batches also bring the inputs' further references.

    Args:
        dataset: a fairseq ``LanguagePairDataset``, whose target side is the first reference.
        columns: ``[references]`` lists of ``[samples]`` lines, empty ones left out.
    """

    def __init__(self, dataset: LanguagePairDataset, columns: Sequence[Sequence[str]]):
        self.__dict__.update(vars(dataset))
        self.further = [[line for line in lines if line] for lines in zip(*columns)]

    def collater(self, samples: Any, pad_to_length: Any = None) -> dict[str, Any]:
        """fairseq's batch with the entry :data:`FURTHER`."""
        batch = super().collater(samples, pad_to_length)
        if batch:
            batch[FURTHER] = [self.further[i] for i in batch["id"].tolist()]
        return batch


def with_references(
    dataset: LanguagePairDataset,
    split: str,
    folder: str,
    src: str,
    tgt: str,
    text: Text | None = None,
) -> MultiReferenceDataset:
    """The data set of `split` with the further references that lie in `folder`.

    For `text` see :func:`read_references`.

    Raises:
        EsrlError: what is wrong with these files.
    """
    files = reference_files(folder, split, src, tgt)
    if dataset.tgt is None:
        raise EsrlError(
            f"--reward-references names the split {split!r}, but it has no target side, which is "
            "the first reference: run fairseq-preprocess without --only-source"
        )
    columns = [read_references(path, dataset, split, text) for path in files]
    return MultiReferenceDataset(dataset, columns)
