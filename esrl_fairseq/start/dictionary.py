"""Whether the words of the data are those of the model that the run starts from.

Two dictionaries of one size fit the same model, and a wrong one gives every word another's meaning.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

from fairseq import utils
from fairseq.data import Dictionary, data_utils

from esrl_fairseq.errors import EsrlError

ENTRY = "dictionaries"
"""Of a task's state in checkpoints: a fingerprint for each side."""


def sides(task: Any) -> dict[str, Dictionary]:
    """The dictionaries of a task by their side; one for language models."""
    found = {"source": task.source_dictionary, "target": task.target_dictionary}
    return {side: dictionary for side, dictionary in found.items() if dictionary is not None}


def fingerprints(task: Any) -> dict[str, str]:
    """SHA-256 of each side's words in their order, for checkpoints."""
    return {side: _fingerprint(dictionary) for side, dictionary in sides(task).items()}


def _fingerprint(dictionary: Dictionary) -> str:
    return hashlib.sha256("\n".join(dictionary.symbols).encode()).hexdigest()


def check_dictionaries(task: Any, named: str, cfg: Any, extra_state: dict[str, Any]) -> None:
    """Refuse data whose words are not those of a checkpoint.

    Checkpoints of this package know their words by a fingerprint. Of others, the dictionaries of
    the data that they were trained on are read, where these are still there.

    Args:
        task: of the run.
        named: the checkpoint, in words.
        cfg: the checkpoint's configuration of its task.
        extra_state: of the checkpoint.

    Raises:
        EsrlError: naming the side and, where it is known, the first word that differs.
    """
    mend = "binarize the data with its dictionary (fairseq-preprocess --srcdict, --tgtdict)"
    kept = [state[ENTRY] for state in extra_state.values() if _has_entry(state)]
    if kept:
        own = fingerprints(task)
        for side, fingerprint in kept[0].items():
            if own.get(side, fingerprint) != fingerprint:
                raise EsrlError(
                    f"{named} was trained with other words, or in another order, than those of the "
                    f"{side} side's dictionary: {mend}"
                )
        return
    files = dictionary_files(cfg)
    for side, dictionary in sides(task).items():
        if side not in files:
            continue
        theirs, ours = Dictionary.load(files[side]).symbols, dictionary.symbols
        if len(theirs) != len(ours):  # fairseq's own refusal: sizes of embeddings
            continue
        differing = [i for i, (word, other) in enumerate(zip(theirs, ours)) if word != other]
        if differing:
            first = differing[0]
            raise EsrlError(
                f"{named} was trained with {files[side]}, but {len(differing)} of the "
                f"{len(ours):,} words of the {side} side's dictionary are others here (number "
                f"{first} is {theirs[first]!r} there and {ours[first]!r} here): {mend}"
            )


def _has_entry(state: Any) -> bool:
    return isinstance(state, dict) and isinstance(state.get(ENTRY), dict)


def dictionary_files(cfg: Any) -> dict[str, str]:
    """The files with a training's dictionaries by their side, those that are still there.

    Args:
        cfg: configuration of its task.
    """
    data = getattr(cfg, "data", None)
    if not isinstance(data, str) or not data:
        return {}
    folder = utils.split_paths(data)[0]
    if not os.path.isdir(folder):
        return {}
    if hasattr(cfg, "source_lang"):
        languages = [cfg.source_lang, cfg.target_lang]
        if None in languages:
            languages = list(data_utils.infer_language_pair(folder))
        names = dict(zip(("source", "target"), (f"dict.{language}.txt" for language in languages)))
    else:
        names = {"source": "dict.txt", "target": "dict.txt"}
    files = {side: os.path.join(folder, name) for side, name in names.items()}
    return {side: file for side, file in files.items() if os.path.exists(file)}
