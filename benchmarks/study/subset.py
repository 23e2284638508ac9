"""The first inputs of a binarized training set, as a data folder of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from fairseq.data import data_utils, indexed_dataset
from plan import StudyError


def first_inputs(data: Path, inputs: int, folder: Path) -> None:
    """Write ``folder``: as the data folder ``data``, but ``train`` has its first ``inputs`` alone.

    The folder is whole or not there. What does not change is linked.

    Raises:
        StudyError: there are not so many.
    """
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for file in data.resolve().iterdir():
        if not file.name.startswith("train."):
            (part / file.name).symlink_to(file)
        elif file.suffix == ".bin":
            _copy_first(file.with_suffix(""), inputs, part / file.stem)
    part.replace(folder)


def _copy_first(source: Path, inputs: int, copy: Path) -> None:
    """Of one side, named without .bin or .idx."""
    dataset = data_utils.load_indexed_dataset(str(source), None, dataset_impl="mmap")
    if len(dataset) < inputs:
        raise StudyError(f"train_inputs = {inputs}, but {source} has only {len(dataset)}")
    wide = np.int32  # for any vocabulary
    builder = indexed_dataset.MMapIndexedDatasetBuilder(f"{copy}.bin", dtype=wide)
    for i in range(inputs):
        builder.add_item(dataset[i])
    builder.finalize(f"{copy}.idx")
