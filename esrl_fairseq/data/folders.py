"""Folders of binarized data, and one sentence where something is not in them."""

import os
import re
import struct
from typing import Any

from fairseq import utils
from fairseq.data import data_utils, indexed_dataset
from fairseq.tasks import FairseqTask

from esrl_fairseq.data.stored import check_stored
from esrl_fairseq.errors import EsrlError

MEND = "give the folder that fairseq-preprocess wrote (its --destdir)"
UNREADABLE = (AssertionError, LookupError, OSError, OverflowError, ValueError, struct.error)
"""What damaged files raise where fairseq reads them."""


class FoundData(FairseqTask):
    """Mixed in before a task's own class: data that are not there are said to be in one sentence,
    those of later epochs before the first update."""

    mend_dictionary = ""
    """What else to do about a dictionary that is missing, for the message."""
    other_shards_are_whole = False
    """Whether they were looked at."""

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
        if split == self.cfg.train_subset and not self.other_shards_are_whole:
            for folder in folders:
                if folder != now:  # that one is looked at when it is read
                    check_whole(folder, split)
            self.other_shards_are_whole = True
        try:
            super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
        except EsrlError:
            raise
        except FileNotFoundError as error:
            raise missing(split, now) from error
        except UNREADABLE as error:
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
    """Refuse binarized data of a split whose files are damaged, before their epoch comes.

    Raises:
        EsrlError: with the files and how to make them again.
    """
    names = re.compile(rf"{re.escape(split)}\d*\..*|{re.escape(split)}\d*")
    for name in sorted(os.listdir(folder)):
        stem, kind = os.path.splitext(os.path.join(folder, name))
        if kind == ".idx" and names.fullmatch(os.path.basename(stem)):
            check_stored(stem, indexed_dataset.infer_dataset_impl(stem) or "cached")


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
