"""Refusals of data that hold nothing to learn from, or lack what an option needs."""

from __future__ import annotations

import functools
from typing import Any

from esrl_fairseq.data.lines import Text, empty_lines, places
from esrl_fairseq.data.text import source_text
from esrl_fairseq.errors import EsrlError

WITH_TARGETS = "run fairseq-preprocess without --only-source"
"""How data get references."""
WITHOUT_EMPTY_LINES = "remove such lines from both sides and run fairseq-preprocess again"
"""What to do about empty lines."""
WITHOUT_REFERENCES = {
    "--reward": "choose a reward that needs none",
    "--capability": "choose --capability entropy, reward or none",
    "--mle-weight": "leave it out",
    "--eval-bleu": "leave it out",
}
"""What to do about an option that needs references."""


def check_references(
    dataset: Any,
    split: str,
    language: str,
    references_for: str,
    text: Text | None,
    mend: str = WITH_TARGETS,
    mend_empty: str = WITHOUT_EMPTY_LINES,
) -> None:
    """Refuse data without a target side, or with empty lines there, where an option needs them.

    Args:
        dataset: a fairseq ``LanguagePairDataset``.
        split, language: see :func:`~esrl_fairseq.data.lines.places`.
        references_for: the option with its value; empty if none needs references.
        text: see :func:`refuse_empty_lines`.
        mend: how to bring references, for the message.
        mend_empty: what to do about empty ones.

    Raises:
        EsrlError: naming the option and what to choose instead.
    """
    if not references_for:
        return
    without = WITHOUT_REFERENCES[references_for.split()[0]]
    if dataset.tgt is None:
        raise EsrlError(
            f"{split!r} has no target side, but {references_for} needs references: {without}, or "
            f"{mend}"
        )
    if references_for != "--eval-bleu":
        mend = f", but {references_for} needs references: {mend_empty}, or {without}"
        refuse_empty_lines(dataset.tgt, dataset.tgt_dict, split, language, text, mend)


def refuse_other_words(dataset: Any, split: str, endings: tuple[str, str], never: set[int]) -> None:
    """Refuse pairs with unknown words, or with target words that their model never writes.

    Args:
        dataset: a fairseq ``LanguagePairDataset``.
        split, endings: of both sides, see :func:`~esrl_fairseq.data.lines.places`.
        never: ids of these target words.

    Raises:
        EsrlError: naming the first such line, and the word.
    """
    sides = [(dataset.src, dataset.src_dict, set()), (dataset.tgt, dataset.tgt_dict, never)]
    for (side, dictionary, words), ending in zip(sides, endings):
        if side is None:
            continue
        wrong = {dictionary.unk(), *words}
        for line in range(len(side)):
            found = wrong.intersection(side[line].tolist())
            if found:
                raise EsrlError(
                    f"{places(side, [line], split, ending)[0]} has the word "
                    f"{dictionary[min(found)]}, which is no token that the model "
                    f"{'writes' if words else 'reads'}: make the data with python -m "
                    "esrl_fairseq.huggingface data, or leave out such lines"
                )


def refuse_empty_lines(
    side: Any,
    dictionary: Any,
    split: str,
    language: str,
    text: Text | None = None,
    mend: str = f": {WITHOUT_EMPTY_LINES}",
) -> None:
    """Refuse one side of a data set if it has lines without text.

    Args:
        split, language: see :func:`~esrl_fairseq.data.lines.places`.
        text: from token ids to the text that matters, where that is not the data's own.
        mend: end of the sentence.

    Raises:
        EsrlError: naming the first such line and their number.
    """
    own: Text = functools.partial(source_text, dictionary=dictionary, post_process=None)
    empty = empty_lines(side, len(dictionary), text or own)
    if not len(empty):
        return
    first = int(empty[0])
    words = own(side[first].tolist())
    what = f"has no text, only {words!r}" if words else getattr(side, "nothing", "is empty")
    number = f" (the first of {len(empty)} such lines)" if len(empty) > 1 else ""
    raise EsrlError(f"{places(side, [first], split, language)[0]} {what}{number}{mend}")
