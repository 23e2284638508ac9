"""Checks of data and checkpoints that fairseq itself does not make, with one sentence each."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from esrl_fairseq.errors import EsrlError


def check_training_data(dataset: Any, split: str, needs_references: bool) -> None:
    """Refuse data with an empty line; it holds nothing to learn from.

    Args:
        dataset: a fairseq ``LanguagePairDataset``.
        needs_references: whether target lines are needed too.

    Raises:
        EsrlError: naming the first such line (counted from 1) and their number.
    """
    _refuse_empty_lines(dataset.src, dataset.src_sizes, dataset.src_dict, f"source side of {split}")
    if not needs_references:
        return
    if dataset.tgt is None:
        raise EsrlError(
            f"{split!r} has no target side, but the reward needs references: run "
            "fairseq-preprocess without --only-source, or choose a reward without references"
        )
    _refuse_empty_lines(
        dataset.tgt, dataset.tgt_sizes, dataset.tgt_dict, f"target side (the references) of {split}"
    )


def _refuse_empty_lines(lines: Any, sizes: Any, dictionary: Any, name: str) -> None:
    special = {dictionary.pad(), dictionary.eos(), dictionary.bos()}
    candidates = np.flatnonzero(np.asarray(sizes) <= 2)
    empty = [i for i in candidates.tolist() if set(lines[i].tolist()) <= special]
    if empty:
        raise EsrlError(
            f"the {name} has {len(empty)} empty line(s), the first is line {empty[0] + 1}: "
            "remove them from both sides and run fairseq-preprocess again"
        )


def check_vocabulary_on_load(model: nn.Module, src_dict: Any, tgt_dict: Any) -> None:
    """Have ``model`` refuse a checkpoint whose vocabulary has another size than the data's.

    It is a plain ``SystemExit``: fairseq replaces any ``Exception`` in loading by its own, which
    names neither vocabularies nor sizes.
    """

    def check(state: dict[str, Any], *_: Any) -> None:
        for side, dictionary in (("encoder", src_dict), ("decoder", tgt_dict)):
            weight = state.get(f"{side}.embed_tokens.weight")
            if weight is not None and len(weight) != len(dictionary):
                raise SystemExit(
                    f"the checkpoint was trained with another vocabulary: its {side} has "
                    f"{len(weight)} words, the data's dictionary has {len(dictionary)}; binarize "
                    "the data with the checkpoint's dictionary (fairseq-preprocess "
                    "--srcdict/--tgtdict), or choose another checkpoint"
                )

    model.register_load_state_dict_pre_hook(lambda _module, state, *args: check(state))
