"""Refusals of data that hold nothing to learn from, or lack what an option needs."""

from __future__ import annotations

from typing import Any

import numpy as np

from esrl_fairseq.errors import EsrlError

WITH_TARGETS = "run fairseq-preprocess without --only-source"
"""How data get references."""


WITHOUT_EMPTY_LINES = "remove them from both sides and run fairseq-preprocess again"
"""What to do about empty lines."""


def check_training_data(
    dataset: Any,
    split: str,
    references_for: str,
    mend: str = WITH_TARGETS,
    mend_empty: str = WITHOUT_EMPTY_LINES,
) -> None:
    """Refuse data with an empty line; it holds nothing to learn from.

    Args:
        dataset: a fairseq ``LanguagePairDataset``.
        references_for: the option that needs target lines, too; empty if none does.
        mend: see :func:`check_target_side`.
        mend_empty: see :func:`refuse_empty_lines`.

    Raises:
        EsrlError: naming the first such line (counted from 1) and their number.
    """
    refuse_empty_lines(
        dataset.src, dataset.src_sizes, dataset.src_dict, f"source side of {split}", mend_empty
    )
    if not references_for:
        return
    check_target_side(dataset, split, references_for, mend)
    refuse_empty_lines(
        dataset.tgt,
        dataset.tgt_sizes,
        dataset.tgt_dict,
        f"target side (the references) of {split}",
        mend_empty,
    )


WITHOUT_REFERENCES = {
    "--reward": "choose a reward that needs none",
    "--capability": "choose --capability entropy, reward or none",
    "--mle-weight": "leave it out",
    "--eval-bleu": "leave it out",
}
"""What to do about an option that needs references."""


def check_target_side(
    dataset: Any, split: str, references_for: str, mend: str = WITH_TARGETS
) -> None:
    """Refuse data without a target side where an option needs one.

    Args:
        dataset: a fairseq ``LanguagePairDataset``.
        references_for: the option with its value; empty if none needs references.
        mend: how to bring references, for the message.

    Raises:
        EsrlError: naming the option and what to choose instead.
    """
    if references_for and dataset.tgt is None:
        raise EsrlError(
            f"{split!r} has no target side, but {references_for} needs references: "
            f"{WITHOUT_REFERENCES[references_for.split()[0]]}, or {mend}"
        )


def refuse_empty_lines(
    lines: Any, sizes: Any, dictionary: Any, name: str, mend: str = WITHOUT_EMPTY_LINES
) -> None:
    """Refuse one side of a data set if it has an empty line; ``mend`` says what to do about it.

    Raises:
        EsrlError: naming the first such line (counted from 1) and their number.
    """
    special = {dictionary.pad(), dictionary.eos(), dictionary.bos()}
    candidates = np.flatnonzero(np.asarray(sizes) <= 2)
    empty = [i for i in candidates.tolist() if set(lines[i].tolist()) <= special]
    if empty:
        raise EsrlError(
            f"the {name} has {len(empty)} empty line(s), the first is line {empty[0] + 1}: {mend}"
        )
