"""Checks of data and checkpoints that fairseq itself does not make, with one sentence each."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from esrl_fairseq.errors import EsrlError


def check_training_data(dataset: Any, split: str) -> None:
    """Refuse data with an empty source line; it holds nothing to learn from.

    Args:
        dataset: a fairseq ``LanguagePairDataset``.

    Raises:
        EsrlError: naming the first such line (counted from 1) and their number.
    """
    special = {dataset.src_dict.pad(), dataset.src_dict.eos(), dataset.src_dict.bos()}
    candidates = np.flatnonzero(np.asarray(dataset.src_sizes) <= 2)
    empty = [i for i in candidates.tolist() if set(dataset.src[i].tolist()) <= special]
    if empty:
        raise EsrlError(
            f"the source side of {split!r} has {len(empty)} empty line(s), the first is line "
            f"{empty[0] + 1}: remove them from both sides and run fairseq-preprocess again"
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
