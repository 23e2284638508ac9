"""Refusal of a checkpoint with another vocabulary than the data's."""

from __future__ import annotations

from typing import Any

from torch import nn

OTHER = "the checkpoint was trained with another vocabulary"
"""The beginning of its sentence."""


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
                    f"{OTHER}: its {side} has {len(weight)} words, the data's dictionary has "
                    f"{len(dictionary)}; binarize the data with the checkpoint's dictionary "
                    "(fairseq-preprocess --srcdict/--tgtdict), or choose another checkpoint"
                )

    model.register_load_state_dict_pre_hook(lambda _module, state, *args: check(state))
