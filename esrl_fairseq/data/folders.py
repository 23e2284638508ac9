"""Folders of binarized data, and one sentence where something is not in them."""

import os
import struct
from typing import Any

import numpy as np
from fairseq import utils
from fairseq.data import data_utils, indexed_dataset
from fairseq.tasks import FairseqTask

from esrl_fairseq.errors import EsrlError

AT_ONCE = 2**20
"""Lines whose places are looked at together."""
MEND = "give the folder that fairseq-preprocess wrote (its --destdir)"


class FoundData(FairseqTask):
    """Mixed in before a task's own class: data that are not there are said to be in one sentence,
    those of later epochs before the first update."""

    mend_dictionary = ""
    """What else to do about a dictionary that is missing, for the message."""

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> Any:
        """fairseq's.

        Raises:
            EsrlError: a folder of data is missing, or languages are not given and the first folder
                does not tell them.
        """
        folders = utils.split_paths(cfg.data)
        for folder in folders:
            check_folder(folder)
        if None in (getattr(cfg, "source_lang", ""), getattr(cfg, "target_lang", "")):
            if None in data_utils.infer_language_pair(folders[0]):
                raise EsrlError(
                    f"{folders[0]} has no binarized data (files such as train.de-en.de.idx): {MEND}"
                )
        return super().setup_task(cfg, **kwargs)

    @classmethod
    def load_dictionary(cls, filename: str) -> Any:
        """fairseq's.

        Raises:
            EsrlError: it is missing.
        """
        if not os.path.exists(filename):
            raise EsrlError(
                f"there is no dictionary {filename}: are --source-lang and --target-lang those of "
                f"fairseq-preprocess?{cls.mend_dictionary}"
            )
        return super().load_dictionary(filename)

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any
    ) -> None:
        """fairseq's.

        Raises:
            EsrlError: the split is missing (of training data in any folder), or cannot be read.
        """
        folders = utils.split_paths(self.cfg.data)
        if split != self.cfg.train_subset:
            folders = folders[:1]  # only training data have shards
        now = folders[(epoch - 1) % len(folders)]
        check_whole(now, split)
        try:
            super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
        except EsrlError:
            raise
        except FileNotFoundError as error:
            raise missing(split, now) from error
        except (AssertionError, OSError, ValueError, struct.error) as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise EsrlError(
                f"the data of the split {split!r} in {now} cannot be read ({why}): make them again "
                "with fairseq-preprocess"
            ) from error
        for folder in folders:
            if not any(name.startswith(f"{split}.") for name in os.listdir(folder)):
                raise missing(split, folder)


def check_folder(folder: str) -> None:
    """Refuse what is no folder.

    Raises:
        EsrlError: with what to give instead.
    """
    if os.path.isfile(folder):
        raise EsrlError(f"{folder} is a file, not a folder: {MEND}")
    if not os.path.isdir(folder):
        raise EsrlError(f"there is no folder {folder}: {MEND}")


def check_whole(folder: str, split: str) -> None:
    """Refuse memory-mapped data whose two files do not fit each other, as after a disk that was
    full or a copy that broke off: a line would only fail when its turn comes.

    Raises:
        EsrlError: with the file and how to make it again.
    """
    for name in sorted(os.listdir(folder)):
        stem, kind = os.path.splitext(os.path.join(folder, name))
        if kind != ".idx" or not name.startswith(f"{split}.") or not os.path.exists(stem + ".bin"):
            continue
        if indexed_dataset.infer_dataset_impl(stem) != "mmap":
            continue
        damage = _damage(stem)
        if damage:
            raise EsrlError(
                f"{stem}.bin and {name} are not whole ({damage}): make them again with "
                "fairseq-preprocess, or copy them again"
            )


def _damage(stem: str) -> str:
    """What is wrong with a pair of memory-mapped files; empty if nothing is."""
    try:
        index = indexed_dataset.MMapIndexedDataset.Index(stem + ".idx")
    except (AssertionError, OSError, ValueError, KeyError, struct.error) as error:
        return (str(error) or type(error).__name__).splitlines()[0]
    sizes, starts, end = index.sizes, index._pointers, 0
    for first in range(0, len(sizes), AT_ONCE):
        part = sizes[first : first + AT_ONCE].astype(np.int64) * index.dtype().itemsize
        ends = end + part.cumsum()
        if (part < 0).any() or (starts[first : first + AT_ONCE] != ends - part).any():
            return "the places of lines do not follow each other"
        end = int(ends[-1])
    length = os.path.getsize(stem + ".bin")
    return "" if length == end else f"{length:,} bytes where the index says {end:,}"


def missing(split: str, folder: str) -> EsrlError:
    """What to say of a split that is not in a folder."""
    names = set(os.listdir(folder))
    stems = [name[: -len(".idx")] for name in sorted(names) if name.endswith(".idx")]
    # train.de-en.de and train.de-en.en are train.de-en; train, without languages, is itself.
    splits = dict.fromkeys(os.path.splitext(stem)[0] for stem in stems)
    halves = {os.path.splitext(stem)[0] for stem in stems if f"{stem}.bin" not in names}
    known = [name for name in splits if name not in halves]
    return EsrlError(
        f"there are no data of the split {split!r} in {folder}, which has "
        f"{', '.join(known) or 'no binarized data at all'}: make them with fairseq-preprocess "
        "(--trainpref, --validpref, --testpref), or name another split with --train-subset, "
        "--valid-subset or --gen-subset"
    )
