"""Whether binarized files are whole, before they are used: a line would only fail when its turn
comes, in an IndexError, or be read as other words.

A pair of files, ``NAME.bin`` with numbers and ``NAME.idx`` with the places of lines, is looked at
as a whole, at the speed of memory.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from fairseq.data.indexed_dataset import IndexedDataset, MMapIndexedDataset, _code_to_dtype
from numpy.typing import NDArray

from esrl_fairseq.errors import EsrlError

AT_ONCE = 2**20
"""Lines, or numbers, that are looked at together."""
KINDS = {
    "mmap": MMapIndexedDataset.Index._HDR_MAGIC,
    "cached": IndexedDataset._HDR_MAGIC,
    "lazy": IndexedDataset._HDR_MAGIC,
}
"""What an index of fairseq's ``--dataset-impl`` begins with. (Others are left to fairseq.)"""
MEND = "make them again with fairseq-preprocess, or copy them again"


@dataclass
class Stored:
    """What an index says of the numbers beside it.

    Attributes:
        dtype: of a number.
        sizes: numbers in each line.
        starts: of each line, in bytes or in numbers.
        number: how much of that a number is.
        first: how the number 0 is stored.
    """

    dtype: np.dtype[Any]
    sizes: NDArray[Any]
    starts: NDArray[np.int64]
    number: int
    first: int


class Damaged(Exception):
    """What is wrong with a pair of files."""


def dictionary_error(file: str, error: Exception) -> EsrlError:
    """What to say of a dictionary that fairseq cannot read."""
    why = (str(error) or type(error).__name__).splitlines()[0]
    return EsrlError(
        f"the dictionary {file} cannot be read ({why}): copy it again from the data that the model "
        "was trained on, or make the data again with fairseq-preprocess"
    )


def check_stored(path: str, impl: str, dictionary: Any = None) -> None:
    """Refuse a pair of files that is not whole, before fairseq reads it.

    Args:
        path: of both files, without their endings.
        impl: how fairseq reads them.
        dictionary: whose words they hold, or None.

    Raises:
        EsrlError: with the files, what is wrong with them and how to mend it.
    """
    if impl not in KINDS:
        return
    files = path + ".bin", path + ".idx"
    gone = [file for file in files if not os.path.exists(file)]
    if len(gone) == 1:
        raise EsrlError(f"there is no {gone[0]} beside {path}.*: {MEND}")
    if gone:
        return
    try:
        stored = read_index(path, impl)
        check_places(path, stored)
        if dictionary is not None:
            check_words(path, stored, len(dictionary))
    except (Damaged, OSError) as error:
        raise EsrlError(
            f"{files[0]} and {os.path.basename(files[1])} are not whole ({error}): {MEND}"
        ) from error


def read_index(path: str, impl: str) -> Stored:
    """What the index says.

    Raises:
        Damaged: it contradicts itself.
    """
    file, magic = path + ".idx", KINDS[impl]
    with open(file, "rb") as index:
        head, length = index.read(64), os.path.getsize(file)
    if not head.startswith(magic):
        own = [kind for kind in KINDS if head.startswith(KINDS[kind])]
        other = f"is one of --dataset-impl {own[0]}, not of {impl}" if own else "has no head"
        raise Damaged(f"the index {other if head else 'is empty'}")
    form = "<QB Q" if impl == "mmap" else "<QQQ QQ"
    end = len(magic) + struct.calcsize(form)
    if length < end:
        raise Damaged(f"{length} bytes of the index where its head alone takes {end}")
    version, code, *rest = struct.unpack(form, head[len(magic) : end])
    if version != 1 or code not in _code_to_dtype:
        raise Damaged(
            f"the head of the index names version {version} and kind of numbers {code}, which "
            "fairseq does not have"
        )
    dtype = np.dtype(_code_to_dtype[code])
    lines = rest[0] if impl == "mmap" else rest[1]
    # Of the older kind, whose lines could be tables: first dimensions, then numbers, of each.
    needed = 12 * lines if impl == "mmap" else 8 * (2 * (lines + 1) + rest[2])
    if length != end + needed:
        raise Damaged(
            f"{length:,} bytes of the index where its {lines:,} lines take {end + needed:,}"
        )
    if not lines:
        raise Damaged("there is no line in them")

    def part(dtype: Any, start: int, number: int) -> NDArray[Any]:
        return np.memmap(file, dtype, "r", end + start, (number,))

    if impl == "mmap":
        return Stored(
            dtype, part("<i4", 0, lines), part("<i8", 4 * lines, lines), dtype.itemsize, 0
        )
    dimensions, starts = part("<i8", 0, lines + 1), part("<i8", 8 * (lines + 1), lines + 1)
    if rest[0] != dtype.itemsize or rest[2] != lines or not counts_up(dimensions):
        raise Damaged("the index has not one size for each line")
    check_length(path, int(starts[-1]) * dtype.itemsize)
    sizes = part("<i8", 16 * (lines + 1), lines)
    return Stored(dtype, sizes, starts[:-1], 1, 1)


def counts_up(numbers: NDArray[np.int64]) -> bool:
    """Whether they are 0, 1, 2, …"""
    parts = ((first, numbers[first : first + AT_ONCE]) for first in range(0, len(numbers), AT_ONCE))
    return all((part == np.arange(first, first + len(part))).all() for first, part in parts)


def check_places(path: str, stored: Stored) -> None:
    """Lines follow each other, from the first byte of the numbers to the last.

    Raises:
        Damaged: they do not.
    """
    end = 0
    for first in range(0, len(stored.sizes), AT_ONCE):
        part = stored.sizes[first : first + AT_ONCE].astype(np.int64)
        ends = end + part.cumsum()
        starts = (ends - part) * stored.number
        if (part < 0).any() or (stored.starts[first : first + AT_ONCE] != starts).any():
            raise Damaged("the places of lines do not follow each other")
        end = int(ends[-1])
    check_length(path, end * stored.dtype.itemsize)


def check_length(path: str, expected: int) -> None:
    """The numbers take as many bytes as the index says, and not none.

    Raises:
        Damaged: they do not.
    """
    length = os.path.getsize(path + ".bin")
    if length != expected:
        raise Damaged(f"{length:,} bytes where the index says {expected:,}")
    if not length:
        raise Damaged("all lines are empty")


def check_words(path: str, stored: Stored, words: int) -> None:
    """All numbers are words of the dictionary.

    Args:
        words: how many it has.

    Raises:
        Damaged: they are no whole numbers.
        EsrlError: the dictionary is another one, or a number is damaged.
    """
    if stored.dtype.kind not in "iu":
        raise Damaged(f"the head of the index says {stored.dtype}, but words are whole numbers")
    numbers = np.memmap(path + ".bin", stored.dtype, "r")
    for first in range(0, len(numbers), AT_ONCE):
        part = numbers[first : first + AT_ONCE]
        if stored.first <= int(part.min()) and int(part.max()) < words + stored.first:
            continue
        place = first + int(((part < stored.first) | (part >= words + stored.first)).argmax())
        itself = int(numbers[place]) - stored.first
        line = int(np.searchsorted(stored.starts, place * stored.number, "right"))
        raise EsrlError(
            f"{path}.bin, line {line:,}: there is a word number {itself:,}, but the dictionary has "
            f"the words 0 to {words - 1:,}: give the dictionary that the data were made with "
            "(dict.*.txt beside them), or make the data again with fairseq-preprocess"
        )
